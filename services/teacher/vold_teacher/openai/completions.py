"""/v1/completions: scores and completes prompts."""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Self

from vold_service.call import Call
from vold_service.errors import invalid

from vold_teacher.openai.generation import Delta, Reader, generate, generate_all
from vold_teacher.openai.prompts import Prompt, read_prompts
from vold_teacher.openai.schemas import CompletionRequest
from vold_teacher.openai.scoring import (
    LegacyLogprobs,
    Positions,
    check_ids,
    prompt_logprobs,
    score,
    score_prompts,
    top_k_of,
)
from vold_teacher.service import Loaded, Teacher


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True, slots=True, eq=False)
class Completions:
    """One request. `read` it, then either `body` or `chunks`."""

    teacher: Teacher
    asked: CompletionRequest
    call: Call
    model: Loaded
    prompts: Sequence[Prompt]
    prompt_k: int | None  # ids of each prompt_logprobs entry, besides the token's own
    k: int | None  # the same of `logprobs`

    @classmethod
    async def read(cls, teacher: Teacher, asked: CompletionRequest, call: Call) -> Self:
        """Raises ServiceError where the request cannot be served."""
        model = teacher.model(asked.model)
        prompt_k = None
        if asked.prompt_logprobs is not None:
            prompt_k = top_k_of(asked.prompt_logprobs, "prompt_logprobs", model)
            if not model.limits.capabilities.ranks:
                raise invalid(
                    "prompt_logprobs",
                    f"prompt_logprobs carry ranks, and the {model.limits.backend} backend gives none: use echo with "
                    "logprobs, or /v1/score",
                )
        k = None if asked.logprobs is None else top_k_of(asked.logprobs, "logprobs", model)
        if asked.max_tokens == 0 and not asked.echo and prompt_k is None:
            raise invalid(
                "max_tokens",
                "max_tokens is 0 and nothing is asked of the prompt: set prompt_logprobs or echo, or ask for tokens",
            )
        if asked.stream:
            for field, value in (("prompt_logprobs", prompt_k), ("logprobs", k or None)):
                if value is not None:
                    raise invalid(
                        field, f"{field} is {getattr(asked, field)}, which no stream carries: set stream to false"
                    )
            if asked.echo and k is not None:
                raise invalid("logprobs", "logprobs of an echoed prompt are in no stream: set stream to false")
        prompts = await read_prompts(
            asked.prompt, model, special=asked.add_special_tokens, room=min(asked.max_tokens, 1)
        )
        answer = cls(teacher, asked, call, model, prompts, prompt_k, k)
        answer.check_size()
        return answer

    def check_size(self) -> None:
        """Raise where the reply would be too large. Every choice repeats what is asked of its prompt."""
        asked = self.asked
        shown = 0 if self.prompt_k is None else self.prompt_k + 1
        if asked.echo:
            shown += 1 if self.k is None else self.k + 1
        tokens = sum(len(prompt.ids) for prompt in self.prompts)
        check_ids(
            asked.n * tokens * shown, "prompt", f"{asked.n} choices of {tokens} prompt tokens with {shown} ids each"
        )
        if self.k:
            choices = asked.n * len(self.prompts)
            what = f"{choices} choices of up to {asked.max_tokens} tokens with {self.k + 1} ids each"
            check_ids(choices * asked.max_tokens * (self.k + 1), "logprobs", what)

    async def body(self) -> dict[str, Any]:
        """The whole answer."""
        scored, following = await self._score_prompts()
        if following:
            found = [following[index // self.asked.n] for index in range(len(self.prompts) * self.asked.n)]
            choices = [self._taken(choice, positions) for choice, positions in enumerate(found)]
        elif self.asked.max_tokens:
            choices = await generate_all(
                self.teacher,
                self.prompts,
                self.asked,
                self.asked.max_tokens,
                model=self.model,
                offsets=self.k is not None,
                call=self.call,
            )
            found = await self._score_choices(choices)
        else:
            choices = [Delta(choice, finish_reason="length") for choice in range(len(self.prompts) * self.asked.n)]
            found = [choice.positions for choice in choices]
        return self._body(scored, choices, found)

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes."""
        tokens = 0
        count = len(self.prompts) * self.asked.n
        finish_reason = None if self.asked.max_tokens else "length"
        if self.asked.echo:
            for choice in range(count):
                text = self._echo(self.prompts[choice // self.asked.n])
                yield self._chunk([self._choice(choice, text, finish_reason=finish_reason)])
        if self.asked.max_tokens:
            deltas = generate(
                self.teacher,
                self.prompts,
                self.asked,
                self.asked.max_tokens,
                model=self.model,
                offsets=self.k is not None,
                call=self.call,
            )
            begun: set[int] = set()
            async with aclosing(deltas):
                async for delta in deltas:
                    tokens += len(delta.ids)
                    if new := self._new(delta, first=delta.choice not in begun):
                        begun.add(delta.choice)
                        yield self._chunk([new])
        if self.asked.stream_options.include_usage:
            yield self._chunk([]) | {"usage": self._usage(tokens)}

    async def _score_prompts(self) -> tuple[list[Positions], list[Positions]]:
        """Each prompt's positions where they are asked for, and what greedily follows where that is the whole
        completion: then the same pass through the model gives both.
        """
        asked = self.asked
        if self.prompt_k is None and not (asked.echo and self.k is not None):
            return [], []
        greedy = asked.max_tokens == 1 and asked.temperature == 0 and self.model.limits.top_k > 0
        scored, following = await score_prompts(
            self.teacher,
            self.prompts,
            self.model,
            model=asked.model,
            top_k=max(self.prompt_k or 0, self.k or 0, int(greedy)),
            ranks=self.prompt_k is not None,
            following=greedy,
            priority=asked.wire_priority,
            call=self.call,
        )
        if not greedy:
            return scored, []
        taken = [
            Positions(after.top_ids[:, 0], after.top_logprobs[:, 0], after.top_ids, after.top_logprobs)
            for after in following
        ]
        return scored, taken

    def _taken(self, choice: int, positions: Positions) -> Delta:
        """The choice whose one token is the most likely."""
        index = int(positions.ids[0])
        reader = Reader(choice, self.asked, self.model, offsets=self.k is not None)
        stops = {*self.model.eos_ids, *self.asked.stop_token_ids}
        return reader.push([index], positions.logprobs.tolist(), "stop" if index in stops else "length")

    async def _score_choices(self, choices: list[Delta]) -> list[Positions]:
        """What `logprobs` shows of the choices' tokens: scored again where the most likely ones are asked for."""
        if not self.k:
            return [choice.positions for choice in choices]
        return await score(
            self.teacher,
            [(self.prompts[choice.choice // self.asked.n].ids, choice.positions.ids) for choice in choices],
            model=self.asked.model,
            top_k=self.k,
            priority=self.asked.wire_priority,
            call=self.call,
        )

    def _body(self, scored: list[Positions], choices: list[Delta], found: list[Positions]) -> dict[str, Any]:
        """`choices` makes each as it is read: written down one by one, they never stand in memory all together."""
        return self._chunk(map(self._answered, choices, found, repeat(scored))) | {
            "usage": self._usage(sum(len(choice.ids) for choice in choices))
        }

    def _answered(self, delta: Delta, positions: Positions, scored: list[Positions]) -> dict[str, Any]:
        """A whole choice."""
        number = delta.choice // self.asked.n
        prompt = self.prompts[number]
        text = self._echo(prompt) if self.asked.echo else ""
        logprobs = None
        if self.k is not None:
            logprobs = self._logprobs(prompt, scored[number] if self.asked.echo else None, delta, positions)
        return self._choice(
            delta.choice,
            text + delta.text,
            logprobs=logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.ids,
            prompt_token_ids=prompt.ids.tolist(),
        ) | {
            "prompt_logprobs": None
            if self.prompt_k is None
            else prompt_logprobs(scored[number], self.prompt_k, self.model.tokenizer)
        }

    def _logprobs(
        self, prompt: Prompt, scored: Positions | None, delta: Delta, positions: Positions
    ) -> dict[str, list[Any]]:
        assert self.k is not None
        logprobs = LegacyLogprobs(self.k, self.model.tokenizer, as_ids=self.asked.return_tokens_as_token_ids)
        offset = 0
        if scored is not None:
            logprobs.first(int(prompt.ids[0]))
            logprobs.extend(scored)
            logprobs.place(prompt.ids, special=prompt.text is None)
            offset = len(self._echo(prompt))
        logprobs.extend(positions)
        logprobs.json["text_offset"] += [offset + place for place in delta.offsets]
        return logprobs.json

    def _new(self, delta: Delta, *, first: bool) -> dict[str, Any] | None:
        """A choice of a chunk; None where there is nothing to say."""
        shows_tokens = self.k is not None or self.asked.return_token_ids
        if not (delta.text or delta.finish_reason or shows_tokens):
            return None
        prompt = self.prompts[delta.choice // self.asked.n]
        return self._choice(
            delta.choice,
            delta.text,
            logprobs=None if self.k is None else self._logprobs(prompt, None, delta, delta.positions),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.ids,
            prompt_token_ids=prompt.ids.tolist() if first else None,
        )

    def _choice(
        self,
        index: int,
        text: str,
        *,
        logprobs: dict[str, list[Any]] | None = None,
        finish_reason: str | None,
        stop_reason: str | int | None = None,
        token_ids: list[int] | None = None,
        prompt_token_ids: list[int] | None = None,
    ) -> dict[str, Any]:
        shown = self.asked.return_token_ids
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
            "token_ids": token_ids if shown else None,
            "prompt_token_ids": prompt_token_ids if shown else None,
        }

    def _chunk(self, choices: Iterable[dict[str, Any]]) -> dict[str, Any]:
        identity = self.model.identity
        return {
            "id": f"cmpl-{self.call.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": identity.model,
            "system_fingerprint": identity.weights_fingerprint,
            "choices": choices,
        }

    def _echo(self, prompt: Prompt) -> str:
        return self.model.tokenizer.decode(prompt.ids, special=True) if prompt.text is None else prompt.text

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        return usage(sum(len(prompt.ids) for prompt in self.prompts), completion_tokens)
