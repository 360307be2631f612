"""The wheel, and virtual environments with the wheel and the dependencies of some of its extras only.

The dependencies are linked from the packages of the tests' own environment, so that nothing is downloaded.
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

KEPT_VARIABLES = ("PYTHONWARNINGS",)
SOURCES = ("proto", "packing", "client", "services", "trainer")


def build(folder: Path) -> Path:
    """Build the wheel as `make wheel` does, from a copy of the sources."""
    tree = folder / "tree"
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tree / "dist", tree)
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


class Environment:
    """A virtual environment without pip, empty at first."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.bin = folder / "bin"
        (self.packages,) = folder.glob("lib/python*/site-packages")

    @property
    def vold(self) -> metadata.Distribution:
        (distribution,) = metadata.distributions(name="vold", path=[str(self.packages)])
        return distribution

    def install(self, wheel: Path) -> None:
        """Install the wheel and its programs, without its dependencies."""
        pip("--python", self.bin / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel)

    def share(self, other: "Environment") -> None:
        """Link the packages of another environment, without its programs."""
        for path in other.packages.iterdir():
            (self.packages / path.name).symlink_to(path)

    def add(self, *extras: str) -> None:
        """Link the dependencies of the package and of these extras."""
        dependencies = {name: metadata.distribution(name) for name in closure(self.vold, extras)}
        owners = _owners()
        for distribution in dependencies.values():
            for top in _top_names(distribution):
                shared = owners[top] - dependencies.keys()  # a namespace package with parts in other distributions
                for path in [file for file in distribution.files if file.parts[0] == top] if shared else [Path(top)]:
                    target = self.packages / path
                    if not target.exists():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.symlink_to(distribution.locate_file(path))

    def run(self, *command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, outside the repository."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.packages,
            env=environment(),
            capture_output=True,
            text=True,
            **options,
        )


def environment() -> dict[str, str]:
    """The variables for a program of an environment: without PYTHON*, but with the tests' warning filters."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or name in KEPT_VARIABLES
    }


def pip(*arguments: str | Path) -> None:
    """Run pip without the tests' warning filters: pip itself causes warnings."""
    variables = {name: value for name, value in environment().items() if name not in KEPT_VARIABLES}
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], env=variables, check=True)


def closure(vold: metadata.Distribution, extras: Iterable[str] = ()) -> set[str]:
    """Names of the distributions that `vold[extras]` requires, directly or through installed distributions."""
    resolved: dict[str, set[str]] = {}
    pending = [("vold", {"", *extras})]
    while pending:
        name, wanted = pending.pop()
        new = wanted - resolved.setdefault(name, set())
        resolved[name] |= new
        for requirement in _requirements(vold if name == "vold" else name) if new else ():
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in new):
                pending.append((canonicalize_name(requirement.name), {"", *requirement.extras}))
    return resolved.keys() - {"vold"}


@functools.cache
def _requirements(distribution: metadata.Distribution | str) -> list[Requirement]:
    try:
        if isinstance(distribution, str):
            distribution = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return []
    return [Requirement(text) for text in distribution.requires or []]


@functools.cache
def _owners() -> dict[str, set[str]]:
    """The distributions with files under each top name of site-packages."""
    owners: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        for top in _top_names(distribution):
            owners.setdefault(top, set()).add(canonicalize_name(distribution.name))
    return owners


def _top_names(distribution: metadata.Distribution) -> set[str]:
    """The folders and single-file modules of a distribution in site-packages."""
    return {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
