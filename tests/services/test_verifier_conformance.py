"""Labelled cases from other graders' own tests, where they are at hand: how many verdicts agree."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vold_verifier import registry
from vold_verifier.verifiers import BadReferenceError, Item

CASES = Path(__file__).parents[2].parent / "shared" / "data" / "verifier" / "cases.jsonl"
LOOSE = {"ignore_case": True, "ignore_punctuation": True, "ignore_articles": True}
VERIFIERS = registry.load()


def as_item(case: dict[str, Any]) -> tuple[str, dict[str, Any], Item]:
    """The verifier, the parameters and the item that say what the case's own grader was asked."""
    kind, options, text = case["kind"], case.get("opts", {}), case["prediction"]
    parameters: dict[str, Any] = {}
    verifier = "math"
    if kind in ("choice", "choice_boxed"):
        verifier = "choice"
        if case.get("options"):
            parameters["options"] = {letter: option for one in case["options"] for letter, option in one.items()}
        if kind == "choice_boxed":
            parameters["accept"] = ["boxed"]
    elif kind == "string":
        verifier, parameters = "exact", {**LOOSE, "accept": ["answer_tag", "final_part"]}
    elif kind == "answer_tag":
        parameters = {"accept": ["answer_tag"]}
        if case["gold"].isalnum() and not case["gold"].isdigit():
            verifier, parameters = "exact", {**LOOSE, **parameters}
    elif kind in ("float", "cascade"):
        verifier = "numeric" if re.fullmatch(r"-?[\d.]+", case["gold"]) or kind == "float" else "exact"
        parameters = {"relative_tolerance": options.get("rel_tol", 0), "absolute_tolerance": options.get("abs_tol", 0)}
        if verifier == "exact":
            parameters = {"ignore_case": True}
    elif kind in ("boxed", "reasoning_boxed"):
        parameters = {"accept": ["boxed"]}
    elif kind == "geo3k_bracket" and (found := re.findall(r"\[([^\]]*)\]", text)):
        text = rf"\boxed{{{found[-1]}}}"
    return verifier, parameters, Item(text, case["gold"])


@pytest.mark.skipif(not CASES.exists(), reason="the labelled cases are not beside this repository")
def test_verdicts_agree_with_the_labels():
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    core = [case for case in cases if case["tier"] == "core" and case["kind"] != "reasoning_gym"]
    right, paid, refused = 0, [], []
    for case in core:
        name, parameters, item = as_item(case)
        verifier = VERIFIERS[name]
        try:
            correct = verifier.check(item, verifier.parameters(**parameters)).correct
        except BadReferenceError:
            correct = False
        if correct == case["expected"]:
            right += 1
        else:
            (paid if correct else refused).append(case["id"])
    print(f"{right} of {len(core)} right; wrongly paid: {paid}; wrongly refused: {refused}")
    assert right >= 0.97 * len(core)
    assert len(paid) <= 3
