"""`vold verify`: a file of completions through the verifier service, line by line, in order, in bounded memory."""

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from vold_client import AsyncVerifierClient, InvalidArgument, Verdict, VoldError

from vold_trainer.config import VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.services.local import Services, open_services, verifier_client
from vold_trainer.verification.lines import Line, Reader, is_broken, row_of

BATCH_LINES, BATCH_BYTES, BATCHES_UNDER_WAY = 256, 4 << 20, 4
SHOWN_FAULTS, SHOWN_CHARS = 10, 600
TIMEOUT_SECONDS = 3600.0
"""For one batch; the service's own limits for an item are much shorter."""

Judged = list[tuple[Line, Verdict | None]]


@dataclass
class Tally:
    """What the table at the end shows, by verifier."""

    lines: int = 0
    items: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    rewards: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    faults: list[str] = field(default_factory=list)
    broken: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, line: Line, verdict: Verdict | None) -> None:
        self.lines += 1
        name = line.item.verifier if line.item is not None else "(broken lines)"
        self.items[name] += 1
        if is_broken(verdict):
            self.broken += 1
            if len(self.faults) < SHOWN_FAULTS:
                self.faults.append(str(row_of(line, verdict)["error"]))
        if verdict is None or verdict.error is not None:
            self.outcomes[name, "error"] += 1
            return
        self.outcomes[name, "correct" if verdict.correct else "wrong"] += 1
        self.rewards[name] += verdict.reward or 0.0

    def table(self) -> Table:
        seconds = time.monotonic() - self.began
        rate = f"{self.lines:,} lines, {seconds:.1f} s, {self.lines / max(seconds, 1e-9):,.0f} a second"
        table = Table("verifier", "lines", "correct", "wrong", "errors", "accuracy", "mean reward", title=rate)
        for name, count in sorted(self.items.items()):
            correct, wrong, error = (self.outcomes[name, what] for what in ("correct", "wrong", "error"))
            judged = correct + wrong
            accuracy = f"{correct / judged:.1%}" if judged else "-"
            mean = f"{self.rewards[name] / judged:.3f}" if judged else "-"
            table.add_row(name, f"{count:,}", f"{correct:,}", f"{wrong:,}", f"{error:,}", accuracy, mean)
        return table


def run_verify(path: str, out: str, config: VerifierConfig, *, explain: str | None = None) -> int:
    """Judge every line of `path` ("-": stdin) into `out` ("-": stdout); returns the exit status, 1 where a line was
    broken, 130 where it was interrupted. Progress and the summary go to stderr.

    explain: judge the line with this id alone, and print what was found instead of writing `out`.
    Raises UsageError where a file cannot be used, VoldError where the service fails; what was judged is written.
    """
    console = Console(stderr=True)
    with ExitStack() as stack:
        source = _source(stack, path)
        if explain is None and path != "-" and out != "-" and Path(out).exists() and os.path.samefile(path, out):
            raise UsageError(f"-o {out!r} is the input: name another file")
        services = stack.enter_context(open_services(verifier=config))
        if explain is not None:
            return asyncio.run(_explain(source, config, services, explain))
        target = _target(stack, out)
        progress, task = _progress(console, source)
        tally, stopped, status = Tally(), "", 0

        def write(judged: Judged) -> None:
            for line, verdict in judged:
                target.write(json.dumps(row_of(line, verdict), ensure_ascii=False) + "\n")
                tally.add(line, verdict)
            target.flush()
            progress.update(task, completed=judged[-1][0].taken, lines=f"{tally.lines:,}")

        with progress:
            try:
                asyncio.run(_judge_file(source, config, services, write))
            except KeyboardInterrupt:
                stopped, status = "interrupted", 130
            except VoldError as error:
                stopped, status = str(error), 1
    console.print(tally.table())
    for fault in tally.faults:
        console.print(f"[red]error:[/] {escape(fault)}", highlight=False, soft_wrap=True)
    if tally.broken > len(tally.faults):
        console.print(f"[red]error:[/] {tally.broken - len(tally.faults):,} more; each is in its output line")
    if stopped:
        console.print(
            f"[red]error:[/] {escape(stopped)}; the first {tally.lines:,} lines are judged and written",
            highlight=False,
            soft_wrap=True,
        )
    return status or (1 if tally.broken else 0)


def _source(stack: ExitStack, path: str) -> IO[bytes]:
    try:
        # Not sys.stdin's own buffer, and never closed: either would wait for the thread that waits for input.
        return open(0, "rb", closefd=False) if path == "-" else stack.enter_context(open(path, "rb"))
    except OSError as error:
        raise UsageError(f"cannot read {path!r}: {error.strerror}") from error


