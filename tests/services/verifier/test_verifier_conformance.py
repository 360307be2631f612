"""Labelled cases from the tests of other verifiers, if they are available: how many verdicts agree.

VOLD_LABELLED_CASES names the file; by default the file lies beside this repository.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT
from vold_verifier.engine import worker

CASES = Path(os.environ.get("VOLD_LABELLED_CASES", ROOT.parent / "shared" / "data" / "verifier" / "cases.jsonl"))


@pytest.fixture
def conformance(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("conformance", ROOT / "benchmarks" / "conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "conformance", module)  # its dataclass looks up its own module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not CASES.exists(), reason="the labelled cases are not beside this repository")
def test_verdicts_agree_with_the_labels(conformance):
    core = list(conformance.labelled_items(CASES, "core"))
    timer = worker.Timer(conformance.TIMER_SECONDS)
    right = {item.name: conformance.vold_accepts(item, timer) == item.expected for item in core}
    for kind in conformance.KINDS:
        some = [item for item in core if item.kind == kind]
        wrong = [item for item in some if not right[item.name]]
        print(f"{kind}: {len(some) - len(wrong)} of {len(some)} right; wrong: {[item.name for item in wrong]}")
        assert len(wrong) <= 0.03 * len(some)
        assert kind != "mathematics" or sum(not item.expected for item in wrong) <= 3
