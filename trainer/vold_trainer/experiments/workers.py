"""Processes that run stages at the same time and share the cores. They end with the command that started them."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess

from vold_trainer.terminal import silence

STOP_SECONDS = 30.0
"""How long a stage has for its checkpoint after the command has ended."""


@contextlib.contextmanager
def worker_processes(number: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """`number` silent processes. An error or a Ctrl-C inside the block stops their stages, which save a checkpoint.

    module: what they import before they are forked. The server from which they are forked imports it once; a fork of
    this process would inherit parts of its gRPC channels.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, "__main__"])
    pool = ProcessPoolExecutor(number, context, initializer=_initialise)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown()


def share_of_threads(number: int) -> int:
    """The threads of each of `number` processes: together no more than there are cores, and at least one each."""
    return max(1, (os.cpu_count() or 1) // number)


def _initialise() -> None:
    """Silence the output of this process, and end the process when its parent ends, even if the parent is killed."""
    silence()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # a stage that trains saves a checkpoint; anything else ends at once
    time.sleep(STOP_SECONDS)
    os._exit(1)
