"""Turns callers' texts into ids: bounded before, and by another process if it could take long."""

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import invalid
from vold_service.processes import Processes
from vold_service.tenants import Tenant

from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import Ids

T = TypeVar("T")

INLINE_CHARACTERS = 4096
"""Characters that are read or written on the event loop: within a few milliseconds."""

ENTRY_CHARACTERS = 128
"""For which a message or a text counts at least: it costs as much."""

CHARACTERS_PER_TOKEN = 4
"""For what a text is charged before it is tokenized."""


class Texts:
    """The texts of one model's callers. Methods raise INVALID_ARGUMENT for a text that cannot fit."""

    def __init__(self, tokenizer: Tokenizer, processes: Processes) -> None:
        self.tokenizer = tokenizer
        self._processes = processes

    def max_characters(self, max_sequence: int) -> int:
        """The most characters that `max_sequence` tokens may stand for: more cannot fit, whatever they are."""
        return max_sequence * self.tokenizer.longest_token

    def check(self, texts: Seq[str], field: str, max_sequence: int) -> None:
        """Raise INVALID_ARGUMENT if texts of one prompt cannot fit into `max_sequence` tokens, without tokenizing."""
        characters, limit = sum(map(len, texts)), self.max_characters(max_sequence)
        if characters > limit:
            raise invalid(
                field,
                f"{field} has {characters} characters, and {max_sequence} tokens stand for at most {limit}: shorten it",
            )

    async def render(
        self, messages: Seq[pb.ChatMessage], field: str, *, tenant: Tenant, variables: dict[str, Any] | None = None
    ) -> Ids:
        """The ids of a conversation, up to the start of the assistant's reply. variables: of the chat template."""
        pairs = [(message.role, message.content) for message in messages]
        size = max(sum(len(role) + len(text) for role, text in pairs), len(pairs) * ENTRY_CHARACTERS)
        # What a template does with variables is not known, and the first text that spells a mark copies the tokenizer.
        small = size <= INLINE_CHARACTERS
        if variables or (small and self.tokenizer.spells_marks(itertools.chain.from_iterable(pairs))):
            size = INLINE_CHARACTERS + 1
        return await self.run(Tokenizer.render, pairs, field, variables, size=size, tenant=tenant)

    async def encode(self, texts: Seq[str], *, special: bool, tenant: Tenant) -> list[Ids]:
        """The ids of each text. special: add the special tokens that the tokenizer puts around a text, such as BOS."""
        size = max(sum(map(len, texts)), len(texts) * ENTRY_CHARACTERS)
        return await self.run(_encode, list(texts), special, size=size, tenant=tenant)

    async def run(self, function: Callable[..., T], *arguments: Any, size: int, tenant: Tenant) -> T:
        """`function(tokenizer, *arguments)`: on the event loop, or by another process if `size` characters are many."""
        if size <= INLINE_CHARACTERS:
            return function(self.tokenizer, *arguments)
        return await self._processes.run(_run, function, self.tokenizer.folder, *arguments, tenant=tenant)


def estimated_tokens(texts: Seq[str]) -> int:
    return -(-sum(map(len, texts)) // CHARACTERS_PER_TOKEN)


@lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def _run(function: Callable[..., T], folder: Path, *arguments: Any) -> T:
    return function(_tokenizer(folder), *arguments)


def _encode(tokenizer: Tokenizer, texts: list[str], special: bool) -> list[Ids]:
    return [tokenizer.encode(text, special=special) for text in texts]
