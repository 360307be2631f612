"""The engine's data as plain NumPy arrays, the same for every face and every backend.

Shape letters: T completion positions, K top-k, M candidates of all positions together, H hidden size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """temperature divides the logits before the softmax: it changes every log-probability and the entropy."""

    temperature: float = 1.0
    top_k: int = 0
    entropy: bool = False
    hidden_states: bool = False
    ranks: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """One completion to score after its prompt.

    prompt: [P], at least one id. completion: [T], at least one id. candidates: [M], ids to score besides the sampled
    tokens, position after position; candidate_counts: [T], the number of candidates at each position, summing to M.
    owner: whose it is (Tenant.cache_owner): what was computed for one owner is not used for another.
    """

    prompt: Ids
    completion: Ids
    options: ScoreOptions
    candidates: Ids | None = None
    candidate_counts: Ids | None = None
    owner: str = ""

    @property
    def length(self) -> int:
        """Tokens to run through the model: all but the last, which predicts nothing that is scored."""
        return len(self.prompt) + len(self.completion) - 1


@dataclass(frozen=True, slots=True, eq=False)
class SequenceScore:
    """The scores of one completion. Natural logarithms; a field that was not requested is None.

    logprobs: [T] of the sampled tokens. top_ids, top_logprobs: [T, K], most likely first.
    candidate_logprobs: [M]. entropy: [T]. hidden_states: [T, H], the state that predicts each position.
    ranks: [T], the number of ids at least as likely as the sampled id, itself included.
    """

    logprobs: Floats
    top_ids: Ids | None = None
    top_logprobs: Floats | None = None
    candidate_logprobs: Floats | None = None
    entropy: Floats | None = None
    hidden_states: Floats | None = None
    ranks: Ids | None = None


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep the whole vocabulary. stop_ids end a completion."""

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stream_tokens: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class GeneratePrompt:
    """A prompt to complete n times. index: its place in the request. seed: its own, or None. owner: as of Sequence."""

    ids: Ids
    index: int
    max_tokens: int
    seed: int | None = None
    owner: str = ""

    def seed_and_place(self, options: SamplingOptions) -> tuple[int, int]:
        """What its random numbers follow from: the request's seed and its place there, or its own seed, as if it were
        alone in a request with that one.
        """
        return (options.seed, self.index) if self.seed is None else (self.seed, 0)


@dataclass(frozen=True, slots=True, eq=False)
class GenerateChunk:
    """New tokens of one completion. prompt: the prompt's index in the request. logprobs: of `ids`, at temperature 1."""

    prompt: int
    index: int
    ids: Ids
    logprobs: Floats
    finish_reason: str | None = None
