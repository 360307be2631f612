"""GRPO (arXiv 2402.03300) and its variants: policy gradients with the group advantage. No KL to a reference model.

Each class is the same policy gradient with the defaults of its paper.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from vold_trainer.objectives.base import LossOutput, Needs, Normalise, Objective, Rollouts, per_token, rewarded_tokens
from vold_trainer.objectives.lazy import Tensor
from vold_trainer.objectives.policy import (
    PolicyGradient,
    Ratio,
    RolloutCap,
    Signal,
    cap_of,
    capped_policy_gradient,
    rollout_weights,
)


@dataclass(frozen=True, kw_only=True)
class GroupAdvantageOptions:
    """The options of an objective that uses group advantages.

    advantage_std: divide the group advantage by the group's standard deviation.
    """

    advantage_std: bool = True


def policy_needs(objective: PolicyGradient, *, reward: bool = False, teacher: bool = False) -> Needs:
    """The needs of a policy gradient: log-probabilities at sampling time if it corrects for them."""
    return Needs(reward=reward, teacher=teacher, rollout_logprobs=cap_of(objective) is not None)


@dataclass(frozen=True, kw_only=True)
class _GroupPolicy(GroupAdvantageOptions, Signal):
    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True)

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        return per_token(rollouts.advantages_C, rollouts), rewarded_tokens(rollouts)


@dataclass(frozen=True, kw_only=True)
class Grpo(_GroupPolicy):
    """L = mean over tokens of -min(ratio A, clip(ratio) A). Completions without a reward have no loss."""

    name: Literal["grpo"] = "grpo"


@dataclass(frozen=True, kw_only=True)
class DrGrpo(_GroupPolicy):
    """Dr.GRPO (arXiv 2503.20783): no division by the standard deviation, nor by the length."""

    name: Literal["dr-grpo"] = "dr-grpo"
    normalise: Normalise = "constant"
    advantage_std: bool = False


@dataclass(frozen=True, kw_only=True)
class Dapo(_GroupPolicy):
    """DAPO (arXiv 2503.14476): clip-higher, a mean over all tokens of the batch, and two options that the training loop
    implements.

    rounds: how many times a step may generate rollouts until it has enough groups with 0 < correct < G (dynamic
    sampling); 1 turns it off. overlong: the last share of rollout.max_tokens, over which the penalty on the reward
    grows linearly to 1; 0 for no penalty. The paper's 4,096 of 20,480 tokens are 0.2.
    """

    name: Literal["dapo"] = "dapo"
    eps_high: Annotated[float, Ge(0)] = 0.28
    normalise: Normalise = "token"
    rounds: Annotated[int, Ge(1)] = 3
    overlong: Annotated[float, Ge(0), Le(1)] = 0.2


@dataclass(frozen=True, kw_only=True)
class Gspo(_GroupPolicy):
    """GSPO (arXiv 2507.18071): the ratio of the whole sequence, with the narrower clip range that it requires."""

    name: Literal["gspo"] = "gspo"
    eps_low: Annotated[float, Ge(0)] = 3e-4
    eps_high: Annotated[float, Ge(0)] = 4e-4
    ratio: Ratio = "sequence"


@dataclass(frozen=True, kw_only=True)
class Cispo(GroupAdvantageOptions, Objective):
    """CISPO (arXiv 2506.13585): L = mean over all tokens of -sg(min(ratio, eps_max)) A log pi. The ratio is capped, so
    that every token keeps a gradient.
    """

    name: Literal["cispo"] = "cispo"
    eps_max: Annotated[float, Gt(0)] = 5.0
    normalise: Normalise = "token"
    rollout_cap: RolloutCap = None

    @property
    def needs(self) -> Needs:
        return Needs(reward=True, rollout_logprobs=cap_of(self) is not None)

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        mask_CT = rewarded_tokens(rollouts)
        advantages_CT = per_token(rollouts.advantages_C, rollouts)
        loss_CT, metrics = capped_policy_gradient(rollouts, advantages_CT, mask_CT, eps_max=self.eps_max)
        if (cap := cap_of(self)) is not None:
            weights_CT, weight_metrics = rollout_weights(rollouts, cap)
            loss_CT, metrics = loss_CT * weights_CT, metrics | weight_metrics
        loss = self.mean(loss_CT, mask_CT, rollouts)
        return LossOutput(loss, {"loss/policy": loss.item(), **metrics})
