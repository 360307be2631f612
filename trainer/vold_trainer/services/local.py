"""Services by URL. `local:` starts a service as a child process on a Unix socket, with the same protocol.

with open_services(teacher=config.teacher, verifier=config.verifier) as services: ...
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vold_client import (
    AsyncTeacherClient,
    AsyncVerifierClient,
    PermissionDenied,
    TeacherClient,
    Tls,
    Unauthenticated,
    VerifierClient,
    VoldError,
)

from vold_trainer.child import child_process
from vold_trainer.config import TeacherConfig, TlsConfig, VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.sources.check import listed_urls, local_model

START_SECONDS = 180.0

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
    teacher: TeacherConfig | None = None,
    verifier: VerifierConfig | None = None,
    teachers: Mapping[str, TeacherConfig] | None = None,
    patience: float = 20.0,
) -> Iterator[Services]:
    """Start the local services, wait until all services are ready, and stop the local ones on leaving.

    patience: seconds within which a remote service has to be ready. Raises UsageError with the URL if a service does
    not become ready.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vold-")))
        children: dict[str, ChildService] = {}

        def resolve(urls: str | list[str], service: str, key: str) -> tuple[str, ...]:
            return tuple(
                _start_local(url, service, key, folder, children, stack) if url.startswith("local:") else url
                for url in listed_urls(urls)
            )

        configs = {"": teacher} if teacher is not None else dict(teachers or {})
        keys = {name: f"teachers.{name}" if name else "teacher" for name in configs}
        urls = {name: resolve(config.url, "teacher", keys[name]) for name, config in configs.items()}
        verifier_urls = resolve(verifier.url, "verifier", "verifier") if verifier is not None else ()
        for name, config in configs.items():
            key, tls = _key(config.api_key_env), _tls(config.tls, urls[name])
            with TeacherClient(list(urls[name]), api_key=key, tls=tls, model=config.model) as teacher_probe:
                _wait_until_ready(teacher_probe, f"{keys[name]}.url", children, patience)
                _check_key(teacher_probe.info, keys[name], config.api_key_env)
        if verifier is not None:
            key, tls = _key(verifier.api_key_env), _tls(verifier.tls, verifier_urls)
            with VerifierClient(list(verifier_urls), api_key=key, tls=tls) as verifier_probe:
                _wait_until_ready(verifier_probe, "verifier.url", children, patience)
                _check_key(verifier_probe.list_verifiers, "verifier", verifier.api_key_env)
        yield Services(urls.get("", ()), verifier_urls, urls, children)


def _start_local(
    url: str, service: str, key: str, folder: Path, children: dict[str, ChildService], stack: contextlib.ExitStack
) -> str:
    """Start the service that a `local:` URL names, and add it to `children`. Returns the URL of its socket."""
    socket = f"unix:{folder / f'{service}-{len(children)}.sock'}"
    arguments = ["serve", "--grpc", socket, "--http", "none"]
    if service == "teacher":
        # Half of the cores: two pools of spinning threads on the same cores starve each other.
        threads = max(1, (os.cpu_count() or 2) // 2)
        arguments += ["--model", local_model(url, f"{key}.url"), "--threads", str(threads)]
    log = folder / f"{service}-{len(children)}.log"
    process = child_process(f"vold_{service}", arguments, log, local_service_environment())
    children[socket] = ChildService(url, stack.enter_context(process), log)
    return socket


def teacher_client(config: TeacherConfig, services: Services, run_id: str = "", name: str = "") -> AsyncTeacherClient:
    """A client of the only teacher, or of the teacher `name`. Requests go to the replicas in turn."""
    urls = services.teachers.get(name, services.teacher_urls)
    return AsyncTeacherClient(
        list(urls),
        timeout=config.timeout,
        api_key=_key(config.api_key_env),
        tls=_tls(config.tls, urls),
        run_id=run_id,
        model=config.model,
    )


def verifier_client(config: VerifierConfig, services: Services, run_id: str = "") -> AsyncVerifierClient:
    return AsyncVerifierClient(
        list(services.verifier_urls),
        timeout=config.timeout,
        api_key=_key(config.api_key_env),
        tls=_tls(config.tls, services.verifier_urls),
        run_id=run_id,
    )


def _key(variable: str) -> str | None:
    return os.environ.get(variable) or None


def _tls(config: TlsConfig, urls: Sequence[str]) -> Tls | None:
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


def _wait_until_ready(
    client: TeacherClient | VerifierClient, field: str, children: Mapping[str, ChildService], patience: float
) -> None:
    waited = 0.0
    while True:
        for child in children.values():
            if report := child.exit_report(" before it was ready"):
                raise UsageError(report)
        timeout = 5.0 if children else patience
        try:
            client.ready(timeout)
            return
        except VoldError as error:
            waited += timeout
            if not children or waited >= START_SECONDS:
                raise UsageError(f"{field}: {error}") from error


def _check_key(request: Callable[[], object], service: str, variable: str) -> None:
    """Raise UsageError if a service rejects the run's API key. The readiness check needs no key, and without this check
    the first step's scores would be missing.
    """
    try:
        request()
    except (Unauthenticated, PermissionDenied) as error:
        state = "is set" if os.environ.get(variable) else "is not set"
        raise UsageError(
            f"{service}.url: {error}. The key is taken from the environment variable {variable} "
            f"({service}.api_key_env), which {state}"
        ) from error
