"""The input, the output and the base class of every objective, and the functions that objectives share."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Ge

from vold_trainer.objectives.lazy import Tensor, torch

Normalise = Literal["sequence", "token", "constant"]
Truncated = Literal["learn", "mask"]
DecidedBy = Literal["nothing", "verdict", "group"]
KlEstimator = Literal["k2", "k3", "unbiased"]


@dataclass(frozen=True)
class Needs:
    """What an objective requires of the rollouts it computes its loss from.

    reward: the verifier's reward. teacher: the teacher's log-probability of each sampled token. top_k: how many of the
    teacher's most likely ids at each position (0: none). candidates: how many of the *student's* most likely ids the
    teacher scores at each position (0: none). entropy: the teacher's entropy. rollout_logprobs: the student's
    log-probabilities at sampling time. traces: completions from a file. mask_special: leave special ids out of a
    support. reference: the reference's log-probability of each sampled token.
    """

    reward: bool = False
    teacher: bool = False
    top_k: int = 0
    candidates: int = 0
    entropy: bool = False
    rollout_logprobs: bool = False
    traces: bool = False
    mask_special: bool = False
    reference: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(*(max(getattr(self, field.name), getattr(other, field.name)) for field in fields(Needs)))


@dataclass(frozen=True)
class Support:
    """The log-probabilities of the same K ids at each position under student and teacher.

    student_CTK: the student's log-probabilities, with gradient. teacher_CTK: the teacher's. mask_CTK: bool, True where
    the teacher scored the id and both tokenizers give the id the same meaning; other entries are never read.
    """

    student_CTK: Tensor
    teacher_CTK: Tensor
    mask_CTK: Tensor


@dataclass(frozen=True)
class Verdicts:
    """What the verifier says of completions: the fields of `Rollouts` with these names."""

    rewarded_C: Tensor
    correct_C: Tensor
    rewards_C: Tensor | None = None
    unsolved_C: Tensor | None = None


@dataclass(frozen=True)
class Rollouts:
    """A batch of completions, usually the student's own, with their scores.

    logprobs_CT: the student's log-probabilities, with gradient. old_logprobs_CT: the same before the first update of
    this step, without gradient. mask_CT: bool, True at completion tokens. advantages_C: group advantages, 0 where the
    reward is missing. rewarded_C: bool, True where there is a reward. correct_C: bool, the verifier's verdict, False
    where it is missing. rewards_C: NaN where missing. unsolved_C: bool, True where every completion of the group is
    known to be wrong.
    teacher_logprobs_CT: log pi_T of the same tokens, or None; never read where teacher_mask_CT is False.
    teacher_mask_CT: bool, True where the teacher scored the token and both tokenizers give it the same meaning.
    reference_logprobs_CT, reference_mask_CT: the same of the reference model.
    teacher_entropy_CT: nats, NaN where missing. rollout_logprobs_CT: the student's log-probabilities at sampling time.
    step: steps of the run before this one. max_tokens: the maximum length of a completion.
    """

    logprobs_CT: Tensor
    old_logprobs_CT: Tensor
    mask_CT: Tensor
    advantages_C: Tensor
    rewarded_C: Tensor
    correct_C: Tensor
    rewards_C: Tensor | None = None
    unsolved_C: Tensor | None = None
    teacher_logprobs_CT: Tensor | None = None
    teacher_mask_CT: Tensor | None = None
    teacher_entropy_CT: Tensor | None = None
    rollout_logprobs_CT: Tensor | None = None
    support: Support | None = None
    reference_logprobs_CT: Tensor | None = None
    reference_mask_CT: Tensor | None = None
    step: int = 0
    max_tokens: int = 0

    @property
    def verdicts(self) -> Verdicts:
        return Verdicts(self.rewarded_C, self.correct_C, self.rewards_C, self.unsolved_C)


@dataclass(frozen=True)
class LossOutput:
    """loss: a scalar with gradient. metrics: values for the log, each a mean over the batch."""

    loss: Tensor
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The options of an objective, and a call that maps rollouts to a loss. docs/objectives.md lists the objectives.
    Each concrete class has a field `name`, which a config selects it by.

    normalise: how a loss is averaged over tokens. "sequence": the mean of each sequence, then the mean of those.
    "token": one mean over all tokens. "constant": the sum divided by sequences * max_tokens, so that the length of a
    completion does not change the weight of a token (Dr.GRPO). truncated: "mask" takes completions that reached
    rollout.max_tokens out of the loss, with the policy's term and the teacher's; they stay in the divisor, and their
    rewards count in the group's advantages. entropy_bonus: weight of the student's mean entropy, which is subtracted
    from the loss. kl_beta: weight of the KL to a reference, which is added. kl_estimator: of that KL, from the sampled
    token. kl_ratio: weigh estimates from the sampled token, of the teacher's divergence too, by the ratio
    pi_theta / pi_old, which is 1 in the first optimiser step on a batch.
    """

    normalise: Normalise = "sequence"
    truncated: Truncated = "learn"
    entropy_bonus: Annotated[float, Ge(0)] = 0.0
    kl_beta: Annotated[float, Ge(0)] = 0.0
    kl_estimator: KlEstimator = "k3"
    kl_ratio: bool = True

    @property
    def needs(self) -> Needs:
        """The needs of a run: those of all its steps together."""
        raise NotImplementedError

    def needs_at(self, step: int) -> Needs:
        """The needs of step `step`, counted from 0."""
        return self.needs

    @property
    def teacher_mask_by(self) -> DecidedBy:
        """What `teacher_mask` reads: nothing, a completion's own verdict, or the verdicts of its whole group."""
        return "nothing"

    def teacher_mask(self, verdicts: Verdicts) -> Tensor:
        """bool [C]: the completions whose teacher's scores have a part in the loss. Those of the others are not read
        for it, and a teacher with `only: used` is not asked for them.
        """
        return torch.ones_like(verdicts.rewarded_C)

    def __call__(self, rollouts: Rollouts) -> LossOutput:
        raise NotImplementedError

    def apply_ratio(self, divergence_CT: Tensor, mask_CT: Tensor, rollouts: Rollouts) -> Tensor:
        """The sampled divergence times sg(pi_theta / pi_old), if `kl_ratio`.

        The tokens were sampled by the weights before the batch's first optimiser step. In a later step the mean of a
        gradient over them is an expectation under pi_old; the weight makes it one under pi_theta, at which k2 has the
        gradient of KL(student || teacher). The weight has no gradient: that of ratio * k2 is no KL's.
        """
        if not self.kl_ratio:
            return divergence_CT
        gap_CT = torch.where(mask_CT, rollouts.logprobs_CT.detach() - rollouts.old_logprobs_CT, 0.0)
        return divergence_CT * gap_CT.exp()

    def mean(self, values_CT: Tensor, mask_CT: Tensor, rollouts: Rollouts) -> Tensor:
        """The sum of `values_CT` over `mask_CT`, divided by the number of all completion tokens: a term that acts on
        some tokens keeps its weight relative to a term that acts on all.
        """
        return masked_mean(values_CT, mask_CT, self.normalise, rollouts.mask_CT, rollouts.max_tokens)


