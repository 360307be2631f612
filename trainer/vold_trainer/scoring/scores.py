"""The scores of a step's rollouts, and what a rollout's score takes from a teacher's reply."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from vold_client import CompletionScore, VoldError

from vold_trainer.data.faults import RowFault
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.sanity import valid_entropies, valid_logprobs
from vold_trainer.scoring.teacher_view import TeacherView
from vold_trainer.sentences import Sentences, sentence
from vold_trainer.services.outages import Span

Floats = NDArray[np.float32]


@dataclass
class RolloutScore:
    """The scores of one rollout; None where a score is missing or was not requested.

    teacher_logprobs: float32 [T], NaN at masked positions. entropy: float32 [T], the teacher's, NaN at positions that
    it did not score. support_ids: int64 [T, K]. support_logprobs: float32 [T, K], the teacher's, NaN where the id is
    masked. reference_logprobs: as teacher_logprobs, of a reference that is a service. teacher: the teacher's name.
    missing: why a score is missing, by service, in the service's own words. invalid: how many of the teacher's values
    are none that a model gives; they are NaN here. sent: whether the teacher was asked; None where it is asked for
    every completion.
    """

    teacher_logprobs: Floats | None = None
    entropy: Floats | None = None
    support_ids: NDArray[np.int64] | None = None
    support_logprobs: Floats | None = None
    reference_logprobs: Floats | None = None
    teacher: str = ""
    reward: float | None = None
    correct: bool | None = None
    extracted: str | None = None
    reason: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    invalid: int = 0
    sent: bool | None = None


@dataclass
class StepScores:
    """The scores of a step, by row. missing: number of missing scores, by "teacher: CLASS" or "verifier: CLASS" of the
    error, or "row: ...". sentences: what the services say about them. faults: of the rows that a service refuses.
    """

    rows: dict[int, RolloutScore]
    missing: Counter[str] = field(default_factory=Counter)
    faults: list[RowFault] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    sentences: Sentences = field(default_factory=Sentences)

    def count_missing(self, service: str) -> int:
        return sum(count for reason, count in self.missing.items() if reason.startswith(service))

    def add_missing(self, service: str, rollout: Rollout, error: VoldError | None, text: str = "") -> None:
        """Count a missing score of this rollout. text: what to say if there is no error."""
        reason = f"{service}: {_error_name(error)}"
        self.missing[reason] += 1
        self.sentences.add(reason, rollout.example.id, error or text)
        self.rows[rollout.row].missing[service] = sentence(error or text)

    def describe_missing(self) -> str:
        """The number of missing scores by reason, and what the services say about them. Plain text."""
        return self.sentences.describe(self.missing)


def store_score(
    target: RolloutScore, rollout: Rollout, score: CompletionScore, view: TeacherView, support_V: NDArray[np.bool_]
) -> None:
    """Store a teacher's score at the student's positions, NaN where the teacher has none.

    A value that is none a model gives, such as a log-probability of +inf, is counted and becomes NaN as well.
    """
    assert score.logprobs is not None
    logprobs_T = view.of_student(score.logprobs)
    valid = valid_logprobs(logprobs_T)
    target.invalid = int((view.shared_T & ~valid).sum())
    target.teacher_logprobs = np.where(view.shared_T & valid, logprobs_T, np.float32(np.nan))
    if score.entropy is not None:
        valid = valid_entropies(score.entropy)
        target.invalid += int((~valid).sum())
        target.entropy = view.of_student(np.where(valid, score.entropy, np.nan))
    ids_TK, logprobs_SK = None, score.top_logprobs
    if rollout.candidates is not None and isinstance(score.candidate_logprobs, np.ndarray):
        ids_TK, logprobs_SK = rollout.candidates, score.candidate_logprobs
    elif score.top_ids is not None:
        ids_TK = view.ids_of_student(score.top_ids)
    if ids_TK is None or logprobs_SK is None or not logprobs_SK.size:
        return
    masked_ids, allowed = mask_ids(ids_TK, support_V)
    scored = np.broadcast_to((view.position_T >= 0)[:, None], allowed.shape)
    logprobs_TK = view.of_student(logprobs_SK)
    valid = valid_logprobs(logprobs_TK)
    target.invalid += int((scored & allowed & ~valid).sum())
    target.support_ids = np.where(scored, masked_ids, 0)
    target.support_logprobs = np.where(scored & allowed & valid, logprobs_TK, np.float32(np.nan))


def mask_ids(ids: NDArray[np.integer], support_V: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(ids with 0 in place of those outside the support, bool: whether each id is in the support)."""
    inside = ids < len(support_V)
    allowed = inside & support_V[np.where(inside, ids, 0)]
    return np.where(allowed, ids, 0).astype(np.int64), allowed


def _error_name(error: VoldError | None) -> str:
    return type(error).__name__ if error is not None else "no value"
