"""Services by URL; `local:` starts one as a child process on a Unix socket and talks to it over the same wire.

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

from vold_trainer.child import child
from vold_trainer.config import TeacherConfig, TlsConfig, VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.pocket.shipped import resolve_model

START_SECONDS = 180.0

_OF_SHARED_SERVICES = {"VOLD_API_KEYS"} | {
    prefix + name
    for prefix in ("VOLD_TEACHER_", "VOLD_")
    for name in ("API_KEYS_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA")
}

_OF_A_LAUNCH = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Services:
    """URLs that answer. Empty where the run does not use that service. teachers: of several, by name; teacher_urls are
    those of the only one. children: what was started here, by its URL.
    """

    teacher_urls: tuple[str, ...] = ()
    verifier_urls: tuple[str, ...] = ()
    teachers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    children: Mapping[str, "Child"] = field(default_factory=dict)

    def ended(self, urls: Sequence[str]) -> str:
        """What became of the services at these URLs where all of them were started here and have ended; else ""."""
        fates = [self.children[url].fate() if url in self.children else "" for url in urls]
        return "; ".join(fates) if fates and all(fates) else ""

    def __reduce__(self) -> tuple[type["Services"], tuple[Any, ...]]:
        """In another process they are URLs: only the process that started a child can watch it."""
        return Services, (self.teacher_urls, self.verifier_urls, dict(self.teachers))


@dataclass(frozen=True)
class Child:
    """A service that was started here. url: as the config names it."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def fate(self, when: str = "") -> str:
        """How it ended, with the last lines of its log; "" while it runs."""
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
    """Start what is local, wait until all of it is ready, and stop what was started here on leaving.

    patience: seconds in which a service that was not started here has to say that it is ready. Raises UsageError that
    names the URL where a service does not come up.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vold-")))
        children: dict[str, Child] = {}

        def resolve(urls: str | Sequence[str], what: str, key: str) -> tuple[str, ...]:
            listed = urls.split(",") if isinstance(urls, str) else list(urls)
            resolved = []
            for url in listed:
                url = url.strip()
                if not url.startswith("local:"):
                    resolved.append(url)
                    continue
                socket = folder / f"{what}-{len(children)}.sock"
                arguments = ["serve", "--grpc", f"unix:{socket}", "--http", "none"]
                if what == "teacher":
                    # half the cores: two pools of spinning threads on the same cores starve each other
                    threads = max(1, (os.cpu_count() or 2) // 2)
                    arguments += ["--model", _local_model(url, key), "--threads", str(threads)]
                log = folder / f"{what}-{len(children)}.log"
                process = child(f"vold_{what}", arguments, log, own_environment())
                children[f"unix:{socket}"] = Child(url, stack.enter_context(process), log)
                resolved.append(f"unix:{socket}")
            return tuple(resolved)

        asked = {"": teacher} if teacher is not None else dict(teachers or {})
        keys = {name: f"teachers.{name}" if name else "teacher" for name in asked}
        urls = {name: resolve(config.url, "teacher", keys[name]) for name, config in asked.items()}
        verifier_urls = resolve(verifier.url, "verifier", "verifier") if verifier is not None else ()
        for name, config in asked.items():
            key, tls = _key(config.api_key_env), _tls(config.tls, urls[name])
            with TeacherClient(list(urls[name]), api_key=key, tls=tls, model=config.model) as scorer:
                _wait(scorer, f"{keys[name]}.url", children, patience)
                _check_key(scorer.info, keys[name], config.api_key_env)
        if verifier is not None:
            key, tls = _key(verifier.api_key_env), _tls(verifier.tls, verifier_urls)
            with VerifierClient(list(verifier_urls), api_key=key, tls=tls) as judge:
                _wait(judge, "verifier.url", children, patience)
                _check_key(judge.list_verifiers, "verifier", verifier.api_key_env)
        yield Services(urls.get("", ()), verifier_urls, urls, children)


def teacher_client(config: TeacherConfig, services: Services, run_id: str = "", name: str = "") -> AsyncTeacherClient:
    """A client of the only teacher, or of the one called `name`. Its replicas are asked in turn."""
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
    """The certificates; None where a service that was started here is all there is, which needs none."""
    if all(url.startswith("unix:") for url in urls):
        return None
    return Tls(ca=config.ca, cert=config.cert, key=config.key)


def own_environment() -> dict[str, str]:
    """For a service started here: without the keys and certificates of a shared one, and no part of the processes of a
    launch. Its socket is in a folder that only this user can open.
    """
    return {name: value for name, value in os.environ.items() if name not in _OF_SHARED_SERVICES | _OF_A_LAUNCH}


def _local_model(url: str, key: str) -> str:
    model = url.removeprefix("local:")
    if not model:
        raise UsageError(f"{key}.url 'local:' names no model: write local:PATH, or local:pocket:teacher")
    path = resolve_model(model)
    if not Path(path).is_dir():
        raise UsageError(f"{key}.url {url!r}: there is no model folder {path!r}")
    return path


def _wait(client: TeacherClient | VerifierClient, field: str, children: Mapping[str, Child], patience: float) -> None:
    waited = 0.0
    while True:
        for one in children.values():
            if fate := one.fate(" before it was ready"):
                raise UsageError(fate)
        step = 5.0 if children else patience
        try:
            client.ready(step)
            return
        except VoldError as error:
            waited += step
            if not children or waited >= START_SECONDS:
                raise UsageError(f"{field}: {error}") from error


def _check_key(ask: Callable[[], object], service: str, variable: str) -> None:
    """Learn now, not from the first step's missing scores, that a service does not take the run's key: a service says
    that it is ready to whoever asks.
    """
    try:
        ask()
    except (Unauthenticated, PermissionDenied) as error:
        state = "is set" if os.environ.get(variable) else "is not set"
        raise UsageError(
            f"{service}.url: {error}. The key is taken from the environment variable {variable} "
            f"({service}.api_key_env), which {state}"
        ) from error
