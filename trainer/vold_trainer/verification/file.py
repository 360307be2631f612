"""`vold verify`: send the completions of a file to the verifier; write the verdicts in order, in bounded memory."""

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
from vold_client import AsyncVerifierClient, InvalidArgument, Item, Verdict, VoldError

from vold_trainer import terminal
from vold_trainer.config import VerifierConfig
from vold_trainer.data.json_array import holds_array
from vold_trainer.data.jsonl import decoded_lines
from vold_trainer.errors import UsageError
from vold_trainer.sentences import Sentences
from vold_trainer.services.local import Services, open_services, verifier_client
from vold_trainer.services.verifiers import Trial, check_verifier
from vold_trainer.verification.lines import Line, LineParser, error_message, is_broken_line, output_row

BATCH_LINES, BATCH_BYTES, MAX_PENDING_BATCHES = 256, 4 << 20, 4
MAX_PRINTED_ERRORS, MAX_PRINTED_CHARS = 10, 600
BINARY_FORMS = {b"PAR1": "Parquet", b"\x1f\x8b": "compressed by gzip", b"(\xb5/\xfd": "compressed by Zstandard"}
"""First bytes of files that are often given for JSONL, and what such a file is."""
TIMEOUT_SECONDS = 3600.0
"""The deadline of one batch; the service's own time limit per item is much shorter."""

VerifiedLines = list[tuple[Line, Verdict | None]]
"""The lines of a batch with their verdicts; None for a line that could not be sent."""


@dataclass
class Summary:
    """The counts and mean rewards of the lines written so far, by verifier.

    lines_by_verifier: lines. outcomes: lines by verifier and outcome ("correct", "wrong", "error"). rewards: sums.
    broken_lines: how many lines are invalid. errors: the messages of the first of them. failures: how many other lines
    have no verdict, by class of error. sentences: what the verifier says about these.
    """

    lines: int = 0
    lines_by_verifier: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    rewards: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: list[str] = field(default_factory=list)
    broken_lines: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    sentences: Sentences = field(default_factory=Sentences)
    started: float = field(default_factory=time.monotonic)

    def add(self, line: Line, verdict: Verdict | None) -> None:
        self.lines += 1
        name = line.item.verifier if line.item is not None else "(broken lines)"
        self.lines_by_verifier[name] += 1
        if is_broken_line(verdict):
            self.broken_lines += 1
            if len(self.errors) < MAX_PRINTED_ERRORS:
                self.errors.append(str(error_message(line, verdict)))
        elif verdict is not None and verdict.error is not None:
            reason = type(verdict.error).__name__
            self.failures[reason] += 1
            self.sentences.add(reason, str(line.id), error_message(line, verdict))
        if verdict is None or verdict.error is not None:
            self.outcomes[name, "error"] += 1
            return
        self.outcomes[name, "correct" if verdict.correct else "wrong"] += 1
        self.rewards[name] += verdict.reward or 0.0

    def table(self) -> Table:
        seconds = time.monotonic() - self.started
        rate = f"{self.lines:,} lines, {seconds:.1f} s, {self.lines / max(seconds, 1e-9):,.0f} a second"
        table = Table("verifier", "lines", "correct", "wrong", "errors", "accuracy", "mean reward", title=rate)
        for name, count in sorted(self.lines_by_verifier.items()):
            correct, wrong, error = (self.outcomes[name, outcome] for outcome in ("correct", "wrong", "error"))
            verified = correct + wrong
            accuracy = f"{correct / verified:.1%}" if verified else "-"
            mean = f"{self.rewards[name] / verified:.3f}" if verified else "-"
            table.add_row(name, f"{count:,}", f"{correct:,}", f"{wrong:,}", f"{error:,}", accuracy, mean)
        return table


