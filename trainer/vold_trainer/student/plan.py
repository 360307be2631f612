"""How the completions of a step are dealt out: to optimiser steps, to processes, to forward and backward passes.

The optimiser steps are of the whole step: which completions each takes does not depend on how many processes there
are. A process learns those of them that it drew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vold_trainer.student.batching import micro_batches


@dataclass(frozen=True)
class Update:
    """One optimiser step. passes: this process's completions, as indices into its own list, pass by pass; an empty pass
    is one that only keeps others company. sequences, tokens: of all processes. rest: completions in the whole step.
    """

    passes: list[list[int]]
    sequences: int
    tokens: int
    rest: int


def plan_updates(
    drawn: Sequence[Sequence[tuple[int, int]]], rank: int, *, size: int, micro: int, seed: int, even: bool
) -> list[Update]:
    """drawn: (row, tokens) of every completion, by process. rank: which process asks. size: completions in one
    optimiser step, 0 for all. micro: completions in one pass. seed: of the order, where there are several steps.
    even: give every process as many passes as the one with the most, for they compute in step; otherwise one at least.
    """
    placed = sorted((row, owner, index) for owner, part in enumerate(drawn) for index, (row, _) in enumerate(part))
    size = size or len(placed)
    order = list(range(len(placed)))
    if size < len(order):
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist()
    updates = []
    for start in range(0, len(order), size):
        chosen = [placed[place] for place in order[start : start + size]]
        own = [index for _, owner, index in chosen if owner == rank]
        passes = [[own[place] for place in part] for part in micro_batches([drawn[rank][i][1] for i in own], micro)]
        counts = [math.ceil(sum(owner == other for _, owner, _ in chosen) / micro) for other in range(len(drawn))]
        passes += [[] for _ in range((max(counts) if even else 1) - len(passes))]
        tokens = sum(drawn[owner][index][1] for _, owner, index in chosen)
        updates.append(Update(passes, len(chosen), tokens, len(order)))
    return updates
