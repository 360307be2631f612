"""The wheel, and environments that hold it beside the dependencies of some of its extras, and nothing else.

What is installed here is linked into them, a distribution at a time, so that nothing is downloaded.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

KEPT = ("PYTHONWARNINGS",)
SOURCES = ("proto", "client", "services", "trainer")


def build(folder: Path) -> Path:
    """The wheel as `make wheel` builds it, from a copy of the tree."""
    tree = folder / "tree"
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tree / "dist", tree)
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


class Environment:
    """A virtual environment without pip, and with nothing in it until it is put there."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.bin = folder / "bin"
        (self.packages,) = folder.glob("lib/python*/site-packages")

    @property
    def vold(self) -> metadata.Distribution:
        (found,) = metadata.distributions(name="vold", path=[str(self.packages)])
        return found

    def install(self, wheel: Path) -> None:
        """The wheel alone, with its programs."""
        pip("--python", self.bin / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel)

    def share(self, other: "Environment") -> None:
        """Link what another environment has, but for its programs."""
        for path in other.packages.iterdir():
            (self.packages / path.name).symlink_to(path)

    def add(self, *extras: str) -> None:
        """Link what the package and these extras depend on."""
        wanted = {name: metadata.distribution(name) for name in closure(self.vold, extras)}
        owners = _owners()
        for one in wanted.values():
            for top in _tops(one):
                shared = owners[top] - wanted.keys()  # a namespace, of which others own a part
                for path in [file for file in one.files if file.parts[0] == top] if shared else [Path(top)]:
                    target = self.packages / path
                    if not target.exists():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.symlink_to(one.locate_file(path))

    def run(self, *command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        """A program of the environment, from a folder that is not the tree."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.packages,
            env=environment(),
            capture_output=True,
            text=True,
            **options,
        )


def environment() -> dict[str, str]:
    """The variables of a program in an environment: none that lead Python elsewhere, and the tests' warnings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or name in KEPT}


def pip(*arguments: str | Path) -> None:
    """pip warns of itself: the tests' filters of warnings are not for it."""
    variables = {name: value for name, value in environment().items() if name not in KEPT}
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], env=variables, check=True)


def closure(vold: metadata.Distribution, extras: Iterable[str] = ()) -> set[str]:
    """Names of the distributions that `vold[extras]` asks for, and of what those of them that are here ask for."""
    found: dict[str, set[str]] = {}
    waiting = [("vold", {"", *extras})]
    while waiting:
        name, wanted = waiting.pop()
        new = wanted - found.setdefault(name, set())
        found[name] |= new
        for requirement in _requirements(vold if name == "vold" else name) if new else ():
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in new):
                waiting.append((canonicalize_name(requirement.name), {"", *requirement.extras}))
    return found.keys() - {"vold"}


@functools.cache
def _requirements(of: metadata.Distribution | str) -> list[Requirement]:
    try:
        one = metadata.distribution(of) if isinstance(of, str) else of
    except metadata.PackageNotFoundError:
        return []
    return [Requirement(text) for text in one.requires or []]


@functools.cache
def _owners() -> dict[str, set[str]]:
    """Which distributions have a part of a folder of site-packages."""
    owners: dict[str, set[str]] = {}
    for one in metadata.distributions():
        for top in _tops(one):
            owners.setdefault(top, set()).add(canonicalize_name(one.name))
    return owners


def _tops(one: metadata.Distribution) -> set[str]:
    """What a distribution has in site-packages: folders, and modules of one file."""
    return {file.parts[0] for file in one.files or []} - {"..", "__pycache__"}
