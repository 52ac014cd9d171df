"""Who has a place at a node when places are short: strangers can't keep out those that the node wants. No network here.

    RESERVED   configured, or speaks for a validator: has a place always, a stranger's if there is no other
    MEMBER     speaks for an account of the chain: has a stranger's place where all are taken
    STRANGER   has said hello, as anybody may
    NEW        hasn't yet: a few connections more, for as long as a hello takes

Which peer is what is `peers`' business. Sockets are counted before anybody knows whose they are (`Gate`): the last of
them are for hosts of those that have a place in any case.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from .streams import PeerId, PeerSession

HELLO_GRACE_S = 2.0
"""A connection without hello for so long gives way to the next one where the node is full: a hello takes a few round
trips, and who holds places by saying nothing must not keep a validator from saying one."""

USUAL_CONNECTIONS = 2
"""Two after a simultaneous dial: a peer that has more gives way to one that has none, where connections are short."""

MAX_RESERVED_PEERS = 256
"""Peers for whose hosts sockets are kept free, of those worth least the one that was named first gives way."""

MAX_HOSTS_PER_PEER = 4
"""Their hosts, the one named first gives way: an account could come from everywhere, and push out all others."""


class Worth(IntEnum):
    """How much a node wants a peer."""

    NEW = 0
    STRANGER = 1
    MEMBER = 2
    RESERVED = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a new connection.

    Attributes:
        refusal: why it is refused; None where it is taken.
        displaced: the peer that has to go for it.
    """

    refusal: str | None = None
    displaced: PeerId | None = None


class Places:
    """The places of a node.

    Args:
        max_peers: for peers that have said hello, but for reserved ones.
        beside: for those that haven't yet.
        clock: in seconds.

    Attributes:
        worth_of: what a peer is to the node, connected or not.
    """

    def __init__(
        self, max_peers: int, beside: int, worth_of: Callable[[PeerId], Worth], clock: Callable[[], float]
    ) -> None:
        self.worth_of = worth_of
        self._max_peers = max_peers
        self._beside = beside
        self._clock = clock
        self._hosts: dict[PeerId, tuple[str, ...]] = {}

    def reserve_host(self, host: str, peer: PeerId) -> None:
        """Keep sockets free for what comes from an IP address of a peer."""
        hosts = [known for known in self._hosts.pop(peer, ()) if known != host]
        if len(self._hosts) >= MAX_RESERVED_PEERS:
            del self._hosts[min(self._hosts, key=self.worth_of)]
        self._hosts[peer] = (*hosts, host)[-MAX_HOSTS_PER_PEER:]

    def release_hosts(self, peer: PeerId) -> None:
        """Keep no sockets free for a peer."""
        self._hosts.pop(peer, None)

    def is_reserved_host(self, host: str) -> bool:
        """Whether sockets are kept free for an IP address."""
        return any(host in hosts for hosts in self._hosts.values())

    def judge(
        self, peer: PeerId, sessions: Mapping[PeerId, PeerSession], connections: Counter[PeerId], most: int
    ) -> Verdict:
        """Whether a new connection is taken.

        Args:
            peer: whose it is.
            sessions: connected peers.
            connections: how many each peer has, the new one included.
            most: connections in all, beyond which a reserved peer takes another's place.
        """
        worths = {known: self.worth_of(known) for known in sessions}
        others = {known for known, worth in worths.items() if worth is not Worth.RESERVED}
        if self.worth_of(peer) is Worth.RESERVED:
            if connections.total() <= most or not others:
                return Verdict()
            return Verdict(displaced=min(others, key=lambda known: (worths[known], -sessions[known].started_at)))
        total = sum(connections[known] for known in others | {peer})
        is_new, most_others = peer not in sessions, self._max_peers + self._beside
        if total <= self._max_peers + most_others and (not is_new or len(others) < most_others):
            return Verdict()
        displaced = self._dispensable(others, worths, sessions, connections) if is_new else None
        if displaced is None:
            return Verdict(f"full: there are {self._max_peers} peers already")
        return Verdict(displaced=displaced)

    def _dispensable(
        self,
        others: set[PeerId],
        worths: Mapping[PeerId, Worth],
        sessions: Mapping[PeerId, PeerSession],
        connections: Counter[PeerId],
    ) -> PeerId | None:
        """Who gives way to a new peer: the one that has said no hello for longest, else one with many connections."""
        latest = self._clock() - HELLO_GRACE_S
        late = [known for known in others if worths[known] is Worth.NEW and sessions[known].started_at <= latest]
        greedy = [known for known in others if connections[known] > USUAL_CONNECTIONS]
        if late:
            return min(late, key=lambda known: sessions[known].started_at)
        return min(greedy, key=lambda known: (worths[known], -connections[known]), default=None)
