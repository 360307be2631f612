"""The figures of a step, and the rollouts of it that are kept."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vold_trainer.models import Student
from vold_trainer.scored import Scored, teacher_row

DECILES = 10


def outcome_figures(scored: Scored) -> dict[str, float | None]:
    """What the verifier made of a step's completions, and how long they are."""
    rewards = scored.rewards_C[scored.rewarded_C]
    groups_PG = scored.correct_C.view(-1, scored.group)
    lengths = torch.tensor([float(len(rollout.ids)) for rollout in scored.rollouts])
    return {
        "reward/mean": rewards.mean().item() if len(rewards) else None,
        "reward/std": rewards.std().item() if len(rewards) > 1 else None,
        "groups/all_correct": groups_PG.all(-1).float().mean().item(),
        "groups/all_wrong": (~groups_PG.any(-1)).float().mean().item(),
        "length/mean": lengths.mean().item(),
        "length/truncated": float(np.mean([rollout.truncated for rollout in scored.rollouts])),
    }


class TokenLog:
    """The student's side of every token of a step, for the figures and for the samples kept."""

    def __init__(self, scored: Scored) -> None:
        self.scored = scored
        self.logprobs: dict[int, Tensor] = {}
        self.entropies: list[Tensor] = []

    def add(self, rows: list[int], logprobs_N: Tensor, entropy_N: Tensor) -> None:
        lengths = [len(self.scored.rollouts[row].ids) for row in rows]
        self.logprobs.update(zip(rows, logprobs_N.split(lengths), strict=True))
        self.entropies.append(entropy_N)

    def figures(self) -> dict[str, Any]:
        """Entropy, and where there is a teacher, k2 and the gap log pi_T - log pi_theta: all, by outcome, by place."""
        figures: dict[str, Any] = {"student/entropy": torch.cat(self.entropies).mean().item(), **self._mismatch()}
        gaps: dict[bool, list[Tensor]] = {True: [], False: []}
        deciles: list[list[float]] = [[] for _ in range(DECILES)]
        masked = 0
        for row, own in self.logprobs.items():
            score = self.scored.scores[row]
            if score.teacher_logprobs is None:
                continue
            gap = torch.from_numpy(score.teacher_logprobs) - own
            known = gap.isfinite()
            masked += int((~known).sum())
            gaps[bool(score.correct)].append(gap[known])
            for place in known.nonzero().flatten().tolist():
                deciles[place * DECILES // len(gap)].append(float(gap[place]))
        every = [gap for part in gaps.values() for gap in part]
        if not every:
            return figures
        for name, part in (("", every), ("_correct", gaps[True]), ("_wrong", gaps[False])):
            joined = torch.cat(part) if part else torch.empty(0)
            figures[f"teacher/gap{name}"] = joined.mean().item() if len(joined) else None
            figures[f"teacher/k2{name}"] = (0.5 * joined.square()).mean().item() if len(joined) else None
        figures["missing/masked_positions"] = float(masked)
        figures["gap_by_position"] = [sum(part) / len(part) if part else None for part in deciles]
        return figures

    def _mismatch(self) -> dict[str, float]:
        """|log pi_theta - log pi_rollout| of the tokens, mean and largest, and the k3 estimate of KL(pi_rollout ||
        pi_theta): how far the engine that drew and the weights that learn are apart. Nothing where none were kept.
        """
        kept = {row: self.scored.rollouts[row].logprobs for row in self.logprobs}
        gaps = [self.logprobs[row] - torch.from_numpy(drawn) for row, drawn in kept.items() if drawn is not None]
        if not gaps:
            return {}
        gap = torch.cat(gaps)
        k3 = (gap.exp() - 1 - gap).mean()
        return {
            "mismatch/abs": gap.abs().mean().item(),
            "mismatch/max": gap.abs().max().item(),
            "mismatch/k3": k3.item(),
        }

    def samples(self, step: int, student: Student, each: int = 3) -> list[dict[str, Any]]:
        """Some right and some wrong rollouts of the step, token by token."""
        rows = sorted(self.logprobs)
        right = [row for row in rows if self.scored.scores[row].correct]
        wrong = [row for row in rows if not self.scored.scores[row].correct]
        return [self._sample(step, row, student) for row in right[:each] + wrong[:each]]

    def _sample(self, step: int, row: int, student: Student) -> dict[str, Any]:
        rollout, score = self.scored.rollouts[row], self.scored.scores[row]
        teacher = teacher_row(score, rollout)
        return {
            "step": step,
            "id": rollout.example.id,
            "prompt": rollout.example.prompt_text,
            "reference": rollout.example.reference,
            "tokens": [student.tokenizer.decode([token]) for token in rollout.ids],
            "student_logprobs": self.logprobs[row].tolist(),
            "teacher_logprobs": teacher.tolist(),
            "reward": score.reward,
            "correct": score.correct,
            "extracted": score.extracted,
            "reason": score.reason,
        }
