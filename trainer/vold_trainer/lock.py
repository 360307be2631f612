"""What a command writes belongs to one process at a time: a second run into the same folder would mix its lines and its
checkpoints with the first one's.

    @holds_out("run")
    def run_train(config: TrainConfig) -> Path: ...

The lock is the kernel's (flock) on a file beside what is written, so it ends with the process that holds it, also by
kill -9. The file names the process; it is removed when the command ends, and one that a killed process left is taken
over. Of several processes of a launch only the main one writes, and only it takes the lock. A file system without
locks, or one that cannot be written to, gets a warning, and the command goes on.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

from vold_trainer.errors import UsageError
from vold_trainer.launch import is_main_process

log = logging.getLogger("vold.runs")

Kind = Literal["run", "eval", "traces"]
"""What is written: a run's folder; an evaluation's, which may be that of a run that goes on; or a file of traces."""

MAX_OWNER_BYTES = 1000


class HasOut(Protocol):
    out: Path


P = ParamSpec("P")
T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=HasOut)
Command = Callable[Concatenate[ConfigT, P], T]


def holds_out(kind: Kind) -> Callable[[Command[ConfigT, P, T]], Command[ConfigT, P, T]]:
    """Hold the lock of `config.out` while the function runs. It raises UsageError if another process holds the lock."""

    def decorate(run: Command[ConfigT, P, T]) -> Command[ConfigT, P, T]:
        @functools.wraps(run)
        def held(config: ConfigT, *args: P.args, **options: P.kwargs) -> T:
            with holding(config.out, kind):
                return run(config, *args, **options)

        return held

    return decorate


def check_free(out: Path, kind: Kind) -> None:
    """Raise UsageError if another process holds the lock of `out`. Leaves no trace."""
    if _lock_file(out, kind).parent.is_dir():
        with holding(out, kind):
            pass


@contextlib.contextmanager
def holding(out: Path, kind: Kind) -> Iterator[None]:
    """Hold the lock of `out`. Raises UsageError if another process holds it."""
    file = _lock_file(out, kind)
    if not is_main_process():
        yield
        return
    new_folder = not file.parent.exists()
    try:
        descriptor = _acquire(file)
    except BlockingIOError as error:
        raise UsageError(
            f"out {str(out)!r} is in use{_owner(file)}: wait until it ends, stop it, or set another out"
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): nothing keeps another process from writing there too", file, error)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # before the lock ends, so that nobody else's file is removed
        os.close(descriptor)
        if new_folder:
            with contextlib.suppress(OSError):  # something was written into it
                file.parent.rmdir()


@contextlib.contextmanager
def waiting_for(file: Path, on_wait: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock `file`, once no other process does; yields whether it is held. on_wait: told of the other process.

    A file system without locks, or one that cannot be written to, has none.
    """
    try:
        try:
            descriptor = _acquire(file)
        except BlockingIOError:
            on_wait(_owner(file))
            descriptor = _acquire(file, wait=True)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(descriptor)


def _lock_file(out: Path, kind: Kind) -> Path:
    return out.with_name(f".{out.name}.lock") if kind == "traces" else out / f".{kind}.lock"


def _acquire(file: Path, *, wait: bool = False) -> int:
    """The descriptor of the locked file. Raises BlockingIOError if another process holds the lock, unless it waits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still(descriptor, file):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, _describe_self(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has removed it meanwhile


def _is_still(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _describe_self() -> bytes:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _owner(file: Path) -> str:
    """Who holds the lock, in words; empty if the file does not say."""
    try:
        owner = json.loads(file.read_bytes()[:MAX_OWNER_BYTES])
        return f" by process {int(owner['process'])} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
