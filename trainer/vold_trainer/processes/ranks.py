"""The processes of a run: the work of each process, and collective operations among them.

With one process, the usual case, everything here returns at once. `accelerate launch` and `torchrun` start several
processes, each with its own device. Each process generates and scores its share of a step's rollouts and computes its
share of the gradient. The collective operations use a process group on the CPU with a long timeout, because a service
may be slow. Objects travel pickled between the processes of a run.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from vold_client import VoldError

from vold_trainer.errors import (
    ReportedElsewhereError,
    RunError,
    RunReportedElsewhereError,
    UsageError,
    VoldTrainerError,
)
from vold_trainer.processes.failure import FailureWatch
from vold_trainer.terminal import silence

T = TypeVar("T")

GROUP_TIMEOUT = timedelta(days=1)
"""Of collective operations: a process may wait for a service, or write a checkpoint, for a long time."""
DEVICE_TIMEOUT = timedelta(hours=1)
"""Of collective operations between the devices, in place of NCCL's ten minutes. Processes enter them together, except
that one with longer completions computes its micro-batches longer. If a process hangs, the others end after this time.
"""


def make_accelerator(**options: Any) -> Accelerator:
    """accelerate's Accelerator for the launched processes, on the CPU if there is no device."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                broadcast_buffers=False, gradient_as_bucket_view=True
            ),  # buffers are constants
            InitProcessGroupKwargs(timeout=DEVICE_TIMEOUT),
        ],
        **options,
    )


class Ranks:
    """The processes of a run; this process has rank `rank` of `size`. Every method that communicates is collective."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.size = accelerator.num_processes
        if not self.is_main:
            silence()
            logging.getLogger().setLevel(logging.ERROR)
        self.group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT) if self.size > 1 else None
        self._agreed: Exception | None = None
        self._watch = (
            FailureWatch(dist.distributed_c10d._get_default_store(), self.rank) if self.group is not None else None
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which prints and writes files for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The indices of `count` items that this process takes."""
        return share(count, self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:  # from gloo, if another process is gone
            message = f"another process of the run has ended: {error}"
            raise (VoldTrainerError if self.is_main else ReportedElsewhereError)(message) from error
        return values

    def sum(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Sum each figure over the processes that have it."""
        total: dict[str, float] = {}
        for part in self.gather(dict(figures)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process."""
        return any(self.gather(flag))

    def require_same(self, value: object, message: str) -> None:
        """Raise RunError with `message` if `value` differs between processes."""
        values = self.gather(value)
        self.run_on_all(lambda: None if all(other == values[0] for other in values) else _raise_run_error(message))

    def require_one_each(self, count: int, key: str) -> None:
        """Raise UsageError if `count`, the value of the config key `key`, is less than one per process."""
        if count < self.size:
            self.run_on_all(
                lambda: _raise_usage_error(f"{key} is {count}, fewer than the {self.size} processes: raise it")
            )

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        self.gather(None)

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Run `work` on every process. If it fails on one process, raise on all; the main process reports the error.

        `work` must not wait for another process: a process that has failed would never answer.
        """
        if self.group is None:
            return work()
        value, failure = None, None
        try:
            value = work()
        except Exception as error:
            failure = error
        failures = self.gather(None if failure is None else (_message(failure), isinstance(failure, RunError)))
        first_failure = next(((rank, *failed) for rank, failed in enumerate(failures) if failed is not None), None)
        if first_failure is None:
            return value  # type: ignore[return-value]
        rank, message, ends_run = first_failure
        if failure is not None and (self.is_main or not isinstance(failure, VoldTrainerError | VoldError)):
            self._agreed = failure
        elif self.is_main:
            self._agreed = (RunError if ends_run else VoldTrainerError)(f"process {rank} of {self.size}: {message}")
        else:
            self._agreed = (RunReportedElsewhereError if ends_run else ReportedElsewhereError)(message)
        raise self._agreed from (None if self._agreed is failure else failure)

    def all_have(self, error: BaseException) -> bool:
        """Whether all processes have failed together with `error`, so that they can still act together."""
        return self.size == 1 or (self._agreed is not None and self._agreed in (error, error.__cause__))

    def announce_failure(self, error: BaseException) -> None:
        """Tell the other processes that this one has failed by itself and will not join them again: they end within
        AGREEMENT_SECONDS.
        """
        if self._watch is not None:
            self._watch.announce(f"process {self.rank} of {self.size}: {_message(error)}")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, this process acts without the others, which are gone."""
        group, self.group = self.group, None
        try:
            yield
        finally:
            self.group = group

    def close(self) -> None:
        """Stop looking for failures of other processes, at the end of the run."""
        if self._watch is not None:
            self._watch.close()


def share(count: int, rank: int, size: int) -> range:
    """The contiguous part of range(count) that rank `rank` of `size` takes; the parts differ by at most one item."""
    quotient, remainder = divmod(count, size)
    start = rank * quotient + min(rank, remainder)
    return range(start, start + quotient + (rank < remainder))


def _raise_run_error(message: str) -> None:
    raise RunError(message)


def _raise_usage_error(message: str) -> None:
    raise UsageError(message)


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, VoldTrainerError | VoldError) else f"{type(error).__name__}: {error}"
