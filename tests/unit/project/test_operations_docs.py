"""docs/operations.md and the dashboard name the metrics that there are, and all of them."""

import json
import re

import vold_teacher.metrics  # noqa: F401  (registers its metrics)
import vold_verifier.metrics  # noqa: F401
from paths import ROOT
from prometheus_client import REGISTRY
from vold_service.errors import REASONS

DOCS = ROOT / "docs"
NAME = re.compile(r"\bvold_(?:teacher|verifier|tenant|rejected)_[a-z_]+\b")


def known() -> dict[str, set[str]]:
    """The names of a metric's samples, by the name that the table gives it."""
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["", "_bucket", "_sum", "_count"]}
    return {
        family.name + suffixes[family.type][0]: {family.name + suffix for suffix in suffixes[family.type]}
        for family in REGISTRY.collect()
        if family.name.startswith("vold_")
    }


def test_the_table_has_every_metric_and_no_other():
    text = (DOCS / "operations.md").read_text()
    rows = {name for row in re.findall(r"^\| (`vold_[^|]*) \|", text, re.M) for name in NAME.findall(row)}
    assert rows == set(known())


def test_queries_ask_for_what_there_is():
    samples = set().union(*known().values())
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) >= 10
    for text in (*queries, (DOCS / "operations.md").read_text()):
        found = set(NAME.findall(text))
        assert found <= samples, found - samples


def test_the_table_has_every_reason():
    row = re.search(r"^\| `vold_rejected_requests_total`.*$", (DOCS / "operations.md").read_text(), re.M)[0]
    assert {*REASONS.values(), "quota"} <= set(re.findall(r"`(\w+)`", row))
