"""The protocol between the engine and its backends.

Methods block. The engine calls them from threads: `score` from at most `max_in_flight` at a time, the decoder from one.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from vold_service.errors import ServiceError
from vold_service.fairness import FairShare
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_teacher.batch import Layout
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, Sequence, SequenceScore


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend supports. A request for anything else is refused, never approximated.

    temperature: scores at temperatures other than 1. max_top_k: 0 if it gives no top-k; None if it has no limit.
    max_candidates: at one position; None if it has no limit. ranks: of the sampled tokens. seed: samples by the seed of
    a request.
    """

    temperature: bool = True
    max_top_k: int | None = None
    candidates: bool = True
    max_candidates: int | None = None
    entropy: bool = True
    hidden_states: bool = True
    generate: bool = True
    ranks: bool = False
    seed: bool = True


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model. vocab_size: rows of the output head. max_sequence: prompt and completion tokens together.

    hidden_size: of the hidden states, where the backend gives them. layout: how the backend runs a batch.
    max_in_flight: batches that it takes at the same time; more than 1 if it batches itself or waits for other engines.
    """

    vocab_size: int
    max_sequence: int
    dtype: str
    backend: str
    eos_ids: tuple[int, ...]
    weights_fingerprint: str
    capabilities: Capabilities
    hidden_size: int = 0
    layout: Layout = Layout.SEPARATE
    max_in_flight: int = 1

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt of several sequences in a batch is computed once, if that is cheaper."""
        return self.layout is not Layout.SEPARATE


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """scores: in the order of the batch; an error in place of a sequence that failed by itself.

    computed_tokens: positions run through the model, padding included. real_tokens: the same without padding.
    """

    scores: list[SequenceScore | ServiceError]
    computed_tokens: int
    real_tokens: int


class Decoder(Protocol):
    """Generates for many requests in one batch, a slice of decode steps at a time.

    Completions start in the order of their tenants' shares of the device, which the decoder charges as it computes;
    completions under way continue.
    """

    def add(
        self,
        request: int,
        prompts: Seq[GeneratePrompt],
        options: SamplingOptions,
        priority: int,
        tenant: Tenant = OPEN_TENANT,
    ) -> None:
        """Queue prompts. request: the caller's number for the request. Of one tenant's requests, higher priorities
        start first.
        """

    def cancel(self, request: int) -> None:
        """Cancel a request: its waiting prompts at once, its running rows before the next step."""

    def end(self, request: int, prompt: int, index: int) -> None:
        """End one running completion before the next step: no further chunk of it is needed."""

    def advance(self, seconds: float) -> Seq[tuple[int, GenerateChunk | ServiceError]]:
        """Decode for about `seconds`, at least one step. Returns (request, chunk) for each new chunk.

        An error ends its request: no further chunk of it follows.
        """

    def take_positions(self) -> dict[int, float]:
        """Positions of each request's own that were run through the model since the last call: without padding, so that
        nothing of other requests shows.
        """

    def tenants(self) -> Iterable[Tenant]:
        """The tenants with completions waiting or running."""

    def close(self) -> None:
        """Forget all requests: the decoder failed, and another takes its place."""

    @property
    def busy(self) -> bool:
        """Whether any completion is waiting or running."""

    @property
    def computed_tokens(self) -> int:
        """Positions run through the model so far, padding included."""


class Backend(Protocol):
    @property
    def info(self) -> ModelInfo: ...

    def score(self, sequences: Seq[Sequence]) -> ScoredBatch:
        """Score a batch. Its size, by vold_teacher.batch, is within the engine's budget.

        If this raises ServiceError, all requests of the batch fail with it. After any other error the engine scores
        each sequence by itself, so that a bad sequence fails no other.
        """

    def decoder(self, share: FairShare | None = None) -> Decoder:
        """share: of the device."""

    def close(self) -> None:
        """Free memory, connections and processes. A second call does nothing."""
