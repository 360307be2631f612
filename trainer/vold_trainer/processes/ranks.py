"""The processes of a run: who of them does what, and how they stay together.

One process is the ordinary case, and then everything here costs nothing. Started by `accelerate launch` or `torchrun`
there are several, each with a device of its own. Each draws, scores and learns its own share of a step; what all of
them have to agree on is gathered here, over a group of its own on the CPU, which may wait as long as a slow service
takes. Between processes of one run objects travel pickled.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from vold_client import VoldError

from vold_trainer.errors import RunError, RunToldElsewhereError, ToldElsewhereError, UsageError, VoldTrainerError
from vold_trainer.terminal import quiet

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=1)
"""For the processes' agreements: one may be waiting for a service, or write a checkpoint, for a long time."""


def make_accelerator(**options: Any) -> Accelerator:
    """accelerate's side of a run, in as many processes as were launched; on the CPU where there is no device."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # which are constants
        **options,
    )


class Ranks:
    """The processes of a run, seen from this one: `rank` of `size`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.size = accelerator.num_processes
        if not self.first:
            quiet()
            logging.getLogger().setLevel(logging.ERROR)
        self.group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if self.size > 1 else None

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of `count` things: contiguous, and at most one more than another's."""
        return share(count, self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank. Waits for all."""
        if self.group is None:
            return [value]
        everyone: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(everyone, value, group=self.group)
        except RuntimeError as error:  # of gloo, where the other end is gone
            gone = f"another process of the run has ended: {error}"
            raise (VoldTrainerError if self.first else ToldElsewhereError)(gone) from error
        return everyone

    def sum(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes, by name, of those that have the name."""
        total: dict[str, float] = {}
        for part in self.gather(dict(figures)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of them."""
        return any(self.gather(flag))

    def same(self, value: object, otherwise: str) -> None:
        """Raise RunError `otherwise` where the processes differ in it."""
        values = self.gather(value)
        self.together(lambda: None if all(one == values[0] for one in values) else _fail(otherwise))

    def check(self, count: int, key: str) -> None:
        """Raise UsageError where there are more processes than what `key` deals out to them."""
        if count < self.size:
            self.together(lambda: _refuse(f"{key} is {count}, fewer than the {self.size} processes: raise it"))

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)

    def together(self, work: Callable[[], T]) -> T:
        """Do this on every process; where one fails, all do, and the first one says why.

        `work` must not wait for another process itself: one that has failed would never answer.
        """
        if self.group is None:
            return work()
        value, failed = None, None
        try:
            value = work()
        except Exception as error:
            failed = error
        told = self.gather(None if failed is None else (_told(failed), isinstance(failed, RunError)))
        found = next(((rank, *said) for rank, said in enumerate(told) if said is not None), None)
        if found is None:
            return value  # type: ignore[return-value]
        if failed is not None and (self.first or not isinstance(failed, VoldTrainerError | VoldError)):
            raise failed
        rank, message, ends_run = found
        if self.first:
            raise (RunError if ends_run else VoldTrainerError)(f"process {rank} of {self.size}: {message}")
        raise (RunToldElsewhereError if ends_run else ToldElsewhereError)(message) from failed


def share(count: int, rank: int, size: int) -> range:
    """The part of range(count) that rank `rank` of `size` takes."""
    least, more = divmod(count, size)
    start = rank * least + min(rank, more)
    return range(start, start + least + (rank < more))


def _fail(message: str) -> None:
    raise RunError(message)


def _refuse(message: str) -> None:
    raise UsageError(message)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, VoldTrainerError | VoldError) else f"{type(error).__name__}: {error}"
