"""Processes that encode parts of a file of traces, each with a tokenizer of its own.

They are programs and no forks: a fork of a process with threads may hang. Each ends when its connection does, which is
when this process ends, however that happens.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

from vold_trainer.data.files import StoredRow
from vold_trainer.data.traces import TraceRules
from vold_trainer.errors import RunError, VoldTrainerError
from vold_trainer.student.encoded.encoder import EncodedPart, Encoder
from vold_trainer.student.texts import Texts

AHEAD = 2
"""Parts that are under way or wait, for each process: what is read and written ahead stays bounded."""

Part = Sequence[StoredRow]


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: "Connection[Any, Any]"


class WorkersUnavailableError(VoldTrainerError):
    """The processes cannot be given the tokenizer."""


@contextlib.contextmanager
def encoding_workers(texts: Texts, path: Path, rules: TraceRules, count: int) -> Iterator["Workers"]:
    """`count` processes that encode for a student. Raises WorkersUnavailableError if its tokenizer does not travel."""
    try:
        setup = pickle.dumps((texts, path, rules))
    except Exception as error:  # whatever a tokenizer's own code raises
        raise WorkersUnavailableError(f"{type(error).__name__}: {error}") from error
    started: list[_Worker] = []
    try:
        for _ in range(count):
            started.append(_start(setup))
        for worker in started:
            _receive(worker, WorkersUnavailableError)
        yield Workers(started)
    finally:
        for worker in started:
            worker.process.kill()
        for worker in started:
            worker.process.wait()
            worker.connection.close()


class Workers:
    """Processes that are ready for parts of a file."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self.workers = workers
        self._free: Queue[_Worker] = Queue()
        for worker in workers:
            self._free.put(worker)

    def encode(self, parts: Iterable[Part]) -> Generator[EncodedPart, None, None]:
        """The parts, encoded, in their order. Reads no further ahead than the processes need.

        Raises RunError if a process fails.
        """
        pending: deque[Future[EncodedPart]] = deque()
        threads = ThreadPoolExecutor(len(self.workers), "vold-encode")  # each waits for one process
        try:
            for part in parts:
                pending.append(threads.submit(self._encode, part))
                if len(pending) >= AHEAD * len(self.workers):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for worker in self.workers if pending else ():  # nobody waits for what they are at
                worker.process.kill()
            threads.shutdown(cancel_futures=True)

    def _encode(self, part: Part) -> EncodedPart:
        worker = self._free.get()
        try:
            worker.connection.send(part)
            encoded: EncodedPart = _receive(worker, RunError)
        except OSError as error:
            raise _ended(worker) from error
        finally:
            self._free.put(worker)  # one that has ended too, so that no thread waits in vain
        return encoded


def _start(setup: bytes) -> _Worker:
    connection, theirs = Pipe()
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "vold_trainer.child", str(os.getpid()), __name__, str(theirs.fileno())]
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
    )
    theirs.close()
    worker = _Worker(process, connection)
    with contextlib.suppress(OSError):  # it has ended: the answer says so
        connection.send_bytes(setup)
    return worker


def _receive(worker: _Worker, failure: type[VoldTrainerError]) -> Any:
    """The worker's next answer."""
    try:
        value, failed = worker.connection.recv()
    except (EOFError, OSError) as error:
        raise _ended(worker) from error
    if failed:
        raise failure(f"a process that encodes traces failed: {failed}")
    return value


def _ended(worker: _Worker) -> RunError:
    status = worker.process.wait()
    why = " (killed: has the machine no memory left?)" if status == -9 else ""
    return RunError(f"a process that encodes traces ended with status {status}{why}")


def _main(descriptor: int) -> None:
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        encoder = Encoder(*pickle.loads(connection.recv_bytes()))  # noqa: S301 - of the process that started this one
    except BaseException as error:
        connection.send((None, f"{type(error).__name__}: {error}"))
        raise
    connection.send((None, ""))
    while True:
        try:
            part = connection.recv()
        except EOFError:
            return
        try:
            connection.send((encoder.encode(part), ""))
        except BaseException as error:  # a tokenizer in Rust may panic
            connection.send((None, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
