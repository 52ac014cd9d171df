"""Messages between processes of one node or testnet: frozen dataclasses as length-prefixed msgpack maps.

```
+----------------+---------------------------------------------+
| length, 4 big- | msgpack map {"type": class name, field: …}  |
| endian bytes   |                                             |
+----------------+---------------------------------------------+
```

Both ends of such a Unix-domain socket are ours and belong to one user, so this is not the canonical encoding of
`bflnode.consensus.encoding`: floats and None are allowed. Sizes are bounded all the same, since a defect in one
process must not take another with it. Bulk data never travels here; messages name files.
"""

from collections.abc import Iterator
from dataclasses import fields
from struct import Struct
from typing import Any, Generic, TypeVar

import msgpack

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The largest message is a prediction for 4,096 samples and 100 classes: 3.7 MB."""

MAX_SHOWN = 200
"""Characters that an error repeats of what is wrong with a message."""

RECEIVE_BYTES = 64 * 1024
"""What one read asks the socket for."""

MAX_SOCKET_PATH_BYTES = 100
"""The kernel's sun_path has 104 bytes on macOS and 108 on Linux."""

_LENGTH = Struct(">I")

Message = TypeVar("Message")


class ProcessMessageError(Exception):
    """The other process speaks another version of these messages, or isn't one of ours."""


class ProcessMessages(Generic[Message]):
    """The codec of one socket: turns messages of a closed set of dataclasses into frames, and back.

    Args:
        types: every dataclass that may travel, those inside other messages included.
    """

    def __init__(self, *types: type[Any]) -> None:
        self._types = {message_type.__name__: message_type for message_type in types}

    def encode(self, message: Message) -> bytes:
        """One frame.

        Raises:
            ProcessMessageError: the message is larger than `MAX_MESSAGE_BYTES`.
        """
        body: bytes = msgpack.packb(message, default=self._to_map)
        if len(body) > MAX_MESSAGE_BYTES:
            raise ProcessMessageError(f"a message of {len(body)} bytes, at most {MAX_MESSAGE_BYTES} fit")
        return _LENGTH.pack(len(body)) + body

    def decode(self, body: bytes) -> Message:
        """The message in a frame's body; its sequences are tuples.

        Raises:
            ProcessMessageError: not a message of this codec.
        """
        try:
            message = msgpack.unpackb(body, object_hook=self._from_map, use_list=False)
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            what = ascii(str(error))[:MAX_SHOWN]
            raise ProcessMessageError(f"the other process sent something else than a known message: {what}") from error
        if type(message) not in self._types.values():
            raise ProcessMessageError(f"the other process sent a {type(message).__name__}, not a known message")
        return message  # type: ignore[no-any-return]  # its type was looked up in the closed set

    def _to_map(self, value: Any) -> dict[str, Any]:
        name = type(value).__name__
        assert name in self._types, f"{name} can't travel"
        return {"type": name, **{field.name: getattr(value, field.name) for field in fields(value)}}

    def _from_map(self, pairs: dict[str, Any]) -> Any:
        return self._types[pairs.pop("type")](**pairs)


class FrameReader(Generic[Message]):
    """Cuts a byte stream into messages; the caller does the reading, blocking or not."""

    def __init__(self, codec: ProcessMessages[Message]) -> None:
        self._codec = codec
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes.

        Raises:
            ProcessMessageError: a frame is too long or no known message. The stream is of no use after that.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE_BYTES:
                raise ProcessMessageError(f"a message of {length} bytes announced, at most {MAX_MESSAGE_BYTES} fit")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield self._codec.decode(body)
