"""The batches that a run had drawn ahead, as a file of its checkpoint: weights that have learned since cannot draw them
again. Scores are not kept; whoever resumes asks for them again.

`drawn-ahead-0.safetensors`, of the first process: for each step's batch, the rollouts' ids, log-probabilities and
candidates end to end, and in the file's metadata what they belong to.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.rollout.base import Rollout
from vold_trainer.training.generation import RolloutBatch

FILE = "drawn-ahead-{}.safetensors"


@dataclass(frozen=True)
class SavedBatch:
    """One batch: see RolloutBatch. examples: those of its step."""

    step: int
    version: int
    examples: Sequence[Example]
    rollouts: list[Rollout]


def write(folder: Path, batches: Sequence[RolloutBatch], rank: int = 0) -> None:
    """Keep one process's part of these batches in `folder`; no file where there are none."""
    if not batches:
        return
    arrays: dict[str, NDArray[Any]] = {}
    about = []
    for drawn in batches:
        rollouts = drawn.all.rollouts
        places = {id(example): place for place, example in enumerate(drawn.examples)}
        arrays |= {
            f"{drawn.step}.{name}": np.concatenate([np.asarray(part) for part in parts])
            for name, parts in _columns(rollouts).items()
        }
        about.append(
            {
                "step": drawn.step,
                "version": drawn.version,
                "examples": [example.id for example in drawn.examples],
                "rows": [
                    {
                        "row": rollout.row,
                        "example": places[id(rollout.example)],
                        "prompt": len(rollout.prompt_ids),
                        "tokens": len(rollout.ids),
                        "text": rollout.text,
                        "truncated": rollout.truncated,
                    }
                    for rollout in rollouts
                ],
            }
        )
    save_file(arrays, folder / FILE.format(rank), metadata={"batches": json.dumps(about)})


def read(folder: Path, examples_of: Callable[[int], Sequence[Example]]) -> list[SavedBatch]:
    """The batches kept in `folder`, oldest first, those parts of them that the processes kept joined. examples_of: the
    examples of a step.

    Raises UsageError where a step has other examples now.
    """
    found: dict[int, SavedBatch] = {}
    for file in sorted(folder.glob(FILE.format("*"))):
        for part in _read(file, examples_of):
            rollouts = [*found[part.step].rollouts, *part.rollouts] if part.step in found else part.rollouts
            found[part.step] = replace(part, rollouts=sorted(rollouts, key=lambda rollout: rollout.row))
    return [found[step] for step in sorted(found)]


def _read(path: Path, examples_of: Callable[[int], Sequence[Example]]) -> Iterator[SavedBatch]:
    with safe_open(path, "np") as file:
        names = set(file.keys())
        for about in json.loads(file.metadata()["batches"]):
            step, rows = about["step"], about["rows"]
            examples = examples_of(step)
            if [example.id for example in examples] != about["examples"]:
                raise UsageError(
                    f"{path} holds completions of other prompts than step {step + 1} has now: resume with the data.* "
                    "and rollout.prompts that the run began with"
                )
            columns = {
                name: _parts(file.get_tensor(f"{step}.{name}"), [row[length] for row in rows])
                for name, length in _LENGTHS.items()
                if f"{step}.{name}" in names
            }
            yield SavedBatch(
                step,
                about["version"],
                examples,
                [
                    Rollout(
                        row["row"],
                        examples[row["example"]],
                        tuple(columns["prompt_ids"][place].tolist()),
                        tuple(columns["ids"][place].tolist()),
                        row["text"],
                        row["truncated"],
                        **{name: columns[name][place] for name in ("logprobs", "candidates") if name in columns},
                    )
                    for place, row in enumerate(rows)
                ],
            )


_LENGTHS = {"prompt_ids": "prompt", "ids": "tokens", "logprobs": "tokens", "candidates": "tokens"}


def _columns(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    columns = {name: [getattr(rollout, name) for rollout in rollouts] for name in _LENGTHS}
    return {name: parts for name, parts in columns.items() if all(part is not None for part in parts)}


def _parts(values: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    return np.split(values, np.cumsum(lengths)[:-1])
