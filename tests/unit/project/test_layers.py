"""The rules of the house, as import-linter reads them in pyproject.toml, hold; and each kind of breach is seen."""

import shutil
import subprocess
import sys

import pytest
from paths import ROOT

PARTS = ("proto", "packing", "client", "services/common", "services/teacher", "services/verifier", "trainer")
BREACHES = {
    "upwards, late": (
        "trainer/vold_trainer/objectives/means.py",
        "def loss():\n    from vold_trainer.training.train import run_train\n\n    return run_train\n",
        "vold_trainer.objectives.means -> vold_trainer.training.train",
    ),
    "upwards, for types alone": (
        "services/verifier/vold_verifier/reading/lines.py",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from vold_verifier.engine.engine import Engine\n",
        "vold_verifier.reading.lines -> vold_verifier.engine.engine",
    ),
    "from the trainer into a service": (
        "trainer/vold_trainer/services/inside.py",
        "from vold_teacher.types import Sequence\n",
        "vold_trainer.services.inside -> vold_teacher.types",
    ),
    "a file in a pure room": (
        "services/verifier/vold_verifier/mathematics/tables.py",
        "import pathlib\n",
        "vold_verifier.mathematics.tables -> pathlib",
    ),
    "a room that has no floor": ("trainer/vold_trainer/attic.py", "", "vold_trainer.attic"),
    "a circle in a room": (
        "client/vold_client/methods.py",
        "from vold_client.transport import Transport\n",
        ".transport -> .methods",
    ),
}


def lint(tree):
    """What `lint-imports` finds in the packages of a tree, by the contracts of this one."""
    path = ":".join(str(tree / part) for part in PARTS)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    return subprocess.run(
        [*command, str(ROOT / "pyproject.toml"), "--no-cache"],
        env={"PYTHONPATH": path, "PATH": "", "COLUMNS": "200"},
        cwd=tree,
        capture_output=True,
        text=True,
    )


def test_the_rules_of_the_house_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_seen(name, tmp_path):
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    file, text, said = BREACHES[name]
    with (tmp_path / file).open("a") as module:
        module.write(text)
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
