"""The compose file as its users have it: in a clone, by the commands that they type."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PROFILES = ("other-teacher", "gateway", "observability", "gpu")

SMALL = (
    *("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=32", "data.limit=64", "threads=1"),
    *("student.path=pocket:student", "optim.lr=1e-3", "optim.warmup_steps=0", "diagnostics.every=0"),
)
"""A run of seconds. Each step scores ROLLOUTS completions."""

ROLLOUTS = 16

FIGURES = ("loss", "reward/mean", "teacher/k2", "grad_norm", "length/mean", "staleness")
"""What two runs have alike where they were told the same and answered the same."""


USAGE = """
import json, os, sys, urllib.request as http
request = http.Request(f"http://{sys.argv[1]}:8000/v1/usage", headers={"authorization": "Bearer " + os.environ["KEY"]})
print(http.urlopen(request, timeout=30).read().decode())
"""


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Both outputs in stdout, for messages."""
    return subprocess.run(
        command,
        text=True,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 600, **options},
    )


def docker(*arguments: str) -> str:
    """What the command prints. Raises CalledProcessError."""
    found = subprocess.run(["docker", *arguments], text=True, capture_output=True, check=True, timeout=600)
    return found.stdout.strip()


@cache
def compose_command() -> tuple[str, ...]:
    """Compose v2 where it is there, else docker-compose."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ("docker", "compose", "--ansi=never")
    return ("docker-compose", "--ansi=never")


def until(what: str, found: Callable[[], Any], seconds: float = 120) -> Any:
    """The first true answer. A bound on waiting, not on how fast anything is."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, f"{what}: not in {seconds:g} s"
        time.sleep(0.1)
    return answer


@dataclass
class Project:
    """A clone in `folder`, and the containers of the project `name`.

    runs: the folder that the trainers of `train` write to; a run is a folder in it.
    environment: settings of the compose file.
    """

    folder: Path
    name: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def config(self, profile: str) -> dict[str, Any]:
        """The services as Compose reads them."""
        found = self.compose(f"--profile={profile}", "config", stderr=subprocess.DEVNULL)
        assert found.returncode == 0, found.stdout
        return yaml.safe_load(found.stdout)["services"]

    def compose(
        self, *arguments: str, files: Sequence[Path] = (), stderr: int = subprocess.STDOUT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Compose with these arguments. files: laid over the clone's own two."""
        given = [f"--file={file}" for file in ("docker-compose.yml", "docker-compose.override.yml", *files) if files]
        command = [*compose_command(), f"--project-name={self.name}", *given, *arguments]
        # The tests' filter of warnings is not for Compose, which may be a Python program.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        settings = {**inherited, **self.environment, **environment}
        return run(command, cwd=self.folder, env=settings, stderr=stderr, timeout=2400)

    def up(self, *services: str, profile: str = "", **environment: str) -> None:
        """Start services and wait until all are healthy."""
        profiles = [f"--profile={profile}"] if profile else []
        started = self.compose(*profiles, "up", "--detach", "--no-build", *services, **environment)
        assert started.returncode == 0, started.stdout
        for service in services:
            self.wait_healthy(service)

    def wait_healthy(self, service: str) -> None:
        def healthy() -> bool:
            state = self.state(service)
            assert state["Running"] or state["Restarting"], (
                f"{service} ended:\n{docker('logs', self.container(service))}"
            )
            return "Health" not in state or state["Health"]["Status"] == "healthy"

        until(f"{service} is healthy", healthy)

    def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        label = f"label=com.docker.compose.service={service}"
        ids = docker(
            "ps", "--all", "--quiet", "--no-trunc", f"--filter=label=com.docker.compose.project={self.name}",
            "--filter", label, "--filter=label=com.docker.compose.oneoff=False",
        )  # fmt: skip
        assert ids, f"no container of {service}"
        return ids.splitlines()[0]

    def state(self, service: str) -> dict[str, Any]:
        return inspect(self.container(service))["State"]

    def scored(self, key: str, teacher: str = "teacher") -> int:
        """Completion tokens that a teacher accounts for, by /v1/usage, to the tenant whose key this is."""
        rows = self.ask(USAGE, teacher, key=key)["usage"]
        assert len({row["tenant"] for row in rows}) <= 1, "a key sees its own tenant"
        return sum(row["scored_tokens"] for row in rows)

    def ask(self, code: str, *arguments: str, key: str = "") -> Any:
        """The JSON that a Python program prints in a container beside the services, which it reaches by name."""
        image = inspect(self.container("teacher"))["Image"]
        return json.loads(
            docker(
                "run", "--rm", f"--network={self.name}_services", f"--env=KEY={key}", "--entrypoint=python", image,
                "-c", code, *arguments,
            )
        )  # fmt: skip

    def train(self, run: str, *overrides: str, teacher: str = "teacher", key: str = "") -> "Trainer":
        """Start `vold train` in a container of the service `trainer`."""
        name = f"{self.name}-{run}"
        started = self.compose(
            "run", "--detach", "--no-deps", f"--name={name}",
            *("-e", f"VOLD_TEACHER_API_KEY={key}", "-e", f"VOLD_VERIFIER_API_KEY={key}"),
            *("trainer", "train", "pocket:vold", f"out=/runs/{run}", f"teacher.url=grpc://{teacher}:50051"),
            *("verifier.url=grpc://verifier:50052", *SMALL, *overrides),
        )  # fmt: skip
        assert started.returncode == 0, started.stdout
        return Trainer(name, self.runs / run)

    def down(self) -> None:
        strays = docker("ps", "--all", "--quiet", f"--filter=label=com.docker.compose.project={self.name}").split()
        if strays:
            docker("rm", "--force", "--volumes", *strays)
        profiles = [f"--profile={profile}" for profile in PROFILES]
        self.compose(*profiles, "down", "--volumes", "--remove-orphans", "--timeout=1")
        shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Trainer:
    """A run in a container of its own, and its folder on this machine."""

    container: str
    out: Path

    def rows(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl so far, one a step."""
        file = self.out / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def log(self) -> str:
        return run(["docker", "logs", self.container]).stdout

    def running(self) -> bool:
        return inspect(self.container)["State"]["Running"]

    def wait(self) -> list[dict[str, Any]]:
        """Rows of a run that ended well."""
        status = docker("wait", self.container)
        assert status == "0", self.log()
        return self.rows()

    def tokens(self) -> int:
        """Completion tokens of all steps: what a teacher that scored each of them once has scored."""
        return sum(round(row["length/mean"] * ROLLOUTS) for row in self.rows())


def inspect(what: str) -> dict[str, Any]:
    return json.loads(docker("inspect", what))[0]
