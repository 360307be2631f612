"""The command that the README names, in a clean clone."""

import json
import re

import pytest
from compose_project import PROFILES, Project, docker, inspect

pytestmark = pytest.mark.compose


def test_the_main_job_ends_well_and_prints_its_table(main_job):
    assert main_job.returncode == 0, main_job.stdout[-6000:]
    assert "Accuracy on test problems never trained on" in main_job.stdout
    for stage in ("base: reads pictures", "SFT on the teacher's traces", "SFT + GRPO (text only)", "VOLD: SFT + GRPO"):
        assert stage in main_job.stdout, stage
    assert "0 scores missing" in main_job.stdout


def test_the_main_job_warns_of_nothing(main_job):
    for service in ("teacher", "verifier", "trainer"):
        said = re.findall(rf"^.*{service}[_-]1 +\| .*$", main_job.stdout, re.M)
        assert said, service
        signs = re.compile("warning|traceback|error", re.I)
        assert not [line for line in said if signs.search(line)]


def test_another_teacher_answers_by_one_url(services):
    """The whole job again with TEACHER_URL alone changed."""
    services.up("other-teacher", profile="other-teacher")
    answered = {}
    for name, settings in (("first", {}), ("other", {"TEACHER_URL": "grpc://other-teacher:50051"})):
        container = f"{services.name}-by-url-{name}"
        folder = services.runs / f"by-url-{name}"
        folder.mkdir()
        folder.chmod(0o777)
        key = services.environment["VOLD_API_KEYS"].split(",")[0].partition(":")[2]
        found = services.compose(
            "run", "-T", "--name", container, "--no-deps", "trainer",
            VOLD_TEACHER_API_KEY=key, VOLD_VERIFIER_API_KEY=key, RUNS=f"./runs/by-url-{name}", **settings,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout
        answered[name] = json.loads((folder / "demo" / "summary.json").read_text())["teacher"]
    assert (answered["first"]["model"], answered["other"]["model"]) == ("pocket-teacher", "other-teacher")
    assert answered["first"]["weights_fingerprint"] != answered["other"]["weights_fingerprint"]
    assert answered["first"]["tokenizer_fingerprint"] == answered["other"]["tokenizer_fingerprint"]


def test_the_report_is_in_the_volume_as_the_docs_say(project, main_job, tmp_path):
    docker("cp", f"{project.container('trainer')}:/runs/demo", str(tmp_path / "demo"))
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["missing_scores"] == 0
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000


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
print([str(path) for folder in ("/dist", "/wheels", "/src", "/root/.cache") for path in pathlib.Path(folder).glob("*")])
"""
    for image in ("teacher", "verifier", "trainer"):
        found = docker("run", "--rm", "--entrypoint=python", f"vold-test-{image}", "-c", look)
        assert found.split("\n") == ["[]"] * 4, (image, found)
        assert inspect(f"vold-test-{image}")["Config"]["User"] == "vold"
