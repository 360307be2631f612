"""What a service refuses: a row, a completion, or all that is asked of it."""

from collections.abc import Sequence

from vold_client import InvalidArgument, NotFound, VoldError

from vold_trainer.data import Example
from vold_trainer.rollout.base import Rollout

OPTION_FIELDS = ("options", "model", "expect", "dtype")
"""The fields of a request that are the same for every row."""


def may_be_a_rows(error: InvalidArgument) -> bool:
    """Whether a refusal of a whole request may be due to one of its rows."""
    return not error.field.startswith(OPTION_FIELDS)


def refuses_row(error: VoldError | None, example: Example) -> bool:
    """Whether a service refuses the row itself: its prompt, its reference, its verifier or the parameters of that. What
    it says of a completion may differ for the next one, and a verifier that the row does not name is the config's.
    """
    if isinstance(error, NotFound):
        return "verifier" in example.meta
    if not isinstance(error, InvalidArgument):
        return False
    return not error.field.startswith("completions") and error.field.rpartition(".")[2] not in ("", "completion")


def split_by_example(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """The rollouts in two parts; no example is in both. Empty if they have one example."""
    parts: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        parts.setdefault(id(rollout.example), []).append(rollout)
    groups = list(parts.values())
    half = len(groups) // 2
    if not half:
        return []
    return [[rollout for group in part for rollout in group] for part in (groups[:half], groups[half:])]
