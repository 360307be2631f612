"""Pending sequences of all callers, and the choice of the next batch.

Fairness: each entry has the start tag of weighted fair queuing (Demers, Keshav and Shenker, 1989) with the request as
the flow and tokens as the cost, so a small request does not wait behind the whole of a large one. Higher priorities go
first.
Padding: of the entries that are next in that order, as many as a few batches hold, those nearest in length to the very
first one share its batch. So the first is always served, and rows of a batch have like lengths.
Prompts: completions of one prompt are one entry where it pays to compute the prompt once for all of them.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid

from vold_teacher.batch import Size, by_prompt
from vold_teacher.types import Sequence

WINDOW_BATCHES = 4


@dataclass(slots=True, eq=False)
class Job:
    """A request's sequences in the queue. gone: nobody waits for it any more. tag: of its last entry."""

    priority: int = 0
    gone: bool = False
    tag: float = 0.0


@dataclass(order=True, slots=True)
class Entry:
    """Sequences of a job that are computed together, by their places in the request: one, or several of one prompt."""

    rank: tuple[int, float, int]
    job: Job = field(compare=False)
    sequences: dict[int, Sequence] = field(compare=False)
    size: Size = field(compare=False)
    tokens: int = field(compare=False)


class ScoreQueue:
    """Not thread-safe: it belongs to the event loop."""

    def __init__(self, *, batch_tokens: int, max_tokens: int, shares_prompts: bool) -> None:
        """batch_tokens: of a batch, padding included. max_tokens: that may wait before requests are refused.
        shares_prompts: whether the backend computes a prompt that several sequences of a batch share once.
        """
        self._batch_tokens = batch_tokens
        self._max_tokens = max_tokens
        self._shares_prompts = shares_prompts
        self._heap: list[Entry] = []
        self._virtual_time = 0.0
        self._count = 0
        self.tokens = 0
        self._waiting_of: dict[Job, int] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, job: Job, sequences: dict[int, Sequence], *, tokens_per_second: float) -> None:
        """Queue a job's sequences by index. Raises RESOURCE_EXHAUSTED where they do not fit, with when they may."""
        groups = sorted(
            ((Size.of([list(group.values())]), group) for group in self._groups(sequences)),
            key=lambda item: item[0].longest,
        )
        sizes = [size.tokens(self._shares_prompts) for size, _ in groups]
        check_room("completions", sum(sizes), self.tokens, self._max_tokens, tokens_per_second)
        job.tag = self._virtual_time
        for (size, group), tokens in zip(groups, sizes, strict=True):
            self._count += 1
            entry = Entry((-job.priority, job.tag, self._count), job, group, size, tokens)
            heapq.heappush(self._heap, entry)
            job.tag += tokens
        self.tokens += sum(sizes)
        self._waiting_of[job] = sum(sizes)

    def _groups(self, sequences: dict[int, Sequence]) -> Iterator[dict[int, Sequence]]:
        """Sequences of one prompt together where that pays, as many as a batch holds; the others each alone."""
        indices = list(sequences)
        for members in by_prompt(sequences.values()).values():
            group = [(indices[member], sequences[indices[member]]) for member in members]
            if not (self._shares_prompts and Size.of([[sequence for _, sequence in group]]).worth_sharing):
                yield from ({index: sequence} for index, sequence in group)
                continue
            group.sort(key=lambda item: item[1].length)
            part: dict[int, Sequence] = {}
            for index, sequence in group:
                grown = Size.of_prompt(len(sequence.prompt), len(part) + 1, len(sequence.completion) - 1)
                if part and not self._within_budget(grown):
                    yield part
                    part = {}
                part[index] = sequence
            yield part

    def drop(self, job: Job) -> None:
        """Forget what is left of a job. Its entries are passed over when their turn comes."""
        job.gone = True
        self.tokens -= self._waiting_of.pop(job, 0)
        if self._heap and not self.tokens:
            self._heap.clear()

    def jobs(self) -> list[Job]:
        """Those with anything left in the queue."""
        return list(self._waiting_of)

    def next_batch(self) -> list[Entry]:
        """Entries to compute together, at least one where any waits; their padded size is within the budget, unless
        the first alone is larger.
        """
        window = self._window()
        if not window:
            return []
        first = window[0]
        # One kind a batch: among completions with prompts of their own, a group's prompt would not be worth sharing.
        others = [entry for entry in window if self._shares(entry.size) != self._shares(first.size)]
        window = [entry for entry in window if self._shares(entry.size) == self._shares(first.size)]
        window.sort(key=lambda entry: entry.size.longest)
        low = window.index(first)
        high = low + 1
        # Shorter rows only need padding; longer ones widen every row. So first downwards, then upwards.
        size = first.size
        while low > 0 and self._may_join(size, grown := size + window[low - 1].size):
            size, low = grown, low - 1
        while high < len(window) and self._may_join(size, grown := size + window[high].size):
            size, high = grown, high + 1
        batch = window[low:high]
        for entry in others + window[:low] + window[high:]:
            heapq.heappush(self._heap, entry)
        active = len(self._waiting_of)
        served = sum(entry.tokens for entry in batch)
        for entry in batch:
            self.tokens -= entry.tokens
            self._waiting_of[entry.job] -= entry.tokens
            if not self._waiting_of[entry.job]:
                del self._waiting_of[entry.job]
        # Moving with the work done, and not only with the tags served, it also leaves behind what waits among endless
        # newcomers: their tags pass those of the older entries.
        self._virtual_time = max(self._virtual_time + served / active, first.rank[1])
        return batch

    def _window(self) -> list[Entry]:
        window: list[Entry] = []
        tokens = 0
        while self._heap and tokens < WINDOW_BATCHES * self._batch_tokens:
            entry = heapq.heappop(self._heap)
            if entry.job.gone:
                continue
            if window and entry.rank[0] != window[0].rank[0]:  # a batch holds one priority, the highest
                heapq.heappush(self._heap, entry)
                break
            window.append(entry)
            tokens += entry.tokens
        return window

    def _shares(self, size: Size) -> bool:
        return self._shares_prompts and size.worth_sharing

    def _within_budget(self, size: Size) -> bool:
        return size.tokens(self._shares_prompts) <= self._batch_tokens

    def _may_join(self, size: Size, grown: Size) -> bool:
        """Whether a batch may grow: within the budget, and sharing prompts after as before."""
        return self._within_budget(grown) and self._shares(grown) == self._shares(size)


def check_room(field: str, tokens: int, waiting: int, limit: int, tokens_per_second: float) -> None:
    """Raise where `tokens` more would put the queue over its limit."""
    if tokens > limit:
        raise invalid(field, f"{field} come to {tokens} tokens, over the queue's {limit}: split the request")
    if waiting + tokens > limit:
        seconds = (waiting + tokens - limit) / max(tokens_per_second, 1.0)
        raise ServiceError(
            status_pb2.RESOURCE_EXHAUSTED,
            f"the queue holds {waiting} tokens and {tokens} more would pass its limit of {limit}: come back later",
            field=field,
            retry_seconds=min(max(seconds, 0.1), 60.0),
        )
