from google.protobuf import struct_pb2 as _struct_pb2
from vold_proto.v1 import quota_pb2 as _quota_pb2
from vold_proto.v1 import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListVerifiersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifierInfo(_message.Message):
    __slots__ = ("name", "summary", "parameters_schema", "pool")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    parameters_schema: str
    pool: str
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., parameters_schema: _Optional[str] = ..., pool: _Optional[str] = ...) -> None: ...

class ListVerifiersReply(_message.Message):
    __slots__ = ("verifiers", "server_version", "time_limit_seconds", "sandbox_layers")
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_LAYERS_FIELD_NUMBER: _ClassVar[int]
    verifiers: _containers.RepeatedCompositeFieldContainer[VerifierInfo]
    server_version: str
    time_limit_seconds: float
    sandbox_layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, verifiers: _Optional[_Iterable[_Union[VerifierInfo, _Mapping]]] = ..., server_version: _Optional[str] = ..., time_limit_seconds: _Optional[float] = ..., sandbox_layers: _Optional[_Iterable[str]] = ...) -> None: ...

class VerifyItem(_message.Message):
    __slots__ = ("id", "verifier", "completion", "reference", "prompt", "parameters", "zero_on_failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ZERO_ON_FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    verifier: str
    completion: str
    reference: str
    prompt: str
    parameters: _struct_pb2.Struct
    zero_on_failure: bool
    def __init__(self, id: _Optional[str] = ..., verifier: _Optional[str] = ..., completion: _Optional[str] = ..., reference: _Optional[str] = ..., prompt: _Optional[str] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., zero_on_failure: bool = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("request_id", "items", "run_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[VerifyItem]
    run_id: str
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[VerifyItem, _Mapping]]] = ..., run_id: _Optional[str] = ...) -> None: ...

class VerifyResult(_message.Message):
    __slots__ = ("id", "reward", "correct", "extracted", "reason", "error", "seconds", "rule", "parts", "cached", "forgeable")
    ID_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    EXTRACTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    FORGEABLE_FIELD_NUMBER: _ClassVar[int]
    id: str
    reward: float
    correct: bool
    extracted: str
    reason: str
    error: _status_pb2.Status
    seconds: float
    rule: str
    parts: _containers.RepeatedCompositeFieldContainer[PartResult]
    cached: bool
    forgeable: bool
    def __init__(self, id: _Optional[str] = ..., reward: _Optional[float] = ..., correct: bool = ..., extracted: _Optional[str] = ..., reason: _Optional[str] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., seconds: _Optional[float] = ..., rule: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[PartResult, _Mapping]]] = ..., cached: bool = ..., forgeable: bool = ...) -> None: ...

class PartResult(_message.Message):
    __slots__ = ("name", "role", "weight", "result")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    weight: float
    result: VerifyResult
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., weight: _Optional[float] = ..., result: _Optional[_Union[VerifyResult, _Mapping]] = ...) -> None: ...

class VerifyReply(_message.Message):
    __slots__ = ("request_id", "results", "server_version")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    results: _containers.RepeatedCompositeFieldContainer[VerifyResult]
    server_version: str
    def __init__(self, request_id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[VerifyResult, _Mapping]]] = ..., server_version: _Optional[str] = ...) -> None: ...
