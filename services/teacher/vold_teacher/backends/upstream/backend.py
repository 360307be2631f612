"""The upstream backend: sends sequences and prompts to a pool of stock servers, in their dialect."""

import hashlib
import json
import logging
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from vold_service.errors import ServiceError, internal, invalid
from vold_service.fairness import FairShare

from vold_teacher.backends.base import Capabilities, ModelInfo, ScoredBatch
from vold_teacher.backends.folder import eos_ids, text_config
from vold_teacher.backends.loop import LoopDecoder, LoopThread, completion_seed
from vold_teacher.backends.per_sequence import check_vocabulary, score_batch
from vold_teacher.backends.upstream.dialects import Dialect, ServedModel
from vold_teacher.backends.upstream.pool import Pool, PoolLimits, Replica
from vold_teacher.backends.upstream.sglang import SglangDialect
from vold_teacher.backends.upstream.urls import parse_urls
from vold_teacher.backends.upstream.vllm import VllmDialect, probe_sequence
from vold_teacher.identity import FINGERPRINT_LENGTH
from vold_teacher.types import (
    Floats,
    GenerateChunk,
    GeneratePrompt,
    SamplingOptions,
    ScoreOptions,
    Sequence,
    SequenceScore,
)

log = logging.getLogger("vold.teacher.upstream")

MAX_IN_FLIGHT = 8

MAX_PROBE_DIFFERENCE = 0.1
"""The mean difference, in nats, of two scores of the probe by one model: 16-bit kernels differ by 0.02."""


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """urls: as on the command line. tokenizer: the folder of the model's tokenizer and, if present, its config.
    vocab_size: needed if that folder has no config. key: API key of the upstream servers. model: its name on them.
    max_logprobs: the largest top-k, or number of candidates, that a request may ask for.
    """

    urls: str
    tokenizer: Path
    vocab_size: int | None = None
    key: str = ""
    model: str = ""
    max_logprobs: int = 1024
    max_sequence: int | None = None
    max_rows: int = 256
    pool: PoolLimits = field(default_factory=PoolLimits)


def served_fingerprint(dialect: str, served: ServedModel) -> str:
    """A fingerprint of a server's description of its model: stock servers send none of their weights. 32 hex digits.

    SHA-256 over that description: kind of server, name, path, longest sequence, and weight version
    if it has one. It is stable over restarts. It does not change with weights that change under one name:
    `UpstreamBackend._check` finds those. A vold teacher sends its own fingerprint, which is used as it is.
    """
    if served.weights_fingerprint:
        return served.weights_fingerprint
    description = [dialect, served.model, served.root, served.max_sequence, served.weight_version]
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()[:FINGERPRINT_LENGTH]


