"""Write the locks: complete pins for every set of packages that `make` and the images install.

    make lock                        keep the pins that still hold
    make lock LOCK_ARGS=--upgrade    take the newest that the ranges in pyproject.toml admit

`resolve` is also what `make test-newest` and `make test-oldest` ask for a range's two ends. Resolution is uv's; what is
done here is to keep apart what torch's CUDA build alone asks for, so that a set installs beside a CPU build too.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
LINUX = ("--python-version=3.11", "--python-platform=x86_64-manylinux_2_34")
CUDA = re.compile(r"(cuda|nvidia)-|triton==")
"""Pins that stand in a file of their own, for environments with a CUDA build of torch."""


@dataclass(frozen=True)
class PackageSet:
    """Packages that are installed together.

    extras: of pyproject.toml. within: the set whose pins this one takes, so that the two agree.
    shared: whether locks/constraints.txt holds. interpreters: uv's options for what Pythons and platforms it is for.
    A set may have NAME.in, requirements of its own, and NAME.exclude, packages to leave out.
    """

    name: str
    purpose: str
    extras: tuple[str, ...] = ()
    within: str | None = None
    shared: bool = True
    interpreters: tuple[str, ...] = ("--universal", "--python-version=3.11")

    def beside(self, suffix: str) -> Path | None:
        path = FOLDER / f"{self.name}.{suffix}"
        return path if path.exists() else None

    @property
    def lock(self) -> Path:
        return FOLDER / f"{self.name}.txt"

    @property
    def cuda_lock(self) -> Path:
        return cuda_lock(self.lock)


SETS = {
    one.name: one
    for one in (
        PackageSet("dev", "what `make` installs: all the others, and the tools", ("dev",)),
        PackageSet("build", "what builds the wheel, and dependencies that come as source", within="dev"),
        PackageSet("teacher", "the teacher's image", ("otel", "teacher"), within="dev"),
        PackageSet("verifier", "the verifier's image", ("otel", "reasoning-gym", "verifier"), within="dev"),
        PackageSet("trainer", "the trainer's image", ("data", "otel", "peft", "trainer"), within="dev"),
        PackageSet(
            "vllm", "the teacher on vLLM, with vLLM's own torch", ("otel", "vllm"), shared=False, interpreters=LINUX
        ),
        PackageSet("test-vllm", "`make test-vllm`", ("teacher", "trainer", "verifier"), interpreters=LINUX),
        PackageSet("test-sglang", "`make test-sglang`: SGLang alone", interpreters=LINUX),
    )
}


def cuda_lock(lock: Path) -> Path:
    """Where a lock's CUDA pins stand: the sets of one resolution share cuda.txt, the others have their own."""
    within = SETS[lock.stem].within if lock.parent == FOLDER and lock.stem in SETS else None
    name = within or lock.stem
    return lock.with_name("cuda.txt" if name == "dev" else f"{name}-cuda.txt")


def requirements(extras: tuple[str, ...]) -> list[str]:
    """What pyproject.toml asks for with these extras; extras that name extras are followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, waiting, seen = set(project["dependencies"]), list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:
            inner = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
            if inner:
                waiting += inner[1].split(",")
            else:
                found.add(requirement)
    return sorted(found)


def fingerprint(package_set: PackageSet) -> str:
    """Of all that decides what a set must hold. A lock carries it, so that a test sees which lock is behind."""
    parts = requirements(package_set.extras) if package_set.extras else []
    parts += [path.read_text() for path in map(package_set.beside, ("in", "exclude")) if path]
    if package_set.shared:
        parts.append((FOLDER / "constraints.txt").read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def resolve(package_set: PackageSet, *arguments: str, pins: str = "") -> tuple[str, str]:
    """Pins for a set and what its torch's CUDA build asks for in addition, both as text of requirements.

    arguments: further ones of `uv pip compile`. pins: a lock whose versions are kept where they still fit. Raises
    SystemExit with what uv says where nothing fits.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.txt"
        out.write_text(pins)
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--output-file", str(out)]
        command += package_set.interpreters
        if package_set.extras:
            command += ["pyproject.toml", *(f"--extra={extra}" for extra in package_set.extras)]
        if source := package_set.beside("in"):
            command.append(str(source.relative_to(ROOT)))
        if excluded := package_set.beside("exclude"):
            command += ["--excludes", str(excluded.relative_to(ROOT))]
        if package_set.shared:
            # Overrides for the builds for CPUs: they ask for a torch with a local version, which ours stands for.
            command += ["--constraints" if package_set.extras and not package_set.beside("in") else "--overrides"]
            command += ["locks/constraints.txt"]
        if package_set.within:
            held = SETS[package_set.within]
            (Path(folder) / "within.txt").write_text(held.lock.read_text() + held.cuda_lock.read_text())
            command += ["--constraints", str(Path(folder) / "within.txt")]
        # What torch's public build asks for, not that of a wheel which lies somewhere here.
        environment = {key: value for key, value in os.environ.items() if not key.endswith("FIND_LINKS")}
        run = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True)
        if run.returncode:
            raise SystemExit(f"set {package_set.name}: uv found no pins\n{run.stderr}")
        return split(out.read_text())