def run_verify(path: str, out: str, config: VerifierConfig, *, explain: str | None = None) -> int:
    """Verify every line of `path` ("-": stdin) and write the verdicts to `out` ("-": stdout). Progress and the summary
    go to stderr. Returns the exit status: 1 if a line is broken or the service fails, 130 if interrupted; the verdicts
    received before that are written.

    explain: verify the line with this id alone, and print its verdict instead of writing `out`.
    Raises UsageError if a file cannot be used, VoldError if the service cannot be reached.
    """
    console = terminal.console
    with ExitStack() as stack:
        source = _open_input(stack, path)
        _check_form(source, path)
        if explain is None and path != "-" and out != "-" and Path(out).exists() and os.path.samefile(path, out):
            raise UsageError(f"-o {out!r} is the input: name another file")
        services = stack.enter_context(open_services(verifier=config))
        if config.name != VerifierConfig().name:  # a server without that may have the verifiers that the lines name
            check_verifier(config, services, [Trial(Item(config.name, "", ""), "--verifier")])
        if explain is not None:
            return asyncio.run(_explain(source, config, services, explain))
        target = _open_output(stack, out)
        progress, task = _make_progress(console, source)
        summary, stop_reason, status = Summary(), "", 0

        def write(verified: VerifiedLines) -> None:
            for line, verdict in verified:
                target.write(json.dumps(output_row(line, verdict), ensure_ascii=False) + "\n")
                summary.add(line, verdict)
            target.flush()
            progress.update(task, completed=verified[-1][0].end_offset, lines=f"{summary.lines:,}")

        with progress:
            try:
                asyncio.run(_verify_file(source, config, services, write))
            except KeyboardInterrupt:
                stop_reason, status = "interrupted", 130
            except VoldError as error:
                stop_reason, status = str(error), 1
    _print_summary(console, summary, stop_reason)
    return status or (1 if summary.broken_lines else 0)


def _print_summary(console: Console, summary: Summary, stop_reason: str) -> None:
    console.print(summary.table())
    for error in summary.errors:
        console.print(f"[red]error:[/] {escape(error)}", highlight=False, soft_wrap=True)
    if summary.broken_lines > len(summary.errors):
        more = summary.broken_lines - len(summary.errors)
        console.print(f"[red]error:[/] {more:,} more broken lines; each output line holds its error")
    for failure in summary.sentences.lines(summary.failures):
        console.print(f"[yellow]no verdict:[/] {escape(failure)}", highlight=False, soft_wrap=True)
    if stop_reason:
        console.print(
            f"[red]error:[/] {escape(stop_reason)}; the first {summary.lines:,} lines are verified and written",
            highlight=False,
            soft_wrap=True,
        )


def _open_input(stack: ExitStack, path: str) -> IO[bytes]:
    try:
        # Using or closing sys.stdin's buffer would wait for the thread that blocks on input.
        return open(0, "rb", closefd=False) if path == "-" else stack.enter_context(open(path, "rb"))
    except OSError as error:
        raise UsageError(f"cannot read {path!r}: {error.strerror}") from error


def _check_form(source: IO[bytes], path: str) -> None:
    """Raise UsageError for a file whose lines are no lines of JSONL. A pipe is not looked into."""
    if not S_ISREG(os.fstat(source.fileno()).st_mode):
        return
    first = os.pread(source.fileno(), 4, 0)
    form = next((form for mark, form in BINARY_FORMS.items() if first.startswith(mark)), "")
    if path.endswith(".json") and holds_array(Path(path)):
        form = "one array of JSON"
    if form:
        raise UsageError(f"{path!r} is {form}, and `vold verify` reads JSONL, an object in each line: convert it")


