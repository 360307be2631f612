"""How alike student and teacher are on the student's own completions: a health signal, beside whatever is learned.

Every few steps some of the step's rollouts go to the teacher once more, with the question for its most likely ids and
its entropy; the student is asked the same. What a step learns from is not touched by it. "Rethinking OPD" (arXiv
2604.13016) finds that the share of ids that both sides put among their most likely ones rises in runs that go well.

Shapes: N completion positions of all rollouts looked at, K most likely ids.
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
from vold_trainer.processes.wrapping import Wrapped
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scorer import PendingScores, RolloutScore, Scorer
from vold_trainer.services.outages import Span
from vold_trainer.student.batching import make_batch, micro_batches
from vold_trainer.student.models import Student
from vold_trainer.terminal import console
from vold_trainer.training.means import Means
from vold_trainer.training.token_log import DECILES, SUFFIXES

FIGURES = (
    *("teacher/entropy", "entropy/gap", "entropy/gap_correct", "entropy/gap_wrong"),
    *("overlap/ratio", "overlap/ratio_correct", "overlap/ratio_wrong"),
    *("overlap/student_mass", "overlap/teacher_mass"),
)

_ROWS = 4096  # positions compared at once: K x K booleans each
_PLACE = "overlap/place"


@dataclass
class Measurement:
    """One under way, of this process's rollouts. asked: what the teachers will have said. entropy, ids, logprobs: the
    student's, by row: float32 [T], int64 [T, K], float32 [T, K].
    """

    scored: ScoredBatch
    rollouts: list[Rollout]
    asked: PendingScores
    spans: list[Span] = field(default_factory=list)
    entropy: dict[int, Tensor] = field(default_factory=dict)
    ids: dict[int, Tensor] = field(default_factory=dict)
    logprobs: dict[int, Tensor] = field(default_factory=dict)

    @property
    def correct(self) -> dict[int, bool | None]:
        """The verdicts, by row; they may come later than the measurement begins."""
        pairs = zip(self.scored.rollouts, self.scored.scores, strict=True)
        return {rollout.row: score.correct for rollout, score in pairs}


class Diagnostics:
    """Measures every `diagnostics.every` steps, where the teachers offer what it takes."""

    def __init__(self, config: TrainConfig, student: Student, wrapped: Wrapped, scorer: Scorer, ranks: Ranks) -> None:
        self.config = config.diagnostics
        self.temperature = config.rollout.temperature
        self.micro = config.batch.micro
        self.student = student
        self.wrapped = wrapped
        self.scorer = scorer
        self.ranks = ranks
        self.needs, self.lacking = self._offered()

    def _offered(self) -> tuple[Needs, str]:
        """(what every teacher can be asked, a sentence about what they lack)."""
        infos = [teacher.info for teacher in self.scorer.teachers.values() if teacher.info is not None]
        if not self.config.every or not infos:
            return Needs(), ""
        top_k = min(info.max_top_k if "top_k" in info.capabilities else 0 for info in infos)
        entropy = all("entropy" in info.capabilities for info in infos)
        lacks = [name for name, there in (("top-k ids", top_k), ("entropy", entropy)) if not there]
        said = f"a teacher offers no {' and no '.join(lacks)}: not compared with the student's" if lacks else ""
        return Needs(teacher=True, top_k=min(top_k, self.config.top_k), entropy=entropy), said

    def due(self, step: int, asked: Needs) -> bool:
        """Whether to measure at `step`, counted from 0, whose objective asks the teacher for `asked`. The same on every
        process.
        """
        offered = self.needs.top_k or self.needs.entropy
        return bool(offered and asked.teacher and (step == 0 or (step + 1) % self.config.every == 0))

    def begin(self, scored: ScoredBatch, spare: Rollout) -> Measurement:
        """Ask the teachers about this process's share, and meanwhile the student, as it is before this step's update.
        All processes begin together. spare: a rollout for passes whose outcome nobody looks at.
        """
        started = time.monotonic()
        share = len(self.ranks.share(self.config.rollouts))
        rollouts = [rollout for rollout in spread_rows(scored.rollouts, share) if rollout.ids]
        asked = self.scorer.begin(self.needs, verify=False)
        asked.submit(rollouts)
        asked.flush()
        measured = Measurement(scored, rollouts, asked)
        self._ask_student(measured, spare)
        measured.spans.append(("diagnose", started, time.monotonic()))
        return measured

    @torch.no_grad()
    def _ask_student(self, measured: Measurement, spare: Rollout) -> None:
        module = self.wrapped.module
        was_training = module.training
        module.eval()  # dropout would draw random numbers, and those of the step must stay the same
        parts = micro_batches([len(rollout.ids) for rollout in measured.rollouts], self.micro)
        if self.wrapped.even:
            parts += [[] for _ in range(max(self.ranks.gather(len(parts))) - len(parts))]
        for part in parts:
            chosen = [measured.rollouts[index] for index in part] or [spare]
            examples, ids = [rollout.example for rollout in chosen], [rollout.ids for rollout in chosen]
            device = self.ranks.accelerator.device
            batch = make_batch(self.student, examples, ids, device=device, share=not self.wrapped.even)
            own = module(batch.inputs, batch.predicts_BS, batch.ids_N, self.temperature, top_k=max(1, self.needs.top_k))
            if not part:
                continue
            lengths, rows = [len(r.ids) for r in chosen], [r.row for r in chosen]
            for kept, values in (
                (measured.entropy, own.entropy_N),
                (measured.ids, own.top_ids_NK),
                (measured.logprobs, own.top_logprobs_NK),
            ):
                kept.update(zip(rows, values.cpu().split(lengths), strict=True))
        module.train(was_training)

    def figures(self, measured: Measurement) -> dict[str, float | list[float | None] | None]:
        """Waits for the teachers. Positions whose answer did not come count nowhere; of several processes the mean.

        What a teacher refuses, a service that stays away or another teacher is told of and costs the figures, not the
        run: where the run needs the teacher, the next step says so to all processes.
        """
        sums, said = Means(), ""
        try:
            answer = measured.asked.collect()
        except (VoldError, RunError) as error:
            said = str(error)
        else:
            measured.spans += answer.spans
            correct = measured.correct
            for rollout in measured.rollouts:
                add_scores(sums, measured, rollout.row, correct[rollout.row], answer.rows[rollout.row])
        measured.spans += measured.asked.waits
        parts = self.ranks.gather((sums, said))
        if why := next((why for _, why in parts if why), ""):
            console.print(f"[yellow]diagnostics: no answer from the teacher: {escape(why)}")
        return means_of(Means.joined(own for own, _ in parts))


def means_of(sums: Means) -> dict[str, float | list[float | None] | None]:
    """The figures; what nothing is known of is left out."""
    named = {name: mean for name in FIGURES if (mean := sums.mean(name)) is not None}
    places = [sums.mean(f"{_PLACE}/{place}") for place in range(DECILES)]
    return {**named, **({"overlap_by_position": places} if any(mean is not None for mean in places) else {})}


def add_scores(sums: Means, measured: Measurement, row: int, correct: bool | None, score: RolloutScore) -> None:
    """Take in what both sides said of one rollout."""
    outcome = SUFFIXES[correct]
    if score.entropy is not None:
        theirs_N = torch.from_numpy(score.entropy)
        sums.add("teacher/entropy", theirs_N)
        for name in {"entropy/gap", f"entropy/gap{outcome}"}:
            sums.add(name, theirs_N - measured.entropy[row])
    if score.support_ids is not None and score.support_logprobs is not None:
        found = overlap(
            measured.ids[row],
            measured.logprobs[row],
            torch.from_numpy(score.support_ids),
            torch.from_numpy(score.support_logprobs),
        )
        for name in {"overlap/ratio", f"overlap/ratio{outcome}"}:
            sums.add(name, found.ratio_N)
        sums.add("overlap/student_mass", found.student_mass_N)
        sums.add("overlap/teacher_mass", found.teacher_mass_N)
        sums.add_places(_PLACE, found.ratio_N, DECILES)


@dataclass(frozen=True)
class Overlap:
    """ratio_N: share of the K ids that both sides have among their most likely ones. student_mass_N, teacher_mass_N:
    the probability that each side gives these common ids. float32 [N], NaN where the teacher's ids are missing.
    """

    ratio_N: Tensor
    student_mass_N: Tensor
    teacher_mass_N: Tensor


def overlap(
    student_ids_NK: Tensor, student_logprobs_NK: Tensor, teacher_ids_NK: Tensor, teacher_logprobs_NK: Tensor
) -> Overlap:
    """Compare the most likely ids of both sides, position by position.

    ids: int64, each at most once a position. logprobs: float32, nats. A teacher's id whose log-probability is NaN means
    something else to the student: it is common to nobody. Where all of a position's are NaN, the position is missing.
    """
    parts = []
    width = min(student_ids_NK.shape[-1], teacher_ids_NK.shape[-1])
    for start in range(0, len(student_ids_NK), _ROWS):
        part = slice(start, start + _ROWS)
        own_NK, own_logprobs_NK = student_ids_NK[part, :width], student_logprobs_NK[part, :width]
        theirs_NK, their_logprobs_NK = teacher_ids_NK[part, :width], teacher_logprobs_NK[part, :width]
        known_NK = their_logprobs_NK.isfinite()
        same_NKK = (own_NK.unsqueeze(-1) == theirs_NK.unsqueeze(-2)) & known_NK.unsqueeze(-2)
        own_common_NK, their_common_NK = same_NKK.any(-1), same_NKK.any(-2)
        values = (
            own_common_NK.float().mean(-1),
            torch.where(own_common_NK, own_logprobs_NK, -torch.inf).exp().sum(-1),
            torch.where(their_common_NK, their_logprobs_NK, -torch.inf).exp().sum(-1),
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