def _target(stack: ExitStack, out: str) -> IO[str]:
    if out == "-":
        return sys.stdout
    try:
        return stack.enter_context(open(out, "w", encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {out!r}: {error.strerror}; name another file with -o") from error


def _progress(console: Console, source: IO[bytes]) -> tuple[Progress, TaskID]:
    status = os.fstat(source.fileno())
    columns = (TextColumn("{task.fields[lines]} lines"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    return progress, progress.add_task("", total=status.st_size if S_ISREG(status.st_mode) else None, lines="0")


def _batches(source: IO[bytes], reader: Reader) -> Iterator[list[Line]]:
    """Lines of the file, blank ones left out, some hundreds at a time."""
    batch: list[Line] = []
    size = taken = 0
    for number, text in enumerate(source, 1):
        taken += len(text)
        if not text.strip():
            continue
        line = reader.read(text, number)
        line.taken = taken
        batch.append(line)
        size += len(text)
        if len(batch) == BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _read_aside(source: IO[bytes], reader: Reader) -> AsyncGenerator[list[Line], None]:
    """`_batches` in a thread of its own: a pipe that says nothing holds up neither the verdicts nor Ctrl-C."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[list[Line] | Exception | None] = asyncio.Queue(1)

    def read() -> None:
        def hand_over(batch: list[Line] | Exception | None) -> None:
            asyncio.run_coroutine_threadsafe(queue.put(batch), loop).result()

        with suppress(RuntimeError, CancelledError):  # the loop is closed: nobody wants more
            try:
                for batch in _batches(source, reader):
                    hand_over(batch)
                hand_over(None)
            except OSError as error:
                hand_over(error)

    threading.Thread(target=read, daemon=True, name="read-lines").start()
    while (batch := await queue.get()) is not None:
        if isinstance(batch, Exception):
            raise UsageError(f"cannot read on: {batch}") from batch
        yield batch


async def _reader(client: AsyncVerifierClient, verifier: str) -> Reader:
    known = await client.list_verifiers()
    takes = frozenset(one.name for one in known if "options" in one.parameters_schema.get("properties", {}))
    return Reader(verifier, takes)


async def _judge_file(
    source: IO[bytes], config: VerifierConfig, services: Services, write: Callable[[Judged], None]
) -> None:
    """`write` gets every batch's lines in the order of the file, as soon as those before are written."""
    async with verifier_client(config, services) as client:
        reader = await _reader(client, config.name)
        under_way: asyncio.Queue[asyncio.Task[Judged] | None] = asyncio.Queue()
        room = asyncio.Semaphore(BATCHES_UNDER_WAY)

        async def feed() -> None:
            try:
                async with aclosing(_read_aside(source, reader)) as batches:
                    async for lines in batches:
                        await room.acquire()
                        under_way.put_nowait(asyncio.create_task(_judge(client, lines)))
            finally:
                under_way.put_nowait(None)

        feeder = asyncio.create_task(feed())
        task = None
        try:
            while (task := await under_way.get()) is not None:
                write(await asyncio.shield(task))
                task = None
                room.release()
            await feeder
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
            started = [task, *(under_way.get_nowait() for _ in range(under_way.qsize()))]
            await _give_up([one for one in started if one is not None], write)


async def _give_up(tasks: list[asyncio.Task[Judged]], write: Callable[[Judged], None]) -> None:
    """Write what is judged already, as far as nothing is missing before it, and end the rest."""
    for task in tasks:
        if not task.done() or task.cancelled() or task.exception() is not None:
            break
        write(task.result())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _judge(client: AsyncVerifierClient, lines: list[Line]) -> Judged:
    sendable = [line.item for line in lines if line.item is not None]
    try:
        verdicts = iter(await client.verify(sendable) if sendable else [])
    except InvalidArgument as error:
        if len(lines) == 1:
            return [(lines[0], Verdict("", error=error))]
        return [pair for line in lines for pair in await _judge(client, [line])]
    return [(line, next(verdicts) if line.item is not None else None) for line in lines]


async def _explain(source: IO[bytes], config: VerifierConfig, services: Services, wanted: str) -> int:
    async with verifier_client(config, services) as client:
        reader = await _reader(client, config.name)
        for lines in _batches(source, reader):
            for line in lines:
                if str(line.id) == wanted:
                    ((_, verdict),) = await _judge(client, [line])
                    _show(line, verdict)
                    return 1 if is_broken(verdict) else 0
    raise UsageError(f"--explain {wanted!r}: no line has that id")


def _show(line: Line, verdict: Verdict | None) -> None:
    row = row_of(line, verdict)
    facts = {"id": row["id"], "line": line.number}
    if line.item is not None:
        facts |= {"verifier": line.item.verifier, "parameters": dict(line.item.parameters) or "the defaults"}
    for name in ("error", "reward", "correct", "reason", "extracted"):
        facts[name] = row[name]
    facts["rule"] = getattr(verdict, "rule", "")
    if line.item is not None:
        facts |= {"reference": line.item.reference, "completion": _tail(line.item.completion)}
    facts["seconds"] = row["seconds"]
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None and value != "":
            table.add_row(Text(name, style="bold"), Text(value if isinstance(value, str) else json.dumps(value)))
    Console().print(table)


def _tail(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"({len(text) - SHOWN_CHARS:,} characters more) {text[-SHOWN_CHARS:]}"
