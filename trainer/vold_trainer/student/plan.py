"""Division of a training step's completions into optimiser steps, and of each process's completions into micro-batches.

Which completions an optimiser step takes does not depend on the number of processes. Each process computes the
gradients of the completions that it generated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vold_trainer.student.batching import micro_batches


@dataclass(frozen=True)
class OptimiserStep:
    """One optimiser step. micro_batches: indices into this process's list of completions; an empty micro-batch only
    keeps the process in step with the others. sequences, tokens: in this optimiser step, of all processes.
    total_sequences: completions in the whole training step.
    """

    micro_batches: list[list[int]]
    sequences: int
    tokens: int
    total_sequences: int


def plan_optimiser_steps(
    completions: Sequence[Sequence[tuple[int, int]]],
    rank: int,
    *,
    size: int,
    micro: int,
    seed: int,
    equal_counts: bool,
) -> list[OptimiserStep]:
    """Plan the optimiser steps of process `rank`.

    completions: (row, tokens) of every completion, by process. size: completions in one optimiser step, 0 for all.
    micro: completions in one micro-batch. seed: of the order of the completions, if there are several optimiser steps.
    equal_counts: give every process as many micro-batches as the process with the most; otherwise at least one.
    """
    by_row = sorted(
        (row, owner, index) for owner, part in enumerate(completions) for index, (row, _) in enumerate(part)
    )
    size = size or len(by_row)
    order = list(range(len(by_row)))
    if size < len(order):
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist()
    steps = []
    for start in range(0, len(order), size):
        chosen = [by_row[position] for position in order[start : start + size]]
        own = [index for _, owner, index in chosen if owner == rank]
        lengths = [completions[rank][index][1] for index in own]
        batches = [[own[position] for position in batch] for batch in micro_batches(lengths, micro)]
        counts = [math.ceil(sum(owner == other for _, owner, _ in chosen) / micro) for other in range(len(completions))]
        batches += [[] for _ in range((max(counts) if equal_counts else 1) - len(batches))]
        tokens = sum(completions[owner][index][1] for _, owner, index in chosen)
        steps.append(OptimiserStep(batches, len(chosen), tokens, len(order)))
    return steps
