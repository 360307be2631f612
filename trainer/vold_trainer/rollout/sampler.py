"""Sample the next token of each sequence from the student's logits.

Shapes: B sequences, T completion positions, V vocabulary, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORD = (1 << 64) - 1


def uniforms(seed: int, rows: Sequence[int], length: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) for each row and position, float64 [B, T].

    The numbers of a row depend on seed and row alone; a larger length only adds numbers at the end.
    """
    out = np.empty((len(rows), length))
    for index, row in enumerate(rows):
        key = np.array([seed & WORD, row & WORD], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=out[index])
    # 1 - 2^-53 times a sum of probabilities would round to that sum, which is past the last id.
    return np.minimum(out, 1 - 2.0**-40, out=out)


@dataclass(frozen=True)
class SampledTokens:
    """ids_B: int64. logprobs_B: float32. candidates_BK: int64, most likely first."""

    ids_B: Tensor
    logprobs_B: Tensor
    candidates_BK: Tensor


@dataclass(frozen=True)
class Sampler:
    """Samples ids by inverse transform: one random number for each id.

    temperature: 0 takes the most likely id. min_p: of ids with at least this share of the most likely id's probability
    (arXiv 2407.01082), top_k: of the most likely ids, all for 0, top_p: of the smallest set of ids with this total
    probability (Holtzman et al., arXiv 1904.09751), in this order, which is vLLM's. banned: int64, ids that are never
    sampled. candidates: the number K of most likely ids to return.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    banned: Tensor | None = None
    candidates: int = 0

    def __call__(self, logits_BV: Tensor, uniforms_B: Tensor) -> SampledTokens:
        """Sample an id for each random number.

        The log-probabilities are those of the model's full distribution at the temperature, before `banned` and the
        options that leave ids out. They are NaN if the logits contain NaN.
        """
        logits_BV = logits_BV.float() / (self.temperature or 1.0)
        log_z_B1 = logits_BV.logsumexp(-1, keepdim=True)
        if self.banned is not None:
            logits_BV = logits_BV.index_fill(-1, self.banned, -torch.inf)
        if self.temperature:
            ids_B1 = self._sample((logits_BV - log_z_B1).exp(), uniforms_B.unsqueeze(-1))
        else:
            ids_B1 = logits_BV.argmax(-1, keepdim=True)
        logprobs_B = (logits_BV.gather(-1, ids_B1) - log_z_B1).squeeze(-1)
        candidates_BK = logits_BV.topk(min(self.candidates, logits_BV.shape[-1]), -1).indices
        return SampledTokens(ids_B1.squeeze(-1), logprobs_B, candidates_BK)

    def _sample(self, probabilities_BV: Tensor, uniforms_B1: Tensor) -> Tensor:
        if self.min_p:
            least_B1 = self.min_p * probabilities_BV.amax(-1, keepdim=True)
            probabilities_BV = torch.where(probabilities_BV >= least_B1, probabilities_BV, 0.0)
        if 0 < self.top_k < probabilities_BV.shape[-1]:
            least_B1 = probabilities_BV.topk(self.top_k, -1).values[:, -1:]
            probabilities_BV = torch.where(probabilities_BV >= least_B1, probabilities_BV, 0.0)
        if self.top_p < 1:
            sorted_BV = probabilities_BV.sort(-1, descending=True).values
            cumulative_BV = sorted_BV.double().cumsum(-1)
            last_B1 = (cumulative_BV < self.top_p * cumulative_BV[:, -1:]).sum(-1, keepdim=True)
            threshold_B1 = sorted_BV.gather(-1, last_B1.clamp(max=sorted_BV.shape[-1] - 1))
            probabilities_BV = torch.where(probabilities_BV >= threshold_B1, probabilities_BV, 0.0)
        # float64: over a vocabulary of 150,000, the errors of a float32 sum are as large as the probabilities.
        cumulative_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
        ids_B1 = torch.searchsorted(cumulative_BV, uniforms_B1 * cumulative_BV[:, -1:], right=True)
        return ids_B1.clamp(
            max=probabilities_BV.shape[-1] - 1
        )  # only NaN exceeds it, and its log-probability stays NaN
