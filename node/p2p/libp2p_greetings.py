"""How what listens at an address begins a connection: which network it is of, without saying a word to it."""

from enum import Enum
from typing import Any

import trio

from .libp2p_connections import READ_SIZE, PrivateConnection

NONCE_BYTES = 8
"""What a connection of a private network begins with."""

MULTISTREAM_GREETING = b"\x13/multistream/1.0.0\n"
"""What every libp2p connection begins with, inside a private network's encryption if there is one."""


class Greeting(Enum):
    """How what listens at an address begins a connection."""

    OPEN = "open"
    """As a libp2p node of an open network."""
    SAME_KEY = "same-key"
    """As a node of the private network whose key we have."""
    OTHER = "other"
    """As something else: a private network with another key, or other software."""
    CLOSED = "closed"
    """By closing it."""
    SILENT = "silent"
    """It doesn't: libp2p nodes speak first."""


async def hear_greeting(stream: trio.abc.ReceiveStream, network_key: str | None, timeout_s: float) -> Greeting:
    """Listen to the beginning of a connection, without saying anything."""
    data = b""
    with trio.move_on_after(timeout_s):
        while len(data) < NONCE_BYTES + len(MULTISTREAM_GREETING):
            try:
                piece = await stream.receive_some(READ_SIZE)
            except trio.BrokenResourceError:
                piece = b""
            if not piece:
                break
            data += piece
            if data.startswith(MULTISTREAM_GREETING):
                return Greeting.OPEN
        else:
            if network_key is not None and await _decrypted(data, network_key) == MULTISTREAM_GREETING:
                return Greeting.SAME_KEY
            return Greeting.OTHER
        return Greeting.OTHER if data else Greeting.CLOSED
    return Greeting.OTHER if data else Greeting.SILENT


async def _decrypted(data: bytes, network_key: str) -> bytes:
    """The greeting in the first bytes of a private connection."""
    connection: Any = _Replay(data)
    return await PrivateConnection(connection, network_key).read(len(MULTISTREAM_GREETING))


class _Replay:
    """A connection that gives bytes that were read before."""

    is_initiator = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, n: int) -> bytes:
        """The next bytes."""
        await trio.lowlevel.checkpoint()
        piece, self._data = self._data[:n], self._data[n:]
        return piece
