"""SGLang's `/generate`: log-probabilities of the input from `logprob_start_len` on, before which it may reuse a prefix.

Candidates are one list for the whole request, so the union over all positions is asked for and each position's own are
picked out of it; past MAX_UNION that costs more than it gives, and the item is refused. SGLang divides the
log-probabilities of what it generates by the temperature, so completions come without and are scored as a second step.

Ids to stop at are heeded only together with the model's own end ids. Where a completion ends at one of those that
nobody asked for, the rest of it is asked for as what follows the prompt and this much of it.
"""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid

from vold_teacher.backends.replies import bad_reply, check_ids, score_of
from vold_teacher.backends.upstream.dialects import Abilities, Part, Post, Served, Stream, first_model
from vold_teacher.backends.upstream.pool import Json, Replica
from vold_teacher.backends.upstream.vllm import probe
from vold_teacher.types import Floats, GeneratePrompt, Ids, SamplingOptions, Sequence, SequenceScore

MAX_UNION = 1024
"""Different candidates of one sequence."""

RESERVED = 6
"""What SGLang's max_req_input_len is below its context where it does not say it. No input is as long."""


class SglangDialect:
    name = "sglang"
    max_temperature = float("inf")

    def __init__(self, vocab_size: int, model: str = "") -> None:
        self._last_id = vocab_size - 1
        self._model = model

    async def served(self, replica: Replica) -> Served:
        entry = first_model(await replica.get("/v1/models"), self._model)
        about = await self._optional(replica, "/get_model_info")
        server = await self._optional(replica, "/get_server_info")
        length, own = entry.get("max_model_len"), server.get("max_req_input_len")
        if not isinstance(length, int):
            raise OSError(f"{replica.url} does not say its max_model_len in /v1/models: is it an SGLang server?")
        return Served(
            model=str(entry["id"]),
            root=str(about.get("model_path") or entry.get("root") or ""),
            max_sequence=(own if isinstance(own, int) else length - RESERVED) - 1,
            weight_version=str(about.get("weight_version") or ""),
            seeds=bool(server.get("enable_deterministic_inference")),
        )

    async def abilities(self, post: Post, served: Served, *, most: int) -> Abilities:
        await self.score(post, served, probe(1))
        return Abilities(max_top_k=most, candidates=True, max_candidates=MAX_UNION)

    async def score(self, post: Post, served: Served, sequence: Sequence) -> SequenceScore:
        positions, top_k = len(sequence.completion), sequence.options.top_k
        ids = np.concatenate([sequence.prompt, sequence.completion])
        body: Json = {
            "input_ids": ids.tolist(),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": len(sequence.prompt) - 1,
            "top_logprobs_num": top_k,
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
        about = (await post("/generate", body, len(ids))).get("meta_info")
        if not isinstance(about, dict):
            raise bad_reply("no meta_info")
        sampled = _triples([_last(about, "input_token_logprobs", positions)], "log-probabilities")
        top = chosen = None
        if top_k:
            top = _triples(_last(about, "input_top_logprobs", positions), "top-k")
        candidates: Floats | None = None if sequence.candidates is None else np.zeros(0, np.float32)
        if union is not None and sequence.candidates is not None and sequence.candidate_counts is not None:
            chosen = _triples(_last(about, "input_token_ids_logprobs", positions), "candidates")
            candidates = _pick(chosen, union, sequence.candidates, sequence.candidate_counts)
        # The last id of the vocabulary, which it takes for an image's padding, comes back as 0, with the right score.
        is_last = (sequence.completion == self._last_id) & (sampled[1][0] == 0)
        return score_of(
            sequence,
            sampled_ids=np.where(is_last, self._last_id, sampled[1][0]),
            logprobs=sampled[0][0],
            top_ids=None if top is None else top[1],
            top_logprobs=None if top is None else top[0],
            candidate_logprobs=candidates,
        )

    async def complete(
        self, post: Post, stream: Stream, served: Served, prompt: GeneratePrompt, options: SamplingOptions, seed: int
    ) -> AsyncIterator[Part]:
        sampling = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(options.stop_ids),
            "ignore_eos": not options.stop_ids,  # with it, SGLang passes over stop_token_ids too
            "sampling_seed": seed & 0x7FFFFFFF,  # it is an int32 there
        }
        drawn: list[int] = []
        while True:
            left = prompt.max_tokens - len(drawn)
            body = {
                "input_ids": prompt.ids.tolist() + drawn,
                "sampling_params": {**sampling, "max_new_tokens": left},
            }
            reply = await post("/generate", body, len(prompt.ids) + prompt.max_tokens)
            reason = ((reply.get("meta_info") or {}).get("finish_reason") or {}).get("type")
            new = [int(index) for index in reply.get("output_ids") or []]
            if reason not in ("stop", "length"):
                raise bad_reply(f"a completion that ended by {reason!r}")
            if not 0 < len(new) <= left or (reason == "length" and len(new) < left):
                raise bad_reply(f"{len(new)} tokens where {left} were asked for")
            drawn += new
            if drawn[-1] in options.stop_ids or len(drawn) == prompt.max_tokens:
                break
        yield np.array(drawn, np.int32), None, "stop" if drawn[-1] in options.stop_ids else "length"

    async def _optional(self, replica: Replica, path: str) -> dict[str, Any]:
        try:
            return await replica.get(path)
        except ServiceError as error:
            if error.code == status_pb2.NOT_FOUND:
                return {}
            raise


def _last(about: dict[str, Any], name: str, positions: int) -> list[Any]:
    """The completion's entries; before them stands one more, which has no value."""
    entries = about.get(name)
    if not isinstance(entries, list) or len(entries) != positions + 1:
        raise bad_reply(f"{len(entries) if isinstance(entries, list) else 'no'} {name} for {positions} and one more")
    return entries[1:]


def _triples(rows: list[Any], what: str) -> tuple[Floats, Ids]:
    """[[log-probability, id, text], ...] a row, to float32 and int32 [rows, entries]."""
    try:
        logprobs = np.array([[float(entry[0]) for entry in row] for row in rows], np.float32)
        ids = np.array([[int(entry[1]) for entry in row] for row in rows], np.int32)
    except (TypeError, ValueError, IndexError) as error:
        raise bad_reply(f"{what} in another form") from error
    return logprobs, ids


def _pick(chosen: tuple[Floats, Ids], union: Ids, candidates: Ids, counts: Ids) -> Floats:
    """Each position's own candidates [M] out of the scores of all of them [T, union]."""
    logprobs_TU, ids_TU = chosen
    if ids_TU.shape != (len(counts), len(union)):
        raise bad_reply(f"candidates of shape {list(ids_TU.shape)} for {[len(counts), len(union)]}")
    order_TU = ids_TU.argsort(axis=-1)
    check_ids(np.take_along_axis(ids_TU, order_TU, -1), np.broadcast_to(union, ids_TU.shape), "candidates")
    sorted_TU = np.take_along_axis(logprobs_TU, order_TU, -1)
    rows_M = np.repeat(np.arange(len(counts)), counts)
    picked: Floats = sorted_TU[rows_M, np.searchsorted(union, candidates)]
    return picked
