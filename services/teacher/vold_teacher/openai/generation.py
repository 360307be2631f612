"""Completions from Teacher.generate, as text up to a stop, streamed or whole."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
from vold_proto.arrays import pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call

from vold_teacher.detokenizer import Detokenizer, StopTexts
from vold_teacher.models import LoadedModel
from vold_teacher.openai.errors import raise_status
from vold_teacher.openai.prompts import Prompt
from vold_teacher.openai.schemas import SamplingRequest
from vold_teacher.openai.scoring import TokenScores
from vold_teacher.service import Teacher


@dataclass(slots=True, eq=False)
class Delta:
    """New tokens and text of choice number `choice`. offsets: where each token begins in the completion's text.

    finish_reason: "stop" or "length" if the choice ends here. stop_reason: the stop text or stop id of the request that
    ended the choice; None if the model ended it.
    """

    choice: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, new: "Delta") -> None:
        self.ids += new.ids
        self.logprobs += new.logprobs
        self.offsets += new.offsets
        self.text += new.text
        self.finish_reason, self.stop_reason = new.finish_reason, new.stop_reason

    @property
    def scores(self) -> TokenScores:
        return TokenScores.without_top_k(np.array(self.ids, np.int32), np.array(self.logprobs, np.float32))


class ChoiceReader:
    """Turns the tokens of one choice into deltas.

    The text excludes the end token (the model's own, or one of stop_token_ids), a stop text and everything after the
    stop text. The token in which a stop text ends still counts as generated.
    """

    def __init__(self, choice: int, request: SamplingRequest, model: LoadedModel, *, offsets: bool) -> None:
        """offsets: whether to compute the tokens' text offsets."""
        self._choice = choice
        self._model = model
        self._special = not request.skip_special_tokens
        self._stop_ids = frozenset(request.stop_token_ids) - frozenset(model.eos_ids)
        self._token_by_token = offsets or request.stream or bool(request.stop)
        self._detokenizer = Detokenizer(model.tokenizer, special=self._special)
        self._stops = StopTexts(request.stop)
        self._characters = 0
        self.done = False

    def push(self, ids: list[int], logprobs: list[float], finish_reason: str | None) -> Delta:
        """finish_reason: the teacher's, if these are the last tokens."""
        delta = Delta(self._choice, ids, logprobs, finish_reason=finish_reason)
        self.done = finish_reason is not None
        ended = finish_reason == "stop"
        if ended and ids[-1] in self._stop_ids:
            delta.stop_reason = ids[-1]
        if not self._token_by_token:
            delta.text = self._model.tokenizer.decode(ids[:-1] if ended else ids, special=self._special)
            return delta
        for count, index in enumerate(ids, 1):
            delta.offsets.append(self._characters)
            if ended and count == len(ids):
                break
            if self._add_text(delta, self._detokenizer.push(index)):
                delta.ids, delta.logprobs = ids[:count], logprobs[:count]
                return delta
        if self.done and not self._add_text(delta, self._detokenizer.flush()):
            delta.text += self._stops.flush()
        return delta

    def _add_text(self, delta: Delta, piece: str) -> bool:
        """Add a piece of text. Returns whether a stop text in it ends the completion."""
        self._characters += len(piece)
        certain, stop = self._stops.push(piece)
        delta.text += certain
        if stop is None:
            return False
        delta.finish_reason, delta.stop_reason = "stop", stop
        self.done = True
        return True


async def generate(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    request: SamplingRequest,
    max_tokens: int,
    *,
    model: LoadedModel,
    offsets: bool,
    call: Call,
) -> AsyncGenerator[Delta, None]:
    """Deltas of n choices per prompt, numbered prompt by prompt. A prompt that fails fails the request.

    Ends as soon as every choice has ended, and cancels the teacher's generation.
    """
    message = pb.GenerateRequest(
        request_id=call.request_id,
        model=request.model,
        run_id=call.run_id,
        priority=request.wire_priority,
        options=request.to_options(max_tokens, stream_tokens=request.stream or bool(request.stop)),
        prompts=[pb.GeneratePrompt(id=str(index), ids=pack_ids(prompt.ids)) for index, prompt in enumerate(prompts)],
    )
    readers: dict[int, ChoiceReader] = {}
    unfinished = len(prompts) * request.n
    async with aclosing(teacher.generate(message, call)) as events:
        async for event in events:
            if event.HasField("status"):
                raise_status(event.status)
            choice = int(event.id) * request.n + event.index
            reader = readers.get(choice)
            if reader is None:
                reader = readers[choice] = ChoiceReader(choice, request, model, offsets=offsets)
            if reader.done:
                continue
            reason = event.finish_reason if event.finished else None
            yield reader.push(unpack_ids(event.ids).tolist(), unpack_floats(event.logprobs).tolist(), reason)
            unfinished -= reader.done
            if not unfinished:
                return


async def generate_all(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    request: SamplingRequest,
    max_tokens: int,
    *,
    model: LoadedModel,
    offsets: bool,
    call: Call,
) -> list[Delta]:
    """Every choice as one delta, in order."""
    choices: dict[int, Delta] = {}
    deltas = generate(teacher, prompts, request, max_tokens, model=model, offsets=offsets, call=call)
    async with aclosing(deltas):
        async for delta in deltas:
            if delta.choice in choices:
                choices[delta.choice].add(delta)
            else:
                choices[delta.choice] = delta
    return [choices[number] for number in sorted(choices)]
