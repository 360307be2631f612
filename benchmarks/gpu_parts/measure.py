"""One measurement after the other: timed on the device, within a part's time, and none that fails ends the others."""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import torch
import transformers

from gpu_parts.chips import peak_flops
from gpu_parts.results import Results
from gpu_parts.tables import TABLES, Key, table_named

GIB = 1 << 30


class SkippedError(Exception):
    """A measurement cannot be had here; the message says why."""


@dataclass
class Bench:
    """What the measurements of a part share. until: `time.monotonic` when the part should end. done: the values of rows
    that were measured before, which are not measured again.
    """

    part: str
    size: str
    device: torch.device
    results: Results
    until: float
    repeats: int = 2
    done: dict[tuple[str, Key], Mapping[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    written: set[tuple[str, Key]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.written |= self.done.keys()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def peak(self) -> float | None:
        """Dense bfloat16 FLOP/s of the device; None if unknown."""
        return peak_flops(torch.cuda.get_device_name(self.device)) if self.cuda else None

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    def share(self, flops: float, seconds: float) -> float | None:
        return flops / seconds / self.peak if self.peak else None

    def rows(self, table: str) -> list[Key]:
        return list(table_named(table).rows[self.size])

    def left(self, table: str, keys: Iterable[Key] | None = None) -> list[Key]:
        """The rows of a table that were not measured before. keys: of these rows; None: of all."""
        return [key for key in (self.rows(table) if keys is None else keys) if (table, key) not in self.done]

    @property
    def count_left(self) -> int:
        """Rows of the part that were not measured before."""
        return sum(len(self.left(table.name)) for table in TABLES if table.part == self.part)

    def together(self, *rows: tuple[str, Key]) -> None:
        """Measure all of these rows again if one of them is left: one measurement fills them."""
        if not self.done.keys() >= set(rows):
            for place in rows:
                self.done.pop(place, None)
                self.written.discard(place)

    def row(self, table: str, key: Key, work: Callable[[], Mapping[str, Any]]) -> bool:
        """Measure a row and write it, or why it could not be measured. Returns whether it was, now or before."""
        if (table, key) in self.done:
            return True
        reason = ""
        if self.late:
            reason = "out of time"
        else:
            try:
                values = work()
            except SkippedError as error:
                reason = str(error)
            except torch.cuda.OutOfMemoryError:
                reason = "out of memory"
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200].replace("|", "/")
            if reason:  # outside the handler, whose traceback holds the tensors of the failed work
                self.free()
        if reason:
            self.skip(table, key, reason)
            self.say(f"{table} {', '.join(key)}: not run: {reason}")
            return False
        self.written.add((table, key))
        self.results.row(table, key, values)
        columns = table_named(table).columns
        shown = (
            f"{columns[n][0]} {columns[n][1].format(v)}" for n, v in values.items() if n in columns and v is not None
        )
        self.say(f"{table} {', '.join(key)}: {'; '.join(shown)}")
        return True

    def skip(self, table: str, key: Key, reason: str) -> None:
        """Write why a row cannot be measured."""
        self.written.add((table, key))
        self.results.skipped(table, key, reason)

    def skip_all(self, reason: str) -> None:
        """Write of every row of the part that is not written yet why it cannot be measured."""
        for table in TABLES:
            if table.part == self.part:
                for key in table.rows[self.size]:
                    if (table.name, key) not in self.written:
                        self.skip(table.name, key, reason)
        self.say(f"not run: {reason}")

    def say(self, text: str) -> None:
        print(f"[{self.part} {time.monotonic() - self.started:4.0f} s] {text}", flush=True)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of one call, until the device is done."""
        self.sync()
        start = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - start

    def seconds(self, work: Callable[[], Any]) -> float:
        """The median of some calls, after one that does not count."""
        work()
        return statistics.median(self.once(work) for _ in range(self.repeats))

    def begin_peak(self) -> None:
        if self.cuda:
            self.sync()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self, above: int = 0) -> float | None:
        """GiB that torch has held at once since `begin_peak`, above that many bytes; None on a CPU, where it does not
        count them.
        """
        if not self.cuda:
            return None
        self.sync()
        return (torch.cuda.max_memory_allocated(self.device) - above) / GIB

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.cuda else 0

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def profile(self, title: str, work: Callable[[], Any]) -> None:
        """Write torch's table of the operations that take longest, if there is time and a profiler."""
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.cuda else [])
        try:
            if self.late:
                raise SkippedError("out of time")
            with profile(activities=activities) as profiled:
                self.once(work)
        except (SkippedError, RuntimeError) as error:
            self.say(f"not profiled: {title}: {str(error).strip().partition(chr(10))[0]}")
            return
        by = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        table = profiled.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60)
        self.results.text(self.part, title, table)
        self.say(f"profiled: {title}")


def machine_facts(device: torch.device, size: str, command: str) -> dict[str, str]:
    facts = {
        "chip": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "size": size,
        "command": command,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = f"{properties.total_memory / GIB:.0f} GiB"
        facts |= {"chip": properties.name, "memory": memory, "cuda": str(torch.version.cuda), "driver": _driver()}
    return facts


def _driver() -> str:
    """The driver's version, by nvidia-smi; empty if that is not there."""
    import shutil
    import subprocess

    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    return found.stdout.partition("\n")[0].strip()
