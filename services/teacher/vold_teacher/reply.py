"""Replies to Score as bytes: how many they will be, from lengths and options alone, and the rows themselves.

A reply is packed row by row, a row for each completion, so that the event loop can go on between two rows. In protobuf
a repeated field is the concatenation of its entries, so a header and the rows after it are the whole reply.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum

from vold_proto.arrays import pack_floats, pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import ServiceError
from vold_service.turns import Turn

from vold_teacher.types import ScoreOptions, Sequence, SequenceScore

_SCORES_TAG = bytes([pb.ScoreReply.DESCRIPTOR.fields_by_name["scores"].number << 3 | 2])
MAX_REPLY_BYTES = 64 << 20
"""Bytes of one reply, by default."""
ROW_BYTES = 100
"""Of a row besides its arrays and its id: names of fields, lengths, flags."""
STATUS_BYTES = 1000
"""Of a row with an error in place of its arrays."""
JSON_ROW_BYTES = 300


class Form(Enum):
    """What a reply to Score is sent as: one message, messages of a stream, or JSON."""

    MESSAGE = "message"
    STREAM = "stream"
    JSON = "json"


def row_bytes(sequence: Sequence | ServiceError, identifier: str, dtype: "pb.DType", hidden_size: int) -> int:
    """The most bytes that the row of a completion may have."""
    if isinstance(sequence, ServiceError):
        return STATUS_BYTES + 4 * len(identifier)
    floats, ids = _numbers(sequence, hidden_size)
    return ROW_BYTES + 4 * len(identifier) + (4 if dtype == pb.F32 else 2) * floats + 4 * ids


def json_row_bytes(sequence: Sequence | ServiceError, identifier: str, hidden_size: int) -> int:
    """The same as JSON, where a float has up to 25 characters with its comma, and an id up to 12."""
    if isinstance(sequence, ServiceError):
        return STATUS_BYTES + 6 * len(identifier)
    floats, ids = _numbers(sequence, hidden_size)
    brackets = 2 * len(sequence.completion) * (3 + (sequence.candidates is not None))
    return JSON_ROW_BYTES + 6 * len(identifier) + 25 * floats + 12 * ids + brackets


def _numbers(sequence: Sequence, hidden_size: int) -> tuple[int, int]:
    """Floats and ids in the row of a completion."""
    options: ScoreOptions = sequence.options
    per_position = 1 + options.top_k + options.entropy + hidden_size * options.hidden_states
    candidates = 0 if sequence.candidates is None else len(sequence.candidates)
    positions = len(sequence.completion)
    return positions * per_position + candidates, positions * (options.top_k + options.ranks)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreAnswer:
    """The reply to a Score request. header: of the reply, without scores. identifiers, scores: of each completion.
    cached: indices of the completions whose scores were not computed for this request.
    """

    header: pb.ScoreReply
    identifiers: list[str]
    scores: list[SequenceScore | ServiceError]
    cached: frozenset[int]

    async def parts(self, max_bytes: int) -> AsyncIterator[list[bytes]]:
        """The reply in parts with rows of at most `max_bytes`, each as the pieces of one message. A single part has the
        number 0; several count from 1, and the last says so.
        """
        turn, number, size = Turn(), 0, 0
        rows: list[bytes] = []
        for index in range(len(self.scores)):
            row = self._row(index)
            if rows and size + len(row) > max_bytes:
                number += 1
                yield [self._header(number, last=False), *rows]
                rows, size = [], 0
            rows.append(row)
            size += len(row)
            await turn.pause()
        yield [self._header(number + 1 if number else 0, last=True), *rows]

    async def whole(self) -> list[bytes]:
        """The reply as the pieces of one message."""
        turn, pieces = Turn(), [self._header(0, last=True)]
        for index in range(len(self.scores)):
            pieces.append(self._row(index))
            await turn.pause()
        return pieces

    def _header(self, part: int, *, last: bool) -> bytes:
        header = pb.ScoreReply(part=part, last=last)
        header.MergeFrom(self.header)
        return header.SerializeToString()

    def _row(self, index: int) -> bytes:
        score = self.scores[index]
        if isinstance(score, ServiceError):
            message = pb.CompletionScore(id=self.identifiers[index], status=score.status())
        else:
            message = _score_message(self.identifiers[index], score, self.header.dtype, index in self.cached)
        data = message.SerializeToString()
        return _SCORES_TAG + _varint(len(data)) + data


def _score_message(identifier: str, score: SequenceScore, dtype: "pb.DType", cached: bool) -> pb.CompletionScore:
    packed = pb.CompletionScore(id=identifier, logprobs=pack_floats(score.logprobs, dtype), cached=cached)
    if score.top_ids is not None and score.top_logprobs is not None:
        packed.top_ids = pack_ids(score.top_ids)
        packed.top_logprobs = pack_floats(score.top_logprobs, dtype)
    if score.candidate_logprobs is not None:
        packed.candidate_logprobs = pack_floats(score.candidate_logprobs, dtype)
    if score.entropy is not None:
        packed.entropy = pack_floats(score.entropy, dtype)
    if score.hidden_states is not None:
        packed.hidden_states = pack_floats(score.hidden_states, dtype)
    if score.ranks is not None:
        packed.ranks = pack_ids(score.ranks)
    return packed


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
