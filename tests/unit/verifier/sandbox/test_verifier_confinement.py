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


EDITABLE = """
import importlib.util, os, sys

MAPPING = {"edited": sys.argv[1] + "/source/edited", "single": sys.argv[1] + "/source/single"}

class Finder:  # as setuptools writes it for an editable install
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in MAPPING:
            place = MAPPING[name]
            file = place + "/__init__.py" if os.path.isdir(place) else place + ".py"
            return importlib.util.spec_from_file_location(name, file)

sys.meta_path.append(Finder)
from vold_verifier.sandbox.confine import Confinement
from vold_verifier.sandbox.tripwire import Tripwire
confinement = Confinement()
confinement.enter()
confinement.lock()
tripwire = Tripwire()
tripwire.install()
tripwire.armed = True
import edited.part
import single
tripwire.armed = False
try:
    open(sys.argv[1] + "/secret")
except OSError:
    print(edited.part.VALUE + single.VALUE, repr(tripwire.hit))
"""


def test_an_editable_install_is_read_and_nothing_beside_it(tmp_path):
    source = tmp_path / "source"
    (source / "edited").mkdir(parents=True)
    (source / "edited" / "__init__.py").write_text("")
    (source / "edited" / "part.py").write_text("VALUE = 4\n")
    (source / "single.py").write_text("VALUE = 5\n")
    (tmp_path / "secret").write_text("")
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    command = [sys.executable, "-c", EDITABLE, str(tmp_path)]
    completed = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd="/", env={**os.environ, "PYTHONPATH": path}
    )
    assert completed.stdout == "9 ''\n", completed.stderr
