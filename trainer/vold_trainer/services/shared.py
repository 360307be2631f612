"""Services for a run of several processes: local services are started once per machine."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from vold_trainer.config import TrainConfig
from vold_trainer.launch import is_local_main_process, machine_rank
from vold_trainer.processes.ranks import Ranks
from vold_trainer.services.opening import Opened, opening
from vold_trainer.sources import load_examples


@contextlib.contextmanager
def shared_opening(ranks: Ranks, config: TrainConfig, opened: Opened | None) -> Iterator[Opened]:
    """The rows and the services for each of several processes. The first process of each machine opens the services for
    that machine, unless it has done so already: `opened`.
    """
    with contextlib.ExitStack() as stack:

        def open_here() -> Opened | None:
            return opened or (stack.enter_context(opening(config)) if is_local_main_process() else None)

        own = ranks.run_on_all(open_here)
        # Only the process that started the children can see them end.
        urls_only = None if own is None else replace(own.services, children={})
        by_machine = ranks.gather((machine_rank(), urls_only))
        sets = ranks.run_on_all(lambda: own.sets if own is not None else (load_examples(config.data),))
        yield own or Opened(
            sets,
            next(services for machine, services in by_machine if machine == machine_rank() and services is not None),
        )
