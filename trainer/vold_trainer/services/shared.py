"""Services for a run of several processes: local services are started once per machine."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from vold_trainer.config import TeacherConfig, VerifierConfig
from vold_trainer.launch import is_local_main_process, machine_rank
from vold_trainer.processes.ranks import Ranks
from vold_trainer.services.local import Services, open_services


@contextlib.contextmanager
def shared_services(
    ranks: Ranks,
    *,
    teacher: TeacherConfig | None = None,
    verifier: VerifierConfig | None = None,
    teachers: Mapping[str, TeacherConfig] | None = None,
) -> Iterator[Services]:
    """Open services for several processes: the first process of each machine starts the local ones for that machine."""
    with contextlib.ExitStack() as stack:
        opening = open_services(teacher=teacher, verifier=verifier, teachers=teachers)
        opened = ranks.run_on_all(lambda: stack.enter_context(opening) if is_local_main_process() else None)
        # Only the process that started the children can see them end.
        urls_only = None if opened is None else replace(opened, children={})
        by_machine = ranks.gather((machine_rank(), urls_only))
        yield opened or next(
            services for machine, services in by_machine if machine == machine_rank() and services is not None
        )
