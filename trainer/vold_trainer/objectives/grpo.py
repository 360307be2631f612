"""GRPO (arXiv 2402.03300) and its kin: what a group advantage alone teaches. No reference KL.

Each is the same policy gradient with the options of its paper.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor

from vold_trainer.objectives.base import Needs, Normalise, Objective, Outcome, Rollouts, per_token, rewarded_tokens
from vold_trainer.objectives.policy import PolicyGradient, Ratio, Signal, capped_policy_gradient, rollout_weights


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """advantage_std: divide the group advantage by the group's standard deviation."""

    advantage_std: bool = True


def policy_needs(objective: PolicyGradient, *, reward: bool = False, teacher: bool = False) -> Needs:
    """The needs of a policy gradient on sampled tokens."""
    return Needs(reward=reward, teacher=teacher, rollout_logprobs=objective.rollout_cap is not None)


@dataclass(frozen=True, kw_only=True)
class _GroupPolicy(Rewarded, Signal):
    @property
    def needs(self) -> Needs:
        return policy_needs(self, reward=True)

    def signal(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        return per_token(rollouts.advantages_C, rollouts), rewarded_tokens(rollouts)


@dataclass(frozen=True, kw_only=True)
class Grpo(_GroupPolicy):
    """L = mean over tokens of -min(ratio A, clip(ratio) A). Completions without a reward are left out."""

    name: Literal["grpo"] = "grpo"


@dataclass(frozen=True, kw_only=True)
class DrGrpo(_GroupPolicy):
    """Dr.GRPO (arXiv 2503.20783): no division by the standard deviation, none by the length."""

    name: Literal["dr-grpo"] = "dr-grpo"
    normalise: Normalise = "constant"
    advantage_std: bool = False


@dataclass(frozen=True, kw_only=True)
class Dapo(_GroupPolicy):
    """DAPO (arXiv 2503.14476): clip-higher, a mean over all tokens of the batch, and two things that the loop does.

    rounds: how often a step may draw prompts until it has enough groups with 0 < correct < G; 1 takes what comes.
    overlong: share of rollout.max_tokens at the end of which a completion has lost 1 of its reward, linearly; 0 for
    no penalty. The paper's 4,096 of 20,480 tokens are 0.2.
    """

    name: Literal["dapo"] = "dapo"
    eps_high: Annotated[float, Ge(0)] = 0.28
    normalise: Normalise = "token"
    rounds: Annotated[int, Ge(1)] = 3
    overlong: Annotated[float, Ge(0), Le(1)] = 0.2


@dataclass(frozen=True, kw_only=True)
class Gspo(_GroupPolicy):
    """GSPO (arXiv 2507.18071): the ratio is the sequence's, and its clip as narrow as that asks for."""

    name: Literal["gspo"] = "gspo"
    eps_low: Annotated[float, Ge(0)] = 3e-4
    eps_high: Annotated[float, Ge(0)] = 4e-4
    ratio: Ratio = "sequence"


@dataclass(frozen=True, kw_only=True)
class Cispo(Rewarded, Objective):
    """CISPO (arXiv 2506.13585): L = mean over all tokens of -sg(min(ratio, eps_max)) A log pi. Nothing is clipped away:
    a token's weight is capped, its gradient stays.
    """

    name: Literal["cispo"] = "cispo"
    eps_max: Annotated[float, Gt(0)] = 5.0
    normalise: Normalise = "token"
    rollout_cap: Annotated[float, Gt(0)] | None = None

    @property
    def needs(self) -> Needs:
        return Needs(reward=True, rollout_logprobs=self.rollout_cap is not None)

    def __call__(self, rollouts: Rollouts) -> Outcome:
        mask_CT = rewarded_tokens(rollouts)
        advantages_CT = per_token(rollouts.advantages_C, rollouts)
        loss_CT, metrics = capped_policy_gradient(rollouts, advantages_CT, mask_CT, eps_max=self.eps_max)
        if self.rollout_cap is not None:
            weights_CT, figures = rollout_weights(rollouts, self.rollout_cap)
            loss_CT, metrics = loss_CT * weights_CT, metrics | figures
        loss = self.mean(loss_CT, mask_CT, rollouts)
        return Outcome(loss, {"loss/policy": loss.item(), **metrics})
