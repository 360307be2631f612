"""Before a run: does the teacher mean the same by each token id as the student?

A vocabulary-equality check refuses pairs that work (Qwen2.5-VL with Qwen3), and a size check passes pairs that do
not. So id by id: what both know must be the same token; where it is not, the teacher's term is masked.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vold_trainer.errors import HandshakeError


@dataclass(frozen=True)
class Difference:
    """One id that the two sides read differently; None where a side has no token of that id."""

    id: int
    student: str | None
    teacher: str | None


@dataclass(frozen=True)
class Handshake:
    """What was found. compared: ids of the shared range that the student has. differences: the ids that differ,
    those beyond the teacher's range included. known_V: bool [V], True where both mean the same token.
    """

    compared: int
    differences: tuple[Difference, ...]
    known_V: Tensor

    def describe(self) -> str:
        if not self.differences:
            return f"{self.compared} token ids compared: all mean the same on both sides"
        shown = ", ".join(f"{d.id} (student {d.student!r}, teacher {d.teacher!r})" for d in self.differences[:8])
        more = f" and {len(self.differences) - 8} more" if len(self.differences) > 8 else ""
        return (
            f"{self.compared} token ids compared, {len(self.differences)} differ and are masked in the teacher's term: "
            f"{shown}{more}"
        )


def vocabulary(tokenizer: Any) -> dict[int, str]:
    """id -> token, added tokens included, of a transformers or a tokenizers tokenizer."""
    vocab = tokenizer.get_vocab()
    return {index: token for token, index in vocab.items()}


def teacher_vocabulary(tokenizer_json: bytes) -> dict[int, str]:
    """id -> token of the tokenizer file that a teacher sent. Raises HandshakeError where it is none."""
    try:
        json.loads(tokenizer_json)
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception
        raise HandshakeError(f"the teacher's tokenizer file cannot be read: {error}") from error
    return {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}


def compare(student: dict[int, str], teacher: dict[int, str], *, min_shared: float, size: int) -> Handshake:
    """Compare id by id. size: rows of the student's embedding, padding included.

    Raises HandshakeError where less than `min_shared` of the student's ids mean the same to the teacher.
    """
    if not student or not teacher:
        raise HandshakeError("a tokenizer without tokens cannot be compared: check both model folders")
    differences = tuple(
        Difference(index, token, teacher.get(index))
        for index, token in sorted(student.items())
        if teacher.get(index) != token
    )
    shared = 1 - len(differences) / len(student)
    if shared < min_shared:
        raise HandshakeError(
            f"only {shared:.1%} of the student's {len(student)} token ids mean the same to the teacher "
            f"(teacher.min_shared is {min_shared:.0%}); the first that differ: "
            + ", ".join(f"{d.id}: {d.student!r} against {d.teacher!r}" for d in differences[:5])
            + ". Use a teacher of the student's tokenizer family, or lower teacher.min_shared if you know better"
        )
    known_V = torch.ones(max(size, max(student) + 1), dtype=torch.bool)
    for difference in differences:
        known_V[difference.id] = False
    for index in range(len(known_V)):
        if index not in student:
            known_V[index] = False
    return Handshake(len(student), differences, known_V)


def teacher_view(ids: Sequence[int], known_V: Tensor, teacher_size: int) -> tuple[list[int], list[bool]]:
    """What of a completion to send to the teacher, and at which of those positions its answer counts.

    The completion is cut before the first id that the teacher cannot take (teacher_size: rows of its output
    head). Ids that it takes but reads differently are sent, for they were sampled, and masked.
    """
    kept = list(ids)
    for position, token in enumerate(kept):
        if token >= teacher_size:
            kept = kept[:position]
            break
    return kept, [bool(known_V[token]) for token in kept]
