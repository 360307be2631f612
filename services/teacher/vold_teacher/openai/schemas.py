"""The requests of the OpenAI routes, with the fields that are served."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictBool, StrictInt, StrictStr, field_validator
from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import invalid

from vold_teacher.validation import MAX_N

INT32 = 2**31
FORMS = "send a text, a list of texts, a list of token ids, or a list of lists of token ids"

StopText = Annotated[StrictStr, Field(min_length=1, max_length=1000)]
Count = Annotated[StrictInt, Field(ge=0, lt=INT32)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: StrictBool = False


class SamplingRequest(BaseModel):
    """The fields of both completion routes. As in OpenAI's API, null is the same as absent."""

    model: StrictStr = ""
    n: Annotated[StrictInt, Field(ge=1, le=MAX_N)] = 1
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: Annotated[StrictInt, Field(ge=-1, lt=INT32)] = Field(default=0, description="0 and -1 keep all")
    seed: StrictInt | None = None
    stop: Annotated[list[StopText], FailFast()] = Field(
        default=[], max_length=64, description="texts that end a completion; a single one may stand bare"
    )
    stop_token_ids: Annotated[list[StrictInt], FailFast()] = []
    skip_special_tokens: StrictBool = True
    stream: StrictBool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: StrictBool = False
    return_tokens_as_token_ids: StrictBool = False
    request_id: StrictStr = ""
    priority: Annotated[StrictInt, Field(gt=-INT32, lt=INT32)] = Field(default=0, description="lower goes first")

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def to_options(self, max_tokens: int, *, stream_tokens: bool) -> pb.GenerateOptions:
        for index, stop in enumerate(self.stop_token_ids):
            if not -INT32 <= stop < INT32:
                raise invalid("stop_token_ids", f"stop_token_ids[{index}] is {stop}: it is no token id; leave it out")
        return pb.GenerateOptions(
            n=self.n,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            min_p=self.min_p,
            top_k=max(self.top_k, 0),
            seed=None if self.seed is None else self.seed % 2**64,
            stop_ids=self.stop_token_ids,
            stream_tokens=stream_tokens,
        )

    @property
    def wire_priority(self) -> int:
        """The priority on the teacher's wire, where the higher goes first."""
        return -self.priority


class CompletionRequest(SamplingRequest):
    prompt: Any = Field(description="a text, a list of texts, a list of ids, or a list of lists of ids")

    @field_validator("prompt")
    @classmethod
    def _read_forms(cls, value: Any) -> list[str | bytes]:
        """The prompts as a list of texts and of packed ids: one object for a prompt of ids, which as a list is many."""
        if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
            value = [value]
        if not isinstance(value, list) or not value:
            raise invalid("prompt", f"prompt is {'empty' if value == [] else 'of no form that is served'}: {FORMS}")
        return [_read_form(item, f"prompt[{index}]") for index, item in enumerate(value)]

    max_tokens: Count = 16
    echo: StrictBool = False
    logprobs: Count | None = None
    prompt_logprobs: Annotated[StrictInt, Field(ge=-1, lt=INT32)] | None = Field(
        default=None, description="-1: all ids"
    )
    add_special_tokens: StrictBool = Field(default=True, description="of a text prompt")


def _read_form(item: Any, field: str) -> str | bytes:
    if isinstance(item, str):
        return item
    if not isinstance(item, list) or not all(type(token) is int for token in item):
        raise invalid(field, f"{field} is neither a text nor a list of token ids: {FORMS}")
    try:
        return pack_ids(item)
    except ValueError as error:
        raise invalid(field, f"{field}: {error}") from error


class TextPart(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: StrictStr
    text: StrictStr = ""


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: StrictStr
    content: StrictStr | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingRequest):
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    chat_template_kwargs: dict[str, Any] = Field(default={}, description="further variables of the chat template")
    max_tokens: Annotated[StrictInt, Field(ge=1, lt=INT32)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, lt=INT32)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Count = 0


class TokenizeRequest(BaseModel):
    model: StrictStr = ""
    prompt: StrictStr | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    add_special_tokens: StrictBool = True
    return_token_strs: StrictBool = False


class DetokenizeRequest(BaseModel):
    model: StrictStr = ""
    tokens: Annotated[list[StrictInt], FailFast()]
