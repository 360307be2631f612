"""What the containers may not do, and what their health says."""

import json
from dataclasses import replace

import pytest
from compose_project import docker, inspect, run

pytestmark = pytest.mark.compose

TRY = """
import json, os, pathlib
def outcome(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__ + " " + (error.strerror or "")
    return "done"
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no new privileges": int(status["NoNewPrivs"]),
    "root": outcome(lambda: pathlib.Path("/written").write_text("")),
    "packages": outcome(lambda: pathlib.Path("/opt/vold/written").write_text("")),
    "tmp": outcome(lambda: pathlib.Path("/tmp/written").write_text("")),
}))
"""


@pytest.mark.parametrize("service", ["teacher", "verifier", "trainer"])
def test_a_container_has_no_privileges_and_a_root_that_it_cannot_write(service, services):
    if service == "trainer":
        found = services.compose("run", "--rm", "-T", "--no-deps", "--entrypoint=python", "trainer", "-c", TRY).stdout
    else:
        container = services.container(service)
        found = docker("exec", container, "python", "-c", TRY)
        (network,) = inspect(container)["NetworkSettings"]["Networks"]
        assert inspect(network)["Internal"], "the services' network leads nowhere"
        config = inspect(container)["HostConfig"]
        assert config["ReadonlyRootfs"]
        assert config["CapDrop"] == ["ALL"]
        assert not config["Privileged"]
        assert not config["PortBindings"], "nothing is published"
    (line,) = [line for line in found.splitlines() if line.startswith("{")]
    assert json.loads(line) == {
        "uid": 1000,
        "capabilities": [0] * 5,
        "no new privileges": 1,
        "root": "OSError Read-only file system",
        "packages": "OSError Read-only file system",
        "tmp": "done",
    }


@pytest.mark.parametrize("service", ["teacher", "verifier"])
def test_health_follows_the_service(service, services):
    """The image's own check, run while the service answers, while it stands still, and after."""
    container = services.container(service)
    kind, *check = inspect(container)["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    process = min(
        int(line.split()[0])  # its forks have its command line too
        for line in docker("exec", container, "python", "-c", PROCESSES).splitlines()
        if f"/opt/vold/bin/vold-{service}" in line and "serve" in line
    )

    def healthy() -> bool:
        return run(["docker", "exec", container, *check]).returncode == 0

    def signal(name: str) -> None:
        docker("exec", container, "python", "-c", f"import os, signal; os.kill({process}, signal.{name})")

    assert healthy()
    signal("SIGSTOP")
    try:
        assert not healthy()
    finally:
        signal("SIGCONT")
    assert healthy()


PROCESSES = """
import pathlib
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    print(folder.name, (folder / "cmdline").read_bytes().replace(b"\\0", b" ").decode())
"""


def test_a_teacher_that_is_not_healthy_holds_the_trainer_back(services, tmp_path):
    """A deliberate break: the check asks a port where nobody answers."""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        """
services:
  teacher:
    healthcheck: {test: [CMD, python, -c, "from http.client import *; HTTPConnection('127.0.0.1', 1).connect()"],
                  interval: 1s, start_period: 1s, retries: 1}
"""
    )
    apart = replace(services, name=f"{services.name}-wrong")
    try:
        found = apart.compose("up", "--no-build", "--exit-code-from", "trainer", files=[wrong])
        assert found.returncode != 0
        assert "unhealthy" in found.stdout
        assert "Accuracy" not in found.stdout
    finally:
        apart.compose("down", "--volumes", "--timeout=1")
