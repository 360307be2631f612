"""Writes the choices of /v1/completions and the JSON of whole replies. A large reply is written by another process, so
nothing here knows the teacher: a writer is pickled, and the tokenizer is passed to it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from vold_teacher.openai.generation import Delta
from vold_teacher.openai.prompts import Prompt
from vold_teacher.openai.schemas import CompletionRequest
from vold_teacher.openai.scoring import JoinedScores, LegacyLogprobs, TokenScores, prompt_logprobs
from vold_teacher.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class CompletionWriter:
    """prompt_top_k: ids of each prompt_logprobs entry, besides the token's own; None: no prompt_logprobs. top_k: the
    same for `logprobs`.
    """

    request: CompletionRequest
    prompts: Sequence[Prompt]
    prompt_top_k: int | None
    top_k: int | None

    def whole_choice(
        self, tokenizer: Tokenizer, delta: Delta, scores: TokenScores, prompt_scores: Sequence[TokenScores]
    ) -> Json:
        """The JSON of a whole choice."""
        number = delta.choice // self.request.n
        prompt = self.prompts[number]
        text = self.echo(tokenizer, prompt) if self.request.echo else ""
        logprobs = None
        if self.top_k is not None:
            echoed = prompt_scores[number] if self.request.echo else None
            logprobs = self._logprobs(tokenizer, prompt, echoed, delta, scores)
        return self.choice(
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
            else prompt_logprobs(prompt_scores[number], self.prompt_top_k, tokenizer)
        }

    def streamed_choice(self, tokenizer: Tokenizer, delta: Delta, *, first: bool) -> Json | None:
        """The JSON of a choice in a chunk; None if the chunk would be empty."""
        shows_tokens = self.top_k is not None or self.request.return_token_ids
        if not (delta.text or delta.finish_reason or shows_tokens):
            return None
        prompt = self.prompts[delta.choice // self.request.n]
        return self.choice(
            delta.choice,
            delta.text,
            logprobs=None if self.top_k is None else self._logprobs(tokenizer, prompt, None, delta, delta.scores),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.ids,
            prompt_token_ids=prompt.ids.tolist() if first else None,
        )

    def choice(
        self,
        index: int,
        text: str,
        *,
        logprobs: dict[str, list[Any]] | None = None,
        finish_reason: str | None,
        stop_reason: str | int | None = None,
        token_ids: list[int] | None = None,
        prompt_token_ids: list[int] | None = None,
    ) -> Json:
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

    def echo(self, tokenizer: Tokenizer, prompt: Prompt) -> str:
        return tokenizer.decode(prompt.ids, special=True) if prompt.text is None else prompt.text

    def _logprobs(
        self,
        tokenizer: Tokenizer,
        prompt: Prompt,
        prompt_scores: TokenScores | None,
        delta: Delta,
        scores: TokenScores,
    ) -> dict[str, list[Any]]:
        assert self.top_k is not None
        logprobs = LegacyLogprobs(self.top_k, tokenizer, as_ids=self.request.return_tokens_as_token_ids)
        offset = 0
        if prompt_scores is not None:
            logprobs.add_first(int(prompt.ids[0]))
            logprobs.add_scores(prompt_scores)
            logprobs.add_offsets(prompt.ids, special=prompt.text is None)
            offset = len(self.echo(tokenizer, prompt))
        logprobs.add_scores(scores)
        logprobs.json["text_offset"] += [offset + delta_offset for delta_offset in delta.offsets]
        return logprobs.json


def write_completions(
    tokenizer: Tokenizer,
    writer: CompletionWriter,
    rest: Json,
    choices: Sequence[Delta],
    scores: JoinedScores | None,
    prompt_scores: JoinedScores,
) -> bytes:
    """The reply of /v1/completions. rest: the reply without its choices. scores: of the choices, if not their own."""
    of_choices = scores_of(choices, scores)
    of_prompts = prompt_scores.split()
    return write_reply(rest, map(writer.whole_choice, repeat(tokenizer), choices, of_choices, repeat(of_prompts)))


def scores_of(choices: Sequence[Delta], scores: JoinedScores | None) -> Iterable[TokenScores]:
    """The scores of each choice: `scores`, or those that its tokens were sampled with."""
    return scores.split() if scores is not None else (choice.scores for choice in choices)


def write_reply(rest: Json, choices: Iterable[Json]) -> bytes:
    """A reply as JSON, choice by choice, so that the choices are never in memory all at once."""
    written = ",".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return f'{json.dumps(rest, ensure_ascii=False)[:-1]},"choices":[{written}]}}'.encode()
