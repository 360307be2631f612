"""The map in CONTRIBUTING.md: its walks name functions that there are, and its tables every room."""

import importlib
import re

import pytest
from paths import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
MAP = TEXT[TEXT.index("## The map") : TEXT.index("## Rules of the house")]
PACKAGES = {
    "vold_trainer": ROOT / "trainer/vold_trainer",
    "vold_teacher": ROOT / "services/teacher/vold_teacher",
    "vold_verifier": ROOT / "services/verifier/vold_verifier",
}


def resolve(name):
    """What a dotted name means: a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            value = getattr(value, attribute)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(vold_\w+(?:\.\w+)+)`", MAP))))
def test_what_the_map_names_is_there(name):
    resolve(name)


@pytest.mark.parametrize("walk", ["One rollout", "One request through the teacher", "One item through the verifier"])
def test_a_walk_has_ten_stations_that_name_functions(walk):
    section = MAP.split(f"### {walk}\n")[1].split("\n### ")[0]
    stations = re.split(r"^\d+\. ", section, flags=re.M)[1:]
    assert len(stations) == 10
    for station in stations:
        names = re.findall(r"`(vold_\w+(?:\.\w+)+)`", station)
        assert any(callable(resolve(name)) for name in names), station


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_on_the_map(package):
    rows = re.findall(r"^\| (`.+?`) \|", MAP, re.M)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    rooms = {
        path.stem
        for path in PACKAGES[package].iterdir()
        if (path / "__init__.py").is_file() or (path.suffix == ".py" and not path.stem.startswith("__"))
    }
    assert rooms <= named, rooms - named
