"""Checks the replies of another engine, so that a misaligned reply is an error and never a wrong score.

Shape letters: T completion positions, K top-k, M candidates of all positions together.
"""

import numpy as np
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError

from vold_teacher.types import Floats, Ids, Sequence, SequenceScore

TOLERANCE = 1e-3
"""Rounding of a log-probability, in nats."""


def bad_reply(what: str) -> ServiceError:
    """INTERNAL: the engine behind this backend replied with something other than was requested."""
    return ServiceError(
        status_pb2.INTERNAL, f"the engine behind this teacher replied {what}: the score is withheld; see its log"
    )


def checked_logprobs(values: Floats, shape: tuple[int, ...], what: str) -> Floats:
    """`values` as float32, checked: of this shape, no NaN, none above 0. -inf is allowed, for probability 0."""
    array = np.asarray(values, np.float32)
    if array.shape != shape:
        raise bad_reply(f"{what} of shape {list(array.shape)} for {list(shape)}")
    if np.isnan(array).any():
        raise bad_reply(f"{what} that are not numbers")
    if array.size and float(array.max()) > TOLERANCE:
        raise bad_reply(f"{what} of up to {float(array.max()):.4g}, which no log-probability is")
    return np.minimum(array, 0)


def check_ids(actual: Ids, expected: Ids, what: str) -> None:
    if actual.shape != expected.shape or not np.array_equal(actual, expected):
        raise bad_reply(f"{what} for other tokens than were sent")


def checked_score(
    sequence: Sequence,
    *,
    sampled_ids: Ids | None,
    logprobs: Floats,
    top_ids: Ids | None = None,
    top_logprobs: Floats | None = None,
    candidate_logprobs: Floats | None = None,
) -> SequenceScore:
    """A score from a reply, checked. sampled_ids: [T], the tokens that the engine says it scored; or None."""
    positions = len(sequence.completion)
    top_k = sequence.options.top_k
    if sampled_ids is not None:
        check_ids(np.asarray(sampled_ids, np.int32), sequence.completion, "log-probabilities")
    checked = checked_logprobs(logprobs, (positions,), "log-probabilities")
    ids = top = None
    if top_k:
        if top_ids is None or top_logprobs is None:
            raise bad_reply("no top-k")
        ids = np.ascontiguousarray(top_ids, np.int32)
        top = checked_logprobs(top_logprobs, (positions, top_k), "top log-probabilities")
        if ids.shape != top.shape or ids.min() < 0:
            raise bad_reply("top-k ids that do not fit their log-probabilities")
        if (np.diff(top, axis=-1) > TOLERANCE).any() or (np.exp(top).sum(-1) > 1.01).any():
            raise bad_reply("a top-k that is no part of a distribution")
        same = ids == sequence.completion[:, None]
        if (np.abs(np.where(same, top - checked[:, None], 0)) > TOLERANCE).any():
            raise bad_reply("a sampled token whose two log-probabilities differ")
    candidates = None
    if sequence.candidates is not None:
        if candidate_logprobs is None:
            raise bad_reply("no candidates")
        candidates = checked_logprobs(candidate_logprobs, (len(sequence.candidates),), "candidate log-probabilities")
    return SequenceScore(logprobs=checked, top_ids=ids, top_logprobs=top, candidate_logprobs=candidates)


def candidate_rows(sequence: Sequence) -> list[list[int]]:
    """vLLM's prompt_logprob_token_ids: per completion position, the sampled id and then the candidates."""
    rows = [[int(index)] for index in sequence.completion]
    if sequence.candidates is not None and sequence.candidate_counts is not None:
        ends = np.cumsum(sequence.candidate_counts)
        for row, part in zip(rows, np.split(sequence.candidates, ends[:-1]), strict=True):
            row.extend(part.tolist())
    return rows


def split_candidate_rows(sequence: Sequence, scores_TK: Floats) -> tuple[Floats, Floats]:
    """(logprobs [T], candidate_logprobs [M]) from the reply to `candidate_rows`, padded on the right."""
    counts = np.zeros(len(sequence.completion), np.int64)
    if sequence.candidate_counts is not None:
        counts = sequence.candidate_counts.astype(np.int64)
    expected = (len(sequence.completion), 1 + int(counts.max()))
    if scores_TK.ndim != 2 or scores_TK.shape != expected:
        raise bad_reply(f"candidates of shape {list(scores_TK.shape)} for {list(expected)}")
    is_candidate = np.arange(scores_TK.shape[1] - 1) < counts[:, None]
    return scores_TK[:, 0], scores_TK[:, 1:][is_candidate]
