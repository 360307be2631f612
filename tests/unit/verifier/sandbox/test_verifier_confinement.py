"""The sandbox on machines that allow fewer layers: the tests refuse calls that a container runtime refuses."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")

PROGRAM = """
import json, os, socket, sys
from vold_verifier.sandbox import seccomp
from vold_verifier.sandbox.confine import Confinement

if refused := json.loads(sys.argv[1]):
    machine = seccomp._Filter()
    machine.refuse(refused)
    machine.load()
confinement = Confinement()
confinement.enter()
scratch = confinement.scratch
open(os.path.join(scratch, "cache"), "w").close()
layers = confinement.lock()

def fails(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False

print(json.dumps({
    "layers": layers,
    "scratch": os.path.exists(scratch),
    "socket": fails(socket.socket),
    "write": fails(lambda: open(sys.argv[2] + "/canary", "w")),
    "mkdir": fails(lambda: os.mkdir(sys.argv[2] + "/canary")),
    "read": fails(lambda: open(sys.argv[2] + "/secret").read()),
    "raise": fails(lambda: os.setuid(0) if os.getuid() else open("/dev/mem", "rb").read(1)),
    "library": __import__("colorsys").rgb_to_hsv(0, 0, 0) == (0, 0, 0),
}))
"""


@pytest.mark.parametrize(
    ("refused", "missing"),
    [
        pytest.param([], [], id="everything"),
        pytest.param(["unshare"], ["namespaces"], id="no namespaces"),
        pytest.param(["landlock_create_ruleset"], ["landlock"], id="no landlock"),
        pytest.param(["unshare", "landlock_create_ruleset"], ["namespaces", "landlock"], id="a container"),
    ],
)
def test_each_layer_works_without_the_others(refused, missing, tmp_path):
    (tmp_path / "secret").write_text("")
    command = [sys.executable, "-c", PROGRAM, json.dumps(refused), str(tmp_path)]
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", env=environment)
    assert completed.returncode == 0, completed.stderr
    report = json.loads(completed.stdout)
    layers = " ".join(report["layers"])
    assert not any(layer in layers for layer in missing)
    assert "seccomp" in layers
    assert report["socket"]
    assert report["write"]
    assert report["mkdir"]
    assert report["raise"]
    assert report["library"]
    assert not report["scratch"]
    assert report["read"] == ("namespaces" in layers or "landlock" in layers)
    assert os.listdir(tmp_path) == ["secret"]


def test_a_package_that_was_installed_without_its_bytecode_can_be_imported(tmp_path):
    (tmp_path / "late.py").write_text("VALUE = 4\n")
    code = "from vold_verifier.sandbox.tripwire import Tripwire\ntripwire = Tripwire()\ntripwire.install()\n"
    code += "tripwire.armed = True\nimport late\ntripwire.armed = False\nprint(late.VALUE, repr(tripwire.hit))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert completed.stdout == "4 ''\n"
