"""vLLM's HTTP API, and servers compatible with it.

Sampled tokens and top-k come from `/v1/completions` with prompt_logprobs. If the server offers
`/inference/v1/generate` with prompt_logprob_token_ids (`--enable-scale-out`, second model runner), sampled tokens and
candidates come from there: a tenth of the bytes, and the only path that may read the prefix cache, because it returns
exact values or null.
"""

import base64
import binascii
import io
import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError

from vold_teacher.backends.replies import bad_reply, candidate_rows, check_ids, checked_score, split_candidate_rows
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
from vold_teacher.types import Floats, GeneratePrompt, Ids, SamplingOptions, ScoreOptions, Sequence, SequenceScore

log = logging.getLogger("vold.teacher.upstream")


class VllmDialect:
    name = "vllm"
    max_temperature = 2.0

    def __init__(self, model: str = "") -> None:
        """model: its name on the server; "" takes the first that the server lists."""
        self._model = model
        self._has_candidates = False

    async def read_model(self, replica: Replica) -> ServedModel:
        entry = find_model(await replica.get("/v1/models"), self._model)
        length = entry.get("max_model_len")
        if not isinstance(length, int):
            raise OSError(f"{replica.url} does not say its max_model_len in /v1/models: is it a vLLM server?")
        return ServedModel(
            model=str(entry["id"]),
            root=str(entry.get("root") or ""),
            max_sequence=length - 1,  # room for the token that it always generates
            weights_fingerprint=str(entry.get("weights_fingerprint") or ""),
        )

    async def probe_limits(self, post: Post, served: ServedModel, *, max_logprobs: int) -> UpstreamLimits:
        async def accepts(top_k: int) -> bool:
            try:
                await post("/v1/completions", self._score_body(served, probe_sequence(top_k)), 0)
            except ServiceError as error:
                if error.code != status_pb2.INVALID_ARGUMENT or top_k == 0:
                    raise
                return False
            return True

        await accepts(0)
        low, high = (max_logprobs, max_logprobs) if await accepts(max_logprobs) else (0, max_logprobs - 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if await accepts(middle) else (low, middle - 1)
        self._has_candidates = await self._scores_candidates(post, served)
        return UpstreamLimits(max_top_k=low, candidates=self._has_candidates, max_candidates=max(low - 1, 0))

    async def score(self, post: Post, served: ServedModel, sequence: Sequence) -> SequenceScore:
        options = sequence.options
        bare = Sequence(sequence.prompt, sequence.completion, options, owner=sequence.owner)
        if not self._has_candidates or (options.top_k and sequence.candidates is None):
            return await self._score_prompt(post, served, bare)
        logprobs, candidates = await self._candidate_scores(post, served, sequence)
        if not options.top_k:
            return checked_score(sequence, sampled_ids=None, logprobs=logprobs, candidate_logprobs=candidates)
        top = await self._score_prompt(post, served, bare)
        return checked_score(
            sequence,
            sampled_ids=None,
            logprobs=top.logprobs,
            top_ids=top.top_ids,
            top_logprobs=top.top_logprobs,
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
        # Set every option that the server's defaults could change.
        body = {
            "model": served.model,
            "prompt": prompt.ids.tolist(),
            "max_tokens": prompt.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "min_p": options.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop_token_ids": sorted(options.stop_ids),
            # stop_ids has every id that ends a completion. A vold teacher refuses ignore_eos, and always ends at its
            # model's end ids.
            "ignore_eos": not served.weights_fingerprint,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **salted("cache_salt", prompt.owner),
        }
        tokens = len(prompt.ids) + prompt.max_tokens
        if not options.stream_tokens:
            yield _read_chunk(await post("/v1/completions", body, tokens))
            return
        async for event in stream("/v1/completions", {**body, "stream": True}, tokens):
            if "error" in event:
                raise bad_reply(f"an error in its stream ({str(event['error'])[:200]})")
            if event.get("choices"):
                yield _read_chunk(event)

    def _score_body(self, served: ServedModel, sequence: Sequence) -> Json:
        return {
            "model": served.model,
            "prompt": np.concatenate([sequence.prompt, sequence.completion]).tolist(),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": sequence.options.top_k,
            **salted("cache_salt", sequence.owner),
        }

    async def _score_prompt(self, post: Post, served: ServedModel, sequence: Sequence) -> SequenceScore:
        tokens = len(sequence.prompt) + len(sequence.completion)
        reply = await post("/v1/completions", self._score_body(served, sequence), tokens)
        entries = _choice(reply).get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != tokens:
            raise bad_reply(f"{len(entries) if isinstance(entries, list) else 'no'} positions for {tokens}")
        top_k = sequence.options.top_k
        logprobs: list[float] = []
        top: list[list[tuple[int, float]]] = []
        for index, entry in zip(sequence.completion.tolist(), entries[len(sequence.prompt) :], strict=True):
            sampled = entry.get(str(index)) if isinstance(entry, dict) else None
            if sampled is None or len(entry) not in (max(top_k, 1), top_k + 1):
                raise bad_reply(f"{len(entry or ())} tokens at a position, or not the token that was sent")
            logprobs.append(float(sampled["logprob"]))
            # With k + 1 entries, the sampled token is not in the top-k.
            top_entries = [
                (int(other["rank"]), int(key), float(other["logprob"]))
                for key, other in entry.items()
                if top_k and (len(entry) == top_k or key != str(index))
            ]
            top.append(
                [(key, logprob) for _, key, logprob in sorted(top_entries, key=lambda item: (item[0], -item[2]))]
            )
        pairs = np.array(top, np.float64).reshape(len(top), top_k, 2)
        return checked_score(
            sequence,
            sampled_ids=None,  # the entries were looked up by id
            logprobs=np.array(logprobs, np.float32),
            top_ids=pairs[..., 0].astype(np.int32),
            top_logprobs=pairs[..., 1].astype(np.float32),
        )

    async def _candidate_scores(self, post: Post, served: ServedModel, sequence: Sequence) -> tuple[Floats, Floats]:
        """(logprobs [T], candidate_logprobs [M]) from /inference/v1/generate."""
        ids = np.concatenate([sequence.prompt, sequence.completion]).tolist()
        parameters = {
            "max_tokens": 1,
            "temperature": 0,
            "detokenize": False,
            "prompt_logprob_token_ids": candidate_rows(sequence),
            "prompt_logprob_start": len(sequence.prompt) - 1,
        }
        for skip_cache in (False, True):  # with the cache the reply is exact or null
            body = {
                "model": served.model,
                "token_ids": ids,
                "sampling_params": {**parameters, "skip_reading_prefix_cache": skip_cache},
                **salted("cache_salt", sequence.owner),
            }
            encoded = (await post("/inference/v1/generate", body, len(ids))).get("prompt_token_id_logprobs")
            if encoded is not None:
                return split_candidate_rows(sequence, _unpack(encoded))
        raise bad_reply("no candidates")

    async def _scores_candidates(self, post: Post, served: ServedModel) -> bool:
        """Whether /inference/v1/generate exists and agrees with /v1/completions."""
        sequence = probe_sequence(0)
        try:
            actual, _ = await self._candidate_scores(post, served, sequence)
        except ServiceError as error:
            log.info("no candidates from upstream: %s", error.message)
            return False
        expected = (await self._score_prompt(post, served, sequence)).logprobs
        return bool(np.allclose(actual, expected, atol=0.2))


def probe_sequence(top_k: int) -> Sequence:
    """A short sequence of ids that every vocabulary contains."""
    ids: Ids = np.arange(1, 17, dtype=np.int32)
    return Sequence(ids[:4], ids[4:], ScoreOptions(top_k=top_k))


def _choice(reply: Json) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise bad_reply("other than one choice")
    return choices[0]


def _read_chunk(reply: Json) -> CompletionChunk:
    choice = _choice(reply)
    ids = np.asarray(choice.get("token_ids") or [], np.int32)
    reason = choice.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise bad_reply(f"a completion that ended by {reason!r}")
    if not len(ids):
        return ids, np.zeros(0, np.float32), reason
    logprobs = choice.get("logprobs") or {}
    named = [str(token).removeprefix("token_id:") for token in logprobs.get("tokens") or []]
    if not all(name.isdigit() for name in named):
        raise bad_reply("tokens without their ids")
    check_ids(np.asarray(named, np.int32), ids, "log-probabilities")
    return ids, np.asarray(logprobs.get("token_logprobs"), np.float32), reason


def _unpack(encoded: Any) -> Floats:
    """A base64 .npy, as vLLM packs arrays."""
    try:
        array = np.load(io.BytesIO(base64.b64decode(encoded, validate=True)), allow_pickle=False)
    except (ValueError, TypeError, OSError, EOFError, binascii.Error) as error:
        raise bad_reply("candidates that are no array") from error
    return np.asarray(array, np.float32)
