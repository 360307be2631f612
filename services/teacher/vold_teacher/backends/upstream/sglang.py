"""SGLang's `/generate`: log-probabilities of the input from `logprob_start_len` on. The prefix may be cached.

SGLang takes one list of candidates per request. So the gateway requests the union of all positions' candidates, and
picks each position's own from the reply; a union of more than MAX_UNION ids costs too much and is refused. SGLang
divides the log-probabilities of generated tokens by the temperature, so completions come without and are scored
afterwards.

SGLang also stops at the model's own end ids. If a completion stops at an end id that is not in stop_ids, the gateway
sends another request to continue it.
"""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid

from vold_teacher.backends.replies import bad_reply, check_ids, checked_score
from vold_teacher.backends.salts import salted
from vold_teacher.backends.upstream.dialects import (
    CompletionChunk,
    Post,
    ServedModel,
    Stream,
    UpstreamLimits,
    find_model,
)
from vold_teacher.backends.upstream.pool import Json, Replica
from vold_teacher.backends.upstream.vllm import probe_sequence
from vold_teacher.types import Floats, GeneratePrompt, Ids, SamplingOptions, Sequence, SequenceScore

MAX_UNION = 1024
"""The most different candidates of one sequence."""

RESERVED = 6
"""Context length minus max_req_input_len, if a server does not report the latter; every input must be shorter."""


class SglangDialect:
    name = "sglang"
    max_temperature = float("inf")

    def __init__(self, vocab_size: int, model: str = "") -> None:
        self._last_id = vocab_size - 1
        self._model = model

    async def read_model(self, replica: Replica) -> ServedModel:
        entry = find_model(await replica.get("/v1/models"), self._model)
        meta = await self._optional(replica, "/get_model_info")
        server = await self._optional(replica, "/get_server_info")
        length, max_input = entry.get("max_model_len"), server.get("max_req_input_len")
        if not isinstance(length, int):
            raise OSError(f"{replica.url} does not say its max_model_len in /v1/models: is it an SGLang server?")
        return ServedModel(
            model=str(entry["id"]),
            root=str(meta.get("model_path") or entry.get("root") or ""),
            max_sequence=(max_input if isinstance(max_input, int) else length - RESERVED) - 1,
            weight_version=str(meta.get("weight_version") or ""),
            uses_seed=bool(server.get("enable_deterministic_inference")),
        )

    async def probe_limits(self, post: Post, served: ServedModel, *, max_logprobs: int) -> UpstreamLimits:
        await self.score(post, served, probe_sequence(1))
        return UpstreamLimits(max_top_k=max_logprobs, candidates=True, max_candidates=MAX_UNION)

    async def score(self, post: Post, served: ServedModel, sequence: Sequence) -> SequenceScore:
        positions, top_k = len(sequence.completion), sequence.options.top_k
        ids = np.concatenate([sequence.prompt, sequence.completion])
        body: Json = {
            "input_ids": ids.tolist(),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": len(sequence.prompt) - 1,
            "top_logprobs_num": top_k,
            **salted("extra_key", sequence.owner),
        }
        union: Ids | None = None
        if sequence.candidates is not None and len(sequence.candidates):
            union = np.unique(sequence.candidates)
            if len(union) > MAX_UNION:
                raise invalid(
                    "candidates",
                    f"candidates has {len(union)} different ids: SGLang takes one list for all positions, here of at "
                    f"most {MAX_UNION}; ask for a top_k, or for fewer",
                )
            body["token_ids_logprob"] = union.tolist()
        meta = (await post("/generate", body, len(ids))).get("meta_info")
        if not isinstance(meta, dict):
            raise bad_reply("no meta_info")
        sampled = _triples([_completion_entries(meta, "input_token_logprobs", positions)], "log-probabilities")
        top = union_scores = None
        if top_k:
            top = _triples(_completion_entries(meta, "input_top_logprobs", positions), "top-k")
        candidates: Floats | None = None if sequence.candidates is None else np.zeros(0, np.float32)
        if union is not None and sequence.candidates is not None and sequence.candidate_counts is not None:
            union_scores = _triples(_completion_entries(meta, "input_token_ids_logprobs", positions), "candidates")
            candidates = _pick(union_scores, union, sequence.candidates, sequence.candidate_counts)
        # SGLang takes the last id of the vocabulary for image padding, and returns it as 0 with the right score.
        is_last = (sequence.completion == self._last_id) & (sampled[1][0] == 0)
        return checked_score(
            sequence,
            sampled_ids=np.where(is_last, self._last_id, sampled[1][0]),
            logprobs=sampled[0][0],
            top_ids=None if top is None else top[1],
            top_logprobs=None if top is None else top[0],
            candidate_logprobs=candidates,
        )

    async def complete(
        self,
        post: Post,
        stream: Stream,
        served: ServedModel,
        prompt: GeneratePrompt,
        options: SamplingOptions,
        seed: int,
    ) -> AsyncIterator[CompletionChunk]:
        sampling = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k or -1,
            "min_p": options.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(options.stop_ids),
            "ignore_eos": not options.stop_ids,  # with ignore_eos, SGLang ignores stop_token_ids too
            "sampling_seed": seed & 0x7FFFFFFF,  # an int32 in SGLang
        }
        sampled_ids: list[int] = []
        while True:
            remaining = prompt.max_tokens - len(sampled_ids)
            body = {
                "input_ids": prompt.ids.tolist() + sampled_ids,
                "sampling_params": {**sampling, "max_new_tokens": remaining},
                **salted("extra_key", prompt.owner),
            }
            reply = await post("/generate", body, len(prompt.ids) + prompt.max_tokens)
            reason = ((reply.get("meta_info") or {}).get("finish_reason") or {}).get("type")
            new = [int(index) for index in reply.get("output_ids") or []]
            if reason not in ("stop", "length"):
                raise bad_reply(f"a completion that ended by {reason!r}")
            if not 0 < len(new) <= remaining or (reason == "length" and len(new) < remaining):
                raise bad_reply(f"{len(new)} tokens where {remaining} were asked for")
            sampled_ids += new
            if sampled_ids[-1] in options.stop_ids or len(sampled_ids) == prompt.max_tokens:
                break
        yield np.array(sampled_ids, np.int32), None, "stop" if sampled_ids[-1] in options.stop_ids else "length"

    async def _optional(self, replica: Replica, path: str) -> dict[str, Any]:
        try:
            return await replica.get(path)
        except ServiceError as error:
            if error.code == status_pb2.NOT_FOUND:
                return {}
            raise


def _completion_entries(meta: dict[str, Any], name: str, positions: int) -> list[Any]:
    """The completion's entries, without the first entry of the reply, which has no value."""
    entries = meta.get(name)
    if not isinstance(entries, list) or len(entries) != positions + 1:
        raise bad_reply(f"{len(entries) if isinstance(entries, list) else 'no'} {name} for {positions} and one more")
    return entries[1:]


def _triples(rows: list[Any], what: str) -> tuple[Floats, Ids]:
    """Rows of [[log-probability, id, text], ...] to float32 and int32 [rows, entries]."""
    try:
        logprobs = np.array([[float(entry[0]) for entry in row] for row in rows], np.float32)
        ids = np.array([[int(entry[1]) for entry in row] for row in rows], np.int32)
    except (TypeError, ValueError, IndexError) as error:
        raise bad_reply(f"{what} in another form") from error
    return logprobs, ids


def _pick(union_scores: tuple[Floats, Ids], union: Ids, candidates: Ids, counts: Ids) -> Floats:
    """The log-probabilities [M] of each position's own candidates, from those of the union [T, U]."""
    logprobs_TU, ids_TU = union_scores
    if ids_TU.shape != (len(counts), len(union)):
        raise bad_reply(f"candidates of shape {list(ids_TU.shape)} for {[len(counts), len(union)]}")
    order_TU = ids_TU.argsort(axis=-1)
    check_ids(np.take_along_axis(ids_TU, order_TU, -1), np.broadcast_to(union, ids_TU.shape), "candidates")
    sorted_TU = np.take_along_axis(logprobs_TU, order_TU, -1)
    rows_M = np.repeat(np.arange(len(counts)), counts)
    picked: Floats = sorted_TU[rows_M, np.searchsorted(union, candidates)]
    return picked
