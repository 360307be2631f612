"""Converts score requests and replies between NumPy arrays and messages, and splits a large request into parts.

Shape letters: T completion positions, K top-k, N candidates at one position, H hidden size.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from vold_proto.arrays import pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb

from vold_client.errors import Internal, InvalidArgument, VoldError, copy_error, from_status
from vold_client.types import Completion, CompletionScore, Floats, Identity, ScoreRequest

DTYPES = {"f32": pb.F32, "f16": pb.F16, "bf16": pb.BF16}


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one message. bytes: of the request and its expected reply together, without hidden states."""

    bytes: int = 16 << 20
    completions: int = 512


@dataclass(frozen=True, slots=True)
class RequestPart:
    """One part of a request. prompts, completions: the caller's indices of the message's prompts and completions."""

    message: pb.ScoreRequest
    prompts: list[int]
    completions: list[int]


def pack_array(values: ArrayLike, field: str) -> bytes:
    """Packed int32 of a one-dimensional array of integers. Raises InvalidArgument that names `field`."""
    try:
        array = np.asarray(values)
        if array.ndim != 1:
            raise ValueError(f"ids must have one dimension: got the shape {array.shape}")
        return pack_ids(array)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"{field}: {error}", field=field) from None


def pack_candidates(candidates: object, positions: int, field: str) -> pb.Candidates | None:
    """The message for candidates: an integer array [T, N], or a list of T arrays of any length.

    Raises InvalidArgument that names `field`.
    """
    if not isinstance(candidates, list | tuple):
        array = np.asarray(candidates)
        if array.ndim != 2 or len(array) != positions:
            raise InvalidArgument(
                f"{field} has the shape {array.shape}: give [T, N] with T = {positions}, the completion's length, or a "
                "list of T arrays",
                field=field,
            )
        if array.size == 0:
            return None
        return pb.Candidates(ids=pack_array(array.reshape(-1), field), per_position=array.shape[1])
    if len(candidates) != positions:
        raise InvalidArgument(
            f"{field} lists {len(candidates)} positions for a completion of {positions}: give one array a position",
            field=field,
        )
    counts = np.fromiter(map(len, candidates), np.int32, positions)
    if not counts.any():
        return None
    try:
        flat = np.concatenate([ids for ids in candidates if len(ids)])
    except ValueError as error:
        raise InvalidArgument(f"{field}: {error}", field=field) from None
    return pb.Candidates(ids=pack_array(flat, field), counts=pack_ids(counts))


