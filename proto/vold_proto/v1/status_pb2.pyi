from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OK: _ClassVar[Code]
    INVALID_ARGUMENT: _ClassVar[Code]
    UNAUTHENTICATED: _ClassVar[Code]
    PERMISSION_DENIED: _ClassVar[Code]
    NOT_FOUND: _ClassVar[Code]
    RESOURCE_EXHAUSTED: _ClassVar[Code]
    DEADLINE_EXCEEDED: _ClassVar[Code]
    UNAVAILABLE: _ClassVar[Code]
    FAILED_PRECONDITION: _ClassVar[Code]
    CANCELLED: _ClassVar[Code]
    INTERNAL: _ClassVar[Code]
OK: Code
INVALID_ARGUMENT: Code
UNAUTHENTICATED: Code
PERMISSION_DENIED: Code
NOT_FOUND: Code
RESOURCE_EXHAUSTED: Code
DEADLINE_EXCEEDED: Code
UNAVAILABLE: Code
FAILED_PRECONDITION: Code
CANCELLED: Code
INTERNAL: Code

class Status(_message.Message):
    __slots__ = ("code", "message", "field", "retry_seconds", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: Code
    message: str
    field: str
    retry_seconds: float
    reason: str
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...
