"""/v1/chat/completions: completes a conversation."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

from vold_service.call import Call
from vold_service.errors import invalid

from vold_teacher.openai.completions import usage
from vold_teacher.openai.generation import Delta, generate, generate_all
from vold_teacher.openai.prompts import Prompt, read_messages
from vold_teacher.openai.schemas import ChatRequest
from vold_teacher.openai.scoring import Positions, chat_logprobs, check_ids, score, top_k_of
from vold_teacher.service import Loaded, Teacher


@dataclass(frozen=True, slots=True, eq=False)
class Chat:
    """One request. `read` it, then either `body` or `chunks`."""

    teacher: Teacher
    asked: ChatRequest
    call: Call
    model: Loaded
    prompt: Prompt
    k: int | None  # most likely ids of each logprobs entry; None: no logprobs

    @classmethod
    async def read(cls, teacher: Teacher, asked: ChatRequest, call: Call) -> Self:
        """Raises ServiceError where the request cannot be served."""
        model = teacher.model(asked.model)
        k = None
        if asked.logprobs:
            k = top_k_of(asked.top_logprobs, "top_logprobs", model)
        elif asked.top_logprobs:
            raise invalid(
                "top_logprobs", f"top_logprobs is {asked.top_logprobs} without logprobs: set logprobs to true"
            )
        if k and asked.stream:
            raise invalid(
                "top_logprobs", f"top_logprobs is {k}, which no stream carries: set stream to false, or it to 0"
            )
        prompt = await asyncio.to_thread(read_messages, asked.messages, model)
        answer = cls(teacher, asked, call, model, prompt, k)
        if k:
            what = f"{asked.n} choices of up to {answer.max_tokens} tokens with {k + 1} ids each"
            check_ids(asked.n * answer.max_tokens * (k + 1), "top_logprobs", what)
        return answer

    @property
    def max_tokens(self) -> int:
        """As many as fit, where the request says nothing."""
        return (
            self.asked.max_completion_tokens
            or self.asked.max_tokens
            or self.model.limits.max_sequence - len(self.prompt.ids)
        )

    async def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = await generate_all(
            self.teacher, [self.prompt], self.asked, self.max_tokens, model=self.model, offsets=False, call=self.call
        )
        found = [choice.positions for choice in choices]
        if self.k:
            found = await score(
                self.teacher,
                [(self.prompt.ids, positions.ids) for positions in found],
                model=self.asked.model,
                top_k=self.k,
                priority=self.asked.wire_priority,
                call=self.call,
            )
        answered = [
            {
                **self._choice(delta, positions),
                "message": {"role": "assistant", "content": delta.text, "refusal": None},
            }
            for delta, positions in zip(choices, found, strict=True)
        ]
        tokens = sum(len(choice.ids) for choice in choices)
        return self._reply("chat.completion", answered) | {
            "usage": usage(len(self.prompt.ids), tokens),
            "prompt_token_ids": self.prompt.ids.tolist() if self.asked.return_token_ids else None,
        }

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes: each choice's first chunk names its role."""
        tokens = 0
        begun: set[int] = set()
        deltas = generate(
            self.teacher, [self.prompt], self.asked, self.max_tokens, model=self.model, offsets=False, call=self.call
        )
        async with aclosing(deltas):
            async for delta in deltas:
                tokens += len(delta.ids)
                if delta.choice not in begun:
                    role = {"role": "assistant", "content": ""}
                    yield self._chunk([{**self._choice(Delta(delta.choice), None), "delta": role}], first=not begun)
                    begun.add(delta.choice)
                if delta.text or delta.finish_reason or self.k is not None or self.asked.return_token_ids:
                    text = {"content": delta.text} if delta.text else {}
                    yield self._chunk([{**self._choice(delta, delta.positions), "delta": text}])
        if self.asked.stream_options.include_usage:
            yield self._chunk([]) | {"usage": usage(len(self.prompt.ids), tokens)}

    def _choice(self, delta: Delta, positions: Positions | None) -> dict[str, Any]:
        """All but the message. positions: None where the choice has no tokens yet."""
        logprobs = None
        if self.k is not None and positions is not None:
            as_ids = self.asked.return_tokens_as_token_ids
            logprobs = chat_logprobs(positions, self.k, self.model.tokenizer, as_ids=as_ids)
        return {
            "index": delta.choice,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            "token_ids": delta.ids if self.asked.return_token_ids else None,
        }

    def _chunk(self, choices: list[dict[str, Any]], *, first: bool = False) -> dict[str, Any]:
        shown = first and self.asked.return_token_ids
        return self._reply("chat.completion.chunk", choices) | {
            "prompt_token_ids": self.prompt.ids.tolist() if shown else None
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
