"""Several messages in one HTTP body of `application/x-protobuf`, each with its length before it as a varint.

Protobuf's libraries call this framing length-prefixed or delimited. Their decoders read from a file; this one takes the
bytes as they arrive.
"""

from collections.abc import Iterator

MAX_VARINT_BYTES = 5


class FrameDecoder:
    """Splits a body that arrives in chunks into its messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The messages that `chunk` completes. Raises ValueError if a length is not a varint."""
        self._buffer += chunk
        while True:
            start, length = self._read_length()
            if start is None or len(self._buffer) < start + length:
                return
            message = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            yield message

    @property
    def incomplete(self) -> bool:
        """Whether the bytes so far end in the middle of a message."""
        return bool(self._buffer)

    def _read_length(self) -> tuple[int | None, int]:
        """The offset of the first message and its length; None and 0 if the length itself is incomplete."""
        length = 0
        for position, byte in enumerate(self._buffer[:MAX_VARINT_BYTES]):
            length |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                return position + 1, length
        if len(self._buffer) >= MAX_VARINT_BYTES:
            raise ValueError("the body is not a sequence of messages with their lengths before them")
        return None, 0
