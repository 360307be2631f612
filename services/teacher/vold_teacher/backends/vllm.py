"""vLLM in this process: its AsyncLLM on an event loop thread, its engine core in a child process.

To vLLM, prompt and completion together are the prompt: requests ask for its log-probabilities and for one generated
token, the fewest that vLLM allows. No request combines prompt_logprobs with the prefix cache: vLLM's first model runner
then silently returns wrong values. If the engine runs vLLM's second model runner (the default on GPUs), sampled tokens
and candidates go through prompt_logprob_token_ids, which reads the prefix cache and returns exact values or null; after
null the request is sent again without the cache.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vold_proto.distribution import require_extra
from vold_service.errors import ServiceError, internal, invalid, unavailable
from vold_service.fairness import FairShare

from vold_teacher.backends.base import Capabilities, ModelInfo, ScoredBatch
from vold_teacher.backends.folder import eos_ids
from vold_teacher.backends.loop import LoopDecoder, LoopThread, completion_seed
from vold_teacher.backends.per_sequence import check_vocabulary, score_batch
from vold_teacher.backends.replies import bad_reply, candidate_rows, check_ids, checked_score, split_candidate_rows
from vold_teacher.backends.salts import salted
from vold_teacher.identity import weights_fingerprint
from vold_teacher.types import (
    Floats,
    GenerateChunk,
    GeneratePrompt,
    Ids,
    SamplingOptions,
    ScoreOptions,
    Sequence,
    SequenceScore,
)

log = logging.getLogger("vold.teacher.vllm")

MAX_IN_FLIGHT = 8
MAX_TEMPERATURE = 2.0
"""The highest temperature at which vLLM samples."""

END_SECONDS = 10

LOGITS_BYTES = {"cpu": 1 << 30, "cuda": 4 << 30}
"""Bytes of one step for logits and their log-softmax, both float32 over the whole vocabulary: vLLM's first model runner
holds them for every token of a step, and its memory profile does not count them.
"""

ENVIRONMENT = {
    # The default, fork, would copy a process that already has threads of gRPC and torch.
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout carries the server's ready line
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
"""Defaults for environment variables of vLLM."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Options passed to vLLM. None takes a value that is safe on the device, see `engine_arguments`."""

    gpu_memory_utilization: float | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    max_logprobs: int = 1024
    max_rows: int = 256


def batched_tokens(vocab_size: int, device: str) -> int:
    """Tokens of one step, a power of two from 256 to 8192, so that a step's logits fit LOGITS_BYTES."""
    fitting = LOGITS_BYTES[device] // (vocab_size * 2 * 4)
    return min(max(1 << (max(fitting, 1).bit_length() - 1), 256), 8192)


