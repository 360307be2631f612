"""A run's folder and its live view: config.yaml, run.json, metrics.jsonl, timeline.jsonl, rollouts.jsonl."""

import json
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator

from vold_trainer.config import RunConfig, dump
from vold_trainer.files import finite, read_json_lines, write_json, write_lines
from vold_trainer.runs import trackers
from vold_trainer.terminal import console


class RunFolder:
    """Writes a run's files. On every rank but the first it writes nothing. Of a run that is resumed, first: the steps
    that it has done, since: the seconds that they took.
    """

    def __init__(
        self,
        config: RunConfig,
        about: Mapping[str, Any],
        accelerator: Accelerator,
        *,
        resumed: bool,
        first: int = 0,
        since: float = 0.0,
    ) -> None:
        self.path = config.out
        self.writes = accelerator.is_main_process
        self.accelerator = accelerator
        accelerator.wait_for_everyone()
        self.clock = time.monotonic() - since
        self._files: dict[str, IO[str]] = {}
        self._mode = "a" if resumed else "w"
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(dump(config))
            started = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
            write_json(self.path / "run.json", {**about, **started})
        trackers.start(accelerator, config.trackers, self.path, _flat(config.model_dump(mode="json")), first)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics, and the numbers among them to the trackers."""
        row = {"step": step, "time": time.monotonic() - self.clock, **values}
        self._write("metrics.jsonl", row)
        self.accelerator.log({key: value for key, value in values.items() if isinstance(value, int | float)}, step=step)

    def since_start(self, spans: Iterable[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
        """(lane, start, end) on time.monotonic()'s clock as seconds since the run started, which is the same moment in
        every process.
        """
        return [(lane, start - self.clock, end - self.clock) for lane, start, end in spans]

    def spans(self, step: int, spans: Sequence[Iterable[tuple[str, float, float]]]) -> None:
        """What each process did when, seconds since the run started; a lane of the second one is "generate 1"."""
        for rank, own in enumerate(spans):
            for lane, start, end in own:
                name = f"{lane} {rank}" if rank else lane
                self._write("timeline.jsonl", {"step": step, "lane": name, "start": start, "end": end})

    def rollouts(self, rows: Iterable[Mapping[str, Any]]) -> None:
        kept = list(rows)
        for row in kept:
            self._write("rollouts.jsonl", row)
        trackers.log_rollouts(self.accelerator, kept)

    def close(self) -> None:
        """The last thing that a run does: the processes part here."""
        for stream in self._files.values():
            stream.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        if name not in self._files:
            self._files[name] = (self.path / name).open(self._mode)
        self._files[name].write(json.dumps(finite(row)) + "\n")
        self._files[name].flush()


def time_so_far(out: Path) -> float:
    """Seconds that a run that is resumed had gone on: its times and its timeline go on from there."""
    times = [row.get("time") for row in read_json_lines(out / "metrics.jsonl")]
    return max((time for time in times if time is not None), default=0.0)


def trim_after(path: Path, step: int) -> None:
    """Drop what a run that is resumed at `step` wrote about later steps, a half-written last line included."""
    for name in ("metrics.jsonl", "timeline.jsonl", "rollouts.jsonl"):
        file = path / name
        if not file.is_file():
            continue
        kept = [row for row in read_json_lines(file) if row.get("step", step + 1) <= step]
        write_lines(file, kept)


class StopSignal:
    """Whether SIGTERM or Ctrl-C asked the run to save and stop. A second Ctrl-C stops at once.

    Handles signals only in the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        console.print("[yellow]saving after this step, then stopping")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names, which is what trackers take."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return out
