"""Services by URL. `local:` starts a service as a child process on a Unix socket, with the same protocol.

with open_services(teacher=config.teacher, verifier=config.verifier) as services: ...
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vold_client import (
    AsyncTeacherClient,
    AsyncVerifierClient,
    KeySource,
    NotFound,
    PermissionDenied,
    Throttled,
    Tls,
    Unauthenticated,
)

from vold_trainer.child import child_process
from vold_trainer.config import SINGLE_TEACHER, ScoringModelConfig, TlsConfig, VerifierConfig, teacher_key
from vold_trainer.errors import UsageError
from vold_trainer.services.keys import api_key, describe_key
from vold_trainer.services.outages import Outages
from vold_trainer.services.readiness import Readiness
from vold_trainer.services.throttling import Throttling
from vold_trainer.sources.check import check_service_urls, listed_urls, local_model
from vold_trainer.tasks import ClientTasks

RETRIES = 4
"""How often a client repeats a call while the service is unavailable or full, before it raises the error."""

START_SECONDS = 180.0
"""Seconds until a service that this process starts has to be ready."""

_SHARED_SERVICE_VARIABLES = {"VOLD_API_KEYS"} | {
    prefix + name
    for prefix in ("VOLD_TEACHER_", "VOLD_")
    for name in ("API_KEYS_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA")
}

_LAUNCH_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Services:
    """The URLs of the services of a run; empty if the run does not use that service.

    teacher_urls: replicas of the only teacher. teachers: replicas of each of several teachers, by name. children: the
    services that this process started, by URL.
    """

    teacher_urls: tuple[str, ...] = ()
    verifier_urls: tuple[str, ...] = ()
    teachers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    children: Mapping[str, "ChildService"] = field(default_factory=dict)

    def why_ended(self, urls: Sequence[str]) -> str:
        """Say how the services at these URLs ended, if this process started all of them and all have ended; else ""."""
        reports = [self.children[url].exit_report() if url in self.children else "" for url in urls]
        return "; ".join(reports) if reports and all(reports) else ""

    def check_started(self) -> None:
        """Raise UsageError if a service that this process started has ended."""
        for child in self.children.values():
            if report := child.exit_report(" before it was ready"):
                raise UsageError(report)

    def __reduce__(self) -> tuple[type["Services"], tuple[Any, ...]]:
        """Pickle only the URLs: only the process that started a child can watch it."""
        return Services, (self.teacher_urls, self.verifier_urls, dict(self.teachers))


@dataclass(frozen=True)
class ChildService:
    """A service that this process started. url: as in the config."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def exit_report(self, when: str = "") -> str:
        """Say how the service ended, with the last lines of its log; "" while the service runs."""
        if self.process.poll() is None:
            return ""
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        return f"{self.url!r} ended with status {self.process.returncode}{when}:\n{tail}"


