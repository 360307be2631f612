"""Arguments and results of calls: plain dataclasses with NumPy arrays.

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
    """Identifies a teacher. The fingerprints are digests of the weights and of the tokenizer."""

    model: str = ""
    revision: str = ""
    weights_fingerprint: str = ""
    tokenizer_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """vocab_size: rows of the output head, padding included. tokenizer_size: ids of the tokenizer. special_ids: "eos",
    "bos" and "pad", if they exist. eos_ids: all ids that end a generation. max_sequence: tokens of prompt and
    completion together. max_reply_bytes: of one reply with scores. max_rows: completions generated at once.
    max_prompt_chars: of the texts of one prompt. These three are 0 if the service does not say. max_candidates: per
    position. capabilities: of "temperature", "top_k", "candidates", "entropy", "hidden_states", "generate", "ranks",
    "seed", "prompt_seed".
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
    max_reply_bytes: int = 0
    max_rows: int = 0
    max_prompt_chars: int = 0


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """tokenizer_json: the file that Hugging Face's tokenizers writes. chat_template: Jinja2, or ""."""

    identity: Identity
    tokenizer_json: bytes
    chat_template: str


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """Sampled token ids to score as a continuation of the prompt with index `prompt` in the request.

    ids: integers [T]. candidates: more ids to score at each position, as one integer array [T, N], or as a list of T
    arrays of different lengths. id: copied to the score; if empty, the completion's index.
    """

    prompt: int
    ids: Ids
    candidates: NDArray[np.integer] | Sequence[Ids] | None = None
    id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class CompletionScore:
    """The teacher's score of one completion. If `error` is set, every array is None.

    logprobs: float32 [T], natural logarithm, of the completion's tokens. top_ids: int32 [T, K] and top_logprobs:
    float32 [T, K], most likely first. candidate_logprobs: float32 [T, N], or a list of T arrays if the candidates were
    a list. entropy: float32 [T], nats. hidden_states: float32 [T, H], the state that predicts each position. ranks:
    int32 [T], the number of ids at least as likely as the completion's id, itself included. cached: whether the score
    came from the service's cache.
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
    """The arguments of `score` as one value, for `score_stream`.

    top_k: number of most likely ids to return at each position. temperature: divides the logits before the softmax.
    dtype: of the floats on the wire; results are float32. expect: the teacher's identity, or its weights fingerprint;
    another teacher is an error. priority: higher first among this caller's requests. timeout: seconds; None for the
    client's timeout. request_id: names the request in logs and in its result; None for a new id.
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
    """scores: in the order of the completions. queue_seconds: the maximum, compute_seconds: the sum, over the parts of
    the request. error: on a stream, the error of the whole request; `scores` and `identity` are then empty.
    """

    identity: Identity
    scores: list[CompletionScore]
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    request_id: str = ""
    error: VoldError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """Completion number `index` that the teacher sampled for the prompt with index `prompt`.

    ids: int32 [T]. logprobs: float32 [T], at temperature 1. text: without special tokens. finish_reason: "stop" or
    "length". prompt_ids: int32, the prompt's token ids. error: the error of this prompt; all other fields are then
    empty.
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
    """The usage of a teacher by one run of one tenant, since the teacher started.

    scored_tokens: scored completion tokens. computed_tokens: positions run through the model for them, padding
    included. cache_hits: completions whose scores came from the cache. queue_seconds: time in the queue, summed over
    requests.
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
class Quota:
    """The limits of the key's tenant at one server, and how much of them is used. A limit of None is no limit.

    max_concurrent: requests at a time. max_sequence: tokens of a prompt and its completion; the teacher's alone.
    tokens_left: tokens that can be spent at once now, negative while a request of more than a minute's tokens is paid
    off; None without `tokens_per_minute`. running: requests under way. refused: requests that these limits have refused
    since the service started.
    """

    tenant: str
    tokens_per_minute: int | None
    max_concurrent: int | None
    max_sequence: int | None
    tokens_left: float | None
    running: int
    refused: int


@dataclass(frozen=True, slots=True)
class Item:
    """A completion to verify. verifier: its name ("math", "numeric", ...). completion: the whole text. reference: the
    reference answer. parameters: the verifier's, as JSON values. id: copied to the verdict; if empty, the item's index.
    zero_on_failure: give reward 0 beside the error if the completion is too long, exceeds a limit or crashes its
    worker.
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
    """One part of a composite verifier's reward. role: "part", "gate" or "penalty". weight: 0 for a gate."""

    name: str
    role: str
    weight: float
    verdict: "Verdict"


@dataclass(frozen=True, slots=True)
class Verdict:
    """reward: None if `error` is set (except with `Item.zero_on_failure`): a missing reward is not a zero. extracted:
    the answer extracted from the completion. reason: one line. seconds: the time of the verification. rule: the
    anti-hacking rule that refused the answer, or "". parts: of a composite verifier. cached: whether the verdict came
    from the service's cache. forgeable: whether the completion could have made the verdict by other means than a right
    answer.
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
    forgeable: bool = False


@dataclass(frozen=True, slots=True)
class VerifierInfo:
    """parameters_schema: JSON schema of `Item.parameters`. pool: "main", "sandbox" or "service"."""

    name: str
    summary: str
    parameters_schema: dict[str, Any]
    pool: str = "main"
