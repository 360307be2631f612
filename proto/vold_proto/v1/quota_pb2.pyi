from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class GetQuotaRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Quota(_message.Message):
    __slots__ = ("tenant", "tokens_per_minute", "max_concurrent", "max_sequence", "tokens_left", "running", "refused")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LEFT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    tokens_per_minute: int
    max_concurrent: int
    max_sequence: int
    tokens_left: float
    running: int
    refused: int
    def __init__(self, tenant: _Optional[str] = ..., tokens_per_minute: _Optional[int] = ..., max_concurrent: _Optional[int] = ..., max_sequence: _Optional[int] = ..., tokens_left: _Optional[float] = ..., running: _Optional[int] = ..., refused: _Optional[int] = ...) -> None: ...
