"""The locks hold what pyproject.toml asks for, all of it and nothing else, for any machine."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

LOCKS = ROOT / "locks"
sys.path.insert(0, str(LOCKS))

import lock as locking  # noqa: E402  (a script, no package)

ONE_RESOLUTION = ["dev", "teacher", "verifier", "trainer"]
FILES = sorted(path.name for path in LOCKS.glob("*.txt") if path.name != "constraints.txt")


def pins(path: Path) -> list[Requirement]:
    return [Requirement(line) for line in path.read_text().splitlines() if re.match(r"[^\s#]", line)]


def here(path: Path) -> dict[str, str]:
    """Names and versions that hold for this interpreter and platform."""
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins(path)
        if pin.marker is None or pin.marker.evaluate()
    }


def closure(requirements: list[str]) -> Iterator[tuple[str, Requirement]]:
    """(who asks, what for) through the metadata of what is installed; torch's CUDA packages are left out."""
    waiting = [("pyproject.toml", Requirement(one), frozenset[str]()) for one in requirements]
    seen = set()
    while waiting:
        asker, requirement, extras = waiting.pop()
        if (asker, str(requirement), extras) in seen or locking.CUDA.match(f"{canonicalize_name(requirement.name)}=="):
            continue
        seen.add((asker, str(requirement), extras))
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        yield asker, requirement
        name = canonicalize_name(requirement.name)
        wanted = frozenset({"", *requirement.extras})
        waiting += [(name, Requirement(one), wanted) for one in metadata.requires(name) or []]


@pytest.mark.parametrize("name", locking.SETS)
def test_a_lock_is_of_what_is_asked_for_today(name):
    one = locking.SETS[name]
    assert f"inputs {locking.fingerprint(one)}." in one.lock.read_text(), f"run `make lock`: locks/{name}.txt is behind"


@pytest.mark.parametrize("name", locking.SETS)
def test_direct_requirements_are_pinned_within_their_ranges(name):
    one = locking.SETS[name]
    versions = here(one.lock) | (here(one.cuda_lock) if one.cuda_lock.exists() else {})
    for text in locking.requirements(one.extras) if one.extras else []:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text


@pytest.mark.locked
@pytest.mark.parametrize("name", ONE_RESOLUTION)
def test_a_lock_is_complete_and_holds_nothing_more(name):
    one = locking.SETS[name]
    versions, reached = here(one.lock), set()
    for asker, requirement in closure(locking.requirements(one.extras)):
        package = canonicalize_name(requirement.name)
        assert package in versions, f"{asker} asks for {requirement}, which locks/{name}.txt does not pin"
        assert requirement.specifier.contains(versions[package], prereleases=True), f"{asker} asks for {requirement}"
        reached.add(package)
    assert set(versions) == reached


@pytest.mark.locked
def test_this_environment_is_what_the_lock_says():
    installed = {name: metadata.version(name).partition("+")[0] for name in here(LOCKS / "dev.txt")}
    assert installed == here(LOCKS / "dev.txt"), "the environment is behind its lock: remove .venv and `make install`"


@pytest.mark.parametrize("name", [name for name in ONE_RESOLUTION if name != "dev"])
def test_an_image_takes_the_pins_that_are_tested(name):
    tested = here(LOCKS / "dev.txt") | here(LOCKS / "build.txt")
    assert here(LOCKS / f"{name}.txt").items() <= tested.items()


@pytest.mark.parametrize("file", FILES)
def test_pins_are_for_any_machine(file):
    for pin in pins(LOCKS / file):
        assert pin.url is None
        (only,) = pin.specifier
        assert only.operator == "=="
        assert "+" not in only.version, f"{pin}: a local version is on one machine or one index only"
    text = (LOCKS / file).read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|(^|\s)[./~]+/", text, re.MULTILINE)


@pytest.mark.parametrize("file", [name for name in FILES if "cuda" not in name])
def test_cuda_stands_in_files_of_its_own(file):
    assert [pin.name for pin in pins(LOCKS / file) if re.match("(cuda|nvidia)-|triton$", pin.name)] == []


def test_every_lock_is_some_sets():
    known = {path.name for one in locking.SETS.values() for path in (one.lock, one.cuda_lock)}
    assert set(FILES) <= known


@pytest.mark.parametrize(
    ("asks", "cuda"), [("nvidia-cublas==13.1; sys_platform == 'linux'", True), ("sympy>=1.13", False)]
)
def test_cuda_is_installed_beside_a_build_for_cuda_alone(tmp_path, asks, cuda):
    info = tmp_path / "torch-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\nRequires-Dist: {asks}\n")
    code = (
        f"import sys; sys.path[:0] = {[str(tmp_path), str(LOCKS)]}; import install; print(install.torch_is_for_cuda())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(cuda)


@pytest.mark.parametrize(
    ("floor", "oldest", "reached"),
    [
        ("1.2", "1.2.5", True),
        ("1.2", "1.2", True),
        ("1", "1.4", True),
        ("1.1", "1.2", False),
        ("1.2.3", "1.2.4", False),
    ],
)
def test_a_floor_that_nothing_fits_is_named(floor, oldest, reached):
    found = locking.unreached(
        [f"some_package[extra]>={floor},<9"], f"other==1.0\nsome-package=={oldest}\n    # via vold\n"
    )
    assert [f"the oldest that fits is {oldest}" in line for line in found] == ([] if reached else [True])


def test_cuda_is_split_off_and_who_asked_stays():
    theirs = "nvidia-x==2 ; sys_platform == 'linux'\n    # via torch\n"
    plain, cuda = locking.split(f"a==1\n    # via\n    #   -c within.txt\n    #   b\n    #   c\n{theirs}")
    assert plain == "a==1\n    # via b, c\n"
    assert cuda == theirs
