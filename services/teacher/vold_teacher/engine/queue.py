"""Pending sequences of all callers, and the choice of the next batch.

Tenants: start-time fair queuing (Goyal, Vin and Cheng, 1996), the tenant as the flow and tokens over its weight as the
cost. A tenant that was idle begins at the present, so it neither saves up a claim nor owes for the past.
Inside a tenant: higher priorities first; then each request is a flow of the same kind, so a small request does not wait
behind the whole of a large one.
Padding: of the entries that are next in that order, as many as a few batches hold, those nearest in length to the very
first one share its batch, and only they are charged. So the first is always served, and rows of a batch have like
lengths. Nobody's entries are looked at further ahead than its share of those few batches, or the order would mean
nothing where little more waits. Where nothing is padded, a batch is simply what is next.
Prompts: completions of one prompt are one entry where it pays to compute the prompt once for all of them.
"""

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid
from vold_service.tenants import OPEN, Tenant

from vold_teacher.batch import Layout, Size, by_prompt
from vold_teacher.types import Sequence

WINDOW_BATCHES = 4
"""How far ahead a batch looks for rows of like lengths."""
MAX_PASSED = 16
"""How often an entry that is due may see others go first for their lengths."""
MAX_PADDING = 0.1
"""The part of a batch that may be padding."""
FREE_PADDING = 256
"""Padding that is cheaper than another batch, whatever its part; tokens."""


@dataclass(slots=True, eq=False)
class Job:
    """A request's sequences in the queue. gone: nobody waits for it any more. tag: of its last entry."""

    tenant: Tenant = OPEN
    priority: int = 0
    gone: bool = False
    tag: float = 0.0
    submitted: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class Entry:
    """Sequences of a job that are computed together, by their places in the request: one, or several of one prompt.

    shares: whether its prompt is computed once for all of them. tag: when it is due among the requests of its tenant.
    passed: how often others were taken before it though it was due.
    """

    job: Job
    sequences: dict[int, Sequence]
    size: Size
    tokens: int
    shares: bool
    tag: float
    number: int
    passed: int = 0

    @property
    def ranked(self) -> "_Ranked":
        return (-self.job.priority, self.tag, self.number, self)


_Ranked = tuple[int, float, int, Entry]
"""As a plain tuple a heap compares it in C; the number differs always, so entries themselves are never compared."""


@dataclass(slots=True, eq=False)
class _Flow:
    """One tenant's entries. tag: the virtual time at which its next token is due. now: its requests' own clock."""

    tenant: Tenant
    tag: float
    heap: list[_Ranked] = field(default_factory=list)
    tokens: int = 0
    now: float = 0.0
    jobs: int = 0


