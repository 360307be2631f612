"""Before a run: does the teacher mean the same by each token id as the student, and can it be asked what the run asks?

A vocabulary-equality check refuses pairs that work (Qwen2.5-VL with Qwen3), and a size check passes pairs that do
not. So id by id: what both know must be the same token; where it is not, the teacher's term is masked. An id that
ends the student's answers and not the teacher's is such an id too: the teacher never learned to stop there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from vold_client import TeacherInfo

from vold_trainer.errors import HandshakeError
from vold_trainer.objectives import Needs


@dataclass(frozen=True)
class Difference:
    """One id that the two sides read differently; None where a side has no token of that id. ends: the token is the
    same, but it ends the student's answers alone.
    """

    id: int
    student: str | None
    teacher: str | None
    ends: bool = False

    def __str__(self) -> str:
        if self.ends:
            return f"{self.id} ({self.student!r} ends the student's answers, not the teacher's)"
        return f"{self.id} (student {self.student!r}, teacher {self.teacher!r})"


@dataclass(frozen=True)
class Handshake:
    """What was found. compared: ids of the student's tokenizer. differences: the ids that differ, those that only one
    side has included as far as the student can draw them. known_V: bool [V], True where both mean the same token.
    """

    compared: int
    differences: tuple[Difference, ...]
    known_V: Tensor

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


def teacher_vocabulary(tokenizer_json: bytes) -> dict[int, str]:
    """id -> token of the tokenizer file that a teacher sent. Raises HandshakeError where it is none."""
    try:
        json.loads(tokenizer_json)
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception
        raise HandshakeError(f"the teacher's tokenizer file cannot be read: {error}") from error
    return {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}


def compare(
    student: dict[int, str],
    teacher: dict[int, str],
    *,
    min_shared: float,
    size: int,
    student_eos: Sequence[int] = (),
    teacher_eos: Sequence[int] = (),
) -> Handshake:
    """Compare id by id.

    size: rows of the student's embedding: what it can draw, padding included; how far either side is padded does not
    matter. student_eos, teacher_eos: every id that ends an answer; empty where that is not known.
    Raises HandshakeError where less than `min_shared` of the student's ids mean the same to the teacher.
    """
    if not student or not teacher:
        raise HandshakeError("a tokenizer without tokens cannot be compared: check both model folders")
    read_differently = [
        Difference(index, token, teacher.get(index))
        for index, token in sorted(student.items())
        if teacher.get(index) != token
    ]
    shared = 1 - len(read_differently) / len(student)
    if shared < min_shared:
        raise HandshakeError(
            f"only {shared:.1%} of the student's {len(student)} token ids mean the same to the teacher "
            f"(teacher.min_shared is {min_shared:.0%}); the first that differ: "
            + ", ".join(f"{d.id}: {d.student!r} against {d.teacher!r}" for d in read_differently[:5])
            + ". Use a teacher of the student's tokenizer family, or lower teacher.min_shared if you know better"
        )
    differences = read_differently + [
        Difference(index, None, token) for index, token in teacher.items() if index < size and index not in student
    ]
    if student_eos and teacher_eos:
        masked = {difference.id for difference in differences}
        differences += [
            Difference(index, student.get(index), teacher.get(index), ends=True)
            for index in student_eos
            if index not in teacher_eos and index not in masked
        ]
    differences.sort(key=lambda difference: difference.id)
    known_V = torch.zeros(max(size, max(student) + 1), dtype=torch.bool)
    known_V[list(student)] = True
    known_V[[difference.id for difference in differences]] = False
    return Handshake(len(student), tuple(differences), known_V)


def check_offers(objective: str, needs: Needs, info: TeacherInfo, temperature: float, who: str) -> None:
    """Raise HandshakeError where the teacher does not offer what the objective needs of it. who: names the teacher."""
    offers = f"{who} ({info.identity.model}, backend {info.backend}) offers "
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
