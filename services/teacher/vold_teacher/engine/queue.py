"""Pending sequences of all callers, and the choice of the next batch.

Tenants: the shares of the device (vold_service.fairness). An entry is charged for its tokens when its batch begins, and
for the rest of what was computed for it when the batch is done.
Requests of a tenant: higher priorities first. Requests of equal priority are flows of the same kind, so a small request
does not wait for the whole of a large one.
Padding: the window holds the next entries in that order, as many as fill a few batches. The first entry and the entries
nearest to it in length form the batch, and only their tenants are charged. So the first entry is always served, and the
rows of a batch have similar lengths. The window holds at most each tenant's share of those batches; otherwise the order
would have no effect when little is waiting. Without padding, a batch is the next entries in order.
Prompts: completions of one prompt form one entry if computing the prompt once for all of them is cheaper.
"""

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid
from vold_service.fairness import Claim, FairShare, QueueParts
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_teacher.batch import BatchSize, Layout, group_by_prompt
from vold_teacher.types import Sequence

WINDOW_BATCHES = 4
"""Batches' worth of entries in which to look for rows of similar lengths."""
MAX_PASSED = 16
"""How often an entry that is due may be passed over because of its length."""
MAX_PADDING = 0.1
"""The fraction of a batch that may be padding."""
FREE_PADDING = 256
"""Padding tokens that are always allowed: they cost less than another batch."""


@dataclass(slots=True, eq=False)
class Job:
    """A request whose sequences are in the queue. cancelled: its caller no longer waits for the scores."""

    tenant: Tenant = OPEN_TENANT
    priority: int = 0
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class Entry:
    """Sequences of a job that are computed together, by index in the request: one, or several of one prompt.

    shares_prompt: whether the prompt is computed once for all of them. start_tag: the time of its tenant's clock at
    which it is due. passed: how often it was due and passed over.
    """

    job: Job
    sequences: dict[int, Sequence]
    size: BatchSize
    tokens: int
    shares_prompt: bool
    start_tag: float
    number: int
    passed: int = 0

    @property
    def heap_item(self) -> "_HeapItem":
        return (-self.job.priority, self.start_tag, self.number, self)


_HeapItem = tuple[int, float, int, Entry]
"""A plain tuple is compared in C. The numbers are unique, so entries themselves are never compared."""


@dataclass(slots=True, eq=False)
class _Flow:
    """One tenant's entries. virtual_time: the clock by which the tenant's own requests are ordered."""

    tenant: Tenant
    heap: list[_HeapItem] = field(default_factory=list)
    tokens: int = 0
    virtual_time: float = 0.0
    jobs: int = 0


