"""Saying why a connection is refused, and hearing it: one frame of text on a stream of its own, then the end.

Without it whoever is banned, or comes to a full node, sees connections that end for no reason. What a peer says is
text for people: it decides nothing.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException

from bflnode.consensus.rejection import Rejection

from .libp2p_repairs import GuardedHost
from .streams import MAX_REASON_BYTES, FrameStream, PeerId, TransportError

logger = logging.getLogger(__name__)

NOTICE = "/bflnode/notice/1"
"""This never changes: nodes of all versions must understand it."""

NOTICE_TIMEOUT_S = 2.0
"""How long a refused connection lives at most."""

MAX_NOTICES = 16
"""Connections that are told at the same time; more are closed without a word."""

MAX_TOLD = 256
"""Peers whose last words are kept, oldest dropped first."""

PAUSE_S = 5.0
"""A peer that comes again sooner is closed without a word: it has been told. Nor does it say more than that to us."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a peer said when it refused a connection, and when by this process' clock."""

    reason: str
    at_s: float


class Notices:
    """The last words of connections, both ways."""

    def __init__(self, host: GuardedHost, heard: Callable[[PeerId, str], None]) -> None:
        self._host = host
        self._heard = heard
        self._telling = 0
        self._told_at_s: dict[PeerId, float] = {}
        self._received: dict[PeerId, Notice] = {}
        host.set_stream_handler(TProtocol(NOTICE), self._serve)

    def last(self, peer: PeerId) -> Notice | None:
        """What a peer said last."""
        return self._received.get(peer)

    async def tell(self, connection: SwarmConn, reason: str) -> None:
        """Say why a connection is closed, if the peer listens soon; the caller closes it."""
        peer = PeerId(connection.muxed_conn.peer_id.to_base58())
        now_s = trio.current_time()
        if self._telling >= MAX_NOTICES or now_s < self._told_at_s.get(peer, -PAUSE_S) + PAUSE_S:
            return
        _make_room(self._told_at_s)
        self._told_at_s[peer] = now_s
        self._telling += 1
        try:
            with trio.move_on_after(NOTICE_TIMEOUT_S):
                frames = FrameStream(await self._host.open_stream(connection, [TProtocol(NOTICE)]))
                await frames.send(reason.encode("utf-8")[:MAX_REASON_BYTES])
                await frames.receive(0)  # the peer closes the stream when it has read
        except (SwarmException, StreamFailure, TransportError, Rejection) as error:
            logger.debug("%s was not told why it is refused: %s", peer, error)
        finally:
            self._telling -= 1

    async def _serve(self, stream: INetStream) -> None:
        peer = PeerId(stream.muxed_conn.peer_id.to_base58())
        frames = FrameStream(stream)
        try:
            with trio.move_on_after(NOTICE_TIMEOUT_S):
                data = await frames.receive(MAX_REASON_BYTES)
                known = self._received.get(peer)
                if data and (known is None or trio.current_time() >= known.at_s + PAUSE_S):
                    text = data.decode("utf-8", "replace")
                    reason = "".join(character if character.isprintable() else "?" for character in text)
                    self._received.pop(peer, None)
                    _make_room(self._received)
                    self._received[peer] = Notice(reason, trio.current_time())
                    self._heard(peer, reason)
        except (TransportError, Rejection) as error:
            logger.debug("a notice of %s: %s", peer, error)
        finally:
            await frames.abort()


def _make_room(table: dict[PeerId, Any]) -> None:
    if len(table) >= MAX_TOLD:
        del table[next(iter(table))]
