"""Many messages in one HTTP body of `application/x-protobuf`: each after its length as a varint, the framing that
protobuf's own libraries call length-prefixed or delimited. Theirs read from a file; this one is fed as bytes come.
"""

from collections.abc import Iterator

MAX_VARINT_BYTES = 5


class Frames:
    """Cuts a body that arrives in pieces back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The messages that `piece` completes. Raises ValueError where a length cannot be one."""
        self._buffer += piece
        while True:
            start, length = self._head()
            if start is None or len(self._buffer) < start + length:
                return
            message = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            yield message

    @property
    def incomplete(self) -> bool:
        """Whether the body has so far ended in the middle of a message."""
        return bool(self._buffer)

    def _head(self) -> tuple[int | None, int]:
        """Where the first message begins and its length; None where the length itself is not all there."""
        length = 0
        for position, byte in enumerate(self._buffer[:MAX_VARINT_BYTES]):
            length |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                return position + 1, length
        if len(self._buffer) >= MAX_VARINT_BYTES:
            raise ValueError("the body is not a sequence of messages with their lengths before them")
        return None, 0
