"""The handshake before a run: compares the vocabularies of student and teacher, and checks the teacher's capabilities.

A vocabulary-equality check refuses pairs that work (Qwen2.5-VL with Qwen3), and a size check passes pairs that do
not work. The comparison is therefore per id: an id that both sides have must be the same token; otherwise the teacher's
term is masked at that id. An id that ends the student's completions but not the teacher's is masked too: the teacher
was not trained to stop there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from vold_client import TeacherInfo

from vold_trainer.errors import HandshakeError
from vold_trainer.objectives import Needs


@dataclass(frozen=True)
class Difference:
    """An id that means different things to student and teacher. student, teacher: its token; None where a side has no
    token of that id. student_eos_only: the token is the same, but it ends the student's completions alone.
    """

    id: int
    student: str | None
    teacher: str | None
    student_eos_only: bool = False

    def __str__(self) -> str:
        if self.student_eos_only:
            return f"{self.id} ({self.student!r} ends the student's answers, not the teacher's)"
        return f"{self.id} (student {self.student!r}, teacher {self.teacher!r})"


@dataclass(frozen=True)
class Handshake:
    """The comparison of two vocabularies. compared: number of ids of the student's tokenizer. differences: the ids that
    differ, including those that only the teacher has but the student can sample. shared_V: bool [V], True where both
    sides mean the same token.
    """

    compared: int
    differences: tuple[Difference, ...]
    shared_V: Tensor

    def describe(self) -> str:
        if not self.differences:
            return f"{self.compared} token ids compared: all mean the same on both sides"
        shown = ", ".join(str(difference) for difference in self.differences[:8])
        more = f" and {len(self.differences) - 8} more" if len(self.differences) > 8 else ""
        count = f"{len(self.differences)} differ and are" if len(self.differences) > 1 else "1 differs and is"
        return f"{self.compared} token ids compared, {count} masked in the teacher's term: {shown}{more}"


def vocabulary(tokenizer: Any) -> dict[int, str]:
    """id -> token, added tokens included, of a transformers or a tokenizers tokenizer."""
    vocab = tokenizer.get_vocab()
    return {index: token for token, index in vocab.items()}


def teacher_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """The tokenizer of a teacher's tokenizer file. Raises HandshakeError if the file is not a tokenizer."""
    try:
        json.loads(tokenizer_json)
        return Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception
        raise HandshakeError(f"the teacher's tokenizer file cannot be read: {error}") from error


def teacher_vocabulary(tokenizer_json: bytes) -> dict[int, str]:
    """id -> token of a teacher's tokenizer file. Raises HandshakeError if the file is not a tokenizer."""
    return vocabulary(teacher_tokenizer(tokenizer_json))


def compare_vocabularies(
    student: dict[int, str],
    teacher: dict[int, str],
    *,
    min_shared: float,
    size: int,
    student_eos: Sequence[int] = (),
    teacher_eos: Sequence[int] = (),
) -> Handshake:
    """Compare two vocabularies (id -> token) id by id.

    size: rows of the student's embedding, padding included: the ids that it can sample. The padding of either side has
    no effect. student_eos, teacher_eos: every id that ends a completion; empty if unknown.
    Raises HandshakeError if less than `min_shared` of the student's ids mean the same to the teacher.
    """
    if not student or not teacher:
        raise HandshakeError("a tokenizer without tokens cannot be compared: check both model folders")
    mismatches = [
        Difference(index, token, teacher.get(index))
        for index, token in sorted(student.items())
        if teacher.get(index) != token
    ]
    shared = 1 - len(mismatches) / len(student)
    if shared < min_shared:
        raise HandshakeError(
            f"only {shared:.1%} of the student's {len(student)} token ids mean the same to the teacher "
            f"(teacher.min_shared is {min_shared:.0%}); the first that differ: "
            + ", ".join(f"{d.id}: {d.student!r} against {d.teacher!r}" for d in mismatches[:5])
            + ". Use a teacher of the student's tokenizer family, or lower teacher.min_shared if you know better"
        )
    differences = mismatches + [
        Difference(index, None, token) for index, token in teacher.items() if index < size and index not in student
    ]
    if student_eos and teacher_eos:
        masked = {difference.id for difference in differences}
        differences += [
            Difference(index, student.get(index), teacher.get(index), student_eos_only=True)
            for index in student_eos
            if index not in teacher_eos and index not in masked
        ]
    differences.sort(key=lambda difference: difference.id)
    shared_V = torch.zeros(max(size, max(student) + 1), dtype=torch.bool)
    shared_V[list(student)] = True
    shared_V[[difference.id for difference in differences]] = False
    return Handshake(len(student), tuple(differences), shared_V)


def check_capabilities(objective: str, needs: Needs, info: TeacherInfo, temperature: float, key: str) -> None:
    """Raise HandshakeError if the teacher does not offer what the objective needs. key: the teacher's config key."""
    offers = f"{key} ({info.identity.model}, backend {info.backend}) offers "
    elsewhere = "use a teacher that does (backend torch offers all of it), or another objective"
    capabilities = info.capabilities
    if needs.top_k and ("top_k" not in capabilities or info.max_top_k < needs.top_k):
        most = info.max_top_k if "top_k" in capabilities else 0
        less = "lower objective.top_k, or " if most > 1 else ""
        raise HandshakeError(
            f"objective {objective!r} needs the teacher's {needs.top_k} most likely ids at each position "
            f"(objective.top_k={needs.top_k}), and {offers}{most or 'none'}: {less}{elsewhere}"
        )
    if needs.candidates and ("candidates" not in capabilities or info.max_candidates < needs.candidates):
        most = info.max_candidates if "candidates" in capabilities else 0
        less = "lower objective.top_k, or " if most > 1 else ""
        raise HandshakeError(
            f"objective {objective!r} needs the teacher's scores of {needs.candidates} ids that the student chooses at "
            f"each position (objective.top_k={needs.candidates}), and {offers}{most or 'none'}: {less}set "
            f"objective.support=teacher where the objective has it, or {elsewhere}"
        )
    if needs.entropy and "entropy" not in capabilities:
        raise HandshakeError(f"objective {objective!r} needs the teacher's entropy, and {offers}none: {elsewhere}")
    if needs.teacher and temperature != 1 and "temperature" not in capabilities:
        raise HandshakeError(
            f"rollout.temperature is {temperature}, and {offers}log-probabilities at temperature 1 only: set "
            "rollout.temperature=1, or use a teacher that scores at any (backend torch does)"
        )


def truncate_for_teacher(ids: Sequence[int], shared_V: Tensor, teacher_size: int) -> tuple[list[int], list[bool]]:
    """(the ids of a completion that the teacher can score, a mask: whether to use its score of each).

    The completion is cut before the first id that is not below teacher_size, the rows of the teacher's output head.
    Ids below it that mean another token to the teacher are sent, because they were sampled, and masked.
    """
    ids_T = np.asarray(ids, dtype=np.int64)
    too_large = ids_T >= teacher_size
    sent_T = ids_T[: int(too_large.argmax())] if too_large.any() else ids_T
    return sent_T.tolist(), shared_V.numpy()[sent_T].tolist()