class ScoreQueue:
    """Not thread-safe: it belongs to the event loop."""

    def __init__(self, *, batch_tokens: int, max_tokens: int, layout: Layout) -> None:
        """batch_tokens: of a batch, padding included. max_tokens: that may wait before requests are refused.
        layout: how the backend runs a batch.
        """
        self._batch_tokens = batch_tokens
        self._max_tokens = max_tokens
        self._layout = layout
        self._flows: dict[str, _Flow] = {}
        self._virtual_time = 0.0
        self._count = 0
        self._waiting_of: dict[Job, int] = {}
        self.tokens = 0

    def __len__(self) -> int:
        """Requests that have anything left here."""
        return len(self._waiting_of)

    def put(self, job: Job, sequences: dict[int, Sequence], *, tokens_per_second: float) -> None:
        """Queue a job's sequences by index. Raises RESOURCE_EXHAUSTED where they do not fit, with when they may."""
        groups = sorted(
            ((Size.of([list(group.values())]), group) for group in self._groups(sequences)),
            key=lambda item: item[0].longest,
        )
        sizes = [size.tokens(self._layout) for size, _ in groups]
        check_room("completions", sum(sizes), self.tokens, self._max_tokens, tokens_per_second)
        flow = self._flows.get(job.tenant.name)
        if flow is None:
            flow = self._flows[job.tenant.name] = _Flow(job.tenant, self._virtual_time)
        if not flow.jobs:
            flow.tag = max(flow.tag, self._virtual_time)
        flow.tenant = job.tenant  # its weight may have changed since
        job.tag = flow.now
        for (size, group), tokens in zip(groups, sizes, strict=True):
            self._count += 1
            heapq.heappush(flow.heap, Entry(job, group, size, tokens, self._shares(size), job.tag, self._count).ranked)
            job.tag += tokens
        flow.tokens += sum(sizes)
        flow.jobs += 1
        self.tokens += sum(sizes)
        self._waiting_of[job] = sum(sizes)

    def _groups(self, sequences: dict[int, Sequence]) -> Iterator[dict[int, Sequence]]:
        """Sequences of one prompt together where that pays, as many as a batch holds; the others each alone."""
        indices = list(sequences)
        for members in by_prompt(sequences.values()).values():
            group = [(indices[member], sequences[indices[member]]) for member in members]
            if not self._shares(Size.of([[sequence for _, sequence in group]])):
                yield from ({index: sequence} for index, sequence in group)
                continue
            group.sort(key=lambda item: item[1].length)
            part = {group[0][0]: group[0][1]}
            size = Size.of_one(group[0][1])
            for index, sequence in group[1:]:
                size = size.with_row(sequence)
                if not self._within_budget(size):
                    yield part
                    part, size = {}, Size.of_one(sequence)
                part[index] = sequence
            yield part

    def drop(self, job: Job) -> None:
        """Forget what is left of a job. Its entries are passed over when their turn comes."""
        job.gone = True
        self._take(job, self._waiting_of.get(job, 0))

    def jobs(self) -> list[Job]:
        """Those with anything left in the queue."""
        return list(self._waiting_of)

    def oldest_seconds(self) -> float:
        """How long the oldest request that has anything left here has waited; 0 where none has."""
        oldest = next(iter(self._waiting_of), None)  # a dict keeps the order of arrival
        return time.monotonic() - oldest.submitted if oldest is not None else 0.0

    def tokens_by_tenant(self) -> dict[str, int]:
        """Tokens that wait, of each tenant that has any."""
        return {name: flow.tokens for name, flow in self._flows.items()}

    def next_batch(self) -> list[Entry]:
        """Entries to compute together, at least one where any waits; their padded size is within the budget, unless
        the first alone is larger.
        """
        window = self._window()
        if not window:  # idle: nobody is made to wait, so nobody owes anything
            self._virtual_time = max((flow.tag for flow in self._flows.values()), default=0.0)
            return []
        top: dict[str, int] = {}
        for entry in window:
            top.setdefault(entry.job.tenant.name, entry.job.priority)
        due = [entry for entry in window if entry.job.priority == top[entry.job.tenant.name]]
        # The one that is due, unless it is another's turn: due too, and passed over again and again for its length.
        first = max(due, key=lambda entry: entry.passed)
        if first.passed < MAX_PASSED:
            first = due[0]
        batch, size = self._alike(first, due)
        # A tenant whose urgent entries are all in fills its share with its others: it is not to lose it to strangers.
        waiting = {entry.job.tenant.name for entry in set(due).difference(batch)}
        later = [entry for entry in window if entry.job.priority != top[entry.job.tenant.name]]
        for entry in sorted(later, key=lambda entry: (-entry.job.priority, entry.size.longest)):
            if entry.job.tenant.name in waiting:
                continue
            if entry.shares == first.shares and self._may_join(first, grown := size + entry.size):
                batch.append(entry)
                size = grown
            else:
                waiting.add(entry.job.tenant.name)
        taken = set(batch)
        for entry in window:
            if entry not in taken:
                entry.passed += entry.job.priority == top[entry.job.tenant.name]
                heapq.heappush(self._flows[entry.job.tenant.name].heap, entry.ranked)
        # The present is where the service has got to: when the tenant that is furthest behind was due.
        self._virtual_time = max(self._virtual_time, self._flows[window[0].job.tenant.name].tag)
        self._charge(batch)
        for entry in batch:
            self._take(entry.job, entry.tokens)
        return batch

    def _charge(self, batch: list[Entry]) -> None:
        by_tenant: dict[str, list[Entry]] = {}
        for entry in batch:
            by_tenant.setdefault(entry.job.tenant.name, []).append(entry)
        for name, entries in by_tenant.items():
            flow = self._flows[name]
            tokens = sum(entry.tokens for entry in entries)
            flow.tag += tokens / flow.tenant.weight
            # Moving with the work done, and not only with the tags served, a tenant's clock also leaves behind what
            # waits among endless newcomers: their tags pass those of the older entries.
            flow.now = max(flow.now + tokens / flow.jobs, min(entry.tag for entry in entries))

    def _take(self, job: Job, tokens: int) -> None:
        """`tokens` of a job wait no more."""
        if job not in self._waiting_of:
            return
        flow = self._flows[job.tenant.name]
        self.tokens -= tokens
        flow.tokens -= tokens
        self._waiting_of[job] -= tokens
        if not self._waiting_of[job]:
            del self._waiting_of[job]
            flow.jobs -= 1
            if not flow.jobs:
                flow.heap.clear()

    def _alike(self, first: Entry, due: list[Entry]) -> tuple[list[Entry], Size]:
        """`first` and those of the due entries that are nearest to it in length, as many as a batch may hold."""
        # One kind a batch: among completions with prompts of their own, a group's prompt would not be worth sharing.
        rows = sorted((entry for entry in due if entry.shares == first.shares), key=lambda entry: entry.size.longest)
        low = rows.index(first)
        high = low + 1
        # Shorter rows only need padding; longer ones widen every row. So first downwards, then upwards.
        size = first.size
        while low > 0 and self._may_join(first, grown := size + rows[low - 1].size):
            size, low = grown, low - 1
        while high < len(rows) and self._may_join(first, grown := size + rows[high].size):
            size, high = grown, high + 1
        return rows[low:high], size

    def _window(self) -> list[Entry]:
        """The next entries in order: of all tenants as many as a few batches hold, and of each its share of that."""
        window: list[Entry] = []
        tokens = 0
        due = [(flow.tag, name) for name, flow in self._flows.items() if flow.heap]
        heapq.heapify(due)
        ahead = (1 if self._layout is Layout.PACKED else WINDOW_BATCHES) * self._batch_tokens
        weights = sum(self._flows[name].tenant.weight for _, name in due)
        furthest = due[0][0] + ahead / weights if due else 0.0
        while due and tokens < ahead:
            tag, name = heapq.heappop(due)
            if tag > furthest and tokens >= self._batch_tokens:
                break
            flow = self._flows[name]
            while flow.heap and flow.heap[0][3].job.gone:
                heapq.heappop(flow.heap)
            if not flow.heap:
                continue
            entry = heapq.heappop(flow.heap)[3]
            window.append(entry)
            tokens += entry.tokens
            heapq.heappush(due, (tag + entry.tokens / flow.tenant.weight, name))
        return window

    def _shares(self, size: Size) -> bool:
        return size.shares(self._layout)

    def _within_budget(self, size: Size) -> bool:
        return size.tokens(self._layout) <= self._batch_tokens

    def _may_join(self, first: Entry, grown: Size) -> bool:
        """Whether a batch may grow: within the budget, with little padding, and sharing prompts as its first does."""
        tokens = grown.tokens(self._layout)
        if tokens > self._batch_tokens or self._shares(grown) != first.shares:
            return False
        return grown.padding(self._layout) <= max(FREE_PADDING, MAX_PADDING * tokens)


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