def pack_completion(completion: Completion, index: int) -> pb.Completion:
    """The message for a completion, without its prompt index."""
    field = f"completions[{index}]"
    ids = pack_array(completion.ids, f"{field}.ids")
    packed = pb.Completion(id=completion.id or str(index), ids=ids)
    if completion.candidates is not None:
        candidates = pack_candidates(completion.candidates, len(ids) // 4, f"{field}.candidates")
        if candidates is not None:
            packed.candidates.CopyFrom(candidates)
    return packed


def pack_options(request: ScoreRequest) -> pb.ScoreOptions:
    if request.dtype not in DTYPES:
        raise InvalidArgument(f"dtype is {request.dtype!r}: give one of {', '.join(DTYPES)}", field="dtype")
    try:
        return pb.ScoreOptions(
            temperature=request.temperature,
            top_k=request.top_k,
            entropy=request.entropy,
            dtype=DTYPES[request.dtype],
            hidden_states=request.hidden_states,
            ranks=request.ranks,
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgument(
            f"top_k={request.top_k!r}, temperature={request.temperature!r}: {error}", field="options"
        ) from None


def expected_weights(expect: Identity | str | None) -> str:
    return expect.weights_fingerprint if isinstance(expect, Identity) else expect or ""


def split_request(
    request: ScoreRequest, request_id: str, model: str, run_id: str, budget: Budget
) -> Iterator[RequestPart]:
    """Split the request into parts, each within the budget or with a single completion.

    Completions of one prompt stay together as far as the budget allows, so that a prompt is sent and computed once.
    Raises InvalidArgument for an array or an index that cannot be sent. The service checks its own limits.
    """
    prompts = [pack_array(ids, f"prompts[{index}]") for index, ids in enumerate(request.prompts)]
    completions = [pack_completion(completion, index) for index, completion in enumerate(request.completions)]
    options = pack_options(request)
    for index, completion in enumerate(request.completions):
        if not 0 <= completion.prompt < len(prompts):
            raise InvalidArgument(
                f"completions[{index}].prompt is {completion.prompt}, and there are {len(prompts)} prompts",
                field=f"completions[{index}].prompt",
            )
    chunks = list(_chunk_completions(request, prompts, completions, options, budget))
    for number, indices in enumerate(chunks):
        prompt_indices = sorted({request.completions[index].prompt for index in indices})
        position = {prompt: position for position, prompt in enumerate(prompt_indices)}
        message = pb.ScoreRequest(
            request_id=request_id if len(chunks) == 1 else f"{request_id}/{number}",
            model=model,
            prompts=[pb.Prompt(ids=prompts[prompt]) for prompt in prompt_indices],
            completions=[completions[index] for index in indices],
            options=options,
            expect_weights_fingerprint=expected_weights(request.expect),
            priority=request.priority,
            run_id=run_id,
        )
        for packed, index in zip(message.completions, indices, strict=True):
            packed.prompt = position[request.completions[index].prompt]
        yield RequestPart(message, prompt_indices, indices)


def _chunk_completions(
    request: ScoreRequest,
    prompts: list[bytes],
    completions: list[pb.Completion],
    options: pb.ScoreOptions,
    budget: Budget,
) -> Iterator[list[int]]:
    """Indices of completions, ordered by prompt; a new list starts where the budget is full."""
    order = sorted(range(len(completions)), key=lambda index: request.completions[index].prompt)
    chunk: list[int] = []
    size, last_prompt = 0, -1
    for index in order:
        prompt, completion_size = request.completions[index].prompt, _wire_size(completions[index], options)
        added = completion_size + (len(prompts[prompt]) if prompt != last_prompt else 0)
        if chunk and (len(chunk) == budget.completions or size + added > budget.bytes):
            yield chunk
            chunk, size, added = [], 0, completion_size + len(prompts[prompt])
        chunk.append(index)
        size, last_prompt = size + added, prompt
    if chunk or not completions:
        yield chunk


def _wire_size(completion: pb.Completion, options: pb.ScoreOptions) -> int:
    """Bytes of the completion in the request and in the reply."""
    width = 4 if options.dtype == pb.F32 else 2
    positions, candidates = len(completion.ids) // 4, len(completion.candidates.ids) // 4
    reply_size = (
        positions * (width * (1 + options.entropy + options.top_k) + 4 * (options.top_k + options.ranks))
        + width * candidates
    )
    return completion.ByteSize() + reply_size


def unpack_identity(identity: pb.Identity) -> Identity:
    """The identity that a reply names."""
    return Identity(identity.model, identity.revision, identity.weights_fingerprint, identity.tokenizer_fingerprint)


def unpack_score(
    score: pb.CompletionScore, completion: Completion, identifier: str, reply: pb.ScoreReply, url: str
) -> CompletionScore:
    """The score of one completion, floats as float32. Its `error` is set if the reply does not fit the completion."""
    failure = from_status(score.status, url)
    if failure is not None:
        return CompletionScore(identifier, error=failure)
    positions, dtype, top_k = len(completion.ids), reply.dtype, reply.top_k
    try:
        return CompletionScore(
            identifier,
            logprobs=_sized_floats(score.logprobs, dtype, positions, "logprobs"),
            top_ids=unpack_ids(score.top_ids).reshape(positions, top_k) if top_k else None,
            top_logprobs=_sized_floats(score.top_logprobs, dtype, positions * top_k, "top_logprobs").reshape(-1, top_k)
            if top_k
            else None,
            candidate_logprobs=_unpack_candidates(score.candidate_logprobs, completion, dtype),
            entropy=_sized_floats(score.entropy, dtype, positions, "entropy") if score.entropy else None,
            hidden_states=unpack_floats(score.hidden_states, dtype).reshape(positions, -1)
            if score.hidden_states
            else None,
            ranks=unpack_ids(score.ranks).reshape(positions) if score.ranks else None,
            cached=score.cached,
        )
    except ValueError as error:
        return CompletionScore(
            identifier, error=Internal(f"the reply does not fit a completion of {positions} ids: {error}", url=url)
        )


def _unpack_candidates(data: bytes, completion: Completion, dtype: "pb.DType") -> Floats | list[Floats] | None:
    candidates = completion.candidates
    if candidates is None:
        return None
    if not isinstance(candidates, list | tuple):
        shape = np.asarray(candidates).shape
        return _sized_floats(data, dtype, shape[0] * shape[1], "candidate_logprobs").reshape(shape)
    ends = np.cumsum(np.fromiter(map(len, candidates), np.int64, len(candidates)))
    flat = _sized_floats(data, dtype, int(ends[-1]) if len(ends) else 0, "candidate_logprobs")
    return [flat[start:end] for start, end in pairwise([0, *ends.tolist()])]


def _sized_floats(data: bytes, dtype: "pb.DType", size: int, name: str) -> Floats:
    values = unpack_floats(data, dtype)
    if len(values) != size:
        raise ValueError(f"{name} holds {len(values)} values, not {size}")
    return values


_INDEXED = re.compile(r"\b(prompts|completions)\[(\d+)\]")


def restore_indices(error: VoldError, part: RequestPart) -> VoldError:
    """A copy of the error with the caller's indices instead of the part's, in its field and its message."""

    def caller_index(match: re.Match[str]) -> str:
        name, index = match[1], int(match[2])
        indices: Sequence[int] = part.prompts if name == "prompts" else part.completions
        return f"{name}[{indices[index]}]" if index < len(indices) else match[0]

    message, field = (_INDEXED.sub(caller_index, text) for text in (error.message, error.field))
    return copy_error(error, message=message, field=field)
