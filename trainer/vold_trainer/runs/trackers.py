"""Experiment trackers through accelerate: their configuration, and sample rollouts for those that can show them.

A tracker of the config that is not installed is an error. accelerate alone would silently leave it out.
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

from vold_trainer.data.pictures import decode_data_url
from vold_trainer.errors import UsageError

PROJECT = "vold"

_PACKAGES = {"comet_ml": "comet-ml"}
_COLUMNS = ("id", "outcome", "reward", "prompt", "completion", "reference", "extracted", "reason")


def check_installed(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that accelerate does not know, or whose package is not installed."""
    available = {str(name.value) for name in get_available_trackers()}
    for index, name in enumerate(names):
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(
                f"trackers[{index}] is {name!r}, which is no tracker of accelerate's; choose from "
                f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        # For tensorboard, accelerate also accepts tensorboardX, which find_spec does not see.
        if name not in available and importlib.util.find_spec(name) is None:
            package = _PACKAGES.get(name, name)
            raise UsageError(
                f"trackers[{index}] is {name!r}, and the package {package!r} is not installed: pip install {package}, "
                f"or leave {name} out of trackers"
            )


def start(
    accelerator: Accelerator, names: Sequence[str], out: Path, config: Mapping[str, Any], steps_done: int
) -> None:
    """Start the trackers. steps_done: 0 for a new run. config: names and plain values.

    A resumed run continues under its first id, which trackers.json in its folder holds.
    """
    if not names:
        return
    file = out / "trackers.json"
    if not (steps_done and file.is_file()) and accelerator.is_main_process:
        file.write_text(json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n")
    accelerator.wait_for_everyone()
    run_id = json.loads(file.read_text())["id"]
    name = f"{out.name}-{run_id[:4]}"
    accelerator.init_trackers(
        PROJECT,
        config=dict(config),
        init_kwargs={
            "wandb": {"id": run_id, "name": name, "resume": "allow"},
            "trackio": {"name": name, "resume": "allow"},
            # Steps after the checkpoint are logged again: TensorBoard has to discard the earlier values.
            "tensorboard": {"purge_step": steps_done + 1} if steps_done else {},
        },
    )


def log_rollouts(accelerator: Accelerator, rows: Sequence[Mapping[str, Any]]) -> None:
    """Send sample rollouts, rows of rollouts.jsonl, to the trackers that can show text: as tables to wandb, as text and
    images to tensorboard. Other trackers get numbers only.
    """
    if not rows:
        return
    step = int(rows[0]["step"])
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        if tracker.name == "wandb":
            cells = [[_cell(row, column) for column in _COLUMNS] for row in rows]
            tracker.log_table("rollouts", columns=list(_COLUMNS), data=cells, step=step)
            if images := [image for row in rows for image in _images(row)]:
                tracker.log_images({"rollouts/pictures": images}, step=step)
        elif tracker.name == "tensorboard":
            for index, row in enumerate(rows):
                tracker.tracker.add_text(f"rollouts/{index}", as_markdown(row), global_step=step)
                for image in _images(row):
                    tracker.log_images({f"rollouts/{index}": image[None]}, step=step, dataformats="NHWC")


def as_markdown(row: Mapping[str, Any]) -> str:
    """A rollout as markdown. Model output is in indented code blocks, which no markup in it can end."""
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


def _images(row: Mapping[str, Any]) -> list[np.ndarray]:
    """The images of the prompt, uint8 [H, W, 3] each."""
    return [np.asarray(decode_data_url(uri)) for uri in row.get("images", ())]
