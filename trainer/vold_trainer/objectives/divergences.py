"""How far a student is from its teacher at one position. Tensors in, tensors out; natural logarithms, nats.

Two kinds. *Sampled* ones need the log-probability of the one token that was drawn; *support* ones need both sides'
log-probabilities of the same K ids, and renormalise them over those ids: without that, training collapses (arXiv
2603.25562), for a student lowers the divergence by moving mass out of the support.

Shapes: C completions, T positions, K ids of a support; the functions take any leading shape.
"""

from typing import Literal

import torch
from torch import Tensor

Sampled = Literal["k1", "k2", "k3"]


def sampled(kind: Sampled, gap: Tensor) -> Tensor:
    """One-token estimators of KL(student || teacher), from gap = log pi_T - log pi_theta of a token that the student
    drew (http://joschu.net/blog/kl-approx.html).

    k1 = -gap; k2 = gap^2 / 2; k3 = exp(gap) - 1 - gap. All but k2 are unbiased as *values*. As *losses*, the expected
    gradient of k2 is that of KL(student || teacher), of k3 that of KL(teacher || student), of k1 zero.
    """
    if kind == "k1":
        return -gap
    if kind == "k2":
        return 0.5 * gap.square()
    return gap.expm1() - gap


def renormalise(logprobs_K: Tensor, mask_K: Tensor) -> Tensor:
    """Log-probabilities over the ids of the support alone: exp of them sums to 1 along the last axis.

    logprobs_K: [..., K]. mask_K: bool [..., K], True at ids that count; elsewhere the result is -inf, and nothing is
    read. Where no id counts, all K are treated as equally likely, so that no NaN reaches a gradient.
    """
    empty = ~mask_K.any(-1, keepdim=True)
    kept_K = torch.where(mask_K, logprobs_K, -torch.inf)
    kept_K = torch.where(empty, torch.zeros_like(kept_K), kept_K)
    return kept_K - kept_K.logsumexp(-1, keepdim=True)


def reverse_kl(student_K: Tensor, teacher_K: Tensor, mask_K: Tensor) -> Tensor:
    """KL(student || teacher) over the support, [...]: 0 where fewer than two ids count."""
    return _kl(renormalise(student_K, mask_K), renormalise(teacher_K, mask_K), mask_K)


def forward_kl(student_K: Tensor, teacher_K: Tensor, mask_K: Tensor) -> Tensor:
    """KL(teacher || student) over the support, [...]: 0 where fewer than two ids count."""
    return _kl(renormalise(teacher_K, mask_K), renormalise(student_K, mask_K), mask_K)


def generalised_jsd(student_K: Tensor, teacher_K: Tensor, mask_K: Tensor, beta: float = 0.5) -> Tensor:
    """The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, eq. 1) over the support, [...].

    beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student. At the ends, where
    that is 0, it stands for its limits after division by beta: beta 0 is the forward KL, 1 the reverse one (TRL).
    Raises ValueError for a beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}: give a number from 0 (forward KL) to 1 (reverse KL)")
    if beta == 0:
        return forward_kl(student_K, teacher_K, mask_K)
    if beta == 1:
        return reverse_kl(student_K, teacher_K, mask_K)
    own_K, theirs_K = renormalise(student_K, mask_K), renormalise(teacher_K, mask_K)
    weight = torch.tensor(beta, dtype=own_K.dtype, device=own_K.device)
    # -inf on both sides would give NaN, and 0 * NaN in the backward pass
    mixed_K = torch.logaddexp(
        torch.where(mask_K, own_K, 0.0) + (1 - weight).log(), torch.where(mask_K, theirs_K, 0.0) + weight.log()
    )
    return beta * _kl(theirs_K, mixed_K, mask_K) + (1 - beta) * _kl(own_K, mixed_K, mask_K)


def _kl(from_K: Tensor, to_K: Tensor, mask_K: Tensor) -> Tensor:
    from_K, to_K = torch.where(mask_K, from_K, 0.0), torch.where(mask_K, to_K, 0.0)
    return torch.where(mask_K, from_K.exp() * (from_K - to_K), 0.0).sum(-1)
