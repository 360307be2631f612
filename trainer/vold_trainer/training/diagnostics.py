"""Compares student and teacher on the student's own completions: a health signal that has no part in the loss.

Every few steps some of the step's rollouts are sent to the teacher once more, for its most likely ids and its entropy,
and the student computes the same. "Rethinking OPD" (arXiv 2604.13016) finds that the share of ids that are among the
most likely ones of both sides rises in runs that go well.

Shapes: N completion positions of all compared rollouts, K most likely ids.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor
from vold_client import VoldError

from vold_trainer.config import TrainConfig
from vold_trainer.errors import RunError
from vold_trainer.objectives import Needs
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scorer import PendingScores, Scorer
from vold_trainer.scoring.scores import RolloutScore
from vold_trainer.services.outages import Span
from vold_trainer.student.batching import Batch, micro_batches
from vold_trainer.student.models import Student
from vold_trainer.student.readable import make_readable_batch
from vold_trainer.terminal import console
from vold_trainer.training.broken_rows import readable_dummy
from vold_trainer.training.means import Means
from vold_trainer.training.token_log import DECILES, SUFFIXES

METRICS = (
    *("teacher/entropy", "entropy/gap", "entropy/gap_correct", "entropy/gap_wrong"),
    *("overlap/ratio", "overlap/ratio_correct", "overlap/ratio_wrong"),
    *("overlap/student_mass", "overlap/teacher_mass"),
)

_POSITIONS = 4096  # compared at once: K x K booleans each
_OVERLAP_BINS = "overlap/position"


@dataclass
class Measurement:
    """A measurement in progress, of this process's rollouts. pending: the teachers' scores. student_entropy,
    student_ids, student_logprobs: the student's, by row: float32 [T], int64 [T, K], float32 [T, K].
    """

    scored: ScoredBatch
    rollouts: list[Rollout]
    pending: PendingScores
    spans: list[Span] = field(default_factory=list)
    student_entropy: dict[int, Tensor] = field(default_factory=dict)
    student_ids: dict[int, Tensor] = field(default_factory=dict)
    student_logprobs: dict[int, Tensor] = field(default_factory=dict)

    @property
    def correct(self) -> dict[int, bool | None]:
        """The verdicts, by row. They may come after the measurement has begun."""
        pairs = zip(self.scored.rollouts, self.scored.scores, strict=True)
        return {rollout.row: score.correct for rollout, score in pairs}


class Diagnostics:
    """Measures every `diagnostics.every` steps, as far as the teachers' capabilities allow.

    needs: what to request from the teachers; empty if there is nothing to measure. warning: which capability a teacher
    lacks, or "".
    """

    def __init__(
        self, config: TrainConfig, student: Student, prepared: PreparedModel, scorer: Scorer, ranks: Ranks
    ) -> None:
        self.config = config.diagnostics
        self.temperature = config.rollout.temperature
        self.micro = config.batch.micro
        self.student = student
        self.prepared = prepared
        self.scorer = scorer
        self.ranks = ranks
        self.needs, self.warning = self._supported_needs()

    def _supported_needs(self) -> tuple[Needs, str]:
        """(what every teacher offers, the warning)."""
        infos = [teacher.info for teacher in self.scorer.teachers.values() if teacher.info is not None]
        if not self.config.every or not infos:
            return Needs(), ""
        top_k = min(info.max_top_k if "top_k" in info.capabilities else 0 for info in infos)
        entropy = all("entropy" in info.capabilities for info in infos)
        lacking = [name for name, offered in (("top-k ids", top_k), ("entropy", entropy)) if not offered]
        warning = f"a teacher offers no {' and no '.join(lacking)}: not compared with the student's" if lacking else ""
        return Needs(teacher=True, top_k=min(top_k, self.config.top_k), entropy=entropy), warning

    def due(self, step: int, needs: Needs) -> bool:
        """Whether to measure at `step`, counted from 0; the same on every process. needs: the objective's at `step`."""
        supported = self.needs.top_k or self.needs.entropy
        return bool(supported and needs.teacher and (step == 0 or (step + 1) % self.config.every == 0))

    def begin(self, scored: ScoredBatch, dummy: Rollout) -> Measurement:
        """Request the teachers' scores of this process's share, and meanwhile compute the student's, before the step's
        update. All processes begin together. dummy: a rollout for forward passes whose outcome is dropped.
        """
        started = time.monotonic()
        share = len(self.ranks.share(self.config.rollouts))
        rollouts = [rollout for rollout in spread_rows(scored.rollouts, share) if rollout.ids]
        pending = self.scorer.begin(self.needs, verify=False)
        pending.submit(rollouts)
        pending.flush()
        measurement = Measurement(scored, rollouts, pending)
        self._run_student(measurement, dummy)
        measurement.spans.append(("diagnose", started, time.monotonic()))
        return measurement

    @torch.no_grad()
    def _run_student(self, measurement: Measurement, dummy: Rollout) -> None:
        module = self.prepared.module
        was_training = module.training
        module.eval()  # dropout would consume random numbers, and those of the step must stay the same
        parts = micro_batches([len(rollout.ids) for rollout in measurement.rollouts], self.micro)
        if self.prepared.lock_step:
            parts += [[] for _ in range(max(self.ranks.gather(len(parts))) - len(parts))]
        top_k = max(1, self.needs.top_k)
        for part in parts:
            chosen = [measurement.rollouts[index] for index in part]
            readable, batch = self._batch(chosen)
            chosen = [chosen[index] for index in readable]
            if batch is None:
                if not self.prepared.lock_step:
                    continue
                _, batch = self._batch([readable_dummy(self.student, dummy)])
                assert batch is not None
            student = module(batch.inputs, batch.predicts_BS, batch.ids_N, self.temperature, top_k=top_k)
            if not chosen:
                continue
            lengths, rows = [len(r.ids) for r in chosen], [r.row for r in chosen]
            for by_row, values in (
                (measurement.student_entropy, student.entropy_N),
                (measurement.student_ids, student.top_ids_NK),
                (measurement.student_logprobs, student.top_logprobs_NK),
            ):
                by_row.update(zip(rows, values.cpu().split(lengths), strict=True))
        module.train(was_training)

    def _batch(self, rollouts: Sequence[Rollout]) -> tuple[list[int], Batch | None]:
        """(the indices of the rollouts whose prompts can be read, their batch). The update reports the others."""
        if not rollouts:
            return [], None
        return make_readable_batch(
            self.student,
            [rollout.example for rollout in rollouts],
            [rollout.ids for rollout in rollouts],
            lambda index, fault: None,
            device=self.ranks.accelerator.device,
            share=not self.prepared.lock_step,
        )

    def metrics(self, measurement: Measurement) -> dict[str, float | list[float | None] | None]:
        """The metrics, over all processes. Waits for the teachers. Positions without a teacher's score are left out.

        An error of a teacher costs the metrics, not the run: if the run needs the teacher, the next step raises the
        error on all processes.
        """
        means, failure = Means(), ""
        try:
            scores = measurement.pending.collect()
        except (VoldError, RunError) as error:
            failure = str(error)
        else:
            measurement.spans += scores.spans
            correct = measurement.correct
            for rollout in measurement.rollouts:
                if rollout.row not in measurement.student_ids:
                    continue  # its prompt could not be read
                add_scores(means, measurement, rollout.row, correct[rollout.row], scores.rows[rollout.row])
            failure = scores.describe_missing()
        measurement.spans += measurement.pending.waits
        parts = self.ranks.gather((means, failure))
        if reason := next((failure for _, failure in parts if failure), ""):
            text = f"diagnostics: no answer from the teacher: {reason}"
            console.print(f"[yellow]{escape(text)}", highlight=False, soft_wrap=True)
        return diagnostic_metrics(Means.joined(part for part, _ in parts))


