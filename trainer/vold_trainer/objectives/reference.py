"""A penalty for the distance from a reference: kl_beta times an estimate of KL(student || reference) at each token.

The reference is the student at the start of the run, or a model behind a URL. Its log-probabilities of the sampled
tokens are all that an estimate needs.
"""

from vold_trainer.objectives.base import LossOutput, Objective, Rollouts
from vold_trainer.objectives.divergences import sampled
from vold_trainer.objectives.lazy import Tensor, torch
from vold_trainer.objectives.policy import cap_of, rollout_weights


def reference_kl(objective: Objective, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """(the estimate of KL(student || reference) with gradient, bool: where it is known), both [C, T].

    k2 and k3 are those of `sampled`, with the weights of `Objective.apply_ratio`. unbiased: k3 times the ratio
    pi_theta / pi_old, with the ratio's own gradient (DeepSeek-V3.2, arXiv 2512.02556): value and gradient are those of
    KL(student || reference) in expectation, whichever weights sampled the tokens.
    Raises ValueError if the rollouts have no reference.
    """
    if rollouts.reference_logprobs_CT is None or rollouts.reference_mask_CT is None:
        raise ValueError("reference_logprobs_CT is None: kl_beta needs the reference's log-probabilities")
    known_CT = rollouts.mask_CT & rollouts.reference_mask_CT
    gap_CT = torch.where(known_CT, rollouts.reference_logprobs_CT - rollouts.logprobs_CT, 0.0)
    if objective.kl_estimator == "unbiased":
        ratio_CT = torch.where(known_CT, rollouts.logprobs_CT - rollouts.old_logprobs_CT, 0.0).exp()
        return ratio_CT * sampled("k3", gap_CT), known_CT
    return objective.apply_ratio(sampled(objective.kl_estimator, gap_CT), known_CT, rollouts), known_CT


def with_reference_kl(objective: Objective, outcome: LossOutput, rollouts: Rollouts) -> LossOutput:
    """The outcome of the objective, plus its kl_beta times the mean of `reference_kl`, which is divided like every
    other term. With a `rollout_cap`, its weights apply.
    """
    if not objective.kl_beta:
        return outcome
    kl_CT, known_CT = reference_kl(objective, rollouts)
    if (cap := cap_of(objective)) is not None:
        kl_CT = kl_CT * rollout_weights(rollouts, cap)[0]
    kl = objective.mean(kl_CT, known_CT, rollouts)
    loss = outcome.loss + objective.kl_beta * kl
    return LossOutput(loss, {**outcome.metrics, "loss/reference": kl.item(), "loss/total": loss.item()})
