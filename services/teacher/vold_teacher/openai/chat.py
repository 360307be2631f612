"""/v1/chat/completions: completes a conversation."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Self

import numpy as np
from vold_service.call import Call
from vold_service.errors import invalid

from vold_teacher.models import LoadedModel
from vold_teacher.openai.choices import scores_of, write_reply
from vold_teacher.openai.completions import usage_json
from vold_teacher.openai.generation import Delta, generate, generate_all
from vold_teacher.openai.prompts import Prompt, read_messages
from vold_teacher.openai.schemas import ChatRequest
from vold_teacher.openai.scoring import (
    ID_BYTES,
    JoinedScores,
    TokenScores,
    chat_logprobs,
    check_reply_size,
    check_top_k,
    score_completions,
)
from vold_teacher.service import Teacher
from vold_teacher.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatWriter:
    """Writes choices. top_k: most likely ids of each logprobs entry; None: no logprobs. Another process may use it."""

    top_k: int | None
    return_token_ids: bool
    return_tokens_as_token_ids: bool

    def choice(self, tokenizer: Tokenizer, delta: Delta, scores: TokenScores | None) -> dict[str, Any]:
        """The JSON of a choice without its message. scores: None if the choice has no tokens yet."""
        logprobs = None
        if self.top_k is not None and scores is not None:
            logprobs = chat_logprobs(scores, self.top_k, tokenizer, as_ids=self.return_tokens_as_token_ids)
        return {
            "index": delta.choice,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            "token_ids": delta.ids if self.return_token_ids else None,
        }

    def whole_choice(self, tokenizer: Tokenizer, delta: Delta, scores: TokenScores) -> dict[str, Any]:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return {**self.choice(tokenizer, delta, scores), "message": message}


def write_chat(
    tokenizer: Tokenizer,
    writer: ChatWriter,
    rest: dict[str, Any],
    choices: Sequence[Delta],
    scores: JoinedScores | None,
) -> bytes:
    """The reply of /v1/chat/completions. rest: the reply without its choices. scores: of the choices, if not their
    own.
    """
    return write_reply(rest, map(writer.whole_choice, repeat(tokenizer), choices, scores_of(choices, scores)))


@dataclass(frozen=True, slots=True, eq=False)
class ChatReply:
    """A checked request and its reply. After `prepare`, call either `body` or `chunks`."""

    teacher: Teacher
    request: ChatRequest
    call: Call
    model: LoadedModel
    prompt: Prompt
    top_k: int | None  # most likely ids of each logprobs entry; None: no logprobs

    @classmethod
    async def prepare(cls, teacher: Teacher, request: ChatRequest, call: Call) -> Self:
        """Check a request and read its prompt. Raises ServiceError if it cannot be served."""
        model = teacher.models.find(request.model)
        top_k = None
        if request.logprobs:
            top_k = check_top_k(request.top_logprobs, "top_logprobs", model)
        elif request.top_logprobs:
            raise invalid(
                "top_logprobs", f"top_logprobs is {request.top_logprobs} without logprobs: set logprobs to true"
            )
        if top_k and request.stream:
            raise invalid(
                "top_logprobs", f"top_logprobs is {top_k}, which no stream carries: set stream to false, or it to 0"
            )
        limit = request.max_completion_tokens or request.max_tokens or 0
        completion = request.n * min(limit, model.limits.max_sequence)
        prompt = await read_messages(
            request.messages, model, call, completion=completion, variables=request.chat_template_kwargs
        )
        reply = cls(teacher, request, call, model, prompt, top_k)
        if top_k:
            what = f"{request.n} choices of up to {reply.max_tokens} tokens with {top_k + 1} ids each"
            check_reply_size(request.n * reply.max_tokens * (top_k + 1), "top_logprobs", what, model)
        return reply

    @property
    def max_tokens(self) -> int:
        """The request's limit, or as many tokens as fit."""
        return (
            self.request.max_completion_tokens
            or self.request.max_tokens
            or self.model.limits.max_sequence - len(self.prompt.ids)
        )

    async def body(self) -> bytes:
        """The whole reply, as JSON."""
        choices = await generate_all(
            self.teacher, [self.prompt], self.request, self.max_tokens, model=self.model, offsets=False, call=self.call
        )
        scores = None
        if self.top_k:
            again = await score_completions(
                self.teacher,
                [(self.prompt.ids, np.array(choice.ids, np.int32)) for choice in choices],
                model=self.request.model,
                top_k=self.top_k,
                priority=self.request.wire_priority,
                call=self.call,
            )
            scores = JoinedScores.of(again)
        tokens = sum(len(choice.ids) for choice in choices)
        rest = self._reply("chat.completion", []) | {
            "usage": usage_json(len(self.prompt.ids), tokens),
            "prompt_token_ids": self.prompt.ids.tolist() if self.request.return_token_ids else None,
        }
        del rest["choices"]
        return await self.model.texts.run(
            write_chat,
            self.writer,
            rest,
            choices,
            scores,
            size=tokens * (2 + (self.top_k or 0)) * ID_BYTES,
            tenant=self.call.tenant,
        )

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed reply. The first chunk of each choice has its role."""
        tokens = 0
        begun: set[int] = set()
        deltas = generate(
            self.teacher, [self.prompt], self.request, self.max_tokens, model=self.model, offsets=False, call=self.call
        )
        async with aclosing(deltas):
            async for delta in deltas:
                tokens += len(delta.ids)
                if delta.choice not in begun:
                    role = {"role": "assistant", "content": ""}
                    yield self._chunk([{**self._choice(Delta(delta.choice), None), "delta": role}], first=not begun)
                    begun.add(delta.choice)
                if delta.text or delta.finish_reason or self.top_k is not None or self.request.return_token_ids:
                    text = {"content": delta.text} if delta.text else {}
                    yield self._chunk([{**self._choice(delta, delta.scores), "delta": text}])
        if self.request.stream_options.include_usage:
            yield self._chunk([]) | {"usage": usage_json(len(self.prompt.ids), tokens)}

    def _choice(self, delta: Delta, scores: TokenScores | None) -> dict[str, Any]:
        return self.writer.choice(self.model.tokenizer, delta, scores)

    @property
    def writer(self) -> "ChatWriter":
        return ChatWriter(self.top_k, self.request.return_token_ids, self.request.return_tokens_as_token_ids)

    def _chunk(self, choices: list[dict[str, Any]], *, first: bool = False) -> dict[str, Any]:
        with_ids = first and self.request.return_token_ids
        return self._reply("chat.completion.chunk", choices) | {
            "prompt_token_ids": self.prompt.ids.tolist() if with_ids else None
        }

    def _reply(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        identity = self.model.identity
        return {
            "id": f"chatcmpl-{self.call.request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": identity.model,
            "system_fingerprint": identity.weights_fingerprint,
            "choices": choices,
        }