def diagnostic_metrics(means: Means) -> dict[str, float | list[float | None] | None]:
    """The metrics that have a value."""
    named = {name: mean for name in METRICS if (mean := means.mean(name)) is not None}
    deciles = [means.mean(f"{_OVERLAP_BINS}/{index}") for index in range(DECILES)]
    return {**named, **({"overlap_by_position": deciles} if any(mean is not None for mean in deciles) else {})}


def add_scores(means: Means, measurement: Measurement, row: int, correct: bool | None, score: RolloutScore) -> None:
    """Add the scores of both sides for one rollout. correct: its verdict."""
    suffix = SUFFIXES[correct]
    if score.entropy is not None:
        teacher_N = torch.from_numpy(score.entropy)
        means.add("teacher/entropy", teacher_N)
        for name in {"entropy/gap", f"entropy/gap{suffix}"}:
            means.add(name, teacher_N - measurement.student_entropy[row])
    if score.support_ids is not None and score.support_logprobs is not None:
        common = overlap(
            measurement.student_ids[row],
            measurement.student_logprobs[row],
            torch.from_numpy(score.support_ids),
            torch.from_numpy(score.support_logprobs),
        )
        for name in {"overlap/ratio", f"overlap/ratio{suffix}"}:
            means.add(name, common.ratio_N)
        means.add("overlap/student_mass", common.student_mass_N)
        means.add("overlap/teacher_mass", common.teacher_mass_N)
        means.add_by_position(_OVERLAP_BINS, common.ratio_N, DECILES)


