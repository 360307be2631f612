"""A run's folder: config.yaml, run.json, metrics.jsonl, timeline.jsonl, rollouts.jsonl; and its stop signal."""

import json
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator

from vold_trainer.config import RunConfig, dump
from vold_trainer.config.resuming import Change
from vold_trainer.errors import UsageError
from vold_trainer.files import read_json_lines, replace_non_finite, write_json, write_lines, write_text
from vold_trainer.runs import trackers
from vold_trainer.terminal import console


class RunFolder:
    """Writes the files of a run, on the main process only.

    about: for run.json. For a resumed run, steps_done: the steps so far, elapsed: the seconds that they took, history:
    what has changed in its config, as Saver.history.
    """

    def __init__(
        self,
        config: RunConfig,
        about: Mapping[str, Any],
        accelerator: Accelerator,
        *,
        resumed: bool,
        steps_done: int = 0,
        elapsed: float = 0.0,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.path = config.out
        self.writes = accelerator.is_main_process
        self.accelerator = accelerator
        accelerator.wait_for_everyone()
        self.started = time.monotonic() - elapsed
        self._files: dict[str, IO[str]] = {}
        self._mode = "a" if resumed else "w"
        if self.writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"out {str(self.path)!r} cannot be made ({error.strerror}): set another out"
                ) from error
            if not resumed or steps_done < config.steps:  # or no step uses this config
                write_text(self.path / "config.yaml", dump(config) + _history_comment(history))
            started = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
            write_json(self.path / "run.json", {**about, **started, **({"changes": list(history)} if history else {})})
        trackers.start(accelerator, config.trackers, self.path, _flatten(config.model_dump(mode="json")), steps_done)

    def write_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a line of metrics, and send the numbers among them to the trackers."""
        row = {"step": step, "time": time.monotonic() - self.started, **values}
        self._write("metrics.jsonl", row)
        self.accelerator.log({key: value for key, value in values.items() if isinstance(value, int | float)}, step=step)

    def relative_to_start(self, spans: Iterable[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
        """Convert (lane, start, end) from time.monotonic() to seconds since the run started.

        The start is the same moment on every process.
        """
        return [(lane, start - self.started, end - self.started) for lane, start, end in spans]

    def write_spans(self, step: int, spans_by_rank: Sequence[Iterable[tuple[str, float, float]]]) -> None:
        """Write the spans of each process, seconds since the run started. Lanes of rank 1 are named "generate 1"."""
        for rank, spans in enumerate(spans_by_rank):
            for lane, start, end in spans:
                name = f"{lane} {rank}" if rank else lane
                self._write("timeline.jsonl", {"step": step, "lane": name, "start": start, "end": end})

    def write_rollouts(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write sample rollouts, and send them to the trackers."""
        samples = list(rows)
        for row in samples:
            self._write("rollouts.jsonl", row)
        trackers.log_rollouts(self.accelerator, samples)

    def close(self) -> None:
        """Close the files and the trackers, and disconnect the processes. Nothing of the run may follow."""
        for stream in self._files.values():
            stream.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        if name not in self._files:
            self._files[name] = (self.path / name).open(self._mode)
        self._files[name].write(json.dumps(replace_non_finite(row)) + "\n")
        self._files[name].flush()


def change_history(out: Path, step: int) -> list[dict[str, Any]]:
    """What changed in the config when the run was resumed before, up to `step`: after_step, key, before, now."""
    with suppress(OSError, ValueError, AttributeError):
        records = json.loads((out / "run.json").read_text()).get("changes", [])
        return [record for record in records if record["after_step"] <= step]
    return []


def extended(history: Iterable[Mapping[str, Any]], changes: Sequence[Change], step: int) -> list[dict[str, Any]]:
    """The history with the changes after `step`. What was changed twice after the same step is one change, or none:
    no step has used the value in between.
    """
    records: dict[tuple[int, str], dict[str, Any]] = {}
    new = ({"after_step": step, "key": c.key, "before": c.before, "now": c.now} for c in changes)
    for record in (*history, *new):
        place = record["after_step"], record["key"]
        records[place] = {**record, "before": records.get(place, record)["before"]}
    return [record for record in records.values() if record["before"] != record["now"]]


def _history_comment(history: Sequence[Mapping[str, Any]]) -> str:
    """The history as comments at the end of config.yaml, which holds the settings since the last change."""
    lines = [
        f"#   after step {record['after_step']}: {record['key']}: {json.dumps(record['before'])} -> "
        f"{json.dumps(record['now'])}\n"
        for record in history
    ]
    return "".join(["\n# changed when the run was resumed:\n", *lines]) if lines else ""


def elapsed_seconds(out: Path) -> float:
    """The seconds that a resumed run took before; its times and its timeline continue from there."""
    times = [row.get("time") for row in read_json_lines(out / "metrics.jsonl")]
    return max((time for time in times if time is not None), default=0.0)


def trim_after(path: Path, step: int) -> None:
    """Remove the lines about steps after `step`, at which the run resumes, and an incomplete last line."""
    for name in ("metrics.jsonl", "timeline.jsonl", "rollouts.jsonl"):
        file = path / name
        if not file.is_file():
            continue
        rows = [row for row in read_json_lines(file) if row.get("step", step + 1) <= step]
        write_lines(file, rows)


class StopSignal:
    """Records whether SIGTERM or Ctrl-C has asked the run to save and stop. A second Ctrl-C stops the run at once.

    Handles signals only in the main thread. notice: what is printed at the first.
    """

    def __init__(self, notice: str = "saving after this step, then stopping") -> None:
        self.requested = False
        self.notice = notice
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
        console.print(f"[yellow]{self.notice}")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, as trackers require."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return out
