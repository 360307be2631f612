from google.protobuf import struct_pb2 as _struct_pb2
from vold_proto.v1 import quota_pb2 as _quota_pb2
from vold_proto.v1 import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    F32: _ClassVar[DType]
    F16: _ClassVar[DType]
    BF16: _ClassVar[DType]
F32: DType
F16: DType
BF16: DType

class Identity(_message.Message):
    __slots__ = ("model", "revision", "weights_fingerprint", "tokenizer_fingerprint")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    weights_fingerprint: str
    tokenizer_fingerprint: str
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., weights_fingerprint: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("temperature", "top_k", "candidates", "entropy", "hidden_states", "generate", "ranks", "seed", "prompt_seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: bool
    top_k: bool
    candidates: bool
    entropy: bool
    hidden_states: bool
    generate: bool
    ranks: bool
    seed: bool
    prompt_seed: bool
    def __init__(self, temperature: bool = ..., top_k: bool = ..., candidates: bool = ..., entropy: bool = ..., hidden_states: bool = ..., generate: bool = ..., ranks: bool = ..., seed: bool = ..., prompt_seed: bool = ...) -> None: ...

class TeacherInfo(_message.Message):
    __slots__ = ("identity", "vocab_size", "tokenizer_size", "special_ids", "max_sequence", "max_top_k", "max_candidates", "dtype", "backend", "server_version", "capabilities", "eos_ids", "max_reply_bytes", "max_rows", "max_prompt_chars")
    class SpecialIdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SIZE_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    EOS_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARS_FIELD_NUMBER: _ClassVar[int]
    identity: Identity
    vocab_size: int
    tokenizer_size: int
    special_ids: _containers.ScalarMap[str, int]
    max_sequence: int
    max_top_k: int
    max_candidates: int
    dtype: str
    backend: str
    server_version: str
    capabilities: Capabilities
    eos_ids: _containers.RepeatedScalarFieldContainer[int]
    max_reply_bytes: int
    max_rows: int
    max_prompt_chars: int
    def __init__(self, identity: _Optional[_Union[Identity, _Mapping]] = ..., vocab_size: _Optional[int] = ..., tokenizer_size: _Optional[int] = ..., special_ids: _Optional[_Mapping[str, int]] = ..., max_sequence: _Optional[int] = ..., max_top_k: _Optional[int] = ..., max_candidates: _Optional[int] = ..., dtype: _Optional[str] = ..., backend: _Optional[str] = ..., server_version: _Optional[str] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., eos_ids: _Optional[_Iterable[int]] = ..., max_reply_bytes: _Optional[int] = ..., max_rows: _Optional[int] = ..., max_prompt_chars: _Optional[int] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class TokenizerReply(_message.Message):
    __slots__ = ("identity", "tokenizer_json", "chat_template")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_JSON_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    identity: Identity
    tokenizer_json: bytes
    chat_template: str
    def __init__(self, identity: _Optional[_Union[Identity, _Mapping]] = ..., tokenizer_json: _Optional[bytes] = ..., chat_template: _Optional[str] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    def __init__(self, ids: _Optional[bytes] = ...) -> None: ...

class Candidates(_message.Message):
    __slots__ = ("ids", "per_position", "counts")
    IDS_FIELD_NUMBER: _ClassVar[int]
    PER_POSITION_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    per_position: int
    counts: bytes
    def __init__(self, ids: _Optional[bytes] = ..., per_position: _Optional[int] = ..., counts: _Optional[bytes] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("id", "prompt", "ids", "candidates")
    ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    id: str
    prompt: int
    ids: bytes
    candidates: Candidates
    def __init__(self, id: _Optional[str] = ..., prompt: _Optional[int] = ..., ids: _Optional[bytes] = ..., candidates: _Optional[_Union[Candidates, _Mapping]] = ...) -> None: ...

class ScoreOptions(_message.Message):
    __slots__ = ("temperature", "top_k", "entropy", "dtype", "hidden_states", "ranks")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    entropy: bool
    dtype: DType
    hidden_states: bool
    ranks: bool
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., entropy: bool = ..., dtype: _Optional[_Union[DType, str]] = ..., hidden_states: bool = ..., ranks: bool = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompts", "completions", "options", "expect_weights_fingerprint", "priority", "run_id", "timeout_seconds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPECT_WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    completions: _containers.RepeatedCompositeFieldContainer[Completion]
    options: ScoreOptions
    expect_weights_fingerprint: str
    priority: int
    run_id: str
    timeout_seconds: float
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., completions: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ..., options: _Optional[_Union[ScoreOptions, _Mapping]] = ..., expect_weights_fingerprint: _Optional[str] = ..., priority: _Optional[int] = ..., run_id: _Optional[str] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class CompletionScore(_message.Message):
    __slots__ = ("id", "status", "logprobs", "top_ids", "top_logprobs", "candidate_logprobs", "entropy", "hidden_states", "cached", "ranks")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: _status_pb2.Status
    logprobs: bytes
    top_ids: bytes
    top_logprobs: bytes
    candidate_logprobs: bytes
    entropy: bytes
    hidden_states: bytes
    cached: bool
    ranks: bytes
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., logprobs: _Optional[bytes] = ..., top_ids: _Optional[bytes] = ..., top_logprobs: _Optional[bytes] = ..., candidate_logprobs: _Optional[bytes] = ..., entropy: _Optional[bytes] = ..., hidden_states: _Optional[bytes] = ..., cached: bool = ..., ranks: _Optional[bytes] = ...) -> None: ...

class ScoreReply(_message.Message):
    __slots__ = ("request_id", "identity", "dtype", "top_k", "scores", "queue_seconds", "compute_seconds", "status", "part", "last")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    identity: Identity
    dtype: DType
    top_k: int
    scores: _containers.RepeatedCompositeFieldContainer[CompletionScore]
    queue_seconds: float
    compute_seconds: float
    status: _status_pb2.Status
    part: int
    last: bool
    def __init__(self, request_id: _Optional[str] = ..., identity: _Optional[_Union[Identity, _Mapping]] = ..., dtype: _Optional[_Union[DType, str]] = ..., top_k: _Optional[int] = ..., scores: _Optional[_Iterable[_Union[CompletionScore, _Mapping]]] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., part: _Optional[int] = ..., last: bool = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class GeneratePrompt(_message.Message):
    __slots__ = ("id", "ids", "messages", "seed")
    ID_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    id: str
    ids: bytes
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    seed: int
    def __init__(self, id: _Optional[str] = ..., ids: _Optional[bytes] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., seed: _Optional[int] = ...) -> None: ...

class GenerateOptions(_message.Message):
    __slots__ = ("n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop_ids", "stream_tokens", "min_p", "stop", "chat_template_kwargs")
    N_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    STREAM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_KWARGS_FIELD_NUMBER: _ClassVar[int]
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    stream_tokens: bool
    min_p: float
    stop: _containers.RepeatedScalarFieldContainer[str]
    chat_template_kwargs: _struct_pb2.Struct
    def __init__(self, n: _Optional[int] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop_ids: _Optional[_Iterable[int]] = ..., stream_tokens: bool = ..., min_p: _Optional[float] = ..., stop: _Optional[_Iterable[str]] = ..., chat_template_kwargs: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompts", "options", "priority", "run_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompts: _containers.RepeatedCompositeFieldContainer[GeneratePrompt]
    options: GenerateOptions
    priority: int
    run_id: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[GeneratePrompt, _Mapping]]] = ..., options: _Optional[_Union[GenerateOptions, _Mapping]] = ..., priority: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("request_id", "identity", "id", "index", "ids", "logprobs", "finished", "finish_reason", "text", "status", "prompt_ids")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    identity: Identity
    id: str
    index: int
    ids: bytes
    logprobs: bytes
    finished: bool
    finish_reason: str
    text: str
    status: _status_pb2.Status
    prompt_ids: bytes
    def __init__(self, request_id: _Optional[str] = ..., identity: _Optional[_Union[Identity, _Mapping]] = ..., id: _Optional[str] = ..., index: _Optional[int] = ..., ids: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ..., finished: bool = ..., finish_reason: _Optional[str] = ..., text: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., prompt_ids: _Optional[bytes] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("tenant", "run_id", "requests", "scored_tokens", "computed_tokens", "cache_hits", "queue_seconds", "generated_tokens")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    run_id: str
    requests: int
    scored_tokens: int
    computed_tokens: float
    cache_hits: int
    queue_seconds: float
    generated_tokens: int
    def __init__(self, tenant: _Optional[str] = ..., run_id: _Optional[str] = ..., requests: _Optional[int] = ..., scored_tokens: _Optional[int] = ..., computed_tokens: _Optional[float] = ..., cache_hits: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class UsageReply(_message.Message):
    __slots__ = ("usage", "since")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    usage: _containers.RepeatedCompositeFieldContainer[Usage]
    since: float
    def __init__(self, usage: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., since: _Optional[float] = ...) -> None: ...
