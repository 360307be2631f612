"""Answers of one replica of a teacher: completions with their token ids, of a service of vold."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vold_client import AsyncTeacherClient, Internal
from vold_client.types import Identity

from vold_trainer.config import TracesConfig

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion. ids: of its tokens, None if the source gives text alone. finish_reason: "stop" if it ended by
    itself. tokens, prompt_tokens: how many; None if the source does not say. identity: of who answered.
    """

    text: str
    ids: list[int] | None
    finish_reason: str
    tokens: int | None
    prompt_tokens: int | None
    identity: Identity


@dataclass(frozen=True, slots=True)
class Described:
    """What a replica says of itself. in_flight: completions that it generates at once, 0 if it does not say. seeded:
    whether a prompt and its seed give the same completion in every request.
    """

    identity: Identity
    in_flight: int
    seeded: bool


class AnswerSource(Protocol):
    """One replica. Its methods raise VoldError, and repeat nothing but what is throttled."""

    url: str

    async def describe(self) -> Described: ...

    async def answer(self, messages: Messages, seed: int | None) -> Answer: ...

    async def ready(self, seconds: float) -> None:
        """Return if the replica accepts requests, within `seconds`."""
        ...

    async def aclose(self) -> None: ...


class TeacherSource:
    """A replica of a teacher service. client: of this replica alone."""

    def __init__(self, client: AsyncTeacherClient, config: TracesConfig) -> None:
        (self.url,) = client.urls
        self.client = client
        self.config = config

    async def describe(self) -> Described:
        info = await self.client.info()
        seeded = not self.config.temperature or "prompt_seed" in info.capabilities
        return Described(info.identity, info.max_rows, seeded)

    async def answer(self, messages: Messages, seed: int | None) -> Answer:
        generations = [
            generation
            async for generation in self.client.generate(
                [list(messages)],
                max_tokens=self.config.max_tokens,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                seeds=None if seed is None else [seed],
                chat_template_kwargs=self.config.teacher.chat_template_kwargs or None,
            )
        ]
        if len(generations) != 1:
            raise Internal(f"{len(generations)} completions came back for one", url=self.url)
        (generation,) = generations
        if generation.error is not None:
            raise generation.error
        return Answer(
            text=generation.text,
            ids=generation.ids.tolist(),
            finish_reason=generation.finish_reason,
            tokens=len(generation.ids),
            prompt_tokens=len(generation.prompt_ids),
            identity=generation.identity,
        )

    async def ready(self, seconds: float) -> None:
        await self.client.ready(seconds)

    async def aclose(self) -> None:
        await self.client.aclose()


async def close_all(sources: Sequence[AnswerSource]) -> None:
    await asyncio.gather(*(source.aclose() for source in sources), return_exceptions=True)
