"""Fixtures that more than one room's tests use: real services as real processes."""

import contextlib
import os
from collections.abc import Iterator

import programs
import pytest
from servers import Server, serving

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning thread pools on two cores starve each other

with contextlib.suppress(ModuleNotFoundError):  # which the environment with vLLM has not
    from hypothesis import HealthCheck, settings

    # How long an example takes says how busy the machine is.
    settings.register_profile("vold", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.load_profile("vold")


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start, and those that they start, treat warnings as pytest does here. What vLLM and SGLang
    warn of is not for these tests to say, nor what versions on a borrowed GPU do."""
    if config.getoption("markexpr") in ("vllm", "sglang", "gpu"):
        config.addinivalue_line("filterwarnings", "default")
    else:
        os.environ["PYTHONWARNINGS"] = ",".join(config.getini("filterwarnings"))
    if config.getoption("numprocesses", None) and not config.getoption("collectonly"):
        programs.preload()  # one for all workers, beside their collecting


@pytest.fixture(scope="session")
def pocket_teacher() -> Iterator[Server]:
    from vold_trainer.pocket.shipped import checkpoint_path

    with serving("teacher", "--model", str(checkpoint_path("teacher"))) as server:
        yield server


@pytest.fixture(scope="session")
def verifier() -> Iterator[Server]:
    with serving("verifier", "--workers", "1") as server:
        yield server
