"""Parses protobuf messages that were counted before: their fields are read from the bytes before any object is made.

A body within the limit of bytes may hold millions of empty messages; to parse them would take seconds and gigabytes.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from vold_service.errors import ServiceError, invalid
from vold_service.turns import Turn

M = TypeVar("M", bound=Message)

COUNTED_BYTES = 1 << 16
"""A smaller message is parsed uncounted: within a few milliseconds, whatever it holds."""

MIN_FIELD_BYTES = 2
"""A field has a tag and a value."""
MAX_PACKED_BYTES = 1 << 16
"""Bytes of a repeated number: the wire's arrays of ids and floats are fields of bytes, which are not unpacked here."""

FIELDS_PER_TURN = 512
MAX_DEPTH = 100
"""Levels of nested messages, as many as protobuf's own parsers read."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_Plan = dict[int, Any]
"""Of a kind of message: the fields with messages in them, by number, and None for repeated numbers."""


async def parse_message(kind: type[M], data: bytes | bytearray, max_fields: int, field: str = "request") -> M:
    """The message in `data`. max_fields: of it and all messages in it together. field: what an error calls it.

    Raises INVALID_ARGUMENT if the message has more fields or cannot be parsed.
    """
    few = MIN_FIELD_BYTES * max_fields if not _has_numbers(kind.DESCRIPTOR) else 0  # a shorter one cannot have as many
    if len(data) > max(COUNTED_BYTES, few):
        await _check_count(kind, data, max_fields, field)
    try:
        return kind.FromString(data)  # type: ignore[arg-type]  # it takes any buffer
    # DecodeError, which differs between protobuf's implementations; nothing but the parser runs here.
    except Exception as error:
        raise _malformed(kind, error, field) from error


async def _check_count(kind: type[Message], data: bytes | bytearray, max_fields: int, field: str) -> None:
    turn, counted = Turn(), 0
    try:
        for fields in _count(data, kind.DESCRIPTOR):
            counted += fields
            if counted > max_fields:
                raise invalid(
                    field,
                    f"the {kind.DESCRIPTOR.name} has more than {max_fields} fields, with those of its entries: split "
                    "the request",
                )
            await turn.pause()
    except DecodeError as error:
        raise _malformed(kind, error, field) from error


def peek_text(kind: type[Message], data: bytes | bytearray, name: str) -> str:
    """The text field `name` among the first fields of a message that is not parsed yet; "" if it is not there."""
    wanted = kind.DESCRIPTOR.fields_by_name.get(name)
    if wanted is None:
        return ""
    try:
        for seen, (number, start, end) in enumerate(_fields(data, 0, len(data))):
            if number == wanted.number:
                return data[start:end].decode()
            if seen > 8:
                break
    except (DecodeError, UnicodeDecodeError):
        pass
    return ""


def _malformed(kind: type[Message], error: Exception, field: str) -> ServiceError:
    return invalid(field, f"the {field} is not a {kind.DESCRIPTOR.name}: {error}")


def _count(data: bytes | bytearray, descriptor: Any) -> Iterator[int]:
    """Numbers of fields, FIELDS_PER_TURN at most at a time, of a message and all messages in it."""
    pending = [(0, len(data), descriptor, 0)]
    counted = 0
    while pending:
        start, end, kind, depth = pending.pop()
        plan = _plan(kind)
        for number, begin, stop in _fields(data, start, end):
            counted += 1
            if counted == FIELDS_PER_TURN:
                yield counted
                counted = 0
            if number not in plan:
                continue
            nested = plan[number]
            if nested is None:
                if stop - begin > MAX_PACKED_BYTES:
                    raise DecodeError(f"field {number} of {kind.name} has {stop - begin} bytes of numbers")
            elif depth < MAX_DEPTH:
                pending.append((begin, stop, nested, depth + 1))
    yield counted


def _fields(data: bytes | bytearray, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end of the content) of the fields of a message. Raises DecodeError if they are malformed."""
    while position < end:
        tag, position = _varint(data, position, end)
        kind = tag & 7
        start = position
        if kind == _BYTES:
            size, start = _varint(data, position, end)
            position = start + size
        elif kind == _VARINT:
            _, position = _varint(data, position, end)
        elif kind == _FIXED32:
            position += 4
        elif kind == _FIXED64:
            position += 8
        else:
            raise DecodeError(f"wire type {kind}")
        if position > end:
            raise DecodeError("a field is longer than its message")
        yield tag >> 3, start, position


def _varint(data: bytes | bytearray, position: int, end: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DecodeError("a number without an end")


@cache
def _plan(descriptor: Any) -> _Plan:
    return {field.number: field.message_type for field in descriptor.fields if _is_counted(field)}


@cache
def _has_numbers(descriptor: Any) -> bool:
    """Whether a kind of message, or one in it, has a repeated number, whose bytes are bounded by themselves."""
    pending, seen = [descriptor], {descriptor}
    while pending:
        for nested in _plan(pending.pop()).values():
            if nested is None:
                return True
            if nested not in seen:
                seen.add(nested)
                pending.append(nested)
    return False


def _is_counted(field: Any) -> bool:
    numbers = field.is_repeated and field.type not in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)
    return field.message_type is not None or numbers
