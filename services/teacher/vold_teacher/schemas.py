"""The wire's messages as JSON: the same fields, with lists of numbers in place of packed bytes."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from vold_proto.arrays import pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import status_pb2
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import describe_invalid, invalid

M = TypeVar("M", bound=BaseModel)

TokenId = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**64)] | None
TokenIds = Annotated[list[TokenId], FailFast()]
"""Validation of a list ends at its first fault: an error of each entry would take more memory than the body."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptIn(_Message):
    ids: TokenIds


class CompletionIn(_Message):
    id: str = Field(default="", description="comes back in the result")
    prompt: Count = Field(default=0, description="index into prompts")
    ids: TokenIds
    candidates: list[TokenIds] | None = Field(
        default=None, description="ids to score besides the sampled one: a list for each completion position"
    )


class ScoreOptionsIn(_Message):
    temperature: float = 1.0
    top_k: Count = 0
    entropy: bool = False
    hidden_states: bool = False
    ranks: bool = False
    dtype: str = Field(default="F32", description="F32 alone: JSON has no packed arrays that another could shorten")

    @field_validator("dtype")
    @classmethod
    def _only_f32(cls, value: str) -> str:
        if value != "F32":
            raise PydanticCustomError(
                "json_dtype", "JSON carries F32: leave dtype out, or send the request as application/x-protobuf"
            )
        return value


class ScoreIn(_Message):
    request_id: str = ""
    model: str = ""
    prompts: Annotated[list[PromptIn], FailFast()]
    completions: Annotated[list[CompletionIn], FailFast()]
    options: ScoreOptionsIn = ScoreOptionsIn()
    expect_weights_fingerprint: str = ""
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    run_id: str = ""

    def to_proto(self) -> pb.ScoreRequest:
        request = pb.ScoreRequest(
            request_id=self.request_id,
            model=self.model,
            prompts=[pb.Prompt(ids=pack_ids(prompt.ids)) for prompt in self.prompts],
            options=pb.ScoreOptions(**self.options.model_dump(exclude={"dtype"})),
            expect_weights_fingerprint=self.expect_weights_fingerprint,
            priority=self.priority,
            run_id=self.run_id,
        )
        for completion in self.completions:
            message = request.completions.add(id=completion.id, prompt=completion.prompt, ids=pack_ids(completion.ids))
            if completion.candidates is not None:
                message.candidates.ids = pack_ids([index for ids in completion.candidates for index in ids])
                message.candidates.counts = pack_ids([len(ids) for ids in completion.candidates])
        return request


class IdentityOut(_Message):
    model: str
    revision: str
    weights_fingerprint: str
    tokenizer_fingerprint: str

    @classmethod
    def of(cls, identity: pb.Identity) -> "IdentityOut":
        return cls(
            model=identity.model,
            revision=identity.revision,
            weights_fingerprint=identity.weights_fingerprint,
            tokenizer_fingerprint=identity.tokenizer_fingerprint,
        )


class StatusOut(_Message):
    code: str
    message: str
    field: str
    retry_seconds: float
    reason: str

    @classmethod
    def of(cls, status: status_pb2.Status) -> "StatusOut":
        return cls(
            code=status_pb2.Code.Name(status.code),
            message=status.message,
            field=status.field,
            retry_seconds=status.retry_seconds,
            reason=status.reason,
        )


class CompletionScoreOut(_Message):
    """Natural logarithms. A field that was not requested is null; if `status` is set, all of them are null."""

    id: str
    status: StatusOut | None = None
    logprobs: list[float] | None = None
    top_ids: list[list[int]] | None = Field(default=None, description="[T, K], most likely first")
    top_logprobs: list[list[float]] | None = None
    candidate_logprobs: list[list[float]] | None = Field(
        default=None, description="in the shape of the request's candidates"
    )
    entropy: list[float] | None = Field(default=None, description="[T], nats")
    hidden_states: list[list[float]] | None = Field(default=None, description="[T, H]")
    ranks: list[int] | None = Field(
        default=None, description="[T], how many ids are at least as likely as the sampled one, itself included"
    )
    cached: bool = False


