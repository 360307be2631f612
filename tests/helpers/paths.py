"""Paths of the repository that the tests use."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
CASES = ROOT / "tests" / "cases"
