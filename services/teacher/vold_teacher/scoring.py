"""Log-probabilities from hidden states, without ever holding a [tokens, vocabulary] tensor.

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
    """Scores per scored position, float32, natural logarithms. A field that was not requested is None.

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
    """The number of rows of logits to hold at once, within `max_elements`; at least 1."""
    return max(1, max_elements // vocab_size)


def prediction_rows(prompt_lengths: Tensor, completion_lengths: Tensor, width: int) -> Tensor:
    """The rows of hidden states [B * width, H] of right-padded sequences that predict the completion tokens.

    prompt_lengths, completion_lengths: int64 [B]. Returns int64 [R] with R = completion_lengths.sum(): the position
    before each completion token, sequence after sequence.
    """
    starts = torch.arange(len(prompt_lengths)) * width + prompt_lengths - 1
    ends = completion_lengths.cumsum(0)
    offsets = torch.arange(int(ends[-1])) - (ends - completion_lengths).repeat_interleave(completion_lengths)
    return starts.repeat_interleave(completion_lengths) + offsets


def _empty_scores(
    total: int, device: torch.device, *, top_k: int, entropy: bool, ranks: bool, candidates: int | None
) -> RowScores:
    return RowScores(
        logprobs=torch.empty(total, device=device),
        top_ids=torch.empty(total, top_k, dtype=torch.int64, device=device) if top_k else None,
        top_logprobs=torch.empty(total, top_k, device=device) if top_k else None,
        candidate_logprobs=torch.empty(candidates, device=device) if candidates is not None else None,
        entropy=torch.empty(total, device=device) if entropy else None,
        ranks=torch.empty(total, dtype=torch.int64, device=device) if ranks else None,
    )


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
    candidates = None if candidates_M is None else len(candidates_M)
    scores = _empty_scores(total, device, top_k=top_k, entropy=entropy, ranks=ranks, candidates=candidates)
    scaled = bool((temperature_R != 1).any())
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
        targets_R1 = targets_R[start:stop, None]
        # Ids and ranks come from the logits: subtracting the log-normaliser may round two of them to one value.
        top_ids_RK = logits_RV.topk(top_k, dim=-1).indices if top_k else None
        if scores.ranks is not None:
            scores.ranks[start:stop] = (logits_RV >= logits_RV.gather(-1, targets_R1)).sum(-1)
        # In place on a CPU, where allocating a tensor of this size costs as much as the arithmetic.
        logprobs_RV = torch.log_softmax(logits_RV, -1, out=logits_RV if device.type == "cpu" else None)
        scores.logprobs[start:stop] = logprobs_RV.gather(-1, targets_R1)[:, 0]
        if scores.top_ids is not None and scores.top_logprobs is not None and top_ids_RK is not None:
            scores.top_ids[start:stop] = top_ids_RK
            scores.top_logprobs[start:stop] = logprobs_RV.gather(-1, top_ids_RK)
        if bounds is not None and candidates_M is not None and scores.candidate_logprobs is not None:
            assert candidate_counts_R is not None
            first, last = int(bounds[start]), int(bounds[stop])
            rows_M = torch.arange(stop - start).repeat_interleave(candidate_counts_R[start:stop]).to(device)
            scores.candidate_logprobs[first:last] = logprobs_RV[rows_M, candidates_M[first:last]]
        if scores.entropy is not None:
            # entr gives 0 for probability 0 (a logit of -inf), where 0 * -inf would be NaN.
            # At least two sums: torch splits a single long one between threads, which adds in another order.
            terms_RV = torch.special.entr(logprobs_RV.exp_()).expand(max(stop - start, 2), -1)
            scores.entropy[start:stop] = terms_RV.sum(-1)[: stop - start]
    return scores
