"""Policy gradients: per-token advantages in, a loss out. Each objective defines its advantages.

A_{c,t} may differ from token to token; with one value per completion these are the losses of GRPO and its variants.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.base import LossOutput, Objective, Rollouts
from vold_trainer.objectives.lazy import Tensor, torch

Ratio = Literal["token", "sequence"]
RolloutCap = Annotated[float, Ge(0)] | None


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective):
    """PPO's clipped surrogate: -min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A).

    eps_high above eps_low is clip-higher (DAPO, arXiv 2503.14476). ratio: per token, or of the whole sequence
    (GSPO, arXiv 2507.18071). rollout_cap: the cap C of truncated importance sampling, which multiplies every
    sampled-token term by min(pi_old / pi_rollout, C) to correct for the mismatch between rollout engine and trainer
    (https://fengyao.notion.site/off-policy-rl); 0 turns it off. null is 0, except that a run which samples by an engine
    of its own, in another dtype than float32, or ahead of its updates sets 2, the usual C.
    """

    eps_low: Annotated[float, Ge(0)] = 0.2
    eps_high: Annotated[float, Ge(0)] = 0.2
    ratio: Ratio = "token"
    rollout_cap: RolloutCap = None

    def policy_loss(
        self, rollouts: Rollouts, advantages_CT: Tensor, mask_CT: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """(the mean loss over mask_CT, its metrics) for the advantages."""
        loss_CT, metrics = clipped_policy_gradient(
            rollouts, advantages_CT, mask_CT, eps_low=self.eps_low, eps_high=self.eps_high, ratio=self.ratio
        )
        return self.mean(*self.apply_rollout_weights(rollouts, loss_CT, mask_CT, metrics), rollouts), metrics

    def apply_rollout_weights(
        self, rollouts: Rollouts, loss_CT: Tensor, mask_CT: Tensor, metrics: dict[str, float]
    ) -> tuple[Tensor, Tensor]:
        """(loss_CT, weighted by truncated importance sampling if `rollout_cap` is set; mask_CT)."""
        cap = cap_of(self)
        if cap is None:
            return loss_CT, mask_CT
        weights_CT, weight_metrics = rollout_weights(rollouts, cap)
        metrics.update(weight_metrics)
        return loss_CT * weights_CT, mask_CT


@dataclass(frozen=True, kw_only=True)
class Signal(PolicyGradient):
    """An objective that is only a policy gradient: a subclass defines the advantage of each token."""

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """(advantages [C, T] without gradient, bool [C, T] where they are known)."""
        raise NotImplementedError

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        advantages_CT, mask_CT = self.signal(rollouts)
        loss, metrics = self.policy_loss(rollouts, advantages_CT, mask_CT)
        return LossOutput(loss, {"loss/policy": loss.item(), **metrics})


def clipped_policy_gradient(
    rollouts: Rollouts,
    advantages_CT: Tensor,
    mask_CT: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    ratio: Ratio = "token",
) -> tuple[Tensor, dict[str, float]]:
    """-min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A) for each token, [C, T], and the share of clipped tokens.

    ratio "token": exp(logprob - old_logprob). "sequence": the geometric mean of the token ratios over the completion,
    in the form in which each token has its own gradient: sg(s_c) pi / sg(pi) (GSPO-token; if all tokens of a completion
    have one advantage, loss and gradient are those of GSPO).
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
    """CISPO (arXiv 2506.13585): -sg(min(ratio, eps_max)) A log pi, [C, T]. Every token keeps a gradient."""
    ratio_CT = torch.where(mask_CT, rollouts.logprobs_CT.detach() - rollouts.old_logprobs_CT, 0.0).exp()
    logprobs_CT = torch.where(mask_CT, rollouts.logprobs_CT, 0.0)
    capped = (mask_CT & (ratio_CT > eps_max) & (advantages_CT > 0)).sum() / mask_CT.sum().clamp(min=1)
    metrics = {
        "clip/high": capped.item(),
        "ratio/mean": (ratio_CT[mask_CT].mean() if mask_CT.any() else ratio_CT.new_tensor(1.0)).item(),
    }
    return -ratio_CT.clamp(max=eps_max) * advantages_CT * logprobs_CT, metrics


def cap_of(objective: Objective) -> float | None:
    """The cap of truncated importance sampling; None if the objective has none or it is off."""
    return getattr(objective, "rollout_cap", None) or None


def rollout_weights(rollouts: Rollouts, cap: float) -> tuple[Tensor, dict[str, float]]:
    """(min(pi_old / pi_rollout, cap) for each token, its metrics): truncated importance sampling. The weight is 1 where
    a log-probability is missing.

    Raises ValueError if the rollouts have no log-probabilities at sampling time.
    """
    if rollouts.rollout_logprobs_CT is None:
        raise ValueError("rollout_logprobs_CT is None: rollout_cap needs the log-probabilities at sampling time")
    with torch.no_grad():
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