class UpstreamBackend:
    """Scores and generates with stock servers. Raises OSError if none of them can be used.

    All replicas must serve the same model as the first that answers. A replica must describe the same model, and score
    a fixed probe within MAX_PROBE_DIFFERENCE, before it takes requests and every `PoolLimits.probe_seconds`.
    """

    def __init__(self, options: UpstreamOptions) -> None:
        dialect, urls = parse_urls(options.urls)
        vocab_size = options.vocab_size or text_config(options.tokenizer).get("vocab_size")
        if not isinstance(vocab_size, int):
            raise OSError(
                f"the size of the vocabulary is not known: {options.tokenizer} has no config.json; copy the model's "
                "there, or give --vocab-size"
            )
        self._options = options
        self._vocab_size = vocab_size
        self._dialect: Dialect = (
            SglangDialect(vocab_size, options.model) if dialect == "sglang" else VllmDialect(options.model)
        )
        self._served: ServedModel | None = None
        self._expected: Floats | None = None
        self._raw_logprobs = False
        self._thread = LoopThread("upstream")
        try:
            self._pool = self._thread.run(self._start(urls))
            self.info = self._thread.run(self._describe())
        except BaseException:
            self._thread.close()
            raise

    def score(self, sequences: Seq[Sequence]) -> ScoredBatch:
        return score_batch(self._thread, sequences, self._score, _service_error)

    def decoder(self, share: FairShare | None = None) -> LoopDecoder:
        return LoopDecoder(self._thread, self._complete, max_rows=self._options.max_rows, share=share)

    def close(self) -> None:
        if not self._thread.loop.is_closed():
            self._thread.run(self._pool.stop())
        self._thread.close()

    async def _start(self, urls: list[str]) -> Pool:
        pool = Pool(urls, self._options.key, self._options.pool, check=self._check)
        try:
            await pool.start()
        except BaseException:
            await pool.stop()
            raise
        return pool

    async def _check(self, replica: Replica) -> str:
        """Why a replica must not take requests, or "". The first replica determines the model that is served."""
        try:
            served = await self._dialect.read_model(replica)
        except OSError as error:
            return str(error)
        logprobs = (await self._dialect.score(replica.post, served, probe_sequence(0))).logprobs
        if self._expected is None or self._served is None:  # no await before the assignment
            self._served, self._expected = served, logprobs
        if served != self._served:
            return f"it serves {served}, where the others serve {self._served}"
        difference = float(np.abs(np.clip(logprobs, -100, 0) - np.clip(self._expected, -100, 0)).mean())
        if difference > MAX_PROBE_DIFFERENCE:
            return (
                f"its log-probabilities of a probe differ by {difference:.3g} nats on average from those that this "
                "teacher began with: it serves other weights. Start this server again to take them"
            )
        return ""

    async def _describe(self) -> ModelInfo:
        assert self._served is not None
        served, options = self._served, self._options
        post = self._pool.post
        try:
            max_logprobs = min(options.max_logprobs, self._vocab_size)
            limits = await self._dialect.probe_limits(post, served, max_logprobs=max_logprobs)
            self._raw_logprobs = await self._gives_raw_logprobs()
        except ServiceError as error:
            raise OSError(f"the upstream server cannot score: {error.message}") from error
        if options.max_sequence is not None and options.max_sequence > served.max_sequence:
            raise OSError(
                f"--max-sequence {options.max_sequence} is above the {served.max_sequence} that the upstream server "
                "scores: ask for less"
            )
        return ModelInfo(
            vocab_size=self._vocab_size,
            max_sequence=options.max_sequence or served.max_sequence,
            dtype="unknown",
            backend=f"upstream-{self._dialect.name}",
            eos_ids=eos_ids(options.tokenizer),
            weights_fingerprint=served_fingerprint(self._dialect.name, served),
            capabilities=Capabilities(
                temperature=False,
                max_top_k=limits.max_top_k,
                candidates=limits.candidates,
                max_candidates=limits.max_candidates,
                entropy=False,
                hidden_states=False,
                seed=served.uses_seed,
            ),
            max_in_flight=MAX_IN_FLIGHT,
        )

    async def _gives_raw_logprobs(self) -> bool:
        """Whether log-probabilities of generated tokens equal their scores, at any temperature.

        If not (the server returns processed log-probabilities, or none), completions are scored after generation.
        """
        prompt = GeneratePrompt(probe_sequence(0).prompt, 0, 4)
        options = SamplingOptions(max_tokens=4, temperature=1.7, seed=1)
        assert self._served is not None
        ids, logprobs, _ = await anext(
            aiter(self._dialect.complete(self._pool.post, self._pool.stream, self._served, prompt, options, 1))
        )
        if logprobs is None:
            return False
        expected = (await self._score(Sequence(prompt.ids, ids, ScoreOptions()))).logprobs
        if logprobs.shape == expected.shape and float(np.abs(logprobs - expected).mean()) <= MAX_PROBE_DIFFERENCE:
            return True
        log.info("completions are scored after they are generated: upstream gives processed log-probabilities")
        return False

    async def _score(self, sequence: Sequence) -> SequenceScore:
        assert self._served is not None
        check_vocabulary(sequence, self._vocab_size)
        return await self._dialect.score(self._pool.post, self._served, sequence)

    async def _complete(
        self, prompt: GeneratePrompt, index: int, options: SamplingOptions
    ) -> AsyncIterator[GenerateChunk]:
        assert self._served is not None
        if options.temperature > self._dialect.max_temperature:
            raise invalid(
                "options.temperature",
                f"options.temperature is {options.temperature:g}: the upstream server samples at most at "
                f"{self._dialect.max_temperature:g}",
            )
        seed = completion_seed(prompt, index, options)
        before = prompt.ids
        async for ids, logprobs, reason in self._dialect.complete(
            self._pool.post, self._pool.stream, self._served, prompt, options, seed
        ):
            if len(ids) and (logprobs is None or not self._raw_logprobs):
                logprobs = (await self._score(Sequence(before, ids, ScoreOptions(), owner=prompt.owner))).logprobs
            before = np.concatenate([before, ids])
            if logprobs is None:
                logprobs = np.zeros(0, np.float32)
            yield GenerateChunk(prompt.index, index, ids, logprobs, reason)


def _service_error(error: Exception) -> ServiceError:
    log.error("an upstream request failed", exc_info=error)
    return internal(error)
