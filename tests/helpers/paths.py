"""Where the tests find what they run and read."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
CASES = ROOT / "tests" / "cases"
