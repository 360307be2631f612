"""What the images' files have in common, as far as it shows without an engine. `make test-compose` builds them."""

import re

import pytest
import yaml
from paths import ROOT

DOCKERFILES = {name: ROOT / folder / "Dockerfile" for name, folder in (
    ("teacher", "services/teacher"), ("verifier", "services/verifier"), ("trainer", "trainer"),
)}  # fmt: skip


def test_all_images_begin_with_the_same_stage():
    """An engine then builds it once. In all of them, because one without a compiler fails where a package is source."""
    first, *others = (
        re.search(r"^# ---- The same in every Dockerfile.*?^# ---- To here\.$", path.read_text(), re.M | re.S)[0]
        for path in DOCKERFILES.values()
    )
    assert all(other == first for other in others)
    assert re.search(r"apt-get install .* gcc ", first)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_everything_comes_from_the_locks(name):
    text = DOCKERFILES[name].read_text()
    installs = [line for line in re.sub(r"\\\n", "", text).splitlines() if re.search(r"\binstall\b", line)]
    for line in installs:
        assert "apt-get install" in line or "locks/install.py" in line or "--no-deps --no-build-isolation" in line, line
    for lock in re.findall(r"locks/([\w-]+\.(?:txt|py))", text):
        assert (ROOT / "locks" / lock).is_file(), lock
    assert f"locks/{name}.txt" in text or f"ARG SET={name}" in text


def test_compose_names_each_dockerfile_and_its_build_arguments():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    built = {name: service["build"] for name, service in services.items() if "build" in service}
    assert {build["dockerfile"] for build in built.values()} == {
        str(path.relative_to(ROOT)) for path in DOCKERFILES.values()
    }
    for name, build in built.items():
        declared = re.findall(r"^ARG (\w+)", (ROOT / build["dockerfile"]).read_text(), re.M)
        assert set(build["args"]) <= set(declared), name
