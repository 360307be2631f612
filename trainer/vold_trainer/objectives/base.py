"""What every objective gets and gives, and the pieces they share."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Normalise = Literal["sequence", "token"]


@dataclass(frozen=True)
class Rollouts:
    """A batch of the student's own completions with what was found out about them.

    logprobs_CT: the student's, with gradient. old_logprobs_CT: the same when the batch was drawn, no gradient.
    mask_CT: bool, True at completion tokens. advantages_C: group advantages, 0 where the reward is missing.
    rewarded_C: bool, whether a reward is there. correct_C: bool, the verifier's verdict, False where missing.
    teacher_logprobs_CT: log pi_T of the same tokens, or None; what stands where teacher_mask_CT is False is
    never read. teacher_mask_CT: bool, True where the teacher scored the token and means the same by it.
    """

    logprobs_CT: Tensor
    old_logprobs_CT: Tensor
    mask_CT: Tensor
    advantages_C: Tensor
    rewarded_C: Tensor
    correct_C: Tensor
    teacher_logprobs_CT: Tensor | None = None
    teacher_mask_CT: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """loss: a scalar with gradient. metrics: figures for the log, each a mean over what the batch holds."""

    loss: Tensor
    metrics: dict[str, float]


class Objective(Protocol):
    """needs_teacher, needs_reward: whether the loop has to ask for those scores."""

    needs_teacher: ClassVar[bool]
    needs_reward: ClassVar[bool]

    def __call__(self, rollouts: Rollouts) -> Outcome: ...


def masked_mean(values_CT: Tensor, mask_CT: Tensor, normalise: Normalise, lengths_CT: Tensor | None = None) -> Tensor:
    """The mean of `values_CT` where `mask_CT` holds.

    "sequence": each sequence's mean, then the mean over all C sequences (an empty one counts as 0).
    "token": one mean over all tokens. The divisors are the tokens of `lengths_CT` (default: mask_CT), so that
    a term which acts on some tokens keeps its weight against one that acts on all.
    """
    divisor_CT = mask_CT if lengths_CT is None else lengths_CT
    masked_CT = torch.where(mask_CT, values_CT, 0.0)
    if normalise == "token":
        return masked_CT.sum() / divisor_CT.sum().clamp(min=1)
    return (masked_CT.sum(-1) / divisor_CT.sum(-1).clamp(min=1)).mean()


def clipped_policy_gradient(
    rollouts: Rollouts, advantages_CT: Tensor, mask_CT: Tensor, *, eps_low: float, eps_high: float
) -> tuple[Tensor, dict[str, float]]:
    """PPO's clipped surrogate as a per-token loss [C, T], with clip-higher (DAPO, arXiv 2503.14476).

    ratio = exp(logprob - old_logprob); loss = -min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A).
    """
    ratio_CT = torch.where(mask_CT, rollouts.logprobs_CT - rollouts.old_logprobs_CT, 0.0).exp()
    clipped_CT = ratio_CT.clamp(1 - eps_low, 1 + eps_high)
    loss_CT = -torch.minimum(ratio_CT * advantages_CT, clipped_CT * advantages_CT)
    with torch.no_grad():
        tokens = mask_CT.sum().clamp(min=1)
        low = (mask_CT & (ratio_CT < 1 - eps_low) & (advantages_CT < 0)).sum() / tokens
        high = (mask_CT & (ratio_CT > 1 + eps_high) & (advantages_CT > 0)).sum() / tokens
        metrics = {
            "clip/low": low.item(),
            "clip/high": high.item(),
            "ratio/mean": (ratio_CT[mask_CT].mean() if mask_CT.any() else ratio_CT.new_tensor(1.0)).item(),
        }
    return loss_CT, metrics


def teacher_gap(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """(log pi_T - log pi_theta, where it is known), both [C, T]; the student's side keeps its gradient.

    Raises ValueError where the teacher's scores were not asked for.
    """
    if rollouts.teacher_logprobs_CT is None or rollouts.teacher_mask_CT is None:
        raise ValueError("teacher_logprobs_CT is None: this objective needs the teacher's scores")
    known_CT = rollouts.mask_CT & rollouts.teacher_mask_CT
    return torch.where(known_CT, rollouts.teacher_logprobs_CT - rollouts.logprobs_CT, 0.0), known_CT
