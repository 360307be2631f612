"""Generation with a key-value cache: many requests in one batch, and free rows refilled as completions finish.

The cache is a block of columns that all rows share. Every decode step writes one column for every row, so nothing is
copied as completions grow. A later row starts further right: the columns left of its start are masked, and its
positions count from its start. A waiting prompt takes the place of a finished row. If no prompt waits, the block
shrinks to the live rows.

Tenants: the waiting prompts are in the order of their tenants' shares of the device, each tenant with what its running
rows may still take added to what it was served. While other tenants wait, a tenant starts no rows that would put it
ahead of them by more than a whole cache of positions: its rows would run whenever a row of another tenant does.

Shape letters: R rows of the batch, L filled columns, D head size, V vocabulary.
"""

import time
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vold_packing.transformers import cache_name, undocumented
from vold_service.fairness import FairQueue, FairShare, Waiting
from vold_service.tenants import OPEN_TENANT, Tenant

from vold_teacher.backends.rows import Row, Rows
from vold_teacher.sampling import sample_tokens, uniforms
from vold_teacher.scoring import Head
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions

with undocumented():
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

SHRINK_AT = 0.75
"""Copy the live rows into a smaller block when they are at most this fraction of its rows: a copy costs about one
decode step, while a dead row costs its share of every further step.
"""

STEP_POSITIONS = 256
"""What a decode step counts at least in the shares of the device: it reads all weights, however few its rows are, and
takes as long as a prefill of about this many positions.
"""


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """max_rows: completions decoded at once. max_cache_tokens: rows x columns of the cache.

    max_batch_tokens: padded prompt tokens of one prefill; a longer prompt is prefilled alone.
    """

    max_rows: int = 256
    max_cache_tokens: int = 1 << 16
    max_batch_tokens: int = 1 << 14