def _open_output(stack: ExitStack, out: str) -> IO[str]:
    if out == "-":
        return sys.stdout
    try:
        return stack.enter_context(open(out, "w", encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {out!r}: {error.strerror}; name another file with -o") from error


def _make_progress(console: Console, source: IO[bytes]) -> tuple[Progress, TaskID]:
    status = os.fstat(source.fileno())
    columns = (TextColumn("{task.fields[lines]} lines"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    return progress, progress.add_task("", total=status.st_size if S_ISREG(status.st_mode) else None, lines="0")


def _read_batches(source: IO[bytes], parser: LineParser) -> Iterator[list[Line]]:
    """The lines of the file in batches of at most BATCH_LINES and about BATCH_BYTES, without blank lines."""
    batch: list[Line] = []
    size = offset = 0
    for number, text in enumerate(decoded_lines(source, parser.file or "the input"), 1):
        offset += len(text)
        if not text.strip():
            continue
        line = parser.parse(text, number)
        line.end_offset = offset
        batch.append(line)
        size += len(text)
        if len(batch) == BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _read_in_thread(source: IO[bytes], parser: LineParser) -> AsyncGenerator[list[Line], None]:
    """Run `_read_batches` in a thread, so that a pipe without input delays neither the verdicts nor Ctrl-C."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[list[Line] | Exception | None] = asyncio.Queue(1)

    def read() -> None:
        def put(batch: list[Line] | Exception | None) -> None:
            asyncio.run_coroutine_threadsafe(queue.put(batch), loop).result()

        with suppress(RuntimeError, CancelledError):  # the loop is closed: the command has ended
            try:
                for batch in _read_batches(source, parser):
                    put(batch)
                put(None)
            except (OSError, UsageError) as error:
                put(error)

    threading.Thread(target=read, daemon=True, name="read-lines").start()
    while (batch := await queue.get()) is not None:
        if isinstance(batch, UsageError):
            raise batch
        if isinstance(batch, Exception):
            raise UsageError(f"cannot read the input further: {batch}") from batch
        yield batch


def _file_name(source: IO[bytes]) -> str:
    """The path of the input as it was given; empty if it is stdin."""
    return "" if isinstance(source.name, int) else str(source.name)


async def _make_parser(client: AsyncVerifierClient, verifier: str, file: str) -> LineParser:
    verifiers = await client.list_verifiers()
    with_options = frozenset(
        info.name for info in verifiers if "options" in info.parameters_schema.get("properties", {})
    )
    return LineParser(verifier, with_options, file)


async def _verify_file(
    source: IO[bytes], config: VerifierConfig, services: Services, write: Callable[[VerifiedLines], None]
) -> None:
    """Verify the file in batches, several at the same time; call `write` for each batch, in the order of the file."""
    async with verifier_client(config, services) as client:
        parser = await _make_parser(client, config.name, _file_name(source))
        pending: asyncio.Queue[asyncio.Task[VerifiedLines] | None] = asyncio.Queue()
        slots = asyncio.Semaphore(MAX_PENDING_BATCHES)

        async def submit_batches() -> None:
            try:
                async with aclosing(_read_in_thread(source, parser)) as batches:
                    async for lines in batches:
                        await slots.acquire()
                        pending.put_nowait(asyncio.create_task(_verify_batch(client, lines)))
            finally:
                pending.put_nowait(None)

        submitter = asyncio.create_task(submit_batches())
        task = None
        try:
            while (task := await pending.get()) is not None:
                write(await asyncio.shield(task))
                task = None
                slots.release()
            await submitter
        finally:
            submitter.cancel()
            await asyncio.gather(submitter, return_exceptions=True)
            unwritten = [task, *(pending.get_nowait() for _ in range(pending.qsize()))]
            await _write_finished_and_cancel([task for task in unwritten if task is not None], write)


async def _write_finished_and_cancel(
    tasks: list[asyncio.Task[VerifiedLines]], write: Callable[[VerifiedLines], None]
) -> None:
    """Write the finished batches up to the first unfinished batch, then cancel the rest."""
    for task in tasks:
        if not task.done() or task.cancelled() or task.exception() is not None:
            break
        write(task.result())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _verify_batch(client: AsyncVerifierClient, lines: list[Line]) -> VerifiedLines:
    """Verify the lines in one request. If the service rejects the request, verify each line in a request of its own."""
    items = [line.item for line in lines if line.item is not None]
    try:
        verdicts = iter(await client.verify(items) if items else [])
    except InvalidArgument as error:
        if len(lines) == 1:
            return [(lines[0], Verdict("", error=error))]
        return [pair for line in lines for pair in await _verify_batch(client, [line])]
    return [(line, next(verdicts) if line.item is not None else None) for line in lines]


async def _explain(source: IO[bytes], config: VerifierConfig, services: Services, line_id: str) -> int:
    async with verifier_client(config, services) as client:
        parser = await _make_parser(client, config.name, _file_name(source))
        for lines in _read_batches(source, parser):
            for line in lines:
                if str(line.id) == line_id:
                    ((_, verdict),) = await _verify_batch(client, [line])
                    _print_verdict(line, verdict)
                    return 1 if is_broken_line(verdict) else 0
    raise UsageError(f"--explain {line_id!r}: no line has this id")


def _print_verdict(line: Line, verdict: Verdict | None) -> None:
    row = output_row(line, verdict)
    fields = {"id": row["id"], "line": line.number}
    if line.item is not None:
        fields |= {"verifier": line.item.verifier, "parameters": dict(line.item.parameters) or "defaults"}
    for name in ("error", "reward", "correct", "reason", "extracted"):
        fields[name] = row[name]
    fields["rule"] = getattr(verdict, "rule", "")
    if line.item is not None:
        fields |= {"reference": line.item.reference, "completion": _shorten(line.item.completion)}
    fields["seconds"] = row["seconds"]
    table = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if value is not None and value != "":
            table.add_row(Text(name, style="bold"), Text(value if isinstance(value, str) else json.dumps(value)))
    Console().print(table)


def _shorten(text: str) -> str:
    return (
        text
        if len(text) <= MAX_PRINTED_CHARS
        else f"({len(text) - MAX_PRINTED_CHARS:,} characters before) {text[-MAX_PRINTED_CHARS:]}"
    )
