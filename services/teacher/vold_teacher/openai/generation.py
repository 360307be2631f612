"""Completions out of Teacher.generate: text up to a stop, token by token where somebody reads along."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
from vold_proto.arrays import pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call

from vold_teacher.openai.errors import raise_failed
from vold_teacher.openai.prompts import Prompt
from vold_teacher.openai.schemas import SamplingRequest
from vold_teacher.openai.scoring import Positions
from vold_teacher.openai.text import Detokenizer, StopTexts
from vold_teacher.service import Loaded, Teacher


@dataclass(slots=True, eq=False)
class Delta:
    """What is new of choice number `choice`. offsets: where in the completion's text each token begins.

    finish_reason: "stop" or "length", where it ends here. stop_reason: the text or the id of the request that ended
    it; None where the model did.
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
    def positions(self) -> Positions:
        return Positions.sampled(np.array(self.ids, np.int32), np.array(self.logprobs, np.float32))


class Reader:
    """Turns one choice's tokens into deltas.

    The token that ends a completion is no part of its text: the model's own end, or one of stop_token_ids. A stop
    text is not, either, nor is what comes after it; the token that it ends in still counts.
    """

    def __init__(self, choice: int, asked: SamplingRequest, model: Loaded, *, offsets: bool) -> None:
        """offsets: whether they are wanted."""
        self._choice = choice
        self._model = model
        self._special = not asked.skip_special_tokens
        self._stop_ids = frozenset(asked.stop_token_ids) - frozenset(model.eos_ids)
        self._token_by_token = offsets or asked.stream or bool(asked.stop)
        self._detokenizer = Detokenizer(model.tokenizer, special=self._special)
        self._stops = StopTexts(asked.stop)
        self._characters = 0
        self.done = False

    def push(self, ids: list[int], logprobs: list[float], finish_reason: str | None) -> Delta:
        """finish_reason: the teacher's, where these are its last tokens."""
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
            if self._read(delta, self._detokenizer.push(index)):
                delta.ids, delta.logprobs = ids[:count], logprobs[:count]
                return delta
        if self.done and not self._read(delta, self._detokenizer.flush()):
            delta.text += self._stops.flush()
        return delta

    def _read(self, delta: Delta, piece: str) -> bool:
        """Whether a stop text ends the completion with this piece."""
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
    asked: SamplingRequest,
    max_tokens: int,
    *,
    model: Loaded,
    offsets: bool,
    call: Call,
) -> AsyncGenerator[Delta, None]:
    """Deltas of n choices a prompt, numbered prompt by prompt. A prompt that fails fails the request.

    Ends, and with it whatever still runs, as soon as every choice has met its end.
    """
    request = pb.GenerateRequest(
        request_id=call.request_id,
        model=asked.model,
        run_id=call.run_id,
        priority=asked.wire_priority,
        options=asked.sampling(max_tokens, stream_tokens=asked.stream or bool(asked.stop)),
        prompts=[pb.GeneratePrompt(id=str(index), ids=pack_ids(prompt.ids)) for index, prompt in enumerate(prompts)],
    )
    readers: dict[int, Reader] = {}
    left = len(prompts) * asked.n
    async with aclosing(teacher.generate(request, call)) as events:
        async for event in events:
            if event.HasField("status"):
                raise_failed(event.status)
            choice = int(event.id) * asked.n + event.index
            reader = readers.get(choice)
            if reader is None:
                reader = readers[choice] = Reader(choice, asked, model, offsets=offsets)
            if reader.done:
                continue
            reason = event.finish_reason if event.finished else None
            yield reader.push(unpack_ids(event.ids).tolist(), unpack_floats(event.logprobs).tolist(), reason)
            left -= reader.done
            if not left:
                return


async def generate_all(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    asked: SamplingRequest,
    max_tokens: int,
    *,
    model: Loaded,
    offsets: bool,
    call: Call,
) -> list[Delta]:
    """Every choice whole, in order."""
    whole: dict[int, Delta] = {}
    deltas = generate(teacher, prompts, asked, max_tokens, model=model, offsets=offsets, call=call)
    async with aclosing(deltas):
        async for delta in deltas:
            if delta.choice in whole:
                whole[delta.choice].add(delta)
            else:
                whole[delta.choice] = delta
    return [whole[choice] for choice in sorted(whole)]
