"""Services for a run of several processes: what is local is started once a machine."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from vold_trainer.config import TeacherConfig, VerifierConfig
from vold_trainer.launch import first_here, machine
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
    """The same for several processes: the first one of each machine starts what is local, for all of that machine."""
    with contextlib.ExitStack() as stack:
        opening = open_services(teacher=teacher, verifier=verifier, teachers=teachers)
        opened = ranks.together(lambda: stack.enter_context(opening) if first_here() else None)
        told = None if opened is None else replace(opened, children={})  # whose end only the first one can see
        everywhere = ranks.gather((machine(), told))
        yield opened or next(services for where, services in everywhere if where == machine() and services is not None)
