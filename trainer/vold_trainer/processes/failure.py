"""One process of a run fails by itself: the others must not wait for it for ever.

A process that fails between two agreements (in a backward pass, say) leaves the others in a collective operation that
it will never join. On CPUs they notice when its connections close; on GPUs they would wait for the timeout of the
process group. So it leaves word in the store of the launch, where a thread of every process looks, and a process that
has not ended by itself some time later is ended.
"""

import json
import logging
import os
import threading
from collections.abc import Callable

import torch.distributed as dist

log = logging.getLogger("vold.processes")

AGREEMENT_SECONDS = 60.0
"""Seconds that the processes have to end by themselves after one of them failed: to save, or to stop their services."""

LOOK_SECONDS = 1.0
_KEY = "vold/failed"


def _end_now(message: str) -> None:
    log.critical("%s", message)
    logging.shutdown()
    os._exit(1)


class FailureWatch:
    """Looks for word of another process's failure, on a thread, until `close`.

    end: called with a message if this process is still there AGREEMENT_SECONDS after the word.
    """

    def __init__(self, store: dist.Store, rank: int, *, end: Callable[[str], None] = _end_now) -> None:
        self.store = store
        self.rank = rank
        self.end = end
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="vold-failure", daemon=True)
        self._thread.start()

    def announce(self, message: str) -> None:
        """Leave word that this process has failed by itself, and will end."""
        try:
            self.store.set(_KEY, json.dumps([self.rank, message[:2000]]))
        except RuntimeError as error:  # the process that holds the store is gone: all others see that
            log.debug("cannot leave word: %s", error)

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        try:
            while not self._closed.wait(LOOK_SECONDS):
                if self.store.check([_KEY]):
                    rank, message = json.loads(self.store.get(_KEY))
                    if not self._closed.wait(AGREEMENT_SECONDS):
                        who = "this process" if rank == self.rank else f"process {rank}"
                        self.end(f"{who} has failed ({message}), and the run has not ended since: ending it")
                    return
        except RuntimeError as error:  # the store is gone, and with it the run
            log.debug("no word of failures any more: %s", error)
