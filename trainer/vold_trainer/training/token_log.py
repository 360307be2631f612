"""The metrics of a step's completions and tokens, and the samples that a run's folder keeps of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vold_trainer.data.pictures import encode_thumbnail
from vold_trainer.scoring.batch import ScoredBatch, teacher_logprobs
from vold_trainer.scoring.sanity import count_gaps, gap_percentile
from vold_trainer.student.models import Student
from vold_trainer.student.readable import check_images, for_readable
from vold_trainer.training.means import Means

DECILES = 10
MISMATCHES = ("mismatch/k1", "mismatch/abs", "mismatch/k3")


@dataclass
class CompletionStats:
    """Rewards, verdicts and lengths of a step's completions; the completions of a group are neighbours. sent: as in
    `RolloutScore`.
    """

    group: int
    rewards: list[float]
    correct: list[bool]
    lengths: list[int]
    truncated: list[bool]
    sent: list[bool | None]

    @classmethod
    def of(cls, scored: ScoredBatch) -> "CompletionStats":
        return cls(
            scored.group,
            scored.rewards_C.tolist(),
            scored.correct_C.tolist(),
            [len(rollout.ids) for rollout in scored.rollouts],
            [rollout.truncated for rollout in scored.rollouts],
            [score.sent for score in scored.scores],
        )

    @classmethod
    def joined(cls, parts: Sequence["CompletionStats"]) -> "CompletionStats":
        """The stats of several processes as one."""
        columns = ("rewards", "correct", "lengths", "truncated", "sent")
        return cls(parts[0].group, *([v for part in parts for v in getattr(part, name)] for name in columns))

    def metrics(self) -> dict[str, float | None]:
        """Empty without completions."""
        if not self.lengths:
            return {}
        rewards = torch.tensor(self.rewards)
        verified = rewards.isfinite()
        rewards, correct = rewards[verified], torch.tensor(self.correct)[verified]
        lengths = torch.tensor(self.lengths, dtype=torch.float32)
        # If the reward is the verdict itself, 1 or 0, its means by verdict are constants.
        by_verdict = {} if torch.equal(rewards, correct.float()) else means_by_verdict("reward/mean", rewards, correct)
        groups_PG = torch.tensor(self.correct).view(-1, self.group)
        return {
            "reward/mean": rewards.mean().item() if len(rewards) else None,
            "reward/std": rewards.std().item() if len(rewards) > 1 else None,
            "reward/correct": _mean(correct.float()),
            **by_verdict,
            "groups/all_correct": groups_PG.all(-1).float().mean().item(),
            "groups/all_wrong": (~groups_PG.any(-1)).float().mean().item(),
            "length/mean": float(np.mean(self.lengths)),
            **means_by_verdict("length/mean", lengths[verified], correct),
            "length/truncated": float(np.mean(self.truncated)),
            **self._sent_metrics(),
        }

    def _sent_metrics(self) -> dict[str, float | None]:
        """Empty if every completion is sent to its teacher. Otherwise the share of those that were, and the number of
        their tokens: all other metrics of the teacher are over these completions alone.
        """
        if all(sent is None for sent in self.sent):
            return {}
        sent = np.array([sent is not False for sent in self.sent])
        return {"teacher/sent": float(sent.mean()), "teacher/sent_tokens": float(np.array(self.lengths)[sent].sum())}


def means_by_verdict(name: str, values_C: Tensor, correct_C: Tensor) -> dict[str, float | None]:
    """The means of verified completions' values over the correct ones and over the wrong ones."""
    return {f"{name}_correct": _mean(values_C[correct_C]), f"{name}_wrong": _mean(values_C[~correct_C])}


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None


SUFFIXES = {True: "_correct", False: "_wrong", None: ""}
"""The suffix of a metric's name, by verdict. Completions without a verdict count in the metric without a suffix."""


