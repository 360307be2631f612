"""The encoded folder of a file of traces: found by what it is of, or made.

A folder's name is a hash of all that its ids follow from: the content of the file and how its rows are read, the
tokenizer, the chat template and the limits of the student. It lies in `FILE.encoded` beside the file, or in a folder
that the config names.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.markup import escape
from vold_packing.marks import media_marks

from vold_trainer.data.files import StoredRow, count_rows, stored_rows
from vold_trainer.data.traces import TraceReader, TraceRules, warn_skipped
from vold_trainer.errors import UsageError
from vold_trainer.lock import waiting_for
from vold_trainer.student.encoded.encoder import EncodedPart, Encoder, Fault
from vold_trainer.student.encoded.files import FORMAT, EncodedTraces, Writer, images_unchanged, is_whole, read_about
from vold_trainer.student.encoded.workers import Workers, WorkersUnavailableError, encoding_workers
from vold_trainer.student.texts import DetachedTexts, Texts
from vold_trainer.student.traces import no_traces, require_traces
from vold_trainer.terminal import ProgressLine, console, progress

PART_ROWS, PART_BYTES = 128, 1 << 18
"""Of a file that are encoded together, at most; a row that is longer is a part of its own."""
WORKERS_FROM = 32 << 20
"""Bytes of a file from which on several processes encode it: they take seconds to start."""
MAX_WORKERS = 64
BLOCK = 4 << 20
PROGRESS_FROM = 4 << 20
"""Bytes of a file from which on progress is shown."""


def encoded_folder(
    path: Path,
    texts: Texts,
    rules: TraceRules,
    *,
    skip_broken: bool = False,
    cache: Path | None = None,
    workers: int | None = None,
) -> Path:
    """The folder with the traces of a file as token ids of a student, which is made if it is not there.

    cache: where such folders are; None: beside the file. workers: processes that encode; None: as many as there are
    cores, for a file that is worth it. Raises UsageError that names file, line and field of a broken row, unless
    skip_broken leaves it out.
    """
    require_traces(path)
    TraceReader(rules)  # a wrong mapping is told before the file is read
    before = path.stat()
    content, lines = _hash_content(path)
    key = {**_key(texts, path, rules), "content": content}
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
    place = cache or path.with_name(f"{path.name}.encoded")
    if _is_usable(place / name, path):
        return _with_faults(place / name, path, rules, skip_broken)
    if not _is_writable(place):
        temporary = _temporary()
        _say(f"{place} cannot be written to: the encoded traces are in {temporary}; traces_cache names another folder")
        place = temporary
    try:
        with waiting_for(place / f".{name}.lock", _say_waiting) as locked:
            if _is_usable(place / name, path):  # another process has made it meanwhile
                return _with_faults(place / name, path, rules, skip_broken)
            for left in place.glob(f"partial-{name}-*") if locked else ():  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            partial = place / f"partial-{name}-{uuid.uuid4().hex[:12]}"
            try:
                with Writer(partial) as writer:
                    faults = _encode(writer, path, texts, rules, lines, skip_broken, workers)
                    after = path.stat()
                    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                        raise UsageError(
                            f"traces {str(path)!r} was written to while it was read: wait until it is whole"
                        )
                    if not _is_usable(place / name, path):  # without locks, another process may have made it
                        writer.finish(place / name, path, key, faults)
            except OSError as error:
                if not _is_usable(place / name, path):
                    raise _no_room(place, error) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        with suppress(OSError):  # there is something in it
            place.rmdir()
    return place / name


def _no_room(place: Path, error: OSError) -> UsageError:
    return UsageError(
        f"the encoded traces cannot be written to {str(place)!r} ({error.strerror or error}): set traces_cache to a "
        "folder with room for 4 bytes a token, and the prompts"
    )


def _say_waiting(owner: str) -> None:
    _say(f"waiting for the traces, which are being encoded{owner}")


def _encode(
    writer: Writer, path: Path, texts: Texts, rules: TraceRules, lines: int, skip_broken: bool, workers: int | None
) -> list[Fault]:
    """Encode the file. Returns its broken rows."""
    reader, faults, done = TraceReader(rules), list[Fault](), 0
    size = path.stat().st_size
    count = workers if workers is not None else _workers(size)
    shown = progress(f"encoding {path.name}", max(1, count_rows(path, lines))) if size >= PROGRESS_FROM else None
    with ExitStack() as stack:
        live: ProgressLine | None = stack.enter_context(shown) if shown is not None else None
        parts = _parts(path, reader)
        for part in stack.enter_context(_encoded(parts, texts, path, rules, count)):
            reader.seen |= dict.fromkeys(part.seen)
            reader.columns.seen |= part.read
            for outcome in part.outcomes:
                if isinstance(outcome, Fault):
                    _meet(outcome, path, reader, skip_broken)
                    faults.append(outcome)
                    continue
                writer.add(outcome)
                if writer.count == rules.limit:
                    return faults
            done += len(part.outcomes)
            if live is not None:
                live.update(done, tokens=f"{writer.tokens:,} tokens")
    reader.check_seen(path)
    if not writer.count:
        raise no_traces(path)
    return faults


@contextmanager
def _encoded(
    parts: Iterator[list[StoredRow]], texts: Texts, path: Path, rules: TraceRules, count: int
) -> Iterator[Iterator[EncodedPart]]:
    """The encoded parts, made by `count` processes, or by this one if it is 0."""
    with ExitStack() as stack:
        pool: Workers | None = None
        if count:
            try:
                pool = stack.enter_context(encoding_workers(DetachedTexts.of(texts), path, rules, count))
            except WorkersUnavailableError as error:
                _say(f"one process encodes the traces, as others cannot have the tokenizer ({error})")
        if pool is None:
            encoder = Encoder(texts, path, rules)
            yield (encoder.encode(part) for part in parts)
            return
        encoded = pool.encode(parts)
        try:
            yield encoded
        finally:
            encoded.close()


def _parts(path: Path, reader: TraceReader) -> Iterator[list[StoredRow]]:
    """The rows of the file, some together."""
    part, size = list[StoredRow](), 0
    stored = stored_rows(path, reader.columns)
    while True:
        try:
            row = next(stored, None)
        except OSError as error:
            raise UsageError(f"traces {str(path)!r} cannot be read: {error.strerror or error}") from error
        if row is None:
            break
        part.append(row)
        size += len(row[1]) if isinstance(row, tuple) else PART_BYTES // PART_ROWS
        if len(part) == PART_ROWS or size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _with_faults(folder: Path, path: Path, rules: TraceRules, skip_broken: bool) -> Path:
    """The folder, once the broken rows of its file have been said."""
    for fault in EncodedTraces(folder, path).faults:
        _meet(fault, path, TraceReader(rules), skip_broken)
    return folder


def _meet(fault: Fault, path: Path, reader: TraceReader, skip_broken: bool) -> None:
    if not skip_broken:
        raise reader.of_broken_row(fault.text(path))
    warn_skipped(fault.text(path))


def _is_usable(folder: Path, path: Path) -> bool:
    return is_whole(folder) and (not read_about(folder)["images"] or images_unchanged(folder, path))


def _hash_content(path: Path) -> tuple[str, int]:
    """(a hash of the file's content, the number of its lines)."""
    state, lines, done, ends = hashlib.blake2b(digest_size=16), 0, 0, True
    size = path.stat().st_size
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        shown = size >= WORKERS_FROM
        live = stack.enter_context(progress(f"reading {path.name}, MB", max(1, size >> 20))) if shown else None
        while block := file.read(BLOCK):
            state.update(block)
            lines += block.count(b"\n")
            ends = block.endswith(b"\n")
            done += len(block)
            if live is not None:
                live.update(done >> 20)
    return state.hexdigest(), lines + (not ends)


def _key(texts: Texts, path: Path, rules: TraceRules) -> dict[str, Any]:
    """What ids follow from, but for the file's content."""
    return {
        "format": FORMAT,
        "versions": {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers")},
        "rows": [path.suffix, dict(rules.columns or {}), rules.limit],
        "student": texts_fingerprint(texts),
    }


def texts_fingerprint(texts: Texts) -> str:
    """Of all that a student makes ids of texts with: vocabulary, merges and added tokens, marks, template, limits."""
    backend: dict[str, Any] = json.loads(texts.tokenizer.backend_tokenizer.to_str())
    backend |= {"padding": None, "truncation": None}  # transformers sets these with each of its calls
    owners = (texts.processor, texts.tokenizer)
    settings = {
        "class": type(texts.tokenizer).__name__,
        "special": texts.tokenizer.special_tokens_map,
        "spaces": getattr(texts.tokenizer, "clean_up_tokenization_spaces", None),
        "templates": [_plain(getattr(owner, "chat_template", None)) for owner in owners],
        "variables": dict(texts.template_variables),
        "media": sorted(media_marks(*owners)),
        "parts": texts.processor is not texts.tokenizer,
        "ends": texts.eos_ids,
        "vocabulary": texts.vocab_size,
        "positions": texts.max_positions,
    }
    state = hashlib.blake2b(digest_size=16)
    for value in (backend, settings):
        state.update(json.dumps(value, sort_keys=True, default=str).encode())
    return state.hexdigest()


def _plain(template: Any) -> Any:
    return dict(template) if isinstance(template, Mapping) else template


def _workers(size: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS) if size >= WORKERS_FROM and cores > 1 else 0


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in the folder, which is made for it."""
    trial = folder / f".trial-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError:
        return False
    return True


def _temporary() -> Path:
    """This user's own folder among the temporary ones, which nobody else can have written into."""
    folder = Path(tempfile.gettempdir()) / f"vold-traces-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="vold-traces-"))


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
