"""What the gateway needs of an upstream server, whichever it is, and what it found out about one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vold_teacher.backends.upstream.pool import Json, Replica
from vold_teacher.types import Floats, GeneratePrompt, Ids, SamplingOptions, Sequence, SequenceScore

Post = Callable[[str, Json, int], Awaitable[Json]]
"""(path, body, tokens that it costs) to the answer: of one replica, or of whichever the pool takes."""

Stream = Callable[[str, Json, int], AsyncIterator[Json]]


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says it serves. max_sequence: tokens of prompt and completion that it scores. seeds: it draws by
    the seed of a request.

    weights_fingerprint: where the server knows it, which is where it is a vold teacher itself; "" elsewhere.
    """

    model: str
    root: str
    max_sequence: int
    weight_version: str = ""
    weights_fingerprint: str = ""
    seeds: bool = True


@dataclass(frozen=True, slots=True)
class Abilities:
    max_top_k: int
    candidates: bool
    max_candidates: int


Part = tuple[Ids, Floats | None, str | None]
"""Of a completion: new ids, their log-probabilities at temperature 1 where the server gives such, a finish reason."""


class Dialect(Protocol):
    name: str
    max_temperature: float

    async def served(self, replica: Replica) -> Served: ...

    async def abilities(self, post: Post, served: Served, *, most: int) -> Abilities:
        """Find out by asking. most: ids at a position beyond which it does not matter."""

    async def score(self, post: Post, served: Served, sequence: Sequence) -> SequenceScore: ...

    def complete(
        self, post: Post, stream: Stream, served: Served, prompt: GeneratePrompt, options: SamplingOptions, seed: int
    ) -> AsyncIterator[Part]: ...


def first_model(models: Json, wanted: str) -> dict[str, Any]:
    """The entry of /v1/models that is asked for, or the first. Raises OSError."""
    entries = [entry for entry in models.get("data") or [] if isinstance(entry, dict)]
    if wanted:
        entries = [entry for entry in entries if entry.get("id") == wanted]
    if not entries:
        names = ", ".join(str(entry.get("id")) for entry in models.get("data") or []) or "none"
        raise OSError(f"the upstream server has no model {wanted!r}: it serves {names}; see --upstream-model")
    return entries[0]
