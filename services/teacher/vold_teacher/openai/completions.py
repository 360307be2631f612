"""/v1/completions: scores and completes prompts."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from vold_service.call import Call
from vold_service.errors import invalid
from vold_service.turns import Turn

from vold_teacher.models import LoadedModel
from vold_teacher.openai.choices import CompletionWriter, write_completions
from vold_teacher.openai.generation import ChoiceReader, Delta, generate, generate_all
from vold_teacher.openai.prompts import Prompt, read_prompts
from vold_teacher.openai.schemas import CompletionRequest
from vold_teacher.openai.scoring import (
    ID_BYTES,
    JoinedScores,
    TokenScores,
    check_reply_size,
    check_top_k,
    score_completions,
    score_prompts,
)
from vold_teacher.service import Teacher


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
        model = teacher.models.find(request.model)
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
            request.prompt,
            model,
            special=request.add_special_tokens,
            room=min(request.max_tokens, 1),
            completion=request.n * min(request.max_tokens, model.limits.max_sequence),
            call=call,
        )
        reply = cls(teacher, request, call, model, prompts, prompt_top_k, top_k)
        reply.check_size()
        return reply

    def check_size(self) -> None:
        """Raise INVALID_ARGUMENT if the reply would be too large. Every choice repeats its prompt's logprobs."""
        request = self.request
        ids = self._prompt_ids()
        tokens = sum(len(prompt.ids) for prompt in self.prompts)
        what = f"{request.n} choices of {tokens} prompt tokens with {ids} ids each"
        check_reply_size(request.n * tokens * ids, "prompt", what, self.model)
        if self.top_k:
            choices = request.n * len(self.prompts)
            what = f"{choices} choices of up to {request.max_tokens} tokens with {self.top_k + 1} ids each"
            check_reply_size(choices * request.max_tokens * (self.top_k + 1), "logprobs", what, self.model)

    async def body(self) -> bytes:
        """The whole reply, as JSON."""
        prompt_scores, next_scores = await self._score_prompts()
        choices: list[Delta] = []
        scores: JoinedScores | None = None
        if next_scores:
            repeated = [next_scores[index // self.request.n] for index in range(len(self.prompts) * self.request.n)]
            scores = JoinedScores.of(repeated)
            turn = Turn()
            for choice, token in enumerate(repeated):
                choices.append(self._greedy_choice(choice, token))
                await turn.pause()
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
        rest = self._chunk([]) | {"usage": self._usage(sum(len(choice.ids) for choice in choices))}
        del rest["choices"]
        await asyncio.sleep(0)  # joining the scores of thousands of choices takes a turn, and pickling them another
        return await self.model.texts.run(
            write_completions,
            self.writer,
            rest,
            choices,
            scores,
            JoinedScores.of(prompt_scores),
            size=self._reply_ids(choices) * ID_BYTES,
            tenant=self.call.tenant,
        )

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed reply."""
        tokens = 0
        count = len(self.prompts) * self.request.n
        finish_reason = None if self.request.max_tokens else "length"
        if self.request.echo:
            for choice in range(count):
                text = self.writer.echo(self.model.tokenizer, self.prompts[choice // self.request.n])
                yield self._chunk([self.writer.choice(choice, text, finish_reason=finish_reason)])
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
                    first = delta.choice not in begun
                    if choice_json := self.writer.streamed_choice(self.model.tokenizer, delta, first=first):
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

    async def _score_choices(self, choices: list[Delta]) -> JoinedScores | None:
        """The scores for `logprobs` of the choices' tokens if a top-k is requested, which scores them again."""
        if not self.top_k:
            return None
        scores = await score_completions(
            self.teacher,
            [(self.prompts[choice.choice // self.request.n].ids, np.array(choice.ids, np.int32)) for choice in choices],
            model=self.request.model,
            top_k=self.top_k,
            priority=self.request.wire_priority,
            call=self.call,
        )
        return JoinedScores.of(scores)

    @property
    def writer(self) -> CompletionWriter:
        return CompletionWriter(self.request, self.prompts, self.prompt_top_k, self.top_k)

    def _reply_ids(self, choices: Sequence[Delta]) -> int:
        """The ids that the reply shows, with or without a log-probability."""
        shown = self._prompt_ids() * sum(len(prompt.ids) for prompt in self.prompts) * self.request.n
        return shown + (2 + (self.top_k or 0)) * sum(len(choice.ids) for choice in choices)

    def _prompt_ids(self) -> int:
        """The ids that the reply shows at each position of a prompt."""
        ids = 0 if self.prompt_top_k is None else self.prompt_top_k + 1
        if self.request.echo:
            ids += 1 if self.top_k is None else self.top_k + 1
        return ids

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

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        return usage_json(sum(len(prompt.ids) for prompt in self.prompts), completion_tokens)
