"""Keeping connections: a remembered peer is dialled, and dialled again with back-off and jitter whenever it is gone.

Peers that a person named are dialled for ever, others until they have been gone for a while: what a stranger calls its
address may be somebody else's.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Iterator

import trio

from .streams import PeerId, PeerSession, TransportError

logger = logging.getLogger(__name__)

REDIAL_FIRST_S = 0.2
REDIAL_FACTOR = 2.0
REDIAL_MAX_S = 5.0
"""Back-off of a peer that a person named. The cap is small: a dial of a dead port is cheap, a lost validator is not."""

REDIAL_OTHERS_MAX_S = 30.0
"""The same for peers that were only met."""

GIVE_UP_S = 900.0
"""A peer that was only met is forgotten when it has been gone for so long; the address book still has it."""

REDIAL_JITTER = 0.25
"""Nodes that lost the same peer must not all dial it at the same moment."""

STABLE_CONNECTION_S = 2.0
"""A connection that lasted this long resets the back-off; a flapping peer keeps it."""


class Redialler:
    """Remembers peers and dials them.

    Args:
        nursery: where it dials.
        dial: connects to an address; raises `TransportError`.
        session_of: the session with a peer, if it is connected.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        dial: Callable[[str], Awaitable[object]],
        session_of: Callable[[PeerId], PeerSession | None],
    ) -> None:
        self._nursery = nursery
        self._dial = dial
        self._session_of = session_of
        self._addresses: dict[PeerId, dict[str, None]] = {}
        self._scopes: dict[PeerId, trio.CancelScope] = {}
        self._for_ever: set[PeerId] = set()

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._scopes

    def peers(self) -> tuple[PeerId, ...]:
        """All remembered peers."""
        return tuple(self._scopes)

    def is_named(self, peer: PeerId) -> bool:
        """Whether a person named a peer."""
        return peer in self._for_ever

    def remember(self, peer: PeerId, address: str, *, for_ever: bool) -> None:
        """Keep a connection to a peer; several addresses are tried in turn."""
        self._addresses.setdefault(peer, {})[address] = None
        if for_ever:
            self._for_ever.add(peer)
        if peer not in self._scopes:
            self._scopes[peer] = trio.CancelScope()
            self._nursery.start_soon(self._keep_connected, peer, self._scopes[peer])

    def forget(self, peer: PeerId) -> None:
        """Stop dialling a peer."""
        self._addresses.pop(peer, None)
        self._for_ever.discard(peer)
        scope = self._scopes.pop(peer, None)
        if scope is not None:
            scope.cancel()

    async def _keep_connected(self, peer: PeerId, scope: trio.CancelScope) -> None:
        with scope:
            delay_s = REDIAL_FIRST_S
            last_seen_s = trio.current_time()
            for address in _in_turn(self._addresses[peer]):
                session = self._session_of(peer)
                if session is None:
                    try:
                        await self._dial(address)
                        session = self._session_of(peer)
                    except TransportError as error:
                        logger.debug("redial: %s", error)
                if session is not None:
                    await session.finished.wait()
                    last_seen_s = trio.current_time()
                    if last_seen_s - session.started_at > STABLE_CONNECTION_S:
                        delay_s = REDIAL_FIRST_S
                is_named = peer in self._for_ever
                if not is_named and trio.current_time() - last_seen_s > GIVE_UP_S:
                    logger.info("peer %s has been gone for %g s: it is not dialled any more", peer, GIVE_UP_S)
                    self.forget(peer)
                    return
                await trio.sleep(delay_s * random.uniform(1 - REDIAL_JITTER, 1 + REDIAL_JITTER))
                delay_s = min(REDIAL_MAX_S if is_named else REDIAL_OTHERS_MAX_S, delay_s * REDIAL_FACTOR)


def _in_turn(addresses: dict[str, None]) -> Iterator[str]:
    while True:
        yield from tuple(addresses)
