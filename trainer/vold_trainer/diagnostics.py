"""How alike student and teacher are on the student's own completions: a health signal, beside whatever is learned.

Every few steps some of the step's rollouts go to the teacher once more, with the question for its most likely ids and
its entropy; the student is asked the same. What a step learns from is not touched by it. "Rethinking OPD" (arXiv
2604.13016) finds that the share of ids that both sides put among their most likely ones rises in runs that go well.

Shapes: N completion positions of all rollouts looked at, K most likely ids.
"""

import concurrent.futures
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from rich.markup import escape
from torch import Tensor, nn
from vold_client import VoldError

from vold_trainer.batching import make_batch, micro_batches
from vold_trainer.config import TrainConfig
from vold_trainer.models import Student
from vold_trainer.objectives import Needs
from vold_trainer.rollout.base import Rollout
from vold_trainer.run import console
from vold_trainer.scored import Scored
from vold_trainer.scoring import RolloutScore, Scorer, Span, StepScores
from vold_trainer.token_log import DECILES

_ROWS = 4096  # positions compared at once: K x K booleans each


@dataclass
class Asked:
    """A measurement under way. answer: what the teachers will have said. entropy, ids, logprobs: the student's, by
    row: float32 [T], int64 [T, K], float32 [T, K].
    """

    rollouts: list[Rollout]
    correct: dict[int, bool | None]
    answer: "concurrent.futures.Future[StepScores]"
    spans: list[Span]
    entropy: dict[int, Tensor] = field(default_factory=dict)
    ids: dict[int, Tensor] = field(default_factory=dict)
    logprobs: dict[int, Tensor] = field(default_factory=dict)


class Diagnostics:
    """Measures every `diagnostics.every` steps, where the teachers offer what it takes."""

    def __init__(
        self, config: TrainConfig, student: Student, module: nn.Module, scorer: Scorer, accelerator: Accelerator
    ) -> None:
        self.config = config.diagnostics
        self.rollout = config.rollout
        self.micro = config.batch.micro
        self.student = student
        self.module = module
        self.scorer = scorer
        self.accelerator = accelerator
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
        """Whether to measure at `step`, counted from 0, whose objective asks the teacher for `asked`."""
        offered = self.needs.top_k or self.needs.entropy
        return bool(offered and asked.teacher and (step == 0 or (step + 1) % self.config.every == 0))

    def begin(self, scored: Scored) -> Asked:
        """Ask the teachers, and meanwhile the student, as it is before this step's update."""
        rollouts = [rollout for rollout in spread_rows(scored.rollouts, self.config.rollouts) if rollout.ids]
        correct = {rollout.row: score.correct for rollout, score in zip(scored.rollouts, scored.scores, strict=True)}
        started = time.monotonic()
        asked = Asked(rollouts, correct, self.scorer.ask_beside(rollouts, self.needs), [])
        self._ask_student(asked)
        asked.spans.append(("diagnose", started, time.monotonic()))
        return asked

    @torch.no_grad()
    def _ask_student(self, asked: Asked) -> None:
        was_training = self.module.training
        self.module.eval()  # dropout would draw random numbers, and those of the step must stay the same
        for part in micro_batches([len(rollout.ids) for rollout in asked.rollouts], self.micro):
            chosen = [asked.rollouts[index] for index in part]
            batch = make_batch(
                self.student, [r.example for r in chosen], [r.ids for r in chosen], device=self.accelerator.device
            )
            own = self.module(
                batch.inputs, batch.predicts_BS, batch.ids_N, self.rollout.temperature, top_k=max(1, self.needs.top_k)
            )
            lengths, rows = [len(r.ids) for r in chosen], [r.row for r in chosen]
            for kept, values in (
                (asked.entropy, own.entropy_N),
                (asked.ids, own.top_ids_NK),
                (asked.logprobs, own.top_logprobs_NK),
            ):
                kept.update(zip(rows, values.cpu().split(lengths), strict=True))
        self.module.train(was_training)

    def figures(self, asked: Asked) -> dict[str, float | list[float | None] | None]:
        """Waits for the teachers. Positions whose answer did not come count nowhere; of several processes the mean.

        A teacher that refuses the question is told of and costs the figures, not the run. Raises RunError where another
        teacher answered.
        """
        sums = Sums()
        try:
            answer = asked.answer.result()
        except VoldError as error:
            console.print(f"[yellow]diagnostics: no answer from the teacher: {escape(str(error))}")
        else:
            asked.spans += answer.spans
            for rollout in asked.rollouts:
                add_scores(sums, asked, rollout.row, answer.rows[rollout.row])
        return sums.means(self.accelerator)


def add_scores(sums: "Sums", asked: Asked, row: int, score: RolloutScore) -> None:
    """Take in what both sides said of one rollout."""
    outcome = {True: "_correct", False: "_wrong", None: ""}[asked.correct[row]]
    if score.entropy is not None:
        theirs_N = torch.from_numpy(score.entropy)
        sums.add("teacher/entropy", theirs_N)
        for name in {"entropy/gap", f"entropy/gap{outcome}"}:
            sums.add(name, theirs_N - asked.entropy[row])
    if score.support_ids is not None and score.support_logprobs is not None:
        found = overlap(
            asked.ids[row],
            asked.logprobs[row],
            torch.from_numpy(score.support_ids),
            torch.from_numpy(score.support_logprobs),
        )
        for name in {"overlap/ratio", f"overlap/ratio{outcome}"}:
            sums.add(name, found.ratio_N)
        sums.add("overlap/student_mass", found.student_mass_N)
        sums.add("overlap/teacher_mass", found.teacher_mass_N)
        sums.add_places(found.ratio_N)


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


class Sums:
    """Sums and counts of what is finite, by name, and of the overlap by tenth of a completion."""

    NAMES = (
        *("teacher/entropy", "entropy/gap", "entropy/gap_correct", "entropy/gap_wrong"),
        *("overlap/ratio", "overlap/ratio_correct", "overlap/ratio_wrong"),
        *("overlap/student_mass", "overlap/teacher_mass"),
    )

    def __init__(self) -> None:
        self.sums = torch.zeros(len(self.NAMES) + DECILES, 2, dtype=torch.float64)

    def add(self, name: str, values_N: Tensor) -> None:
        self._add(self.NAMES.index(name), values_N)

    def add_places(self, values_N: Tensor) -> None:
        """values_N: of one completion, from its first position to its last."""
        tenths = torch.arange(len(values_N)) * DECILES // max(1, len(values_N))
        for tenth in range(DECILES):
            self._add(len(self.NAMES) + tenth, values_N[tenths == tenth])

    def _add(self, index: int, values_N: Tensor) -> None:
        known_N = values_N[values_N.isfinite()]
        self.sums[index] += torch.tensor([known_N.sum().item(), float(len(known_N))], dtype=torch.float64)

    def means(self, accelerator: Accelerator) -> dict[str, float | list[float | None] | None]:
        """Over all processes; what nothing is known of is left out."""
        device = accelerator.device
        sums = self.sums.float() if device.type == "mps" else self.sums
        total = accelerator.reduce(sums.to(device), reduction="sum").tolist()
        every = [part / count if count else None for part, count in total]
        named = {name: mean for name, mean in zip(self.NAMES, every, strict=False) if mean is not None}
        places = every[len(self.NAMES) :]
        return {**named, **({"overlap_by_position": places} if any(p is not None for p in places) else {})}
