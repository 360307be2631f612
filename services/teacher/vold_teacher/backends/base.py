"""What the engine asks of a backend: a small protocol, the same for every one.

Methods block. The engine calls them from threads: `score` from at most `max_in_flight` at a time, the decoder from one.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from vold_service.errors import ServiceError

from vold_teacher.batch import Layout
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, Sequence, SequenceScore


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. What it cannot is refused before it is asked, never approximated.

    temperature: other than 1 when scoring. max_top_k: 0 where it gives none; None for no limit of its own. ranks: of
    the sampled tokens. max_candidates: at one position; None for no limit of its own. seed: draws by it.
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
    """What was loaded. vocab_size: rows of the output head. max_sequence: prompt and completion together.

    layout: how it runs a batch.
    max_in_flight: batches that it takes at the same time; more than 1 where it batches for itself or waits for others.
    """

    vocab_size: int
    max_sequence: int
    dtype: str
    backend: str
    eos_ids: tuple[int, ...]
    weights_fingerprint: str
    capabilities: Capabilities
    layout: Layout = Layout.SEPARATE
    max_in_flight: int = 1

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt of several sequences in one batch is computed once, where that pays."""
        return self.layout is not Layout.SEPARATE


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """scores: in the order of the batch; an error in the place of a sequence that failed by itself.

    computed_tokens: positions run through the model, padding included. real_tokens: of those, the ones that are not
    padding.
    """

    scores: list[SequenceScore | ServiceError]
    computed_tokens: int
    real_tokens: int


class Decoder(Protocol):
    """Generates for many requests in one batch, a slice of decode steps at a time."""

    def add(self, request: int, prompts: Seq[GeneratePrompt], options: SamplingOptions, priority: int) -> None:
        """Queue prompts of a request; `request` is the caller's number for it. Higher priorities begin first; what
        has begun goes on.
        """

    def cancel(self, request: int) -> None:
        """Forget a request: its waiting prompts at once, its running rows before the next step."""

    def advance(self, seconds: float) -> Seq[tuple[int, GenerateChunk | ServiceError]]:
        """Decode for about `seconds`, at least one step; (request, chunk) for what came out.

        An error ends its request, of which nothing more comes.
        """

    @property
    def busy(self) -> bool:
        """Whether `advance` has anything to do."""

    @property
    def computed_tokens(self) -> int:
        """Positions run through the model so far, padding included."""


class Backend(Protocol):
    @property
    def info(self) -> ModelInfo: ...

    def score(self, sequences: Seq[Sequence]) -> ScoredBatch:
        """Score a batch, whose size by vold_teacher.batch the engine has held under its budget.

        Where it raises, the engine scores each entry of the batch by itself, so that one bad sequence costs no other.
        A ServiceError goes to the callers as it is.
        """

    def decoder(self) -> Decoder: ...

    def close(self) -> None:
        """Give back what it holds: memory, connections, processes. A second call does nothing."""
