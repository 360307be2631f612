"""Processes that tests start treat warnings as pytest does."""

import subprocess
import sys

import pytest


def _warns(message: str, category: str) -> subprocess.CompletedProcess:
    code = f"import warnings; warnings.warn({message!r}, {category})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("category", ["DeprecationWarning", "FutureWarning", "PendingDeprecationWarning"])
def test_what_is_announced_to_change_ends_a_process(category):
    ended = _warns("some name goes", category)
    assert ended.returncode == 1
    assert f"{category}: some name goes" in ended.stderr


def test_each_exception_holds_in_a_process_too(pytestconfig):
    exceptions = [entry.split(":") for entry in pytestconfig.getini("filterwarnings") if entry.startswith("ignore:")]
    for _, message, category in exceptions:
        ended = _warns(f"{message} and so on", category)
        assert (ended.returncode, ended.stderr) == (0, ""), message
