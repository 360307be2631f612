"""Every example of the table "What is an answer, and what is not" in docs/verifiers.md."""

import re

import pytest
from paths import ROOT
from vold_verifier import registry
from vold_verifier.verifiers.base import Item

VERIFIERS = registry.load()
OPTIONS = {"A": "iron", "B": "copper", "C": "silver", "D": "lead"}
SECTION = "## What is an answer, and what is not"


def table_rows() -> list[list[str]]:
    text = (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8").partition(SECTION)[2].partition("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().replace(r"\|", "|") for cell in row] for row in rows[2:]]


def examples() -> list[tuple[str, str, str, bool]]:
    """(verifier, reference, completion, whether it is paid) of each example."""
    found = []
    for _, verifier, reference, paid, not_paid in table_rows():
        for cell, is_paid in ((paid, True), (not_paid, False)):
            completions = re.findall(r"`([^`]+)`", cell)
            assert completions
            found += [
                (verifier.strip("`"), reference.strip("`"), text.replace("⏎", "\n"), is_paid) for text in completions
            ]
    return found


def test_the_table_has_a_row_for_each_kind():
    assert len(table_rows()) >= 20
    assert len({row[0] for row in table_rows()}) == len(table_rows())


@pytest.mark.parametrize(("name", "reference", "completion", "is_paid"), examples())
def test_each_example_is_paid_as_the_table_says(name, reference, completion, is_paid):
    verifier = VERIFIERS[name]
    parameters = verifier.parameters(options=OPTIONS) if "choice" in name else verifier.parameters()
    verdict = verifier.check(Item(completion, reference), parameters)
    assert verdict.correct is is_paid, verdict.reason