@contextlib.contextmanager
def open_services(
    *,
    teacher: ScoringModelConfig | None = None,
    verifier: VerifierConfig | None = None,
    teachers: Mapping[str, ScoringModelConfig] | None = None,
    patience: float = 20.0,
    check_verifier: Callable[[Services], None] = lambda services: None,
) -> Iterator[Services]:
    """Start the local services, wait until all services are ready, and stop the local ones on leaving.

    patience: seconds within which the remote services have to be ready; the local ones have START_SECONDS from the same
    moment on. check_verifier: called when the verifier is ready, before a local teacher, which loads its weights, is
    waited for. Raises UsageError with the URL if a service does not become ready.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vold-")))
        children: dict[str, ChildService] = {}

        def resolve(urls: str | list[str], service: str, key: str) -> tuple[str, ...]:
            return tuple(
                _start_local(url, service, key, folder, children, stack) if url.startswith("local:") else url
                for url in listed_urls(urls)
            )

        configs = {SINGLE_TEACHER: teacher} if teacher is not None else dict(teachers or {})
        keys = {name: teacher_key(name) for name in configs}
        for name, config in configs.items():
            check_service_urls(config.url, f"{keys[name]}.url", teacher=True)
        if verifier is not None:
            check_service_urls(verifier.url, "verifier.url")
        sources = {name: api_key(config, keys[name]) for name, config in configs.items()}
        verifier_source = api_key(verifier, "verifier") if verifier is not None else None
        urls = {name: resolve(config.url, "teacher", keys[name]) for name, config in configs.items()}
        verifier_urls = resolve(verifier.url, "verifier", "verifier") if verifier is not None else ()
        opened = Services(urls.get(SINGLE_TEACHER, ()), verifier_urls, urls, children)
        readiness = Readiness(
            patience=patience,
            local_seconds=START_SECONDS,
            children={socket: child.url for socket, child in children.items()},
            check_children=opened.check_started,
        )
        timeout = max(patience, 1.0)

        async def probe_teacher(name: str) -> None:
            config, source = configs[name], sources[name]
            tls = client_tls(config.tls, urls[name])
            async with AsyncTeacherClient(
                list(urls[name]), timeout=timeout, api_key=source, tls=tls, model=config.model
            ) as client:
                await readiness.wait(client, f"{keys[name]}.url")
                await _check_kind_and_key(client.info, "teacher", keys[name], config, source)

        async def probe_verifier(config: VerifierConfig) -> None:
            tls = client_tls(config.tls, verifier_urls)
            async with AsyncVerifierClient(
                list(verifier_urls), timeout=timeout, api_key=verifier_source, tls=tls
            ) as client:
                await readiness.wait(client, "verifier.url")
                await _check_kind_and_key(client.list_verifiers, "verifier", "verifier", config, verifier_source)

        tasks = ClientTasks()
        stack.callback(tasks.close)

        def wait_for_teacher(name: str) -> None:
            tasks.run(probe_teacher(name))

        def wait_for_verifier(config: VerifierConfig) -> None:
            tasks.run(probe_verifier(config))
            check_verifier(opened)

        probes = [] if verifier is None else [(verifier_urls, partial(wait_for_verifier, verifier))]
        probes += [(urls[name], partial(wait_for_teacher, name)) for name in configs]
        # Remote services first, so that a wrong URL shows before a local service has loaded its model.
        for _, probe in sorted(probes, key=lambda each: any(url in children for url in each[0])):
            probe()
        yield opened


def _start_local(
    url: str, service: str, key: str, folder: Path, children: dict[str, ChildService], stack: contextlib.ExitStack
) -> str:
    """Start the service that a `local:` URL names, and add it to `children`. Returns the URL of its socket."""
    socket = f"unix:{folder / f'{service}-{len(children)}.sock'}"
    arguments = ["serve", "--grpc", socket, "--http", "none"]
    environment = local_service_environment()
    if service == "teacher":
        # Half of the cores: two pools of spinning threads on the same cores starve each other.
        threads = max(1, (os.cpu_count() or 2) // 2)
        arguments += ["--model", local_model(url, f"{key}.url"), "--threads", str(threads)]
        if environment.get("VOLD_TEACHER_BACKEND", "torch") == "torch":
            # Which completions share a batch depends on when they end: without this the same seed trains otherwise.
            environment.setdefault("VOLD_TEACHER_BATCH_INVARIANT", "true")
    log = folder / f"{service}-{len(children)}.log"
    process = child_process(f"vold_{service}", arguments, log, environment)
    children[socket] = ChildService(url, stack.enter_context(process), log)
    return socket


def teacher_client(
    config: ScoringModelConfig,
    services: Services,
    run_id: str = "",
    name: str = "",
    outages: Outages | None = None,
    *,
    replica: str = "",
    throttled: Throttled | None = None,
) -> AsyncTeacherClient:
    """A client of the only teacher, or of the teacher or reference `name`. Requests go to the replicas in turn.

    outages: of the run. Calls that the service refuses for now wait, whether or not there is a run; `throttled`, if it
    is given, does so. replica: the URL of the only replica to call, whose other failures are the caller's to repeat.
    """
    urls, key = services.teachers.get(name, services.teacher_urls), teacher_key(name)
    urls = (replica,) if replica else urls
    outages, source = outages or Outages(), api_key(config, key)
    outages.key_origins[key] = partial(describe_key, config, key, source)
    return AsyncTeacherClient(
        list(urls),
        timeout=config.timeout,
        api_key=source,
        tls=client_tls(config.tls, urls),
        run_id=run_id,
        model=config.model,
        throttled=throttled or Throttling(key, urls, outages).wait,
        retries=0 if replica else RETRIES,
    )


def verifier_client(
    config: VerifierConfig, services: Services, run_id: str = "", outages: Outages | None = None
) -> AsyncVerifierClient:
    """A client of the verifier. outages: as for `teacher_client`."""
    outages, source = outages or Outages(), api_key(config, "verifier")
    outages.key_origins["verifier"] = partial(describe_key, config, "verifier", source)
    return AsyncVerifierClient(
        list(services.verifier_urls),
        timeout=config.timeout,
        api_key=source,
        tls=client_tls(config.tls, services.verifier_urls),
        run_id=run_id,
        throttled=Throttling("verifier", services.verifier_urls, outages).wait,
    )


def client_tls(config: TlsConfig, urls: Sequence[str]) -> Tls | None:
    """The certificates; None if all URLs are Unix sockets, which need none."""
    if all(url.startswith("unix:") for url in urls):
        return None
    return Tls(ca=config.ca, cert=config.cert, key=config.key)


def local_service_environment() -> dict[str, str]:
    """The environment of a local service: without the keys and certificates of a shared service, because its socket is
    in a folder that only this user can open; and without the variables of `torchrun`.
    """
    excluded = _SHARED_SERVICE_VARIABLES | _LAUNCH_VARIABLES
    return {name: value for name, value in os.environ.items() if name not in excluded}


async def _check_kind_and_key(
    request: Callable[[], Awaitable[object]],
    kind: str,
    section: str,
    config: ScoringModelConfig | VerifierConfig,
    source: KeySource,
) -> None:
    """Raise UsageError if a service is of another kind or refuses the run's API key. The readiness check is the same
    for all kinds and needs no key, and without this check the run would wait in its first step.
    """
    try:
        await request()
    except NotFound as error:
        raise UsageError(f"{section}.url: a service answers that is no {kind}; give the URL of one. {error}") from error
    except (Unauthenticated, PermissionDenied) as error:
        raise UsageError(f"{section}.url: {error}. {describe_key(config, section, source)}") from error
