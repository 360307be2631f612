"""/v1/completions: scores and completes prompts."""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Self

from vold_service.call import Call
from vold_service.errors import invalid

from vold_teacher.openai.generation import ChoiceReader, Delta, generate, generate_all
from vold_teacher.openai.prompts import Prompt, read_prompts
from vold_teacher.openai.schemas import CompletionRequest
from vold_teacher.openai.scoring import (
    LegacyLogprobs,
    TokenScores,
    check_reply_size,
    check_top_k,
    prompt_logprobs,
    score_completions,
    score_prompts,
)
from vold_teacher.service import LoadedModel, Teacher


def usage_json(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True, slots=True, eq=False)
class CompletionsReply:
    """A checked request and its reply. After `prepare`, call either `body` or `chunks`."""

    teacher: Teacher
    request: CompletionRequest
    call: Call
    model: LoadedModel
    prompts: Sequence[Prompt]
    prompt_top_k: int | None  # ids of each prompt_logprobs entry, besides the token's own; None: no prompt_logprobs
    top_k: int | None  # the same for `logprobs`

    @classmethod
    async def prepare(cls, teacher: Teacher, request: CompletionRequest, call: Call) -> Self:
        """Check a request and read its prompts. Raises ServiceError if it cannot be served."""
        model = teacher.model(request.model)
        prompt_top_k = None
        if request.prompt_logprobs is not None:
            prompt_top_k = check_top_k(request.prompt_logprobs, "prompt_logprobs", model)
            if not model.limits.capabilities.ranks:
                raise invalid(
                    "prompt_logprobs",
                    f"prompt_logprobs carry ranks, and the {model.limits.backend} backend gives none: use echo with "
                    "logprobs, or /v1/score",
                )
        top_k = None if request.logprobs is None else check_top_k(request.logprobs, "logprobs", model)
        if request.max_tokens == 0 and not request.echo and prompt_top_k is None:
            raise invalid(
                "max_tokens",
                "max_tokens is 0 and nothing is asked of the prompt: set prompt_logprobs or echo, or ask for tokens",
            )
        if request.stream:
            for field, value in (("prompt_logprobs", prompt_top_k), ("logprobs", top_k or None)):
                if value is not None:
                    raise invalid(
                        field, f"{field} is {getattr(request, field)}, which no stream carries: set stream to false"
                    )
            if request.echo and top_k is not None:
                raise invalid("logprobs", "logprobs of an echoed prompt are in no stream: set stream to false")
        prompts = await read_prompts(
            request.prompt, model, special=request.add_special_tokens, room=min(request.max_tokens, 1)
        )
        reply = cls(teacher, request, call, model, prompts, prompt_top_k, top_k)
        reply.check_size()
        return reply

    def check_size(self) -> None:
        """Raise INVALID_ARGUMENT if the reply would be too large. Every choice repeats its prompt's logprobs."""
        request = self.request
        ids = 0 if self.prompt_top_k is None else self.prompt_top_k + 1
        if request.echo:
            ids += 1 if self.top_k is None else self.top_k + 1
        tokens = sum(len(prompt.ids) for prompt in self.prompts)
        check_reply_size(
            request.n * tokens * ids, "prompt", f"{request.n} choices of {tokens} prompt tokens with {ids} ids each"
        )
        if self.top_k:
            choices = request.n * len(self.prompts)
            what = f"{choices} choices of up to {request.max_tokens} tokens with {self.top_k + 1} ids each"
            check_reply_size(choices * request.max_tokens * (self.top_k + 1), "logprobs", what)

    async def body(self) -> dict[str, Any]:
        """The whole reply."""
        prompt_scores, next_scores = await self._score_prompts()
        if next_scores:
            scores = [next_scores[index // self.request.n] for index in range(len(self.prompts) * self.request.n)]
            choices = [self._greedy_choice(choice, token) for choice, token in enumerate(scores)]
        elif self.request.max_tokens:
            choices = await generate_all(
                self.teacher,
                self.prompts,
                self.request,
                self.request.max_tokens,
                model=self.model,
                offsets=self.top_k is not None,
                call=self.call,
            )
            scores = await self._score_choices(choices)
        else:
            choices = [Delta(choice, finish_reason="length") for choice in range(len(self.prompts) * self.request.n)]
            scores = [choice.scores for choice in choices]
        return self._reply(prompt_scores, choices, scores)

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed reply."""
        tokens = 0
        count = len(self.prompts) * self.request.n
        finish_reason = None if self.request.max_tokens else "length"
        if self.request.echo:
            for choice in range(count):
                text = self._echo(self.prompts[choice // self.request.n])
                yield self._chunk([self._choice(choice, text, finish_reason=finish_reason)])
        if self.request.max_tokens:
            deltas = generate(
                self.teacher,
                self.prompts,
                self.request,
                self.request.max_tokens,
                model=self.model,
                offsets=self.top_k is not None,
                call=self.call,
            )
            begun: set[int] = set()
            async with aclosing(deltas):
                async for delta in deltas:
                    tokens += len(delta.ids)
                    if choice_json := self._streamed_choice(delta, first=delta.choice not in begun):
                        begun.add(delta.choice)
                        yield self._chunk([choice_json])
        if self.request.stream_options.include_usage:
            yield self._chunk([]) | {"usage": self._usage(tokens)}

    async def _score_prompts(self) -> tuple[list[TokenScores], list[TokenScores]]:
        """The scores of each prompt if they are requested, and of the next token if one greedy token is the whole
        completion: then one pass through the model gives both.
        """
        request = self.request
        if self.prompt_top_k is None and not (request.echo and self.top_k is not None):
            return [], []
        greedy = request.max_tokens == 1 and request.temperature == 0 and self.model.limits.allowed_top_k > 0
        prompt_scores, next_scores = await score_prompts(
            self.teacher,
            self.prompts,
            self.model,
            model=request.model,
            top_k=max(self.prompt_top_k or 0, self.top_k or 0, int(greedy)),
            ranks=self.prompt_top_k is not None,
            next_token=greedy,
            priority=request.wire_priority,
            call=self.call,
        )
        if not greedy:
            return prompt_scores, []
        greedy_scores = [
            TokenScores(token.top_ids[:, 0], token.top_logprobs[:, 0], token.top_ids, token.top_logprobs)
            for token in next_scores
        ]
        return prompt_scores, greedy_scores

    def _greedy_choice(self, choice: int, token: TokenScores) -> Delta:
        """A choice of one token, the most likely."""
        index = int(token.ids[0])
        reader = ChoiceReader(choice, self.request, self.model, offsets=self.top_k is not None)
        stops = {*self.model.eos_ids, *self.request.stop_token_ids}
        return reader.push([index], token.logprobs.tolist(), "stop" if index in stops else "length")

    async def _score_choices(self, choices: list[Delta]) -> list[TokenScores]:
        """The scores for `logprobs` of the choices' tokens; scores them again if a top-k is requested."""
        if not self.top_k:
            return [choice.scores for choice in choices]
        return await score_completions(
            self.teacher,
            [(self.prompts[choice.choice // self.request.n].ids, choice.scores.ids) for choice in choices],
            model=self.request.model,
            top_k=self.top_k,
            priority=self.request.wire_priority,
            call=self.call,
        )

    def _reply(
        self, prompt_scores: list[TokenScores], choices: list[Delta], scores: list[TokenScores]
    ) -> dict[str, Any]:
        """The reply. Its `choices` are an iterator, so that they are never in memory all at once."""
        return self._chunk(map(self._whole_choice, choices, scores, repeat(prompt_scores))) | {
            "usage": self._usage(sum(len(choice.ids) for choice in choices))
        }

    def _whole_choice(self, delta: Delta, scores: TokenScores, prompt_scores: list[TokenScores]) -> dict[str, Any]:
        """The JSON of a whole choice."""
        number = delta.choice // self.request.n
        prompt = self.prompts[number]
        text = self._echo(prompt) if self.request.echo else ""
        logprobs = None
        if self.top_k is not None:
            logprobs = self._logprobs(prompt, prompt_scores[number] if self.request.echo else None, delta, scores)
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
            if self.prompt_top_k is None
            else prompt_logprobs(prompt_scores[number], self.prompt_top_k, self.model.tokenizer)
        }

    def _logprobs(
        self, prompt: Prompt, prompt_scores: TokenScores | None, delta: Delta, scores: TokenScores
    ) -> dict[str, list[Any]]:
        assert self.top_k is not None
        logprobs = LegacyLogprobs(self.top_k, self.model.tokenizer, as_ids=self.request.return_tokens_as_token_ids)
        offset = 0
        if prompt_scores is not None:
            logprobs.add_first(int(prompt.ids[0]))
            logprobs.add_scores(prompt_scores)
            logprobs.add_offsets(prompt.ids, special=prompt.text is None)
            offset = len(self._echo(prompt))
        logprobs.add_scores(scores)
        logprobs.json["text_offset"] += [offset + delta_offset for delta_offset in delta.offsets]
        return logprobs.json

    def _streamed_choice(self, delta: Delta, *, first: bool) -> dict[str, Any] | None:
        """The JSON of a choice in a chunk; None if the chunk would be empty."""
        shows_tokens = self.top_k is not None or self.request.return_token_ids
        if not (delta.text or delta.finish_reason or shows_tokens):
            return None
        prompt = self.prompts[delta.choice // self.request.n]
        return self._choice(
            delta.choice,
            delta.text,
            logprobs=None if self.top_k is None else self._logprobs(prompt, None, delta, delta.scores),
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
        with_ids = self.request.return_token_ids
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
            "token_ids": token_ids if with_ids else None,
            "prompt_token_ids": prompt_token_ids if with_ids else None,
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
        return usage_json(sum(len(prompt.ids) for prompt in self.prompts), completion_tokens)
