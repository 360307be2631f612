"""How a completion of the student reads in the teacher's ids, where one side has a token that the other spells.

Qwen2.5 writes `</think>` and an empty line as `</`, `think` and `>` with two line ends, all of which are ids of Qwen3
too. But Qwen3 expects the id 151668 there, and finds each of the pieces absurd. The teacher therefore gets its own
token in their place, with what else the pieces hold, and its values of the rest are those of the text that it would
write itself. The student's pieces have no value of the teacher: no term of the loss acts on them.

Shapes: T completion positions of the student, S of the teacher, V vocabulary, K candidates.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from vold_packing.marks import THOUGHTS_AND_TOOLS, Marks

from vold_trainer.scoring.handshake import truncate_for_teacher

_BARRIER = "\0"
"""Stands for a token that is no part of a spelled one."""


@dataclass(frozen=True)
class TeacherView:
    """A completion as the teacher gets it. ids: int [S]. position_T: int64, the place in `ids` of the student's token,
    -1 where the teacher has no such token, or not got it. shared_T: bool, whether the teacher's value of that place is
    of the same token.
    """

    ids: list[int]
    position_T: NDArray[np.int64]
    shared_T: NDArray[np.bool_]

    def of_student(self, values_S: NDArray[Any]) -> NDArray[np.float32]:
        """The teacher's values [S, ...] at the student's positions [T, ...], NaN where there is none."""
        values_T = np.full((len(self.position_T), *values_S.shape[1:]), np.nan, np.float32)
        known_T = (self.position_T >= 0) & (self.position_T < len(values_S))
        values_T[known_T] = values_S[self.position_T[known_T]]
        return values_T

    def ids_of_student(self, ids_SK: NDArray[np.integer]) -> NDArray[np.int64]:
        """As `of_student` for ids, 0 where there is none."""
        ids_TK = np.zeros((len(self.position_T), ids_SK.shape[1]), np.int64)
        known_T = (self.position_T >= 0) & (self.position_T < len(ids_SK))
        ids_TK[known_T] = ids_SK[self.position_T[known_T]]
        return ids_TK

    def of_teacher(self, ids_TK: NDArray[np.integer]) -> NDArray[np.int64]:
        """The student's ids [T, K] at the teacher's positions [S, K], 0 where the student has no such position."""
        ids_SK = np.zeros((len(self.ids), ids_TK.shape[1]), np.int64)
        known_T = self.position_T >= 0
        ids_SK[self.position_T[known_T]] = ids_TK[known_T]
        return ids_SK


@dataclass(frozen=True)
class _Span:
    """The student's tokens from `start` to before `end`, and the teacher's ids for them."""

    start: int
    end: int
    ids: list[int]


class Translation:
    """Makes the teacher's view of completions. shared_V: bool, the ids that mean the same. size: rows of the teacher's
    output head.

    teacher_only, student_only: the tokens that the other side spells, by content: the id. A control token is not among
    them: what spells one is text, and stays text.
    """

    def __init__(self, student: Tokenizer, teacher: Tokenizer, shared_V: Tensor, size: int) -> None:
        self.shared_V = shared_V
        self.size = size
        self._teacher = teacher
        self._decoder = student.decoder
        self._vocabulary: dict[str, int] = teacher.get_vocab()
        marks = Marks(student)
        self._surface_V = _surfaces(student)
        self.teacher_only: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        for content, index in _tokens_beside(teacher, lacking=student).items():
            pieces = marks.letters(content)
            surface = "".join(self._surface_V[piece] for piece in pieces)
            if index < size and _spells(student, pieces, content):
                self.teacher_only[content] = self._marks[surface] = index
        self.student_only: dict[str, int] = {}
        self._expanded: dict[int, list[int]] = {}
        teacher_marks = Marks(teacher)
        for content, index in _tokens_beside(student, lacking=teacher).items():
            pieces = teacher_marks.letters(content)
            if _spells(teacher, pieces, content) and max(pieces) < size:
                self.student_only[content] = index
                self._expanded[index] = pieces
        longest_first = sorted(self._marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, ids: Sequence[int]) -> TeacherView:
        """The view of a completion. It ends before the first id that the teacher cannot get."""
        spans = self._spans(ids) if self._marks or self._expanded else []
        if not spans:
            sent, shared = truncate_for_teacher(ids, self.shared_V, self.size)
            position_T = np.where(np.arange(len(ids)) < len(sent), np.arange(len(ids)), -1)
            shared_T = np.zeros(len(ids), bool)
            shared_T[: len(sent)] = shared
            return TeacherView(sent, position_T, shared_T)
        out: list[int] = []
        position_T, shared_T = np.full(len(ids), -1, np.int64), np.zeros(len(ids), bool)
        place = 0
        for span in [*spans, _Span(len(ids), len(ids), [])]:
            sent, shared = truncate_for_teacher(ids[place : span.start], self.shared_V, self.size)
            position_T[place : place + len(sent)] = np.arange(len(out), len(out) + len(sent))
            shared_T[place : place + len(sent)] = shared
            out += sent
            if len(sent) < span.start - place:
                break
            out += span.ids
            place = span.end
        return TeacherView(out, position_T, shared_T)

    def describe(self) -> str:
        """What is done with the tokens that one side has and the other spells; "" if there are none."""
        parts = []
        if self.teacher_only:
            parts.append(
                f"the student spells {_listed(self.teacher_only)}, which the teacher has as tokens: it gets these, "
                "and the pieces have no teacher's term (student.add_tokens=teacher gives the student the tokens)"
            )
        if self.student_only:
            parts.append(
                f"the teacher spells {_listed(self.student_only)}, which the student has as tokens: it gets pieces, "
                "and the tokens have no teacher's term"
            )
        return "; ".join(parts)

    def _spans(self, ids: Sequence[int]) -> list[_Span]:
        """The spans that are not the same ids on both sides, in order."""
        count = len(self._surface_V)
        surfaces_T = [self._surface_V[token] if token < count else _BARRIER for token in ids]
        spans = [_Span(t, t + 1, self._expanded[token]) for t, token in enumerate(ids) if token in self._expanded]
        if self._pattern is None:
            return spans
        found = list(self._pattern.finditer("".join(surfaces_T)))
        if not found:
            return spans
        ends_T = np.array(list(accumulate(map(len, surfaces_T))))
        starts_T = ends_T - np.array(list(map(len, surfaces_T)))
        groups: list[tuple[int, int, list[re.Match[str]]]] = []
        for match in found:
            start = int(np.searchsorted(ends_T, match.start(), "right"))
            end = int(np.searchsorted(starts_T, match.end(), "left"))
            if groups and start < groups[-1][1]:  # one token ends a mark and begins the next
                groups[-1] = (groups[-1][0], end, [*groups[-1][2], match])
            else:
                groups.append((start, end, [match]))
        for start, end, matches in groups:
            translated = self._translate(surfaces_T[start:end], int(starts_T[start]), matches)
            if translated is not None:
                spans.append(_Span(start, end, translated))
        return sorted(spans, key=lambda span: span.start)

    def _translate(self, surfaces: Sequence[str], offset: int, matches: Sequence[re.Match[str]]) -> list[int] | None:
        """The teacher's ids of some tokens that hold marks. offset: of their first letter. None if it has none."""
        text = "".join(surfaces)
        ids: list[int] = []
        place = 0
        for match in matches:
            before = self._rest(text[place : match.start() - offset])
            if before is None:
                return None
            ids += [*before, self._marks[match[0]]]
            place = match.end() - offset
        after = self._rest(text[place:])
        return None if after is None else [*ids, *after]

    def _rest(self, surface: str) -> list[int] | None:
        """The teacher's ids of what stands beside a mark in the same token, such as line ends. None if it is a part of
        a character.
        """
        if not surface:
            return []
        if (own := self._vocabulary.get(surface)) is not None:
            return [own] if own < self.size else None
        text = surface if self._decoder is None else self._decoder.decode([surface])
        if "\ufffd" in text:
            return None
        ids: list[int] = self._teacher.encode(text, add_special_tokens=False).ids
        return ids if all(token < self.size for token in ids) else None


def _tokens_beside(tokenizer: Tokenizer, *, lacking: Tokenizer) -> dict[str, int]:
    """The tokens that a tokenizer has beside its model and the other has not at all, without control tokens."""
    control = Marks(tokenizer).control
    return {
        token.content: index
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if lacking.token_to_id(token.content) is None
        and (token.content not in control or THOUGHTS_AND_TOOLS.fullmatch(token.content))
    }


def _spells(tokenizer: Tokenizer, pieces: Sequence[int], content: str) -> bool:
    """Whether the ids are the letters of the content: a vocabulary may lack some."""
    return bool(pieces) and tokenizer.decode(list(pieces), skip_special_tokens=False).strip() == content.strip()


def _surfaces(tokenizer: Tokenizer) -> list[str]:
    """Each id's token as it stands in the vocabulary; a barrier for an id without one, or with one beside the model."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    beside = tokenizer.get_added_tokens_decoder()
    surfaces = [_BARRIER] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index not in beside:
            surfaces[index] = token
    return surfaces


def _listed(tokens: dict[str, int]) -> str:
    shown = ", ".join(map(repr, list(tokens)[:6]))
    return shown + (f" and {len(tokens) - 6} more" if len(tokens) > 6 else "")
