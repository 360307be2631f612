"""Which token sequences begin alike, so that what they share is computed once.

The clients of these routes send whole sequences: a group's prompt before each of its completions, a question before
each of its answers. Scored one by one, the prompt would be computed for each.
"""

from collections.abc import Sequence

from vold_teacher.types import Ids

LEAST_SHARED = 16
"""Tokens; for less, the sequences are not taken apart."""

LEAST_MEMBERS = 3
"""The shared part is computed twice, once to be scored and once to score what follows it."""


def shared_prefixes(ids_B: Sequence[Ids]) -> list[int]:
    """How many tokens of each sequence [P] to score apart from the rest: those that a whole group begins with, or 1,
    the token that nothing is scored before. All sequences of a group have the same tokens there.
    """
    lengths = [1] * len(ids_B)
    order = sorted(range(len(ids_B)), key=lambda index: ids_B[index].tobytes())  # neighbours begin alike
    group: list[int] = []
    shared = 0
    for index in order:
        both = common_prefix(ids_B[group[-1]], ids_B[index]) if group else 0
        wider = min(shared, both)
        # A longer part of fewer sequences may save more than a shorter one of all.
        if group and wider >= LEAST_SHARED and wider * len(group) >= shared * (len(group) - 1):
            group.append(index)
            shared = wider
            continue
        _note(lengths, group, shared)
        group, shared = [index], len(ids_B[index])
    _note(lengths, group, shared)
    return lengths


def common_prefix(one: Ids, other: Ids) -> int:
    """Tokens with which both begin."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size


def _note(lengths: list[int], group: list[int], shared: int) -> None:
    if len(group) >= LEAST_MEMBERS:
        for index in group:
            lengths[index] = shared
