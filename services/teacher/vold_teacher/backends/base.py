"""What the engine asks of a backend. Every method runs on the engine's one device thread."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, Sequence, SequenceScore


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded. vocab_size: rows of the output head. max_sequence: prompt and completion together.

    shares_prompts: whether a prompt of several sequences in one batch is computed once, where that pays.
    """

    vocab_size: int
    max_sequence: int
    dtype: str
    backend: str
    eos_ids: tuple[int, ...]
    weights_fingerprint: str
    can_generate: bool
    shares_prompts: bool


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """scores: in the order of the batch. computed_tokens: positions run through the model, padding included.

    real_tokens: of those, the ones that are not padding.
    """

    scores: list[SequenceScore]
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

    def advance(self, seconds: float) -> list[tuple[int, GenerateChunk]]:
        """Decode for about `seconds`, at least one step; (request, chunk) for what came out."""

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
        """Score a batch, whose size by vold_teacher.batch the engine has held under its budget."""

    def decoder(self) -> Decoder: ...
