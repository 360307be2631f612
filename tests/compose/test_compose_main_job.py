"""The command that the README names, in a clean clone."""

import json
import re
from pathlib import Path

import pytest
from compose_project import PROFILES, Project, docker, inspect

pytestmark = pytest.mark.compose


def test_the_main_job_ends_well_and_prints_its_table(main_job):
    assert main_job.status == 0, main_job.said[-6000:]
    assert "Accuracy on held-out test problems" in main_job.said
    for stage in (
        *("base: reads pictures", "SFT on the teacher's traces", "SFT + GRPO (text only)"),
        *("VOLD, the paper's form", "VOLD, candidates"),
    ):
        assert stage in main_job.said, stage
    assert "0 scores missing" in main_job.said


def test_no_container_of_the_main_job_warns_of_what_nobody_can_mend(main_job):
    """That the services ask for no keys can be mended, and is said on purpose."""
    signs = re.compile("warning|traceback|error", re.I)
    for service, said in main_job.logs.items():
        assert said.strip(), service
        found = [line for line in said.splitlines() if signs.search(line)]
        assert not [line for line in found if "--api-keys asks for a key" not in line], service


@pytest.fixture(scope="module")
def demo(project, main_job, tmp_path_factory) -> Path:
    """The main job's folder, out of the volume as docs/docker.md does it."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    docker("cp", f"{project.container('trainer')}:/runs/demo", str(folder))
    return folder


def test_the_report_is_in_the_volume(demo):
    assert json.loads((demo / "summary.json").read_text())["missing_scores"] == 0
    assert (demo / "report.html").stat().st_size > 100_000


def test_another_teacher_answers_by_one_url(services, keys, demo):
    """The whole job again, with TEACHER_URL alone changed."""
    services.up("other-teacher", profile="other-teacher")
    again = services.compose(
        "run", "-T", "--rm", "--no-deps", "trainer", TEACHER_URL="grpc://other-teacher:50051",
        VOLD_TEACHER_API_KEY=keys["red"], VOLD_VERIFIER_API_KEY=keys["red"],
    )  # fmt: skip
    assert again.returncode == 0, again.stdout
    first, other = (
        json.loads((folder / "summary.json").read_text())["teacher"] for folder in (demo, services.runs / "demo")
    )
    assert (first["model"], other["model"]) == ("pocket-teacher", "other-teacher")
    assert first["weights_fingerprint"] != other["weights_fingerprint"]
    assert first["tokenizer_fingerprint"] == other["tokenizer_fingerprint"]


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_the_file_is_valid_with_every_profile(project: Project, profile):
    found = project.compose(*([f"--profile={profile}"] if profile else []), "config", "--services")
    assert found.returncode == 0, found.stdout
    assert {"teacher", "verifier", "trainer"} <= set(found.stdout.split())


def test_images_hold_no_compiler_no_installer_no_tests_and_no_wheels(main_job):
    look = """
import pathlib, shutil, sys
packages = pathlib.Path("/opt/vold/lib/python3.11/site-packages")
print([tool for tool in ("gcc", "cc", "g++", "make") if shutil.which(tool)])
print([name for name in ("pip", "setuptools", "wheel") if (packages / name).exists()])
print([str(path) for name in ("test", "tests") for path in packages.glob(f"*/**/{name}") if path.is_dir()])
left = [pathlib.Path(folder).expanduser() for folder in ("/dist", "/wheels", "/src", "~root/.cache")]
print([str(path) for folder in left for path in folder.glob("*")])
"""
    for image in ("teacher", "verifier", "trainer"):
        found = docker("run", "--rm", "--user=root", "--entrypoint=python", f"vold-test-{image}", "-c", look)
        assert found.split("\n") == ["[]"] * 4, (image, found)
        assert inspect(f"vold-test-{image}")["Config"]["User"] == "vold"