def engine_arguments(
    path: Path, options: VllmOptions, *, dtype: str, device: str, vocab_size: int, max_sequence: int | None
) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs, memory-safe if `options` does not set them."""
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    return {
        "model": str(path),
        "dtype": dtype,
        "max_model_len": None if max_sequence is None else max_sequence + 1,  # room for the token it always generates
        "max_logprobs": min(options.max_logprobs, vocab_size),
        "gpu_memory_utilization": options.gpu_memory_utilization or (0.25 if device == "cpu" else 0.8),
        "max_num_batched_tokens": options.max_num_batched_tokens or batched_tokens(vocab_size, device),
        "enforce_eager": device == "cpu" if options.enforce_eager is None else options.enforce_eager,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "generation_config": "vllm",  # ignore the folder's sampling defaults
    }


class VllmBackend:
    """Scores and generates with an embedded vLLM engine. Loading raises OSError with a message for the user."""

    def __init__(
        self,
        path: Path,
        options: VllmOptions,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_sequence: int | None = None,
    ) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._options = options
        self._request_numbers = itertools.count()
        self._thread = LoopThread("vllm")
        self._llm: Any
        try:
            self._llm, self._parameters, self._final, self._delta = self._thread.run(
                _start(path, options, dtype=dtype, device=device, max_sequence=max_sequence)
            )
        except BaseException:
            self._thread.close()
            raise
        model = self._llm.model_config
        self._vocab_size = int(model.get_vocab_size())
        self._has_candidates = False
        self._has_candidates = self._probe_candidates()
        self.info = self._describe(path)

    def _describe(self, path: Path) -> ModelInfo:
        model = self._llm.model_config
        return ModelInfo(
            vocab_size=self._vocab_size,
            max_sequence=int(model.max_model_len) - 1,
            dtype=str(model.dtype).removeprefix("torch."),
            backend="vllm",
            eos_ids=eos_ids(path, getattr(model.hf_text_config, "eos_token_id", None)),
            weights_fingerprint=weights_fingerprint(path),
            capabilities=Capabilities(
                temperature=False,
                max_top_k=int(model.max_logprobs),
                candidates=self._has_candidates,
                max_candidates=int(model.max_logprobs) - 1,  # the sampled token takes one
                entropy=False,
                hidden_states=False,
            ),
            max_in_flight=MAX_IN_FLIGHT,
        )

    def score(self, sequences: Seq[Sequence]) -> ScoredBatch:
        return score_batch(self._thread, sequences, self._score, self._service_error)

    def decoder(self, share: FairShare | None = None) -> LoopDecoder:
        return LoopDecoder(self._thread, self._complete, max_rows=self._options.max_rows, share=share)

    def close(self) -> None:
        if self._llm is not None:
            llm, self._llm = self._llm, None
            self._thread.run(_shut_down(llm))
        self._thread.close()

    def _service_error(self, error: Exception) -> ServiceError:
        if self._llm.errored:
            return unavailable("the vLLM engine of this teacher has ended: its log says why; start the server again", 5)
        if isinstance(error, ValueError):  # vLLM's refusals
            return invalid("", f"vLLM refused it: {error}")
        log.error("vLLM failed", exc_info=error)
        return internal(error)

    async def _score(self, sequence: Sequence) -> SequenceScore:
        check_vocabulary(sequence, self._vocab_size)
        by_candidates = self._has_candidates and (sequence.candidates is not None or not sequence.options.top_k)
        if not by_candidates:
            return await self._score_prompt(sequence)
        if not sequence.options.top_k:
            return await self._score_candidates(sequence)
        top, (_, candidates) = await asyncio.gather(self._score_prompt(sequence), self._candidate_scores(sequence))
        return checked_score(
            sequence,
            sampled_ids=None,
            logprobs=top.logprobs,
            top_ids=top.top_ids,
            top_logprobs=top.top_logprobs,
            candidate_logprobs=candidates,
        )

    async def _score_prompt(self, sequence: Sequence) -> SequenceScore:
        """By prompt_logprobs: a flat list of the sampled token, then top-k, of every position but the first."""
        top_k = sequence.options.top_k
        output = await self._run(sequence, prompt_logprobs=top_k, flat_logprobs=True)
        flat, first, positions = output.prompt_logprobs, len(sequence.prompt), len(sequence.completion)
        if flat is None or len(flat) != first + positions:
            raise bad_reply(f"{0 if flat is None else len(flat)} positions for {first + positions}")
        span = slice(flat.start_indices[first], flat.end_indices[-1])
        if span.stop - span.start != positions * (top_k + 1):
            raise bad_reply(f"{span.stop - span.start} log-probabilities for {positions} x {top_k + 1}")
        ids = np.asarray(flat.token_ids[span], np.int32).reshape(positions, top_k + 1)
        logprobs = np.asarray(flat.logprobs[span], np.float32).reshape(positions, top_k + 1)
        bare = Sequence(sequence.prompt, sequence.completion, sequence.options)
        return checked_score(
            bare, sampled_ids=ids[:, 0], logprobs=logprobs[:, 0], top_ids=ids[:, 1:], top_logprobs=logprobs[:, 1:]
        )

    async def _score_candidates(self, sequence: Sequence) -> SequenceScore:
        logprobs, candidates = await self._candidate_scores(sequence)
        return checked_score(sequence, sampled_ids=None, logprobs=logprobs, candidate_logprobs=candidates)

    async def _candidate_scores(self, sequence: Sequence) -> tuple[Floats, Floats]:
        """(logprobs [T], candidate_logprobs [M]) by prompt_logprob_token_ids."""
        for skip_cache in (False, True):
            output = await self._run(
                sequence,
                prompt_logprob_token_ids=candidate_rows(sequence),
                prompt_logprob_start=len(sequence.prompt) - 1,
                skip_reading_prefix_cache=skip_cache,
            )
            if output.prompt_token_id_logprobs is not None:
                return split_candidate_rows(sequence, np.asarray(output.prompt_token_id_logprobs, np.float32))
        raise bad_reply("no candidates")

    async def _run(self, sequence: Sequence, **options: Any) -> Any:
        """vLLM's final output for a sequence as its prompt."""
        ids = np.concatenate([sequence.prompt, sequence.completion])
        parameters = self._parameters(max_tokens=1, temperature=0, detokenize=False, output_kind=self._final, **options)
        request = {"prompt_token_ids": ids.tolist(), **salted("cache_salt", sequence.owner)}
        outputs = [output async for output in self._llm.generate(request, parameters, self._request_id())]
        if not outputs or outputs[-1].outputs[0].finish_reason not in ("stop", "length"):
            raise bad_reply("nothing")
        output = outputs[-1]
        check_ids(np.asarray(output.prompt_token_ids, np.int32), ids, "log-probabilities")
        return output

    async def _complete(
        self, prompt: GeneratePrompt, index: int, options: SamplingOptions
    ) -> AsyncIterator[GenerateChunk]:
        if options.temperature > MAX_TEMPERATURE:
            raise invalid(
                "options.temperature",
                f"options.temperature is {options.temperature:g}: vLLM samples at most at {MAX_TEMPERATURE:g}",
            )
        parameters = self._parameters(
            max_tokens=prompt.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            seed=completion_seed(prompt, index, options),
            stop_token_ids=sorted(options.stop_ids),
            ignore_eos=True,  # stop_ids has every id that ends a completion
            logprobs=0,  # of the sampled token alone, at temperature 1: vLLM's raw_logprobs
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._delta if options.stream_tokens else self._final,
        )
        request = {"prompt_token_ids": prompt.ids.tolist(), **salted("cache_salt", prompt.owner)}
        try:
            async for output in self._llm.generate(request, parameters, self._request_id()):
                yield _chunk(output.outputs[0], prompt, index)
        except ServiceError:
            raise
        except Exception as error:
            raise self._service_error(error) from error

    def _request_id(self) -> str:
        return f"vold-{next(self._request_numbers)}"

    def _probe_candidates(self) -> bool:
        """Whether prompt_logprob_token_ids and prompt_logprobs agree on a short sequence."""
        if not getattr(self._llm.vllm_config, "use_v2_model_runner", False):
            return False
        ids: Ids = np.arange(1, 9, dtype=np.int32) % self._vocab_size
        sequence = Sequence(ids[:4], ids[4:], ScoreOptions())
        try:
            expected = self._thread.run(self._score_prompt(sequence)).logprobs
            actual = self._thread.run(self._candidate_scores(sequence))[0]
        except (ServiceError, TypeError, ValueError, AttributeError) as error:
            log.warning("candidates are off: this vLLM does not score them: %s", error)
            return False
        if np.allclose(expected, actual, atol=0.2):
            return True
        log.warning("candidates are off: this vLLM's prompt_logprob_token_ids and prompt_logprobs disagree")
        return False