class ScoreOut(_Message):
    request_id: str
    identity: IdentityOut
    scores: list[CompletionScoreOut]
    queue_seconds: float
    compute_seconds: float

    @classmethod
    def of(cls, reply: pb.ScoreReply, request: pb.ScoreRequest) -> "ScoreOut":
        """The reply to `request`, which gives the shapes of its packed arrays."""
        return cls(
            request_id=reply.request_id,
            identity=IdentityOut.of(reply.identity),
            scores=[
                _score_out(score, completion, request.options, reply.dtype)
                for score, completion in zip(reply.scores, request.completions, strict=True)
            ],
            queue_seconds=reply.queue_seconds,
            compute_seconds=reply.compute_seconds,
        )


def _score_out(
    score: pb.CompletionScore, completion: pb.Completion, options: pb.ScoreOptions, dtype: "pb.DType"
) -> CompletionScoreOut:
    if score.HasField("status"):
        return CompletionScoreOut(id=score.id, status=StatusOut.of(score.status))
    positions = len(unpack_ids(completion.ids))
    out = CompletionScoreOut(id=score.id, logprobs=unpack_floats(score.logprobs, dtype).tolist(), cached=score.cached)
    if options.top_k:
        out.top_ids = unpack_ids(score.top_ids).reshape(positions, -1).tolist()
        out.top_logprobs = unpack_floats(score.top_logprobs, dtype).reshape(positions, -1).tolist()
    candidates = completion.candidates
    if candidates.counts or candidates.per_position:
        counts = unpack_ids(candidates.counts) if candidates.counts else np.full(positions, candidates.per_position)
        parts = np.split(unpack_floats(score.candidate_logprobs, dtype), np.cumsum(counts)[:-1])
        out.candidate_logprobs = [part.tolist() for part in parts]
    if options.entropy:
        out.entropy = unpack_floats(score.entropy, dtype).tolist()
    if options.hidden_states:
        out.hidden_states = unpack_floats(score.hidden_states, dtype).reshape(positions, -1).tolist()
    if options.ranks:
        out.ranks = unpack_ids(score.ranks).tolist()
    return out


class UsageRowOut(_Message):
    """scored_tokens: of completions. computed_tokens: positions run through the model. cache_hits: completions."""

    tenant: str
    run_id: str
    requests: int
    scored_tokens: int
    computed_tokens: float
    cache_hits: int
    queue_seconds: float
    generated_tokens: int


class UsageOut(_Message):
    since: float = Field(description="when counting began, in seconds since 1970")
    usage: list[UsageRowOut]

    @classmethod
    def of(cls, reply: pb.UsageReply) -> "UsageOut":
        fields = UsageRowOut.model_fields
        return cls(
            since=reply.since,
            usage=[UsageRowOut(**{name: getattr(row, name) for name in fields}) for row in reply.usage],
        )


class MessageIn(_Message):
    role: str
    content: str


class GeneratePromptIn(_Message):
    """Either ids or messages."""

    id: str = ""
    ids: TokenIds = []
    messages: Annotated[list[MessageIn], FailFast()] = []
    seed: Seed = None


class GenerateOptionsIn(_Message):
    n: Count = 1
    max_tokens: Count
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Count = 0
    seed: Seed = None
    stop_ids: TokenIds = []
    stream_tokens: bool = False
    min_p: float = 0.0
    stop: Annotated[list[str], FailFast()] = []
    chat_template_kwargs: dict[str, Any] = {}


