"""One clone, one build and one set of services for all of `make test-compose`, against a real Docker engine."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from compose_project import Project, compose_command, run
from paths import ROOT

TENANTS = ("red", "green", "blue", "metrics", "upstream")

BUILT = {
    "teacher": ("teacher", "other-teacher", "gateway"),
    "verifier": ("verifier",),
    "trainer": ("trainer",),
}
"""Services by image."""

SHORT_DEMO = (
    *("traces:data.limit=64", "sft:steps=3", "train:steps=2", "train:data.limit=64", "train:rollout.prompts=4"),
    *("train:rollout.group=4", "eval:data.0.limit=12", "eval:data.1.limit=12"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "compose"):
            item.add_marker(pytest.mark.timeout(3000))  # the first one builds the images


@pytest.fixture(scope="session", autouse=True)
def _engine() -> None:
    if os.environ.get("VOLD_NO_DOCKER") == "1":
        pytest.skip("VOLD_NO_DOCKER=1: this machine runs no containers")
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"no Docker engine answers: tests/compose/engine starts one\n{answer.stderr}"


@pytest.fixture(scope="session")
def keys() -> dict[str, str]:
    """A key for each tenant."""
    return {tenant: secrets.token_hex(16) for tenant in TENANTS}


@pytest.fixture(scope="session")
def project(_engine, tmp_path_factory, keys) -> Iterator[Project]:
    """A clone of what is committed, with CPU wheels where its Dockerfiles look for them, and nothing started."""
    folder = tmp_path_factory.mktemp("clone") / "vold"
    subprocess.run(["git", "clone", "--quiet", f"file://{ROOT}", str(folder)], check=True)
    for place in (*filter(None, os.environ.get("PIP_FIND_LINKS", "").split()), ROOT / "docker" / "wheels"):
        for wheel in Path(place).glob("torch-*+cpu-cp311-*.whl"):
            shutil.copy(wheel, folder / "docker" / "wheels")
    # Builds use this machine's network, which may be the only one with a way to packages.
    services: dict[str, dict] = {
        service: {"image": f"vold-test-{image}", "build": {"network": "host"}}
        for image, names in BUILT.items()
        for service in names
    }
    services["trainer"]["command"] = [
        *("demo", "--teacher-url=${TEACHER_URL:-grpc://teacher:50051}", "--verifier-url=grpc://verifier:50052"),
        *("--out=/runs/demo", *(f"--set={override}" for override in SHORT_DEMO)),
    ]
    # Two of our own in the place of stock vLLM servers behind the gateway.
    upstream = {
        **services["teacher"],
        "extends": {"file": "docker-compose.yml", "service": "teacher"},
        "profiles": ["gateway"],
    }
    services |= {f"upstream-{number}": upstream for number in (1, 2)}
    (folder / "docker-compose.override.yml").write_text(yaml.safe_dump({"services": services}))
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0o777)  # for the image's user
    (folder / "metrics-key").write_text(keys["metrics"])
    found = Project(folder, f"vold-test-{os.getpid()}")
    yield found
    found.down()


@dataclass(frozen=True)
class MainJob:
    """What `docker compose up` ended with and printed, and the whole logs of its containers by service."""

    status: int
    said: str
    logs: dict[str, str]


@pytest.fixture(scope="session")
def main_job(project) -> MainJob:
    """`docker compose up --build --exit-code-from trainer` in a clean clone. Leaves the images for everybody else."""
    found = project.compose("up", "--build", "--exit-code-from", "trainer")
    missing = [name for name in BUILT if run(["docker", "image", "inspect", f"vold-test-{name}"]).returncode]
    assert not missing, f"{' '.join(compose_command())} built no {', '.join(missing)}:\n{found.stdout[-6000:]}"
    logs = {name: run(["docker", "logs", project.container(name)]).stdout for name in BUILT}
    return MainJob(found.returncode, found.stdout, logs)


@pytest.fixture(scope="session")
def services(project, main_job, keys) -> Project:
    """The teacher and the verifier, which stay up, and ask for keys."""
    project.environment |= {
        "RUNS": "./runs",
        "VOLD_API_KEYS": ",".join(f"{tenant}:{key}" for tenant, key in keys.items() if tenant != "metrics"),
        "VOLD_METRICS_KEY": keys["metrics"],
        "METRICS_KEY_FILE": "./metrics-key",
        "PROMETHEUS_PORT": "0",
        "UPSTREAM_KEY": keys["upstream"],
    }
    project.up("teacher", "verifier")
    return project
