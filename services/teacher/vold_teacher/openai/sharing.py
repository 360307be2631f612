"""Finds shared prefixes of token sequences, so that a shared prefix is computed once.

The clients of these routes send whole sequences: the prompt of a group before each of its completions. Scored one by
one, the prompt would be computed for each.
"""

from collections.abc import Sequence

from vold_teacher.types import Ids

MIN_SHARED_TOKENS = 16
"""Shorter prefixes are not shared; tokens."""

MIN_GROUP_SIZE = 3
"""Smaller groups do not share: a prefix is computed twice, once to score it and once to score what follows."""


def shared_prefix_lengths(ids_B: Sequence[Ids]) -> list[int]:
    """The number of leading tokens of each sequence to score apart: the prefix that its group shares, or 1, as the
    first token has no score.
    """
    lengths = [1] * len(ids_B)
    order = sorted(range(len(ids_B)), key=lambda index: ids_B[index].tobytes())  # neighbours share prefixes
    group: list[int] = []
    shared = 0
    for index in order:
        both = common_prefix_length(ids_B[group[-1]], ids_B[index]) if group else 0
        wider = min(shared, both)
        # A longer prefix of fewer sequences may save more than a shorter prefix of all.
        if group and wider >= MIN_SHARED_TOKENS and wider * len(group) >= shared * (len(group) - 1):
            group.append(index)
            shared = wider
            continue
        _set_shared(lengths, group, shared)
        group, shared = [index], len(ids_B[index])
    _set_shared(lengths, group, shared)
    return lengths


def common_prefix_length(first: Ids, second: Ids) -> int:
    """The number of leading tokens that both share."""
    size = min(len(first), len(second))
    differ = first[:size] != second[:size]
    return int(differ.argmax()) if differ.any() else size


def _set_shared(lengths: list[int], group: list[int], shared: int) -> None:
    if len(group) >= MIN_GROUP_SIZE:
        for index in group:
            lengths[index] = shared