def split(text: str) -> tuple[str, str]:
    """A resolution's pins without, and with nothing but, those that a CUDA build of torch alone asks for."""
    plain, cuda = [], []
    for block in re.findall(r"^[^\s#].*\n(?:[ #].*\n)*", text, re.MULTILINE):
        pin, *why = block.splitlines()
        askers = [line.strip(" #") for line in why]
        askers = [one.removeprefix("via ") for one in askers if one != "via" and not one.startswith(("via -", "-"))]
        comments = [f"    # via {', '.join(askers)}"] if askers else []
        (cuda if CUDA.match(pin) else plain).append("\n".join([pin, *comments]) + "\n")
    return "".join(plain), "".join(cuda)


def unreached(asked: list[str], pins: str) -> list[str]:
    """The requirements whose floor is older than the oldest that fits: claims that nobody can have tried."""
    from packaging.requirements import Requirement  # not needed to install
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    held = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", pins, re.MULTILINE)}
    constrained = {line.split("==")[0] for line in (FOLDER / "constraints.txt").read_text().splitlines()}
    found = []
    for requirement in map(Requirement, asked):
        version = held.get(canonicalize_name(requirement.name))
        floors = [one.version for one in requirement.specifier if one.operator in (">=", "==")]
        if version is None or requirement.name in constrained:
            continue
        if not any(
            Version(version).release[: len(Version(floor).release)] == Version(floor).release for floor in floors
        ):
            found.append(f"  {requirement}: the oldest that fits is {version}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all where none is named")
    parser.add_argument("--upgrade", action="store_true", help="take the newest, not the pins that still hold")
    parser.add_argument(
        "--resolution", choices=["highest", "lowest-direct"], help="with --out: which end of the ranges"
    )
    parser.add_argument(
        "--out", type=Path, help="write here, for this Python and platform alone, and leave the locks as they are"
    )
    asked = parser.parse_args()
    unknown = sorted(set(asked.sets) - set(SETS))
    if unknown:
        parser.error(f"no set {', '.join(unknown)}: there are {', '.join(SETS)}")
    if asked.out and len(asked.sets) != 1:
        parser.error(f"--out {asked.out} takes one set, and {len(asked.sets)} are named")
    if asked.resolution and not asked.out:
        parser.error("--resolution is for --out: the locks have the newest")
    if asked.out:
        for name in asked.sets:
            one = replace(SETS[name], interpreters=())
            end = ["--resolution", asked.resolution or "highest"]
            plain, cuda = resolve(one, *end, "--python", sys.executable)
            asked.out.write_text(plain)
            cuda_lock(asked.out).write_text(cuda)
            if asked.resolution == "lowest-direct" and (never := unreached(requirements(one.extras), plain)):
                raise SystemExit("nothing fits these floors of pyproject.toml; raise them:\n" + "\n".join(never))
        return
    for name, one in SETS.items():
        if asked.sets and name not in asked.sets:
            continue
        held = "" if asked.upgrade or not one.lock.exists() else one.lock.read_text() + read(one.cuda_lock)
        plain, cuda = resolve(one, pins=held)
        head = [
            f"# Set {name}: {one.purpose}.",
            "# Made by `make lock`; not to be edited.",
            f"# Of inputs {fingerprint(one)}.",
        ]
        one.lock.write_text("\n".join([*head, plain]))
        if cuda and not one.within:
            note = "# In addition, where torch is a build for CUDA. Made by `make lock`; not to be edited.\n"
            one.cuda_lock.write_text(note + cuda)
        print(f"locks/{name}.txt: {count(plain)} pins" + (f", and {count(cuda)} for CUDA" if cuda else ""))


def count(pins: str) -> int:
    return len(re.findall(r"^[^\s#]", pins, re.MULTILINE))


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    main()