class GenerateIn(_Message):
    request_id: str = ""
    model: str = ""
    prompts: Annotated[list[GeneratePromptIn], FailFast()]
    options: GenerateOptionsIn
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    run_id: str = ""
    stream: bool = Field(default=False, description="answer with a line of JSON for each event, as it comes")

    def to_proto(self) -> pb.GenerateRequest:
        options = pb.GenerateOptions(**self.options.model_dump(exclude_none=True, exclude={"chat_template_kwargs"}))
        try:
            options.chat_template_kwargs.update(self.options.chat_template_kwargs)
        except (ValueError, RecursionError) as error:
            field = "options.chat_template_kwargs"
            raise invalid(field, f"{field} cannot be sent: {error}") from error
        return pb.GenerateRequest(
            request_id=self.request_id,
            model=self.model,
            prompts=[
                pb.GeneratePrompt(
                    id=prompt.id,
                    ids=pack_ids(prompt.ids),
                    messages=[pb.ChatMessage(role=item.role, content=item.content) for item in prompt.messages],
                    seed=prompt.seed,
                )
                for prompt in self.prompts
            ],
            options=options,
            priority=self.priority,
            run_id=self.run_id,
        )


class GenerateEventOut(_Message):
    id: str
    index: int
    ids: list[int]
    logprobs: list[float]
    finished: bool
    finish_reason: str
    text: str
    prompt_ids: list[int]
    status: StatusOut | None = None

    @classmethod
    def of(cls, event: pb.GenerateEvent) -> "GenerateEventOut":
        return cls(
            id=event.id,
            index=event.index,
            ids=unpack_ids(event.ids).tolist(),
            logprobs=unpack_floats(event.logprobs).tolist(),
            finished=event.finished,
            finish_reason=event.finish_reason,
            text=event.text,
            prompt_ids=unpack_ids(event.prompt_ids).tolist(),
            status=StatusOut.of(event.status) if event.HasField("status") else None,
        )


class GenerateOut(_Message):
    """Events in order of arrival; with stream_tokens, a completion has several."""

    request_id: str
    identity: IdentityOut | None
    events: list[GenerateEventOut]

    @classmethod
    def of(cls, request_id: str, events: Iterable[pb.GenerateEvent]) -> "GenerateOut":
        events = list(events)
        identity = IdentityOut.of(events[0].identity) if events else None
        return cls(request_id=request_id, identity=identity, events=[GenerateEventOut.of(event) for event in events])


def parse_json(kind: type[M], body: bytes | bytearray) -> M:
    """A body of JSON. Raises INVALID_ARGUMENT with the first field at fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise describe_invalid(error.errors(include_url=False)) from error


def pack_json(kind: type[ScoreIn | GenerateIn], body: bytes | bytearray) -> tuple[bytes, bool]:
    """The wire's message of a body of JSON, packed, and whether the body asks for a stream."""
    parsed = parse_json(kind, body)
    return parsed.to_proto().SerializeToString(), isinstance(parsed, GenerateIn) and parsed.stream


def score_json(reply: bytes, request: bytes) -> bytes:
    """A ScoreReply to a ScoreRequest, both packed, as JSON."""
    return ScoreOut.of(pb.ScoreReply.FromString(reply), pb.ScoreRequest.FromString(request)).model_dump_json().encode()


def generate_json(request_id: str, events: list[bytes]) -> bytes:
    """Packed events as one JSON object."""
    return GenerateOut.of(request_id, map(pb.GenerateEvent.FromString, events)).model_dump_json().encode()


class LoadIn(_Message):
    name: str = Field(description="what the model shall be called on the wire")
    path: str = Field(description="its folder, inside the server's --models-dir")


class UnloadIn(_Message):
    name: str


class ModelOut(BaseModel):
    """A model as OpenAI lists it; max_model_len as in vLLM; weights_fingerprint for a gateway to this teacher."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vold"
    max_model_len: int
    weights_fingerprint: str


class ModelsOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelOut]


def inline_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with each reference replaced by its definition. The schemas must not be recursive."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(item) for item in node] if isinstance(node, list) else node

    return dict(resolve(schema))