def with_entropy_bonus(objective: Objective, outcome: LossOutput, rollouts: Rollouts, entropy_CT: Tensor) -> LossOutput:
    """The outcome of the objective, less its entropy_bonus times the mean of entropy_CT over all completion tokens.

    entropy_CT: the student's, nats, with gradient.
    """
    if not objective.entropy_bonus:
        return outcome
    entropy = objective.mean(entropy_CT, rollouts.mask_CT, rollouts)
    loss = outcome.loss - objective.entropy_bonus * entropy
    return LossOutput(loss, {**outcome.metrics, "loss/entropy": entropy.item(), "loss/total": loss.item()})


def masked_mean(
    values_CT: Tensor, mask_CT: Tensor, normalise: Normalise, lengths_CT: Tensor | None = None, max_tokens: int = 0
) -> Tensor:
    """The mean of `values_CT` over `mask_CT`.

    "sequence": the mean of each sequence, then the mean over all C sequences (an empty sequence counts as 0).
    "token": one mean over all tokens. "constant": the sum divided by C * max_tokens. The other two divide by the
    number of tokens in `lengths_CT` (default: mask_CT). Raises ValueError for "constant" without max_tokens.
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


def teacher_gap(rollouts: Rollouts, cap: float | None = None) -> tuple[Tensor, Tensor]:
    """(log pi_T - log pi_theta, bool: where the teacher's score is known), both [C, T]. The gap has the gradient of
    log pi_theta, and is 0 where unknown. cap: a bound on its absolute value, nats.

    Raises ValueError if the rollouts have no teacher scores.
    """
    if rollouts.teacher_logprobs_CT is None or rollouts.teacher_mask_CT is None:
        raise ValueError("teacher_logprobs_CT is None: this objective needs the teacher's scores")
    known_CT = rollouts.mask_CT & rollouts.teacher_mask_CT
    teacher_CT = rollouts.teacher_logprobs_CT
    if cap is not None:
        teacher_CT = move_within(teacher_CT, rollouts.logprobs_CT, cap)
    return torch.where(known_CT, teacher_CT - rollouts.logprobs_CT, 0.0), known_CT


def move_within(teacher: Tensor, student: Tensor, cap: float) -> Tensor:
    """The teacher's log-probabilities, moved to the nearest value within `cap` nats of the student's. No gradient."""
    student = student.detach()
    return teacher.clamp(student - cap, student + cap)


def rewarded_tokens(rollouts: Rollouts) -> Tensor:
    """bool [C, T]: completion tokens whose completion has a reward."""
    return rollouts.mask_CT & rollouts.rewarded_C.unsqueeze(-1)


def per_token(values_C: Tensor, rollouts: Rollouts) -> Tensor:
    """The value of each completion repeated for each of its tokens, [C, T]."""
    return values_C.unsqueeze(-1).expand_as(rollouts.logprobs_CT)
