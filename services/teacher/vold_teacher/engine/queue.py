"""Pending sequences of all callers, and the choice of the next batch.

Fairness: each entry has a tag of start-time fair queuing (Goyal, Vin and Cheng, 1996) with the request as the flow and
tokens as the cost, so a small request does not wait behind the whole of a large one. Higher priorities go first.
Padding: of the entries that are next in that order, as many as a few batches hold, those nearest in length to the very
first one share its batch. So the first is always served, and rows of a batch have like lengths.
"""

import heapq
from dataclasses import dataclass, field

from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid

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
    """One sequence of a job. index: its place in the request."""

    rank: tuple[int, float, int]
    job: Job = field(compare=False)
    index: int = field(compare=False)
    sequence: Sequence = field(compare=False)


class ScoreQueue:
    """Not thread-safe: it belongs to the event loop."""

    def __init__(self, *, batch_tokens: int, max_tokens: int) -> None:
        """batch_tokens: of a batch, padding included. max_tokens: that may wait before requests are refused."""
        self._batch_tokens = batch_tokens
        self._max_tokens = max_tokens
        self._heap: list[Entry] = []
        self._virtual_time = 0.0
        self._count = 0
        self.tokens = 0
        self._waiting_of: dict[Job, int] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, job: Job, sequences: dict[int, Sequence], *, tokens_per_second: float) -> None:
        """Queue a job's sequences by index. Raises RESOURCE_EXHAUSTED where they do not fit, with when they may."""
        tokens = sum(sequence.length for sequence in sequences.values())
        check_room("completions", tokens, self.tokens, self._max_tokens, tokens_per_second)
        job.tag = self._virtual_time
        for index, sequence in sorted(sequences.items(), key=lambda item: item[1].length):
            self._count += 1
            heapq.heappush(self._heap, Entry((-job.priority, job.tag, self._count), job, index, sequence))
            job.tag += sequence.length
        self.tokens += tokens
        self._waiting_of[job] = tokens

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
        window.sort(key=lambda entry: entry.sequence.length)
        low = window.index(first)
        high = low + 1
        # Shorter rows only need padding; longer ones widen every row. So first downwards, then upwards.
        width = first.sequence.length
        while low > 0 and (high - low + 1) * width <= self._batch_tokens:
            low -= 1
        while high < len(window):
            if (high - low + 1) * window[high].sequence.length > self._batch_tokens:
                break
            high += 1
        batch = window[low:high]
        for entry in window[:low] + window[high:]:
            heapq.heappush(self._heap, entry)
        for entry in batch:
            self.tokens -= entry.sequence.length
            self._waiting_of[entry.job] -= entry.sequence.length
            if not self._waiting_of[entry.job]:
                del self._waiting_of[entry.job]
        self._virtual_time = max(self._virtual_time, first.rank[1])
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
            tokens += entry.sequence.length
        return window


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
