"""Answers as models write them, beside the references of data sets: the rows of cases/math_answers.jsonl."""

import json

import pytest
from paths import CASES
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.math import MathVerifier

ROWS = [json.loads(line) for line in (CASES / "math_answers.jsonl").read_text(encoding="utf-8").splitlines()]
MATH = MathVerifier()


@pytest.mark.parametrize("topic", sorted({row["topic"] for row in ROWS}))
def test_right_answers_are_paid_and_wrong_answers_are_not(topic):
    for row in (row for row in ROWS if row["topic"] == topic):
        for answer in row["equal"] + row["different"]:
            verdict = MATH.check(Item(rf"\boxed{{{answer}}}", row["reference"]), MATH.parameters())
            assert verdict.correct == (answer in row["equal"]), (row["reference"], answer, verdict.reason)