async def _shut_down(llm: Any) -> None:
    """Stop the engine core and wait for its processes. On the loop, so that vLLM does not report a crash."""
    resources = getattr(llm.engine_core, "resources", None)
    processes = getattr(getattr(resources, "engine_manager", None), "processes", ())
    llm.shutdown()
    for process in processes:  # not waiting longer for a process that must be killed
        await asyncio.to_thread(process.join, END_SECONDS)


def _chunk(output: Any, prompt: GeneratePrompt, index: int) -> GenerateChunk:
    ids = np.asarray(output.token_ids, np.int32)
    check_ids(np.asarray(output.logprobs.token_ids, np.int32), ids, "log-probabilities")
    if output.finish_reason not in (None, "stop", "length"):
        raise bad_reply(f"a completion that ended by {output.finish_reason!r}")
    return GenerateChunk(
        prompt=prompt.index,
        index=index,
        ids=ids,
        logprobs=np.asarray(output.logprobs.logprobs, np.float32),
        finish_reason=output.finish_reason,
    )


async def _start(
    path: Path, options: VllmOptions, *, dtype: str, device: str, max_sequence: int | None
) -> tuple[Any, Any, Any, Any]:
    """The engine, and the names of vLLM that the backend uses. Imports vLLM, after the environment is set."""
    try:
        with require_extra("vllm", "--backend vllm", OSError):
            from vllm import SamplingParams
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.sampling_params import RequestOutputKind
            from vllm.transformers_utils.config import get_config
            from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise OSError(f"--backend vllm: the vLLM that is installed cannot be imported: {error}") from error
    try:
        config = get_config(str(path), trust_remote_code=False)
        vocab_size = int(config.get_text_config().vocab_size)
        model_limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        if max_sequence is not None and model_limit is not None and max_sequence > model_limit - 1:
            raise OSError(
                f"--max-sequence {max_sequence} is above {model_limit - 1}, which is the model's {model_limit} less "
                "the token that vLLM always generates: ask for less"
            )
        arguments = engine_arguments(
            path, options, dtype=dtype, device=device, vocab_size=vocab_size, max_sequence=max_sequence
        )
        log.info("starting vLLM with %s", arguments)
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except (ValueError, RuntimeError, TypeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise OSError(f"vLLM cannot serve {path}: {first}; its log above has the whole story") from error
    return llm, SamplingParams, RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA
