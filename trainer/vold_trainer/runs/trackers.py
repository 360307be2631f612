"""Experiment trackers through accelerate: the ones a config names, their configuration, and rollouts where they fit.

A tracker that is asked for and not installed is an error: accelerate alone would leave it out without a word.
"""

import importlib.util
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from vold_trainer.data.pictures import decode
from vold_trainer.errors import UsageError

PROJECT = "vold"

_PACKAGES = {"comet_ml": "comet-ml"}
_COLUMNS = ("id", "outcome", "reward", "prompt", "completion", "reference", "extracted", "reason")


def check_installed(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that accelerate does not know, or whose package is not here."""
    available = {str(name.value) for name in get_available_trackers()}
    for index, name in enumerate(names):
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(
                f"trackers[{index}] is {name!r}, which is no tracker of accelerate's; choose from "
                f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        # for tensorboard, accelerate also takes tensorboardX, which is said nowhere else
        if name not in available and importlib.util.find_spec(name) is None:
            package = _PACKAGES.get(name, name)
            raise UsageError(
                f"trackers[{index}] is {name!r}, and the package {package!r} is not installed: pip install {package}, "
                f"or leave {name} out of trackers"
            )


def start(accelerator: Accelerator, names: Sequence[str], out: Path, config: Mapping[str, Any], first: int) -> None:
    """Begin to track, or go on: `first` steps are done. config: names and plain values.

    A resumed run goes on under the name that it began with, which a file in its folder keeps.
    """
    if not names:
        return
    known = out / "trackers.json"
    if not (first and known.is_file()) and accelerator.is_main_process:
        known.write_text(json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n")
    accelerator.wait_for_everyone()
    own = json.loads(known.read_text())["id"]
    name = f"{out.name}-{own[:4]}"
    accelerator.init_trackers(
        PROJECT,
        config=dict(config),
        init_kwargs={
            "wandb": {"id": own, "name": name, "resume": "allow"},
            "trackio": {"name": name, "resume": "allow"},
            # what the run had written after its checkpoint is written again: the later values count
            "tensorboard": {"purge_step": first + 1} if first else {},
        },
    )


def log_rollouts(accelerator: Accelerator, rows: Sequence[Mapping[str, Any]]) -> None:
    """Sample rollouts, as rollouts.jsonl holds them, to the trackers that can show text: tables to wandb, text and
    pictures to tensorboard. Others have their figures alone.
    """
    if not rows:
        return
    step = int(rows[0]["step"])
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        if tracker.name == "wandb":
            cells = [[_cell(row, column) for column in _COLUMNS] for row in rows]
            tracker.log_table("rollouts", columns=list(_COLUMNS), data=cells, step=step)
            if pictures := [picture for row in rows for picture in _pictures(row)]:
                tracker.log_images({"rollouts/pictures": pictures}, step=step)
        elif tracker.name == "tensorboard":
            for index, row in enumerate(rows):
                tracker.tracker.add_text(f"rollouts/{index}", as_markdown(row), global_step=step)
                for picture in _pictures(row):
                    tracker.log_images({f"rollouts/{index}": picture[None]}, step=step, dataformats="NHWC")


def as_markdown(row: Mapping[str, Any]) -> str:
    """A rollout as markdown; what a model wrote stays in a code block, indented, where no markup ends it."""
    head = f"**{_cell(row, 'outcome')}**, reward {_cell(row, 'reward')}; answered and reference below; {row['id']}"
    blocks = [(name, str(_cell(row, name))) for name in ("prompt", "completion", "extracted", "reference")]
    return "\n\n".join([head, *(f"{name}:\n\n" + _indented(text) for name, text in blocks)])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _cell(row: Mapping[str, Any], column: str) -> Any:
    if column == "completion":
        return "".join(row["tokens"])
    if column == "outcome":
        return {True: "right", False: "wrong"}.get(row.get("correct"), "unverified")  # type: ignore[arg-type]
    value = row.get(column)
    return "–" if value is None else value


def _pictures(row: Mapping[str, Any]) -> list[np.ndarray]:
    """uint8 [H, W, 3] of each picture of the prompt."""
    return [np.asarray(decode(uri)) for uri in row.get("images", ())]
