"""Why a worker ends, and what that says of the items it had."""

import os
import signal

from vold_verifier.engine.connection import WorkerConnection
from vold_verifier.engine.worker import EXIT_OUT_OF_MEMORY, EXIT_TRIPWIRE

BETWEEN_ITEMS = ("cpu_limit", "recycled", "reclaimed", "forkserver", "tripwire")
"""Reasons why a worker ends for which no item in flight is at fault."""


def ends_at_once(worker: WorkerConnection, reason: str) -> bool:
    """Whether the worker may end before its first result every time: another starts after a delay."""
    return not worker.answered and reason not in ("wall_limit", "cpu_kill", "reclaimed")


def cause_of_exit(status: int | None) -> str:
    """Return the reason that `vold_verifier_worker_restarts` counts. status: None if the fork server ended first."""
    if status is None:
        return "forkserver"
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGVTALRM:
            return "cpu_kill"
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    return {EXIT_OUT_OF_MEMORY: "memory_limit", EXIT_TRIPWIRE: "tripwire"}.get(code, f"exit {code}")