class ScoreQueue:
    """Not thread-safe: it belongs to the event loop."""

    def __init__(self, *, batch_tokens: int, max_tokens: int, layout: Layout, share: FairShare | None = None) -> None:
        """batch_tokens: the largest batch, padding included. max_tokens: the most that may wait, of which each tenant
        has its part; further requests are refused. layout: how the backend runs a batch. share: of the device.
        """
        self.share = share or FairShare()
        self._batch_tokens = batch_tokens
        self._parts = QueueParts(max_tokens)
        self._layout = layout
        self._flows: dict[str, _Flow] = {}
        self._count = 0
        self._tokens_by_job: dict[Job, int] = {}
        self.tokens = 0

    def __len__(self) -> int:
        """Requests with sequences still in the queue."""
        return len(self._tokens_by_job)

    def put(self, job: Job, sequences: dict[int, Sequence], *, tokens_per_second: float) -> None:
        """Queue a job's sequences by index. Raises RESOURCE_EXHAUSTED with a retry delay if the queue is too full."""
        groups = sorted(
            ((BatchSize.of_groups([list(group.values())]), group) for group in self._groups(sequences)),
            key=lambda item: item[0].longest_sequence,
        )
        sizes = [size.tokens(self._layout) for size, _ in groups]
        check_room("completions", sum(sizes), self._parts, job.tenant, tokens_per_second)
        flow = self._flows.get(job.tenant.name)
        if flow is None:
            flow = self._flows[job.tenant.name] = _Flow(job.tenant)
        if not flow.jobs:
            self.share.enter(job.tenant)
        flow.tenant = job.tenant  # its weight may have changed since
        start_tag = flow.virtual_time
        for (size, group), tokens in zip(groups, sizes, strict=True):
            self._count += 1
            entry = Entry(job, group, size, tokens, self._shares_prompts(size), start_tag, self._count)
            heapq.heappush(flow.heap, entry.heap_item)
            start_tag += tokens
        flow.tokens += sum(sizes)
        flow.jobs += 1
        self._parts.add(job.tenant, sum(sizes))
        self.tokens += sum(sizes)
        self._tokens_by_job[job] = sum(sizes)

    def _groups(self, sequences: dict[int, Sequence]) -> Iterator[dict[int, Sequence]]:
        """Groups of sequences with one prompt, as many as a batch holds, if sharing it is cheaper; others alone."""
        indices = list(sequences)
        for members in group_by_prompt(sequences.values()).values():
            group = [(indices[member], sequences[indices[member]]) for member in members]
            if not self._shares_prompts(BatchSize.of_groups([[sequence for _, sequence in group]])):
                yield from ({index: sequence} for index, sequence in group)
                continue
            group.sort(key=lambda item: item[1].length)
            part = {group[0][0]: group[0][1]}
            size = BatchSize.of_sequence(group[0][1])
            for index, sequence in group[1:]:
                size = size.with_completion(sequence)
                if not self._within_budget(size):
                    yield part
                    part, size = {}, BatchSize.of_sequence(sequence)
                part[index] = sequence
            yield part

    def cancel(self, job: Job) -> None:
        """Cancel a job. Its remaining entries leave the heap when their turn comes."""
        job.cancelled = True
        self._dequeue(job, self._tokens_by_job.get(job, 0))

    def jobs(self) -> list[Job]:
        """Jobs with sequences still in the queue, in order of arrival."""
        return list(self._tokens_by_job)

    def oldest_seconds(self) -> float:
        """How long the oldest waiting request has waited; 0 if none waits."""
        oldest = next(iter(self._tokens_by_job), None)  # a dict keeps the order of arrival
        return time.monotonic() - oldest.submitted if oldest is not None else 0.0

    def tokens_by_tenant(self) -> dict[str, int]:
        """Waiting tokens of each tenant."""
        return {name: flow.tokens for name, flow in self._flows.items()}

    def claim(self) -> Claim | None:
        """The claim of the tenant whose entry is next; None if nothing waits."""
        return min((self.share.claim(flow.tenant) for flow in self._flows.values() if flow.jobs), default=None)

    def next_batch(self) -> list[Entry]:
        """Entries to compute together, at least one if any waits. Their padded size is within the budget, unless the
        first entry alone exceeds it.
        """
        window = self._window()
        if not window:
            return []
        top: dict[str, int] = {}
        for entry in window:
            top.setdefault(entry.job.tenant.name, entry.job.priority)
        due = [entry for entry in window if entry.job.priority == top[entry.job.tenant.name]]
        # An entry that was due and passed over too often for its length goes first.
        first = max(due, key=lambda entry: entry.passed)
        if first.passed < MAX_PASSED:
            first = due[0]
        batch, size = self._similar_lengths(first, due)
        batch = self._add_lower_priorities(first, batch, size, window, due)
        taken = set(batch)
        for entry in window:
            if entry not in taken:
                entry.passed += entry.job.priority == top[entry.job.tenant.name]
                heapq.heappush(self._flows[entry.job.tenant.name].heap, entry.heap_item)
        self._charge(batch)
        for entry in batch:
            self._dequeue(entry.job, entry.tokens)
        return batch

    def _add_lower_priorities(
        self, first: Entry, batch: list[Entry], size: BatchSize, window: list[Entry], due: list[Entry]
    ) -> list[Entry]:
        """The batch and entries of lower priority, of the tenants whose due entries are all in the batch.

        So a tenant fills its share of the batch with its other entries and does not lose it to other tenants.
        """
        batch = list(batch)
        due_entries = set(due)
        waiting = {entry.job.tenant.name for entry in due_entries.difference(batch)}
        later = [entry for entry in window if entry not in due_entries]
        for entry in sorted(later, key=lambda entry: (-entry.job.priority, _length(entry))):
            if entry.job.tenant.name in waiting:
                continue
            if entry.shares_prompt == first.shares_prompt and self._may_join(first, grown := size + entry.size):
                batch.append(entry)
                size = grown
            else:
                waiting.add(entry.job.tenant.name)
        return batch

    def _charge(self, batch: list[Entry]) -> None:
        by_tenant: dict[str, list[Entry]] = {}
        for entry in batch:
            by_tenant.setdefault(entry.job.tenant.name, []).append(entry)
        self.share.charge_all(
            [(self._flows[name].tenant, sum(entry.tokens for entry in entries)) for name, entries in by_tenant.items()]
        )
        for name, entries in by_tenant.items():
            flow = self._flows[name]
            tokens = sum(entry.tokens for entry in entries)
            # The tenant's clock also moves with the work done: the start tags of new requests soon pass those of an
            # old one, which would otherwise starve among endless arrivals.
            flow.virtual_time = max(flow.virtual_time + tokens / flow.jobs, min(entry.start_tag for entry in entries))

    def _dequeue(self, job: Job, tokens: int) -> None:
        """Subtract `tokens` of a job from the waiting tokens."""
        if job not in self._tokens_by_job:
            return
        flow = self._flows[job.tenant.name]
        self.tokens -= tokens
        flow.tokens -= tokens
        self._parts.add(job.tenant, -tokens)
        self._tokens_by_job[job] -= tokens
        if not self._tokens_by_job[job]:
            del self._tokens_by_job[job]
            flow.jobs -= 1
            if not flow.jobs:
                flow.heap.clear()
                self.share.leave(flow.tenant)

    def _similar_lengths(self, first: Entry, due: list[Entry]) -> tuple[list[Entry], BatchSize]:
        """`first` and the due entries nearest to it in length, as many as a batch may hold."""
        # A batch either shares prompts or does not: among completions with prompts of their own, sharing one prompt is
        # not cheaper.
        rows = sorted((entry for entry in due if entry.shares_prompt == first.shares_prompt), key=_length)
        low = rows.index(first)
        high = low + 1
        # Shorter rows need padding; longer rows widen every row. So add shorter rows first.
        size = first.size
        while low > 0 and self._may_join(first, grown := size + rows[low - 1].size):
            size, low = grown, low - 1
        while high < len(rows) and self._may_join(first, grown := size + rows[high].size):
            size, high = grown, high + 1
        return rows[low:high], size

    def _window(self) -> list[Entry]:
        """The next entries in order, enough for a few batches, and of each tenant at most its share of them."""
        window: list[Entry] = []
        tokens = 0
        due = [(*self.share.claim(flow.tenant), name) for name, flow in self._flows.items() if flow.heap]
        heapq.heapify(due)
        ahead = (1 if self._layout is Layout.PACKED else WINDOW_BATCHES) * self._batch_tokens
        weights = sum(self._flows[name].tenant.weight for *_, name in due)
        horizon = due[0][0] + ahead / weights if due else 0.0
        while due and tokens < ahead:
            tag, charged, name = heapq.heappop(due)
            if tag > horizon and tokens >= self._batch_tokens:
                break
            flow = self._flows[name]
            while flow.heap and flow.heap[0][3].job.cancelled:
                heapq.heappop(flow.heap)
            if not flow.heap:
                continue
            entry = heapq.heappop(flow.heap)[3]
            window.append(entry)
            tokens += entry.tokens
            heapq.heappush(due, (tag + entry.tokens / flow.tenant.weight, charged, name))
        return window

    def _shares_prompts(self, size: BatchSize) -> bool:
        return size.shares_prompts(self._layout)

    def _within_budget(self, size: BatchSize) -> bool:
        return size.tokens(self._layout) <= self._batch_tokens

    def _may_join(self, first: Entry, grown: BatchSize) -> bool:
        """Whether a batch may grow: within the budget, with little padding, sharing prompts as `first` does."""
        tokens = grown.tokens(self._layout)
        if tokens > self._batch_tokens or self._shares_prompts(grown) != first.shares_prompt:
            return False
        return grown.padding(self._layout) <= max(FREE_PADDING, MAX_PADDING * tokens)


def _length(entry: Entry) -> int:
    return entry.size.longest_sequence


def check_room(field: str, tokens: int, parts: QueueParts, tenant: Tenant, tokens_per_second: float) -> None:
    """Raise ServiceError if `tokens` more exceed the tenant's part of the queue. tokens_per_second: of the device."""
    if tokens > parts.limit:
        raise invalid(field, f"{field} come to {tokens} tokens, over the queue's {parts.limit:.0f}: split the request")
    if (excess := parts.excess(tenant, tokens)) > 0:
        seconds = excess / max(tokens_per_second * parts.share(tenant), 1.0)
        raise ServiceError(
            status_pb2.RESOURCE_EXHAUSTED,
            f"the queue holds {parts.held(tenant):.0f} tokens of the tenant {tenant.name!r}, and {tokens} more would "
            f"pass its part of {parts.part(tenant):.0f}: come back later",
            field=field,
            retry_seconds=min(max(seconds, 0.1), 60.0),
        )
