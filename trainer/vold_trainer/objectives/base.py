"""What every objective gets and gives, and the pieces they share."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

Normalise = Literal["sequence", "token", "constant"]


@dataclass(frozen=True)
class Needs:
    """What the loop has to find out about rollouts before an objective can learn from them.

    reward: the verifier's. teacher: the teacher's log-probability of each sampled token. top_k: the teacher's K most
    likely ids at each position (0: none). candidates: the teacher's log-probabilities of the *student's* K most
    likely ids. entropy: the teacher's. rollout_logprobs: the student's own when the tokens were drawn. traces:
    completions that somebody else wrote. mask_special: leave special ids out of a support.
    """

    reward: bool = False
    teacher: bool = False
    top_k: int = 0
    candidates: int = 0
    entropy: bool = False
    rollout_logprobs: bool = False
    traces: bool = False
    mask_special: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(*(max(getattr(self, field.name), getattr(other, field.name)) for field in fields(Needs)))


@dataclass(frozen=True)
class Support:
    """What both sides think of the same K ids at each position.

    student_CTK: the student's log-probabilities, with gradient. teacher_CTK: the teacher's. mask_CTK: bool, True where
    the teacher scored the id and means the same by it; elsewhere nothing is ever read.
    """

    student_CTK: Tensor
    teacher_CTK: Tensor
    mask_CTK: Tensor


@dataclass(frozen=True)
class Rollouts:
    """A batch of completions, as a rule the student's own, with what was found out about them.

    logprobs_CT: the student's, with gradient. old_logprobs_CT: the same before this step's first update, no gradient.
    mask_CT: bool, True at completion tokens. advantages_C: group advantages, 0 where the reward is missing.
    rewarded_C: bool, whether a reward is there. correct_C: bool, the verifier's verdict, False where missing.
    unsolved_C: bool, True where every completion of the group is known to be wrong.
    teacher_logprobs_CT: log pi_T of the same tokens, or None; what stands where teacher_mask_CT is False is
    never read. teacher_mask_CT: bool, True where the teacher scored the token and means the same by it.
    teacher_entropy_CT: nats. rollout_logprobs_CT: the student's when it drew the tokens. support: see there.
    step: steps of the run done before this one. max_tokens: the longest a completion may get.
    """

    logprobs_CT: Tensor
    old_logprobs_CT: Tensor
    mask_CT: Tensor
    advantages_C: Tensor
    rewarded_C: Tensor
    correct_C: Tensor
    unsolved_C: Tensor | None = None
    teacher_logprobs_CT: Tensor | None = None
    teacher_mask_CT: Tensor | None = None
    teacher_entropy_CT: Tensor | None = None
    rollout_logprobs_CT: Tensor | None = None
    support: Support | None = None
    step: int = 0
    max_tokens: int = 0


@dataclass(frozen=True)
class Outcome:
    """loss: a scalar with gradient. metrics: figures for the log, each a mean over what the batch holds."""

    loss: Tensor
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One row of docs/objectives.md: a frozen set of options that maps rollouts to a loss. Each concrete one has a
    field `name`, by which a config chooses it.

    normalise: what a mean over tokens is. "sequence": each sequence's mean, then the mean of those. "token": one mean
    over all tokens. "constant": the sum over sequences and max_tokens, so that length does not weigh (Dr.GRPO).
    """

    normalise: Normalise = "sequence"

    @property
    def needs(self) -> Needs:
        """What a run with it needs at one step or another."""
        raise NotImplementedError

    def needs_at(self, step: int) -> Needs:
        """What step `step`, counted from 0, needs."""
        return self.needs

    def __call__(self, rollouts: Rollouts) -> Outcome:
        raise NotImplementedError

    def mean(self, values_CT: Tensor, mask_CT: Tensor, rollouts: Rollouts) -> Tensor:
        """The mean of `values_CT` where `mask_CT` holds, divided by all completion tokens: a term that acts on some
        tokens keeps its weight against one that acts on all.
        """
        return masked_mean(values_CT, mask_CT, self.normalise, rollouts.mask_CT, rollouts.max_tokens)


def masked_mean(
    values_CT: Tensor, mask_CT: Tensor, normalise: Normalise, lengths_CT: Tensor | None = None, max_tokens: int = 0
) -> Tensor:
    """The mean of `values_CT` where `mask_CT` holds.

    "sequence": each sequence's mean, then the mean over all C sequences (an empty one counts as 0).
    "token": one mean over all tokens. "constant": the sum over C * max_tokens. The divisors are the tokens of
    `lengths_CT` (default: mask_CT). Raises ValueError where "constant" is not told max_tokens.
    """
    divisor_CT = mask_CT if lengths_CT is None else lengths_CT
    masked_CT = torch.where(mask_CT, values_CT, 0.0)
    if normalise == "constant":
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}: normalise 'constant' divides by it")
        return masked_CT.sum() / (len(masked_CT) * max_tokens)
    if normalise == "token":
        return masked_CT.sum() / divisor_CT.sum().clamp(min=1)
    return (masked_CT.sum(-1) / divisor_CT.sum(-1).clamp(min=1)).mean()


def teacher_gap(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """(log pi_T - log pi_theta, where it is known), both [C, T]; the student's side keeps its gradient.

    Raises ValueError where the teacher's scores were not asked for.
    """
    if rollouts.teacher_logprobs_CT is None or rollouts.teacher_mask_CT is None:
        raise ValueError("teacher_logprobs_CT is None: this objective needs the teacher's scores")
    known_CT = rollouts.mask_CT & rollouts.teacher_mask_CT
    return torch.where(known_CT, rollouts.teacher_logprobs_CT - rollouts.logprobs_CT, 0.0), known_CT


def rewarded_tokens(rollouts: Rollouts) -> Tensor:
    """bool [C, T]: completion tokens whose completion has a reward."""
    return rollouts.mask_CT & rollouts.rewarded_C.unsqueeze(-1)


def per_token(values_C: Tensor, rollouts: Rollouts) -> Tensor:
    """One value a completion as one a token, [C, T]."""
    return values_C.unsqueeze(-1).expand_as(rollouts.logprobs_CT)
