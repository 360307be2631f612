"""Policy gradients: how a per-token advantage becomes a loss. What the advantage is, each objective says.

A_{c,t} may differ from token to token; with one value a completion these are the losses of GRPO and its kin.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from vold_trainer.objectives.base import Objective, Outcome, Rollouts

Ratio = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective):
    """PPO's clipped surrogate: -min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A).

    eps_high above eps_low is clip-higher (DAPO, arXiv 2503.14476). ratio: of each token, or of the whole sequence
    (GSPO, arXiv 2507.18071). rollout_cap: C of truncated importance sampling, which weighs every sampled-token term
    by min(pi_old / pi_rollout, C) where the engine that drew the tokens and the trainer disagree
    (https://fengyao.notion.site/off-policy-rl); null leaves it out. The usual C is 2.
    """

    eps_low: Annotated[float, Ge(0)] = 0.2
    eps_high: Annotated[float, Ge(0)] = 0.2
    ratio: Ratio = "token"
    rollout_cap: Annotated[float, Gt(0)] | None = None

    def policy(self, rollouts: Rollouts, advantages_CT: Tensor, mask_CT: Tensor) -> tuple[Tensor, dict[str, float]]:
        """(the mean loss, its figures) for those advantages where mask_CT holds."""
        loss_CT, metrics = clipped_policy_gradient(
            rollouts, advantages_CT, mask_CT, eps_low=self.eps_low, eps_high=self.eps_high, ratio=self.ratio
        )
        return self.mean(*self.corrected(rollouts, loss_CT, mask_CT, metrics), rollouts), metrics

    def corrected(
        self, rollouts: Rollouts, loss_CT: Tensor, mask_CT: Tensor, metrics: dict[str, float]
    ) -> tuple[Tensor, Tensor]:
        """(the loss weighted by truncated importance sampling where that is on, mask_CT)."""
        if self.rollout_cap is None:
            return loss_CT, mask_CT
        weights_CT, figures = rollout_weights(rollouts, self.rollout_cap)
        metrics.update(figures)
        return loss_CT * weights_CT, mask_CT


@dataclass(frozen=True, kw_only=True)
class Signal(PolicyGradient):
    """An objective that is a policy gradient and nothing else: it only says what each token's advantage is."""

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """(advantages [C, T] without gradient, bool [C, T] where they are known)."""
        raise NotImplementedError

    def __call__(self, rollouts: Rollouts) -> Outcome:
        advantages_CT, mask_CT = self.signal(rollouts)
        loss, metrics = self.policy(rollouts, advantages_CT, mask_CT)
        return Outcome(loss, {"loss/policy": loss.item(), **metrics})


def clipped_policy_gradient(
    rollouts: Rollouts,
    advantages_CT: Tensor,
    mask_CT: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    ratio: Ratio = "token",
) -> tuple[Tensor, dict[str, float]]:
    """-min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A) for each token, [C, T], and how much was clipped.

    ratio "token": exp(logprob - old_logprob). "sequence": the geometric mean of those over the completion, in the
    form that leaves each token its own gradient: sg(s_c) pi / sg(pi) (GSPO-token; with one advantage for all tokens
    its loss and gradient are GSPO's).
    """
    gap_CT = torch.where(mask_CT, rollouts.logprobs_CT - rollouts.old_logprobs_CT, 0.0)
    if ratio == "sequence":
        all_CT = torch.where(rollouts.mask_CT, rollouts.logprobs_CT - rollouts.old_logprobs_CT, 0.0).detach()
        sequence_C1 = all_CT.sum(-1, keepdim=True) / rollouts.mask_CT.sum(-1, keepdim=True).clamp(min=1)
        gap_CT = torch.where(mask_CT, sequence_C1 + (gap_CT - gap_CT.detach()), 0.0)
    ratio_CT = gap_CT.exp()
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


def capped_policy_gradient(
    rollouts: Rollouts, advantages_CT: Tensor, mask_CT: Tensor, *, eps_max: float
) -> tuple[Tensor, dict[str, float]]:
    """CISPO (arXiv 2506.13585): -sg(min(ratio, eps_max)) A log pi for each token, [C, T]. No token is left out."""
    ratio_CT = torch.where(mask_CT, rollouts.logprobs_CT.detach() - rollouts.old_logprobs_CT, 0.0).exp()
    logprobs_CT = torch.where(mask_CT, rollouts.logprobs_CT, 0.0)
    capped = (mask_CT & (ratio_CT > eps_max) & (advantages_CT > 0)).sum() / mask_CT.sum().clamp(min=1)
    metrics = {
        "clip/high": capped.item(),
        "ratio/mean": (ratio_CT[mask_CT].mean() if mask_CT.any() else ratio_CT.new_tensor(1.0)).item(),
    }
    return -ratio_CT.clamp(max=eps_max) * advantages_CT * logprobs_CT, metrics


@torch.no_grad()
def rollout_weights(rollouts: Rollouts, cap: float) -> tuple[Tensor, dict[str, float]]:
    """(min(pi_old / pi_rollout, cap) for each token, its figures): truncated importance sampling. 1 where not known.

    Raises ValueError where the rollouts came without their log-probabilities.
    """
    if rollouts.rollout_logprobs_CT is None:
        raise ValueError("rollout_logprobs_CT is None: rollout_cap needs the log-probabilities at sampling time")
    known_CT = rollouts.mask_CT & rollouts.rollout_logprobs_CT.isfinite()
    gap_CT = torch.where(known_CT, rollouts.old_logprobs_CT - rollouts.rollout_logprobs_CT, 0.0)
    ratio_CT = gap_CT.exp()
    count = known_CT.sum().clamp(min=1)
    metrics = {
        "mismatch/ratio": (torch.where(known_CT, ratio_CT, 0.0).sum() / count).item(),
        "mismatch/capped": ((known_CT & (ratio_CT > cap)).sum() / count).item(),
        "mismatch/k1": (-gap_CT.sum() / count).item(),
    }
    return ratio_CT.clamp(max=cap), metrics
