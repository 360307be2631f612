"""The rows of the decoder's batch: which completion each row is, its state, and the tokens that it has.

A row is live until its completion ends; then its slot is free, and the decoder computes and ignores it until another
completion starts there.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from vold_service.tenants import Tenant

from vold_teacher.sampling import stream_key
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions

ROW_STATE = np.dtype(
    [
        ("live", np.bool_),
        ("start", np.int64),  # the column of its first prompt token
        ("steps", np.int64),  # tokens sampled
        ("sent", np.int64),  # tokens returned by `advance`
        ("last_id", np.int64),
        ("max_tokens", np.int64),
        ("streams", np.bool_),
        ("key", np.uint64),  # the key of its random stream
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("top_k", np.int64),
        ("min_p", np.float32),
    ]
)


@dataclass(slots=True, eq=False)
class Row:
    """A completion under way."""

    request: int
    tenant: Tenant
    prompt: GeneratePrompt
    index: int
    options: SamplingOptions


class Rows:
    """state: ROW_STATE [R]. Shape letter: R rows."""

    def __init__(self) -> None:
        self.state = np.zeros(0, ROW_STATE)
        self._rows: list[Row | None] = []
        self._stop_ids = np.zeros((0, 1), np.int64)
        self._ids = np.zeros((0, 1), np.int32)
        self._logprobs = np.zeros((0, 1), np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def live(self) -> list[Row]:
        """The completions under way."""
        return [row for row in self._rows if row is not None]

    @property
    def busy(self) -> bool:
        return any(row is not None for row in self._rows)

    def cancel(self, request: int) -> None:
        """Free the slots of a request's completions."""
        for slot, row in enumerate(self._rows):
            if row is not None and row.request == request:
                self._free(slot)

    def end(self, request: int, prompt: int, index: int) -> None:
        """Free the slot of a completion."""
        for slot, row in enumerate(self._rows):
            if row is not None and (row.request, row.prompt.index, row.index) == (request, prompt, index):
                self._free(slot)

    def _free(self, slot: int) -> None:
        self._rows[slot] = None
        self.state["live"][slot] = False

    @property
    def remaining(self) -> int:
        """The most columns that a running row may still need."""
        return int((self.state["max_tokens"] - self.state["steps"])[self.state["live"]].max(initial=0))

    def remaining_of_tenants(self) -> dict[str, float]:
        """The positions that each tenant's running rows may still take."""
        running: Counter[str] = Counter()
        remaining_R = (self.state["max_tokens"] - self.state["steps"]).tolist()
        for row, remaining in zip(self._rows, remaining_R, strict=True):
            if row is not None:
                running[row.tenant.name] += remaining
        return dict(running)

    def fill(self, slots_R: np.ndarray, new: list[Row], filled: int) -> None:
        """Start new rows in free slots; their prompts end at the last of `filled` columns."""
        rows = len(self._rows)
        max_stops = max(len(row.options.stop_ids) for row in new)
        if max_stops > self._stop_ids.shape[1]:
            self._stop_ids = _enlarge(self._stop_ids, rows, max_stops, fill=-1)
        max_tokens = max(row.prompt.max_tokens for row in new)
        if max_tokens > self._ids.shape[1]:
            self._ids = _enlarge(self._ids, rows, max_tokens)
            self._logprobs = _enlarge(self._logprobs, rows, max_tokens)
        for slot, row in zip(slots_R, new, strict=True):
            options = row.options
            self._rows[slot] = row
            self._stop_ids[slot] = -1
            self._stop_ids[slot, : len(options.stop_ids)] = sorted(options.stop_ids)
            self.state[slot] = (
                True,
                filled - len(row.prompt.ids),
                0,
                0,
                -1,
                row.prompt.max_tokens,
                options.stream_tokens,
                stream_key(*row.prompt.seed_and_place(options), row.index),
                options.temperature,
                options.top_p,
                options.top_k,
                options.min_p,
            )

    def record(self, slots: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> None:
        """Append a sampled token to the rows in `slots`. ids: int [R]. logprobs: float32 [R]."""
        steps = self.state["steps"][slots]
        self.state["last_id"][slots] = ids
        room = steps < self._ids.shape[1]  # dead rows continue past their end
        self._ids[slots[room], steps[room]] = self.state["last_id"][slots[room]]
        self._logprobs[slots[room], steps[room]] = logprobs[room]
        self.state["steps"][slots] += 1

    def take_chunks(self) -> list[tuple[int, GenerateChunk]]:
        """New chunks since the last call: of finished completions, and of those that stream."""
        stopped_R = (self.state["last_id"][:, None] == self._stop_ids).any(-1)
        ended_R = self.state["live"] & (stopped_R | (self.state["steps"] >= self.state["max_tokens"]))
        chunks = []
        for slot in np.flatnonzero(
            ended_R | (self.state["live"] & self.state["streams"] & (self.state["steps"] > self.state["sent"]))
        ):
            row = self._rows[slot]
            assert row is not None
            span = slice(self.state["sent"][slot], self.state["steps"][slot])
            self.state["sent"][slot] = self.state["steps"][slot]
            reason = None
            if ended_R[slot]:
                reason = "stop" if stopped_R[slot] else "length"
                self._free(int(slot))
            chunk = GenerateChunk(
                prompt=row.prompt.index,
                index=row.index,
                ids=self._ids[slot, span].copy(),
                logprobs=self._logprobs[slot, span].copy(),
                finish_reason=reason,
            )
            chunks.append((row.request, chunk))
        return chunks

    def compact(self, live_R: np.ndarray, rows: int, shift: int) -> None:
        """Move the state of the live rows to the top of arrays of `rows` rows; their columns move by `shift`."""
        count = len(live_R)
        self._rows = [self._rows[slot] for slot in live_R] + [None] * (rows - count)
        state = np.zeros(rows, ROW_STATE)
        state[:count] = self.state[live_R]
        state["start"][:count] += shift
        self.state = state
        self._stop_ids = _enlarge(self._stop_ids[live_R], rows, self._stop_ids.shape[1], fill=-1)
        self._ids = _enlarge(self._ids[live_R], rows, self._ids.shape[1])
        self._logprobs = _enlarge(self._logprobs[live_R], rows, self._logprobs.shape[1])


def _enlarge(array: np.ndarray, rows: int, columns: int, fill: int = 0) -> np.ndarray:
    """A larger array with a copy of `array` in its corner and `fill` elsewhere."""
    larger = np.full((rows, columns), fill, array.dtype)
    larger[: array.shape[0], : array.shape[1]] = array
    return larger
