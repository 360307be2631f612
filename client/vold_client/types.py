"""What goes into a call and what comes out of it: plain dataclasses around NumPy arrays.

Shape letters: T completion positions, K top-k, N candidates at one position, H hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vold_client.errors import VoldError

Ids = Sequence[int] | NDArray[np.integer]
Floats = NDArray[np.float32]
ReplyDType = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answered. The fingerprints are digests of the weights and of the tokenizer."""

    model: str = ""
    revision: str = ""
    weights_fingerprint: str = ""
    tokenizer_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """vocab_size: rows of the output head, padding included. tokenizer_size: ids that the tokenizer knows.
    special_ids: "eos", "bos", "pad" where they exist. eos_ids: every id that ends a generation. max_sequence: prompt
    and completion together, in tokens. max_candidates: at one position. capabilities: of "temperature", "top_k",
    "candidates", "entropy", "hidden_states", "generate", "ranks".
    """

    identity: Identity
    vocab_size: int
    tokenizer_size: int
    special_ids: dict[str, int]
    eos_ids: list[int]
    max_sequence: int
    max_top_k: int
    max_candidates: int
    dtype: str
    backend: str
    server_version: str
    capabilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """tokenizer_json: the file as Hugging Face's tokenizers writes it. chat_template: Jinja2, or ""."""

    identity: Identity
    tokenizer_json: bytes
    chat_template: str


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """Token ids that somebody sampled, to be scored after prompt number `prompt` of the request.

    ids: integers [T]. candidates: further ids to score at each position, integers [T, N] as one array, or a list of
    T arrays where positions differ. id: comes back in the score; where empty it is the completion's index.
    """

    prompt: int
    ids: Ids
    candidates: NDArray[np.integer] | Sequence[Ids] | None = None
    id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class CompletionScore:
    """What the teacher makes of one completion; where `error` is set, every array is None.

    logprobs: float32 [T], natural log, of the completion's own tokens. top_ids: int32 [T, K] and top_logprobs:
    float32 [T, K], most likely first. candidate_logprobs: float32 [T, N], or a list of T arrays where the candidates
    were a list. entropy: float32 [T], nats. hidden_states: float32 [T, H], the state that predicts each position.
    ranks: int32 [T], how many ids are at least as likely as the completion's own, itself included. cached: the service
    had it already.
    """

    id: str
    logprobs: Floats | None = None
    top_ids: NDArray[np.int32] | None = None
    top_logprobs: Floats | None = None
    candidate_logprobs: Floats | list[Floats] | None = None
    entropy: Floats | None = None
    hidden_states: Floats | None = None
    ranks: NDArray[np.int32] | None = None
    cached: bool = False
    error: VoldError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """What `score` takes, as one value, for `score_stream`.

    top_k: how many of the most likely ids to return at each position. temperature: divides the logits before the
    softmax. dtype: what the floats travel as; they are float32 again on arrival. expect: the identity (or the weights
    fingerprint) that must answer. priority: higher first among this caller's requests. timeout: seconds; None for the
    client's. request_id: names the request in logs and in its result; None for one made here.
    """

    prompts: Sequence[Ids]
    completions: Sequence[Completion]
    top_k: int = 0
    entropy: bool = False
    temperature: float = 1.0
    dtype: ReplyDType = "f32"
    hidden_states: bool = False
    ranks: bool = False
    expect: Identity | str | None = None
    priority: int = 0
    timeout: float | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResult:
    """scores: in the order of the completions. queue_seconds: the longest wait, compute_seconds: the sum, over the
    parts that the request was sent in. error: on a stream, why the whole request failed; then `scores` is empty and
    `identity` blank.
    """

    identity: Identity
    scores: list[CompletionScore]
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    request_id: str = ""
    error: VoldError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One completion that the teacher sampled for prompt number `prompt`; `index` counts the prompt's own.

    ids: int32 [T]. logprobs: float32 [T], at temperature 1. text: without special tokens. finish_reason: "stop" or
    "length". prompt_ids: int32, what the prompt became. error: where set, this prompt failed, and all else is empty.
    """

    prompt: int
    index: int
    ids: NDArray[np.int32]
    logprobs: Floats
    text: str
    finish_reason: str
    prompt_ids: NDArray[np.int32]
    identity: Identity
    error: VoldError | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of one tenant has taken of a teacher since it started.

    scored_tokens: of completions. computed_tokens: positions run through the model for them, padding included.
    cache_hits: completions whose scores were there already. queue_seconds: waited, the sum over requests.
    """

    tenant: str
    run_id: str
    requests: int
    scored_tokens: int
    computed_tokens: float
    cache_hits: int
    queue_seconds: float
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Item:
    """A completion to be judged. verifier: its name ("math", "numeric", ...). completion: the whole text.
    reference: the reference answer. parameters: the verifier's own, as JSON values. id: comes back in the verdict;
    where empty it is the item's index. zero_on_failure: reward 0 beside the error where the completion is too long,
    ran into a limit or crashed its worker.
    """

    verifier: str
    completion: str
    reference: str
    prompt: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    zero_on_failure: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One of what a composite's reward is made of. role: "part", "gate" or "penalty". weight: 0 for a gate."""

    name: str
    role: str
    weight: float
    verdict: "Verdict"


@dataclass(frozen=True, slots=True)
class Verdict:
    """reward: None where `error` is set (but for `Item.zero_on_failure`): a missing reward is not a zero. extracted:
    the answer that was read out of the completion. reason: why, in one line. seconds: what judging took. rule: the
    anti-hacking rule that refused the answer, empty where none did. parts: of a composite. cached: the service had it
    already.
    """

    id: str
    reward: float | None = None
    correct: bool | None = None
    extracted: str | None = None
    reason: str = ""
    error: VoldError | None = None
    seconds: float = 0.0
    rule: str = ""
    parts: tuple[Part, ...] = ()
    cached: bool = False


@dataclass(frozen=True, slots=True)
class VerifierInfo:
    """parameters_schema: JSON schema of `Item.parameters`. pool: "main", "sandbox" or "service"."""

    name: str
    summary: str
    parameters_schema: dict[str, Any]
    pool: str = "main"
