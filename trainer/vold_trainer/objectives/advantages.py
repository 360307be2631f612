"""Group advantages, the length penalty on rewards, and which groups are informative.

Shapes: P prompts, G completions of each, C = P * G completions, prompt by prompt.
"""

from vold_trainer.objectives.lazy import Tensor, torch


def group_advantages(rewards_PG: Tensor, *, divide_by_std: bool = True, delta: float = 1e-4) -> Tensor:
    """The advantage of each completion over its group (GRPO, arXiv 2402.03300).

    rewards_PG: float [P, G]; NaN marks a missing reward, which is left out of its group's statistics.
    Returns float [P, G]: (r - mean) / (std + delta), std with Bessel's correction; without the division if
    `divide_by_std` is False (Dr.GRPO, arXiv 2503.20783). A completion without a reward, and every completion of a
    group with fewer than two rewards, has advantage 0.
    """
    known_PG = ~rewards_PG.isnan()
    count_P1 = known_PG.sum(-1, keepdim=True)
    filled_PG = torch.where(known_PG, rewards_PG, 0.0)
    mean_P1 = filled_PG.sum(-1, keepdim=True) / count_P1.clamp(min=1)
    centred_PG = torch.where(known_PG, filled_PG - mean_P1, 0.0)
    if divide_by_std:
        variance_P1 = centred_PG.square().sum(-1, keepdim=True) / (count_P1 - 1).clamp(min=1)
        centred_PG = centred_PG / (variance_P1.sqrt() + delta)
    return torch.where(count_P1 > 1, centred_PG, 0.0)


def overlong_penalty(lengths_C: Tensor, max_tokens: int, share: float) -> Tensor:
    """DAPO's soft overlong penalty (arXiv 2503.14476, eq. 13): 0 up to (1 - share) * max_tokens, then falling to -1.

    lengths_C: tokens. Returns float [C], to be added to the rewards; 0 everywhere if `share` is 0.
    """
    buffer = share * max_tokens
    if not buffer:
        return torch.zeros_like(lengths_C, dtype=torch.float32)
    return ((max_tokens - buffer - lengths_C) / buffer).clamp(-1, 0).float()


def informative_groups(rewards_PG: Tensor, correct_PG: Tensor) -> Tensor:
    """bool [P]: groups with 0 < correct < G among the completions that have a reward (DAPO's dynamic sampling)."""
    known_PG = ~rewards_PG.isnan()
    return (known_PG & correct_PG).any(-1) & (known_PG & ~correct_PG).any(-1)


def unsolved_groups(rewards_PG: Tensor, correct_PG: Tensor) -> Tensor:
    """bool [P]: groups in which every completion has a reward and none is correct."""
    return ~rewards_PG.isnan().any(-1) & ~correct_PG.any(-1)
