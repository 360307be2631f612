"""The package under examples/ as a user uses it: pip installs it, the service loads its entry point and serves it."""

import os
import subprocess
import sys

import pytest
from paths import HELPERS, ROOT
from verifier_server import running
from vold_client import Item
from vold_client.sync import VerifierClient
from wheel_environments import pip

EXAMPLE = ROOT / "examples" / "vold-word-count"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed package. pip builds a copy, so that the tree gets no build output."""
    folder = tmp_path_factory.mktemp("example")
    copy, target = folder / "source", folder / "site"
    subprocess.run(["cp", "-r", EXAMPLE, copy], check=True)
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--target", target, copy)
    return target


def import_path(folder):
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.mark.slow
def test_its_own_tests_pass(installed):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    completed = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": import_path(installed)}, cwd=installed, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stdout
    assert "4 passed" in completed.stdout


def test_the_service_offers_it(installed):
    path = os.pathsep.join([str(HELPERS), import_path(installed)])
    with running(environment={"PYTHONPATH": path}) as server, VerifierClient(server.grpc_url) as client:
        info = {each.name: each for each in client.list_verifiers()}["word-count"]
        verdicts = client.verify(
            [
                Item("word-count", "<answer>a b c</answer>", "3"),
                Item("word-count", "<answer>a b</answer>", "3", parameters={"slack": 3}),
                Item("word-count", "<answer>a b</answer>", "three"),
            ]
        )
    assert "slack" in info.parameters_schema["properties"]
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.75, None]
