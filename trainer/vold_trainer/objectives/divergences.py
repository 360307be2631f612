"""Divergences between student and teacher at one position. Tensors in, tensors out; natural logarithms, nats.

There are two kinds. *Sampled* divergences need the log-probability of the sampled token alone. *Support* divergences
need the log-probabilities of the same K ids under student and teacher, renormalised over those ids: without
renormalisation training collapses (arXiv 2603.25562), because the student lowers the divergence by moving probability
out of the support.

Shapes: C completions, T positions, K ids of a support; the functions take any leading shape.
"""

from typing import Literal

from vold_trainer.objectives.lazy import Tensor, torch

Sampled = Literal["k1", "k2", "k3"]


def sampled(kind: Sampled, gap: Tensor) -> Tensor:
    """One-token estimators of KL(student || teacher), from gap = log pi_T - log pi_theta of a token sampled from the
    student (http://joschu.net/blog/kl-approx.html).

    k1 = -gap; k2 = gap^2 / 2; k3 = exp(gap) - 1 - gap. All but k2 are unbiased as *values*. As *losses*, the expected
    gradient of k2 is that of KL(student || teacher), that of k3 is that of KL(teacher || student), that of k1 is zero.
    """
    if kind == "k1":
        return -gap
    if kind == "k2":
        return 0.5 * gap.square()
    return gap.expm1() - gap


def renormalise(logprobs_K: Tensor, mask_K: Tensor) -> Tensor:
    """Log-probabilities renormalised over the masked ids: their exponentials sum to 1 along the last axis.

    logprobs_K: [..., K]. mask_K: bool [..., K]; where it is False, `logprobs_K` is not read and the result is -inf.
    If the mask of a position is empty, all K ids are equally likely, so that no NaN reaches a gradient.
    """
    empty = ~mask_K.any(-1, keepdim=True)
    masked_K = torch.where(mask_K, logprobs_K, -torch.inf)
    masked_K = torch.where(empty, torch.zeros_like(masked_K), masked_K)
    return masked_K - masked_K.logsumexp(-1, keepdim=True)


def reverse_kl(student_K: Tensor, teacher_K: Tensor, mask_K: Tensor) -> Tensor:
    """KL(student || teacher) over the support, [...]: 0 where the mask has fewer than two ids."""
    return _kl(renormalise(student_K, mask_K), renormalise(teacher_K, mask_K), mask_K)


def forward_kl(student_K: Tensor, teacher_K: Tensor, mask_K: Tensor) -> Tensor:
    """KL(teacher || student) over the support, [...]: 0 where the mask has fewer than two ids."""
    return _kl(renormalise(teacher_K, mask_K), renormalise(student_K, mask_K), mask_K)


def generalised_jsd(student_K: Tensor, teacher_K: Tensor, mask_K: Tensor, beta: float = 0.5) -> Tensor:
    """The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, eq. 1) over the support, [...].

    beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student. This is 0 for beta 0
    and 1; as in TRL, beta 0 gives the forward KL and beta 1 the reverse KL instead.
    Raises ValueError for a beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}: give a number from 0 (forward KL) to 1 (reverse KL)")
    if beta == 0:
        return forward_kl(student_K, teacher_K, mask_K)
    if beta == 1:
        return reverse_kl(student_K, teacher_K, mask_K)
    student_K, teacher_K = renormalise(student_K, mask_K), renormalise(teacher_K, mask_K)
    weight = torch.tensor(beta, dtype=student_K.dtype, device=student_K.device)
    # logaddexp(-inf, -inf) has a NaN gradient, which the mask would not remove: 0 * NaN is NaN
    mixture_K = torch.logaddexp(
        torch.where(mask_K, student_K, 0.0) + (1 - weight).log(), torch.where(mask_K, teacher_K, 0.0) + weight.log()
    )
    return beta * _kl(teacher_K, mixture_K, mask_K) + (1 - beta) * _kl(student_K, mixture_K, mask_K)


def _kl(from_K: Tensor, to_K: Tensor, mask_K: Tensor) -> Tensor:
    from_K, to_K = torch.where(mask_K, from_K, 0.0), torch.where(mask_K, to_K, 0.0)
    return torch.where(mask_K, from_K.exp() * (from_K - to_K), 0.0).sum(-1)
