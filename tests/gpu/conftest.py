"""Devices of the tests in this folder. On the CPU they are a part of `make test`, so that they are known to work;
`make test-gpu` runs them on a GPU.
"""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the shapes and the parts of gpu.py


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    torch.set_num_threads(1)
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def cuda():
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device")
    return torch.device("cuda")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file that needs what is not installed here is skipped by name: a borrowed GPU has its own environment."""
    report = yield
    missing = re.search(r"No module named '(\w+)", str(report.longrepr)) if report.failed else None
    if missing and not missing[1].startswith(("vold_", "gpu_parts")):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {missing[1]} is not installed")
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        on_cpu = getattr(item, "callspec", None) is not None and item.callspec.params.get("device") == "cpu"
        if on_cpu and item.get_closest_marker("slow_on_cpu"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def exact_float32():
    """float32 products without TF32, as on a CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