@dataclass(frozen=True)
class Overlap:
    """ratio_N: the share of the K ids that are among the most likely ones of both sides. student_mass_N,
    teacher_mass_N: the probability that each side gives these common ids. float32 [N], NaN where the teacher's ids are
    missing.
    """

    ratio_N: Tensor
    student_mass_N: Tensor
    teacher_mass_N: Tensor


def overlap(
    student_ids_NK: Tensor, student_logprobs_NK: Tensor, teacher_ids_NK: Tensor, teacher_logprobs_NK: Tensor
) -> Overlap:
    """Compare the most likely ids of both sides, position by position.

    ids: int64, each at most once a position. logprobs: float32, nats. A teacher's id with log-probability NaN means
    another token to the student and is never common. If all of a position's are NaN, the position is missing.
    """
    parts = []
    width = min(student_ids_NK.shape[-1], teacher_ids_NK.shape[-1])
    for start in range(0, len(student_ids_NK), _POSITIONS):
        part = slice(start, start + _POSITIONS)
        student_NK, student_lp_NK = student_ids_NK[part, :width], student_logprobs_NK[part, :width]
        teacher_NK, teacher_lp_NK = teacher_ids_NK[part, :width], teacher_logprobs_NK[part, :width]
        known_NK = teacher_lp_NK.isfinite()
        same_NKK = (student_NK.unsqueeze(-1) == teacher_NK.unsqueeze(-2)) & known_NK.unsqueeze(-2)
        student_common_NK, teacher_common_NK = same_NKK.any(-1), same_NKK.any(-2)
        values = (
            student_common_NK.float().mean(-1),
            torch.where(student_common_NK, student_lp_NK, -torch.inf).exp().sum(-1),
            torch.where(teacher_common_NK, teacher_lp_NK, -torch.inf).exp().sum(-1),
        )
        missing_N = ~known_NK.any(-1)
        parts.append([value_N.masked_fill(missing_N, torch.nan) for value_N in values])
    if not parts:
        return Overlap(*(student_logprobs_NK.new_zeros(0) for _ in range(3)))
    return Overlap(*(torch.cat(column) for column in zip(*parts, strict=True)))


def spread_rows(rollouts: Sequence[Rollout], count: int) -> list[Rollout]:
    """At most `count` rollouts, evenly spaced, so that they are of many prompts."""
    chosen = np.unique(np.linspace(0, len(rollouts) - 1, min(count, len(rollouts))).round().astype(int))
    return [rollouts[index] for index in chosen]
