"""The protocol between the gateway and each kind of upstream server, and the facts that it returns."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vold_teacher.backends.upstream.pool import Json, Replica
from vold_teacher.types import Floats, GeneratePrompt, Ids, SamplingOptions, Sequence, SequenceScore

Post = Callable[[str, Json, int], Awaitable[Json]]
"""(path, body, tokens of the request) to the reply, of one replica or of the replica that the pool chooses."""

Stream = Callable[[str, Json, int], AsyncIterator[Json]]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A server's description of its model. max_sequence: prompt and completion tokens that it scores. uses_seed: it
    samples by the seed of a request. weights_fingerprint: of a vold teacher; "" for other servers.
    """

    model: str
    root: str
    max_sequence: int
    weight_version: str = ""
    weights_fingerprint: str = ""
    uses_seed: bool = True


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """The largest top-k of a server, whether it scores candidates, and the most of them at one position."""

    max_top_k: int
    candidates: bool
    max_candidates: int


CompletionChunk = tuple[Ids, Floats | None, str | None]
"""New ids, their log-probabilities at temperature 1 (None if the server gives none), and the finish reason."""


class Dialect(Protocol):
    name: str
    max_temperature: float

    async def read_model(self, replica: Replica) -> ServedModel:
        """The model that a replica serves. Raises OSError if the replica cannot be used."""

    async def probe_limits(self, post: Post, served: ServedModel, *, max_logprobs: int) -> UpstreamLimits:
        """Find the limits by test requests. max_logprobs: ids per position beyond which a limit does not matter."""

    async def score(self, post: Post, served: ServedModel, sequence: Sequence) -> SequenceScore: ...

    def complete(
        self,
        post: Post,
        stream: Stream,
        served: ServedModel,
        prompt: GeneratePrompt,
        options: SamplingOptions,
        seed: int,
    ) -> AsyncIterator[CompletionChunk]: ...


def find_model(models: Json, name: str) -> dict[str, Any]:
    """The entry of /v1/models with this name, or for "" the first entry. Raises OSError if there is none."""
    entries = [entry for entry in models.get("data") or [] if isinstance(entry, dict)]
    if name:
        entries = [entry for entry in entries if entry.get("id") == name]
    if not entries:
        names = ", ".join(str(entry.get("id")) for entry in models.get("data") or []) or "none"
        raise OSError(f"the upstream server has no model {name!r}: it serves {names}; see --upstream-model")
    return entries[0]
