"""Samples the next token of many rows at once, each with its own options and its own random numbers.

Pure functions on tensors. Shape letters: R rows, V vocabulary.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_TEMPERATURE = 1e-20
"""A lower temperature samples like this one: only the most likely token, and those that are as likely."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014): 64 bits in, 64 well-mixed bits out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_key(seed: int, prompt: int, index: int) -> int:
    """The key of the random stream of completion `index` of a prompt. It does not depend on the batch."""
    key = np.zeros(1, np.uint64)
    for part in (seed, prompt, index):
        key = _mix(key + np.uint64(part % 2**64) + _GOLDEN)
    return int(key[0])


def uniforms(keys_R: NDArray[np.uint64], steps_R: NDArray[np.int64]) -> NDArray[np.float32]:
    """One number in [0, 1) per row: element `step` of the row's stream (SplitMix64), with 24 random bits."""
    bits = _mix(keys_R + (steps_R.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def sample_tokens(
    logits_RV: Tensor,
    uniform_R: Tensor,
    temperature_R: Tensor,
    top_p_R: Tensor,
    top_k_R: Tensor,
    min_p_R: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample one token per row. Returns ids and their log-probabilities at temperature 1, over the whole vocabulary.

    logits_RV: float32. uniform_R: in [0, 1). temperature_R: 0 takes the most likely token. top_p_R: in (0, 1], keeps
    the smallest set of most likely tokens that reaches it. top_k_R: int64, 0 keeps all. min_p_R: in [0, 1], keeps the
    tokens at least this fraction as likely as the most likely one (Nguyen et al., 2024, arXiv:2407.01082), before top_p
    sees them; None keeps all. Returns int64 [R] and float32 [R]. Sampling inverts the cumulative distribution, so a
    row's token depends on its own random number alone.
    """
    logprobs_RV = logits_RV.log_softmax(-1)
    greedy_R = temperature_R == 0
    if bool(greedy_R.all()):
        ids_R = logits_RV.argmax(-1)
    else:
        # Relative to the largest logit, which a low temperature would otherwise divide to infinity.
        relative_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
        scaled_RV = relative_RV / torch.where(greedy_R, 1.0, temperature_R).clamp_min(MIN_TEMPERATURE)[:, None]
        vocab = logits_RV.shape[-1]
        min_p_R = torch.zeros_like(top_p_R) if min_p_R is None else min_p_R
        cuts_R = (top_p_R < 1) | ((top_k_R > 0) & (top_k_R < vocab)) | (min_p_R > 0)
        if bool(cuts_R.any()):
            ids_R = _invert_sorted(scaled_RV, uniform_R, top_p_R, top_k_R, min_p_R)
        else:
            ids_R = _invert(scaled_RV.softmax(-1), uniform_R)
        ids_R = torch.where(greedy_R, logits_RV.argmax(-1), ids_R)
    return ids_R, logprobs_RV.gather(-1, ids_R[:, None])[:, 0]


def _invert(probabilities_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The index where the cumulative sum first passes `uniform` of the total. An entry of 0 is never chosen."""
    cumulative_RV = probabilities_RV.cumsum(-1)
    total_R1 = cumulative_RV[:, -1:]
    # Rounding must not lift the target to the total, which no entry passes.
    below_R1 = torch.nextafter(total_R1, torch.zeros_like(total_R1))
    target_R1 = torch.minimum(uniform_R[:, None] * total_R1, below_R1)
    return torch.searchsorted(cumulative_RV, target_R1, right=True)[:, 0]


def _invert_sorted(scaled_RV: Tensor, uniform_R: Tensor, top_p_R: Tensor, top_k_R: Tensor, min_p_R: Tensor) -> Tensor:
    sorted_RV, order_RV = scaled_RV.sort(-1, descending=True)
    probabilities_RV = sorted_RV.softmax(-1)
    vocab = scaled_RV.shape[-1]
    rank_V = torch.arange(vocab, device=scaled_RV.device)
    limit_R = torch.where(top_k_R > 0, top_k_R, vocab)
    probabilities_RV = torch.where(rank_V < limit_R[:, None], probabilities_RV, 0.0)
    likely_RV = probabilities_RV >= min_p_R[:, None] * probabilities_RV[:, :1]
    probabilities_RV = torch.where(likely_RV, probabilities_RV, 0.0)
    probabilities_RV = probabilities_RV / probabilities_RV.sum(-1, keepdim=True)
    before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
    # Keep a token while the tokens before it have not reached top_p: the first is always kept.
    probabilities_RV = torch.where(before_RV < top_p_R[:, None], probabilities_RV, 0.0)
    return order_RV.gather(-1, _invert(probabilities_RV, uniform_R)[:, None])[:, 0]
