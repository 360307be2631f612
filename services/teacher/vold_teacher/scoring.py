"""Log-probabilities out of hidden states, without ever holding a [tokens, vocabulary] tensor.

Pure functions on tensors. Shape letters: B sequences, S padded positions, R scored positions of all sequences
together ("rows"), V vocabulary, K top-k, M candidates of all rows together, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""Hidden states [R, H] to logits [R, V]."""


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """Per scored position, float32, natural logarithms. What was not asked for is None.

    logprobs: [R]. top_ids int64 and top_logprobs: [R, K]. candidate_logprobs: [M]. entropy: [R].
    ranks: int64 [R].
    """

    logprobs: Tensor
    top_ids: Tensor | None
    top_logprobs: Tensor | None
    candidate_logprobs: Tensor | None
    entropy: Tensor | None
    ranks: Tensor | None


def chunk_rows(vocab_size: int, max_elements: int) -> int:
    """How many rows of logits to hold at once so that they stay within `max_elements`; at least 1."""
    return max(1, max_elements // vocab_size)


def prediction_rows(prompt_lengths: Tensor, completion_lengths: Tensor, width: int) -> Tensor:
    """Where, in hidden states [B * width, H] of right-padded sequences, each completion token is predicted.

    prompt_lengths, completion_lengths: int64 [B]. Returns int64 [R] with R = completion_lengths.sum(): the position
    before each completion token, sequence after sequence.
    """
    starts = torch.arange(len(prompt_lengths)) * width + prompt_lengths - 1
    ends = completion_lengths.cumsum(0)
    offsets = torch.arange(int(ends[-1])) - (ends - completion_lengths).repeat_interleave(completion_lengths)
    return starts.repeat_interleave(completion_lengths) + offsets


def score_rows(
    hidden_RH: Tensor,
    head: Head,
    targets_R: Tensor,
    *,
    temperature_R: Tensor,
    top_k: int = 0,
    entropy: bool = False,
    ranks: bool = False,
    candidates_M: Tensor | None = None,
    candidate_counts_R: Tensor | None = None,
    rows: int,
) -> RowScores:
    """Score each row's target under softmax(head(hidden) / temperature), `rows` rows at a time.

    hidden_RH: [R, H]. targets_R: int64 [R]. temperature_R: float32 [R], above 0. candidates_M: int64 [M], row after
    row, with candidate_counts_R: int64 [R] on the CPU. No tensor is larger than [rows, V]; logits are widened to
    float32 before anything is computed from them. The entropy is H = logsumexp(z) - sum(softmax(z) * z), in nats. A
    rank counts the ids whose logit is at least the target's, the target included, as vLLM's does.
    """
    total = len(targets_R)
    device = hidden_RH.device
    scores = RowScores(
        logprobs=torch.empty(total, device=device),
        top_ids=torch.empty(total, top_k, dtype=torch.int64, device=device) if top_k else None,
        top_logprobs=torch.empty(total, top_k, device=device) if top_k else None,
        candidate_logprobs=torch.empty(len(candidates_M), device=device) if candidates_M is not None else None,
        entropy=torch.empty(total, device=device) if entropy else None,
        ranks=torch.empty(total, dtype=torch.int64, device=device) if ranks else None,
    )
    scaled = bool((temperature_R != 1).any())
    further = bool(top_k or entropy or ranks or candidates_M is not None)
    bounds = None
    if candidates_M is not None:
        if candidate_counts_R is None:
            raise ValueError("candidates need candidate_counts_R")
        bounds = torch.nn.functional.pad(candidate_counts_R.cumsum(0), (1, 0))
    for start in range(0, total, rows):
        stop = min(start + rows, total)
        logits_RV = head(hidden_RH[start:stop]).float()
        if scaled:
            logits_RV = logits_RV / temperature_R[start:stop, None]
        if not further:
            # One pass over the logits, where the sum alone takes several.
            logprobs_RV = logits_RV.log_softmax(-1)
            scores.logprobs[start:stop] = logprobs_RV.gather(-1, targets_R[start:stop, None])[:, 0]
            continue
        normalizer_R = logits_RV.logsumexp(-1)
        sampled_R = logits_RV.gather(-1, targets_R[start:stop, None])[:, 0]
        scores.logprobs[start:stop] = sampled_R - normalizer_R
        if scores.top_ids is not None and scores.top_logprobs is not None:
            values_RK, ids_RK = logits_RV.topk(top_k, dim=-1)
            scores.top_ids[start:stop] = ids_RK
            scores.top_logprobs[start:stop] = values_RK - normalizer_R[:, None]
        if scores.ranks is not None:
            scores.ranks[start:stop] = (logits_RV >= sampled_R[:, None]).sum(-1)
        if bounds is not None and candidates_M is not None and scores.candidate_logprobs is not None:
            assert candidate_counts_R is not None
            first, last = int(bounds[start]), int(bounds[stop])
            counts = candidate_counts_R[start:stop]
            rows_M = torch.arange(stop - start).repeat_interleave(counts).to(device)
            picked_M = logits_RV[rows_M, candidates_M[first:last]]
            scores.candidate_logprobs[first:last] = picked_M - normalizer_R[rows_M]
        if scores.entropy is not None:
            logprobs_RV = logits_RV.sub_(normalizer_R[:, None])
            # A logit of -inf has probability 0 and adds 0, where 0 * -inf would be NaN.
            scores.entropy[start:stop] = torch.special.entr(logprobs_RV.exp_()).sum(-1)
    return scores
