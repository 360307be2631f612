"""The figures of a step, and the rollouts of it that are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vold_trainer.data.pictures import thumbnail
from vold_trainer.scoring.batch import ScoredBatch, teacher_row
from vold_trainer.student.models import Student
from vold_trainer.training.means import Means

DECILES = 10
MISMATCHES = ("mismatch/k1", "mismatch/abs", "mismatch/k3")


@dataclass
class Outcomes:
    """What the verifier made of a step's completions, and how long they are: a value a completion, groups together."""

    group: int
    rewards: list[float]
    correct: list[bool]
    lengths: list[int]
    truncated: list[bool]

    @classmethod
    def of(cls, scored: ScoredBatch) -> "Outcomes":
        return cls(
            scored.group,
            scored.rewards_C.tolist(),
            scored.correct_C.tolist(),
            [len(rollout.ids) for rollout in scored.rollouts],
            [rollout.truncated for rollout in scored.rollouts],
        )

    @classmethod
    def joined(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """Those of several processes as one."""
        columns = ("rewards", "correct", "lengths", "truncated")
        return cls(parts[0].group, *([v for part in parts for v in getattr(part, name)] for name in columns))

    def figures(self) -> dict[str, float | None]:
        rewards = torch.tensor(self.rewards)
        judged = rewards.isfinite()
        rewards, right = rewards[judged], torch.tensor(self.correct)[judged]
        lengths = torch.tensor(self.lengths, dtype=torch.float32)
        # where the reward is the verdict itself, 1 or 0, its means by outcome would say nothing
        graded = {} if torch.equal(rewards, right.float()) else by_outcome("reward/mean", rewards, right)
        groups_PG = torch.tensor(self.correct).view(-1, self.group)
        return {
            "reward/mean": rewards.mean().item() if len(rewards) else None,
            "reward/std": rewards.std().item() if len(rewards) > 1 else None,
            "reward/correct": _mean(right.float()),
            **graded,
            "groups/all_correct": groups_PG.all(-1).float().mean().item(),
            "groups/all_wrong": (~groups_PG.any(-1)).float().mean().item(),
            "length/mean": float(np.mean(self.lengths)),
            **by_outcome("length/mean", lengths[judged], right),
            "length/truncated": float(np.mean(self.truncated)),
        }


def by_outcome(name: str, values_C: Tensor, right_C: Tensor) -> dict[str, float | None]:
    """The mean of judged completions' values over the right ones and over the wrong ones."""
    return {f"{name}_correct": _mean(values_C[right_C]), f"{name}_wrong": _mean(values_C[~right_C])}


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None


SUFFIXES = {True: "_correct", False: "_wrong", None: ""}
"""How a figure's name ends that is of one outcome; what nobody judged is in the figure of all alone."""


class TokenLog:
    """The student's side of every token of a step, for the figures and for the samples kept."""

    def __init__(self, scored: ScoredBatch, old: Mapping[int, Tensor] | None = None) -> None:
        """old: the log-probabilities before the step's first update, by row; None where there is one update."""
        self.scored = scored
        self.old = old
        self.logprobs: dict[int, Tensor] = {}
        self.means = Means()

    def add(self, rows: list[int], logprobs_N: Tensor, entropy_N: Tensor) -> None:
        lengths = [len(self.scored.rollouts[row].ids) for row in rows]
        self.logprobs.update(zip(rows, logprobs_N.split(lengths), strict=True))
        self.means.add("student/entropy", entropy_N)

    def sums(self) -> Means:
        """What `token_figures` is made of. To be taken once, when all rows were added."""
        drawn = [row for row in self.logprobs if self.scored.rollouts[row].logprobs is not None]
        if drawn:  # all rows at once: a row by itself costs as much as all of them
            before = self.logprobs if self.old is None else self.old
            then_N = torch.cat([torch.from_numpy(self.scored.rollouts[row].logprobs) for row in drawn])
            mismatch_N = then_N - torch.cat([before[row].cpu() for row in drawn])
            self.means.add("mismatch/k1", mismatch_N)
            self.means.add("mismatch/abs", mismatch_N.abs())
            self.means.add("mismatch/k3", (-mismatch_N).exp() - 1 + mismatch_N)
        scores = self.scored.scores
        taught = [row for row in self.logprobs if scores[row].teacher_logprobs is not None]
        if taught:
            theirs_N = torch.cat([torch.from_numpy(scores[row].teacher_logprobs) for row in taught])
            self._add_gaps(taught, theirs_N - torch.cat([self.logprobs[row] for row in taught]))
        return self.means

    def _add_gaps(self, rows: list[int], gap_N: Tensor) -> None:
        """gap_N: the teacher's log-probabilities of these rows' tokens minus the student's, NaN where masked."""
        self.means.add("masked", gap_N[~gap_N.isfinite()].nan_to_num(0.0, 0.0, 0.0))
        lengths = torch.tensor([len(self.logprobs[row]) for row in rows])
        verdicts = [self.scored.scores[row].correct for row in rows]
        for verdict, suffix in SUFFIXES.items():
            of_it = torch.tensor([verdict in (None, one) for one in verdicts]).repeat_interleave(lengths)
            self.means.add(f"gap{suffix}", gap_N[of_it])
            self.means.add(f"k2{suffix}", 0.5 * gap_N[of_it].square())
        position_N = torch.arange(len(gap_N)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        self.means.add_at("place", gap_N, position_N * DECILES // lengths.repeat_interleave(lengths), DECILES)

    def samples(self, step: int, student: Student, each: int = 3) -> list[dict[str, Any]]:
        """Some right and some wrong rollouts of the step, of prompts from all over it, token by token."""
        rows = sorted(self.logprobs)
        right = [row for row in rows if self.scored.scores[row].correct]
        wrong = [row for row in rows if not self.scored.scores[row].correct]
        return [self._sample(step, row, student) for row in _spread(right, each) + _spread(wrong, each)]

    def _sample(self, step: int, row: int, student: Student) -> dict[str, Any]:
        rollout, score = self.scored.rollouts[row], self.scored.scores[row]
        teacher = teacher_row(score, rollout)
        images = [thumbnail(image) for image in rollout.example.images]
        return {
            "step": step,
            "id": rollout.example.id,
            "prompt": rollout.example.prompt_text,
            "reference": rollout.example.reference,
            "ids": list(rollout.ids),
            "tokens": [student.tokenizer.decode([token]) for token in rollout.ids],
            "student_logprobs": self.logprobs[row].tolist(),
            "teacher_logprobs": teacher.tolist(),
            "reward": score.reward,
            "correct": score.correct,
            "extracted": score.extracted,
            "reason": score.reason,
            **({"images": images} if images else {}),
        }


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """At most `count` of the rows, at equal distances: completions of a prompt stand together, and a group may
    have more of them.
    """
    return [rows[len(rows) * place // count] for place in range(count)] if len(rows) > count else list(rows)


def token_figures(means: Means) -> dict[str, Any]:
    """Entropy; log pi_rollout - log pi_old, where it is known with what probability the tokens were drawn: its mean and
    how large it is; and where there is a teacher, k2 and the gap log pi_T - log pi_theta: all, by outcome, by place.
    """
    figures: dict[str, Any] = {"student/entropy": means.mean("student/entropy")}
    figures |= {name: means.mean(name) for name in MISMATCHES if name in means.sums}
    if "gap" not in means.sums:
        return figures
    for name in ("", "_correct", "_wrong"):
        figures[f"teacher/gap{name}"] = means.mean(f"gap{name}")
        figures[f"teacher/k2{name}"] = means.mean(f"k2{name}")
    figures["missing/masked_positions"] = float(means.count("masked"))
    figures["gap_by_position"] = [means.mean(f"place/{place}") for place in range(DECILES)]
    return figures
