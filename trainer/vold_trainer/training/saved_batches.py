"""The batches that were generated ahead of their policy update, as a file of a checkpoint: the weights that generated
them are gone when the run resumes. Scores are not saved; the resumed run requests them again.

Each process writes `drawn-ahead-RANK.safetensors`: for each step's batch the rollouts' ids, log-probabilities and
candidates end to end, and in the file's metadata the step, the version, the rows, and the rows at fault.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from vold_trainer.data import Example
from vold_trainer.data.faults import RowFault
from vold_trainer.errors import UsageError
from vold_trainer.rollout.base import Rollout
from vold_trainer.training.generation import RolloutBatch

FILE = "drawn-ahead-{}.safetensors"


@dataclass(frozen=True)
class SavedBatch:
    """The saved fields of a RolloutBatch. examples: the whole step's."""

    step: int
    version: int
    examples: Sequence[Example]
    rollouts: list[Rollout]
    faults: dict[int, RowFault]


def write(folder: Path, batches: Sequence[RolloutBatch], rank: int = 0) -> None:
    """Write one process's part of these batches into `folder`; no file if there are no batches."""
    if not batches:
        return
    arrays: dict[str, NDArray[Any]] = {}
    records = []
    for batch in batches:
        rollouts = batch.scored.rollouts
        places = {id(example): place for place, example in enumerate(batch.examples)}
        arrays |= {
            f"{batch.step}.{name}": np.concatenate([np.asarray(part) for part in parts])
            for name, parts in _columns(rollouts).items()
            if parts
        }
        records.append(
            {
                "step": batch.step,
                "version": batch.version,
                "examples": [example.id for example in batch.examples],
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
                "faults": [{"place": place, **asdict(fault)} for place, fault in batch.faults.items()],
            }
        )
    save_file(arrays, folder / FILE.format(rank), metadata={"batches": json.dumps(records)})


def read(folder: Path, examples_of: Callable[[int], Sequence[Example]], processes: int) -> list[SavedBatch]:
    """The batches in `folder` by step, the parts of all processes joined. examples_of: the examples of a step.
    processes: how many wrote them; a batch is left out if one of them has no part, because its generation failed.

    Raises UsageError if a step has other examples now.
    """
    batches: dict[int, SavedBatch] = {}
    parts: Counter[int] = Counter()
    for file in sorted(folder.glob(FILE.format("*"))):
        for part in _read(file, examples_of):
            parts[part.step] += 1
            before = batches.get(part.step, replace(part, rollouts=[], faults={}))
            rollouts = sorted([*before.rollouts, *part.rollouts], key=lambda rollout: rollout.row)
            batches[part.step] = replace(part, rollouts=rollouts, faults=before.faults | part.faults)
    return [batches[step] for step in sorted(batches) if parts[step] == processes]


def _read(path: Path, examples_of: Callable[[int], Sequence[Example]]) -> Iterator[SavedBatch]:
    with safe_open(path, "np") as file:
        names = set(file.keys())
        for record in json.loads(file.metadata()["batches"]):
            step, rows = record["step"], record["rows"]
            examples = examples_of(step)
            if [example.id for example in examples] != record["examples"]:
                raise UsageError(
                    f"{path} holds completions of other prompts than step {step + 1} has now: resume with the data.* "
                    "and rollout.prompts that the run began with"
                )
            columns = {
                name: _split(file.get_tensor(f"{step}.{name}"), [row[length] for row in rows])
                for name, length in _LENGTHS.items()
                if f"{step}.{name}" in names
            }
            yield SavedBatch(
                step,
                record["version"],
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
                {fault.pop("place"): RowFault(**fault) for fault in record.get("faults", ())},
            )


_LENGTHS = {"prompt_ids": "prompt", "ids": "tokens", "logprobs": "tokens", "candidates": "tokens"}
"""The key of a row that has the array's length, by array."""


def _columns(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    columns = {name: [getattr(rollout, name) for rollout in rollouts] for name in _LENGTHS}
    return {name: parts for name, parts in columns.items() if all(part is not None for part in parts)}


def _split(values: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    return np.split(values, np.cumsum(lengths)[:-1])
