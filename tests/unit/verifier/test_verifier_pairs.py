"""The verifiers judge pairs that are right or wrong by construction; benchmarks/labelled_pairs.py prints the table."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from verifier_pairs import draw
from verifier_pairs_kinds import KINDS
from vold_verifier import registry
from vold_verifier.engine import worker
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item

VERIFIERS = registry.load()


def paid(pair):
    verifier = VERIFIERS[pair.verifier]
    parameters = verifier.parameters.model_validate(pair.parameters)
    try:
        with worker.Timer(5.0):
            return verifier.check(Item(pair.completion, pair.reference, pair.prompt), parameters).correct
    except BadReferenceError as error:
        return str(error)


def test_a_sample_of_every_kind_is_judged_as_it_was_made():
    kinds = {name: kind for name, kind in KINDS.items() if name != "programs"}  # these need the sandbox
    for name, pairs in draw(kinds, 3, seed=20).items():
        assert [pair for pair in pairs if paid(pair) != pair.paid] == [], name


def test_every_kind_has_200_different_pairs_of_both_sorts():
    drawn = draw(KINDS, 200, seed=1)
    assert sum(map(len, drawn.values())) >= 5000
    for name, pairs in drawn.items():
        counts = Counter(pair.paid for pair in pairs)
        assert counts.total() == 200, name
        assert min(counts[True], counts[False]) >= 30, name


@pytest.mark.slow
def test_at_most_one_pair_in_200_is_wrongly_paid_and_95_in_100_are_right():
    benchmark = Path(__file__).parents[3] / "benchmarks" / "labelled_pairs.py"
    run = subprocess.run([sys.executable, str(benchmark)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