class TokenLog:
    """The student's log-probability of each token of a step, for the metrics and the samples."""

    def __init__(
        self, scored: ScoredBatch, old: Mapping[int, Tensor] | None = None, gap_cap: float | None = None
    ) -> None:
        """old: the log-probabilities before the step's first update, by row; None if the step has one update. gap_cap:
        the objective's bound, nats.
        """
        self.scored = scored
        self.old = old
        self.gap_cap = gap_cap
        self.logprobs: dict[int, Tensor] = {}
        self.means = Means()

    def add(self, rows: list[int], logprobs_N: Tensor, entropy_N: Tensor) -> None:
        lengths = [len(self.scored.rollouts[row].ids) for row in rows]
        self.logprobs.update(zip(rows, logprobs_N.split(lengths), strict=True))
        self.means.add("student/entropy", entropy_N)

    def finish(self) -> Means:
        """The input of `token_metrics`. To be called once, after all rows were added."""
        sampled = [row for row in self.logprobs if self.scored.rollouts[row].logprobs is not None]
        if sampled:  # all rows at once: a row by itself costs as much as all of them
            old = self.logprobs if self.old is None else self.old
            rollout_N = torch.cat([torch.from_numpy(self.scored.rollouts[row].logprobs) for row in sampled])
            mismatch_N = rollout_N - torch.cat([old[row].cpu() for row in sampled])
            self.means.add("mismatch/k1", mismatch_N)
            self.means.add("mismatch/abs", mismatch_N.abs())
            self.means.add("mismatch/k3", (-mismatch_N).exp() - 1 + mismatch_N)
        scores = self.scored.scores
        teacher_rows = [row for row in self.logprobs if scores[row].teacher_logprobs is not None]
        if teacher_rows:
            teacher_N = torch.cat([torch.from_numpy(scores[row].teacher_logprobs) for row in teacher_rows])
            self._add_gaps(teacher_rows, teacher_N - torch.cat([self.logprobs[row] for row in teacher_rows]))
        return self.means

    def _add_gaps(self, rows: list[int], gap_N: Tensor) -> None:
        """gap_N: the teacher's log-probabilities of these rows' tokens minus the student's, NaN where masked."""
        self.means.add("masked", gap_N[~gap_N.isfinite()].nan_to_num(0.0, 0.0, 0.0))
        self.means.gaps.update(count_gaps(gap_N.numpy()))
        if self.gap_cap is not None:
            self.means.add("capped", (gap_N[gap_N.isfinite()].abs() > self.gap_cap).float())
        lengths = torch.tensor([len(self.logprobs[row]) for row in rows])
        verdicts = [self.scored.scores[row].correct for row in rows]
        for selected, suffix in SUFFIXES.items():
            mask_N = torch.tensor([selected in (None, verdict) for verdict in verdicts]).repeat_interleave(lengths)
            self.means.add(f"gap{suffix}", gap_N[mask_N])
            self.means.add(f"k2{suffix}", 0.5 * gap_N[mask_N].square())
        position_N = torch.arange(len(gap_N)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        self.means.add_binned("position", gap_N, position_N * DECILES // lengths.repeat_interleave(lengths), DECILES)

    def samples(self, step: int, student: Student, count: int = 3) -> list[dict[str, Any]]:
        """At most `count` correct and `count` wrong rollouts, spread over the step's prompts, token by token."""
        rows = sorted(self.logprobs)
        correct = [row for row in rows if self.scored.scores[row].correct]
        wrong = [row for row in rows if not self.scored.scores[row].correct]
        return [self._sample(step, row, student) for row in _spread(correct, count) + _spread(wrong, count)]

    def _sample(self, step: int, row: int, student: Student) -> dict[str, Any]:
        rollout, score = self.scored.rollouts[row], self.scored.scores[row]
        readable, _ = for_readable(check_images, [rollout.example], lambda index, fault: None)
        images = [encode_thumbnail(image) for image in rollout.example.images] if readable else []
        return {
            "step": step,
            "id": rollout.example.id,
            "prompt": rollout.example.prompt_text,
            "reference": rollout.example.reference,
            "ids": list(rollout.ids),
            "tokens": [student.tokenizer.decode([token]) for token in rollout.ids],
            "student_logprobs": self.logprobs[row].tolist(),
            "teacher_logprobs": teacher_logprobs(score, rollout).tolist(),
            "reward": score.reward,
            "correct": score.correct,
            "extracted": score.extracted,
            "reason": score.reason,
            **({"missing": score.missing} if score.missing else {}),
            **({"images": images} if images else {}),
        }


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly spaced: the first rows would be completions of one prompt."""
    return [rows[len(rows) * index // count] for index in range(count)] if len(rows) > count else list(rows)


def token_metrics(means: Means) -> dict[str, Any]:
    """The entropy; log pi_rollout - log pi_old, if the rollouts have log-probabilities: its mean, its mean absolute
    value and k3; and if there is a teacher, the gap log pi_T - log pi_theta and k2: of all tokens, by verdict, and by
    position; the 99th percentile of the gap's absolute value, and the share of it beyond the objective's bound, if it
    has one.
    """
    metrics: dict[str, Any] = {"student/entropy": means.mean("student/entropy")}
    metrics |= {name: means.mean(name) for name in MISMATCHES if name in means.sums}
    if "gap" not in means.sums:
        return metrics
    for suffix in ("", "_correct", "_wrong"):
        metrics[f"teacher/gap{suffix}"] = means.mean(f"gap{suffix}")
        metrics[f"teacher/k2{suffix}"] = means.mean(f"k2{suffix}")
    metrics["teacher/gap_p99"] = gap_percentile(means.gaps)
    if "capped" in means.sums:
        metrics["teacher/capped"] = means.mean("capped")
    metrics["missing/masked_positions"] = float(means.count("masked"))
    metrics["gap_by_position"] = [means.mean(f"position/{index}") for index in range(DECILES)]
    return metrics