class _ColumnLayer(DynamicLayer):
    """One layer's keys and values [R, heads, columns, D]; the first `filled` columns hold data."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values, self.filled = keys, values, filled
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.filled


@dataclass(slots=True, eq=False)
class _Group:
    """Completions `first` to `first + n - 1` of one prompt, prefilled together."""

    request: int
    tenant: Tenant
    prompt: GeneratePrompt
    first: int
    n: int
    options: SamplingOptions

    @property
    def cost(self) -> int:
        """The most positions that it may take."""
        return len(self.prompt.ids) + self.n * self.prompt.max_tokens


class TorchDecoder:
    """The running rows and the waiting prompts of all requests; see `Decoder` in backends/base.py."""

    def __init__(
        self, model: Any, head: Head, limits: DecoderLimits, *, rows: int, share: FairShare | None = None
    ) -> None:
        """rows: rows of logits held at once. share: of the device."""
        self._model = model
        self._head = head
        self._limits = limits
        self._logit_rows = rows
        self._device = model.device
        self._cache_name = cache_name(model.base_model.forward)
        self._waiting: FairQueue[_Group] = FairQueue(share)
        self._share = self._waiting.share
        self._positions: dict[int, float] = {}
        self._layers: list[_ColumnLayer] = []
        self._rows = Rows()
        self._filled = 0
        self._columns = 0
        self.computed_tokens = 0
        self._reset()

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or self._rows.busy

    def tenants(self) -> Iterable[Tenant]:
        running = {row.tenant.name: row.tenant for row in self._rows.live}
        return (running | {tenant.name: tenant for tenant in self._waiting.tenants()}).values()

    def take_positions(self) -> dict[int, float]:
        positions, self._positions = self._positions, {}
        return positions

    def close(self) -> None:
        self._waiting.clear()

    def add(
        self,
        request: int,
        prompts: Seq[GeneratePrompt],
        options: SamplingOptions,
        priority: int,
        tenant: Tenant = OPEN_TENANT,
    ) -> None:
        for prompt in sorted(prompts, key=lambda prompt: len(prompt.ids)):  # prompts of similar length share a prefill
            columns = len(prompt.ids) + prompt.max_tokens
            max_rows = max(1, min(self._limits.max_rows, self._limits.max_cache_tokens // columns))
            for first in range(0, options.n, max_rows):
                group = _Group(request, tenant, prompt, first, min(max_rows, options.n - first), options)
                self._waiting.put(tenant, group, group.cost, job=request, priority=priority)

    def cancel(self, request: int) -> None:
        self._waiting.drop(request)
        self._rows.cancel(request)

    def end(self, request: int, prompt: int, index: int) -> None:
        self._rows.end(request, prompt, index)

    @torch.inference_mode()
    def advance(self, seconds: float) -> list[tuple[int, GenerateChunk]]:
        until = time.monotonic() + seconds
        chunks: list[tuple[int, GenerateChunk]] = []
        while self.busy:
            groups = self._choose_groups()
            if groups:
                self._admit(groups)
            else:
                self._step()
            chunks.extend(self._rows.take_chunks())
            if chunks and any(row.options.stream_tokens for row in self._rows.live):
                break
            if time.monotonic() >= until:
                break
        if not self.busy:
            self._reset()
        return chunks

    def _choose_groups(self) -> list[_Group]:
        """Remove waiting groups from the queue to admit them: as many as fit, or none while too few rows are free."""
        if not self._waiting:
            return []
        live = int(self._rows.state["live"].sum())
        chosen: list[Waiting[_Group]] = []
        rows, widest, growth = live, 0, self._rows.remaining
        filled = self._filled - int(self._rows.state["start"][self._rows.state["live"]].min()) if live else 0
        running = self._rows.remaining_of_tenants()
        most = self._limits.max_cache_tokens
        for waiting, ahead in self._waiting.in_order(running):
            group = waiting.item
            widest = max(widest, len(group.prompt.ids))
            growth = max(growth, group.prompt.max_tokens)
            rows += group.n
            if chosen or live:  # an empty batch takes the first group whatever its size
                columns = max(filled, widest) + growth
                if rows > self._limits.max_rows or rows * columns > most:
                    break
                if chosen and (len(chosen) + 1) * widest > self._limits.max_batch_tokens:
                    break
                if not self._share.may_lead(group.tenant, ahead, most):
                    break
            chosen.append(waiting)
        else:
            return self._take(chosen)
        # More groups wait than may start. A prefill pauses every running row, so wait until a quarter of the rows are
        # free, unless the tenant that is next has no row yet.
        enough = sum(waiting.item.n for waiting in chosen) >= max(1, live // 4)
        return self._take(chosen) if chosen and (enough or chosen[0].tenant.name not in running) else []

    def _take(self, chosen: list[Waiting[_Group]]) -> list[_Group]:
        for waiting in chosen:
            self._waiting.take(waiting)  # charged as it is computed
        return [waiting.item for waiting in chosen]

    def _charge(self, computed: Iterable[_Group | Row], positions: int, cost: int) -> None:
        """Charge what was computed: an account has the positions of its own rows, in which nothing of others shows; the
        cost of all is divided evenly for the shares of the device.
        """
        counts: Counter[int] = Counter()
        tenants: dict[int, Tenant] = {}
        for each in computed:
            counts[each.request] += 1
            tenants[each.request] = each.tenant
            own = len(each.prompt.ids) if isinstance(each, _Group) else 1
            self._positions[each.request] = self._positions.get(each.request, 0.0) + own
        total = counts.total()
        self.computed_tokens += positions
        for request, count in counts.items():
            self._share.charge(tenants[request], cost * count / total)

    def _admit(self, groups: list[_Group]) -> None:
        """Prefill each group's prompt once, copy its keys and values to the group's rows, sample first tokens."""
        cache, hidden_PSH = self._prefill(groups)
        width = hidden_PSH.shape[1]
        new = [
            Row(group.request, group.tenant, group.prompt, group.first + index, group.options)
            for group in groups
            for index in range(group.n)
        ]
        slots_R = self._make_room(cache.layers, len(new), width, max(group.prompt.max_tokens for group in groups))
        repeats_P = self._tensor(np.array([group.n for group in groups]))
        slots = self._tensor(slots_R)
        layers: list[Any] = cache.layers
        for layer, fresh in zip(self._layers, layers, strict=True):
            span = slice(self._filled - width, self._filled)
            layer.keys[slots, :, span] = fresh.keys.repeat_interleave(repeats_P, 0)
            layer.values[slots, :, span] = fresh.values.repeat_interleave(repeats_P, 0)
        self._rows.fill(slots_R, new, self._filled)
        self._sample(slots_R, hidden_PSH[:, -1].repeat_interleave(repeats_P, 0))

    def _prefill(self, groups: list[_Group]) -> tuple[DynamicCache, Tensor]:
        """Run each group's prompt, padded on the left. Returns the cache and the hidden states [P, S, H]."""
        lengths_P = np.array([len(group.prompt.ids) for group in groups])
        width = int(lengths_P.max())
        ids_PS = np.zeros((len(groups), width), np.int64)
        for index, group in enumerate(groups):
            ids_PS[index, width - lengths_P[index] :] = group.prompt.ids
        columns_S = np.arange(width)
        mask_PS = columns_S >= (width - lengths_P)[:, None]
        positions_PS = np.maximum(columns_S - (width - lengths_P)[:, None], 0)
        cache = DynamicCache()
        hidden_PSH = self._model.base_model(
            input_ids=self._tensor(ids_PS),
            attention_mask=self._tensor(mask_PS),
            position_ids=self._tensor(positions_PS),
            use_cache=True,
            **{self._cache_name: cache},
        ).last_hidden_state
        self._charge(groups, ids_PS.size, ids_PS.size)
        return cache, hidden_PSH

    def _make_room(self, fresh: Seq[Any], count: int, width: int, max_tokens: int) -> np.ndarray:
        """Slots int64 [count] for new rows of `width` columns that may grow by `max_tokens`. fresh: see `_rebuild`."""
        free_R = np.flatnonzero(~self._rows.state["live"])
        growth = max(self._rows.remaining, max_tokens)
        if len(free_R) >= count and width <= self._filled and self._filled + growth <= self._columns:
            return free_R[:count]
        live_R = np.flatnonzero(self._rows.state["live"])
        rows = len(live_R) + count
        offset = int(self._rows.state["start"][live_R].min()) if len(live_R) else self._filled
        filled = max(self._filled - offset, width)
        # Spare columns within the limit, so that the next refills need no copy.
        needed = filled + growth
        columns = max(needed, min(needed * 3 // 2, self._limits.max_cache_tokens // rows))
        self._rebuild(fresh, live_R, rows, filled, columns)
        return np.arange(len(live_R), rows)

    def _rebuild(self, fresh: Seq[Any], live_R: np.ndarray, rows: int, filled: int, columns: int) -> None:
        """Move the live rows to the top of new buffers of `rows` x `columns`, ending at column `filled`.

        fresh: layers whose keys and values give the shapes if there are no buffers yet.
        """
        live = self._tensor(live_R)
        width = min(self._filled, filled)
        source, target = slice(self._filled - width, self._filled), slice(filled - width, filled)
        layers = []
        for like in self._layers or fresh:
            keys = like.keys.new_zeros((rows, like.keys.shape[1], columns, like.keys.shape[3]))
            values = like.values.new_zeros((rows, like.values.shape[1], columns, like.values.shape[3]))
            if len(live_R):
                keys[: len(live_R), :, target] = like.keys[live, :, source]
                values[: len(live_R), :, target] = like.values[live, :, source]
            layers.append(_ColumnLayer(keys, values, filled))
        self._layers = layers
        self._rows.compact(live_R, rows, filled - self._filled)
        self._filled, self._columns = filled, columns

    def _step(self) -> None:
        """Sample one token for every row. A dead row is computed and ignored until the block is rebuilt without it."""
        live_R = np.flatnonzero(self._rows.state["live"])
        if len(live_R) <= SHRINK_AT * len(self._rows):
            offset = int(self._rows.state["start"][live_R].min())
            filled = self._filled - offset
            self._rebuild([], live_R, len(live_R), filled, filled + self._rows.remaining)
        positions_R = np.where(self._rows.state["live"], self._filled - self._rows.state["start"], 0)
        mask_RL = np.arange(self._filled + 1) >= self._rows.state["start"][:, None]
        hidden_R1H = self._model.base_model(
            input_ids=self._tensor(self._rows.state["last_id"])[:, None],
            attention_mask=self._tensor(mask_RL),
            position_ids=self._tensor(positions_R)[:, None],
            use_cache=True,
            **{self._cache_name: Cache(layers=list(self._layers))},
        ).last_hidden_state
        self._filled += 1
        self._charge(self._rows.live, len(self._rows), max(len(self._rows), STEP_POSITIONS))
        self._sample(np.arange(len(self._rows)), hidden_R1H[:, 0])

    def _sample(self, slots_R: np.ndarray, hidden_RH: Tensor) -> None:
        """Sample and record a token for each slot, from hidden states [R, H]."""
        for begin in range(0, len(slots_R), self._logit_rows):
            slots = slots_R[begin : begin + self._logit_rows]
            logits_RV = self._head(hidden_RH[begin : begin + self._logit_rows]).float()
            ids, logprobs = sample_tokens(
                logits_RV,
                self._tensor(uniforms(self._rows.state["key"][slots], self._rows.state["steps"][slots])),
                self._tensor(self._rows.state["temperature"][slots]),
                self._tensor(self._rows.state["top_p"][slots]),
                self._tensor(self._rows.state["top_k"][slots]),
                self._tensor(self._rows.state["min_p"][slots]),
            )
            self._rows.record(slots, ids.cpu().numpy(), logprobs.cpu().numpy())

    def _reset(self) -> None:
        self._layers, self._rows, self._filled, self._columns = [], Rows(), 0, 0

    def _tensor(self, array: np.ndarray) -> Tensor:
        # A copy, because torch refuses the strides of a field of the row state.
        return torch.from_numpy(array.copy()).to(self._device)
