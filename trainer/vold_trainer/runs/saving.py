"""Save and restore a run: weights, optimizer, schedule, random number generators, and the state of its loop.

Tensors are saved unsharded, by parameter name, so that a run can resume with another number of processes or another
sharding. Only DeepSpeed saves its optimizer in its own format.
"""

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vold_trainer.config import RunConfig
from vold_trainer.errors import UsageError
from vold_trainer.processes.optim import restore_state
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.sharding import full_tensor, gathered_weights, load_full_tensor, trainable_parameters
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.runs.checkpoint import (
    Checkpoint,
    begin_checkpoint,
    best_checkpoints,
    finish_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
)
from vold_trainer.runs.export import run_export, write_model
from vold_trainer.student.models import Student
from vold_trainer.terminal import console


class Saver:
    """Writes and restores the checkpoints of a run. All processes call its methods at the same time.

    data: figures that identify the data, such as its number of rows. If they differ on resuming, a warning is printed.
    """

    def __init__(
        self, config: RunConfig, student: Student, prepared: PreparedModel, ranks: Ranks, data: Mapping[str, int]
    ) -> None:
        self.config = config
        self.settings = config.checkpoints
        self.out = config.out
        self.student = student
        self.prepared = prepared
        self.optimizer = prepared.optimizer
        self.scheduler = prepared.scheduler
        self.ranks = ranks
        self.data = dict(data)
        self.recent_scores: list[float] = []

    def restore_latest(self, resume: bool) -> Checkpoint | None:
        """Restore and return the newest complete checkpoint, if there is one and `resume` is set.

        Raises UsageError if a new run would overwrite the checkpoints of another run.
        """
        newest = self.ranks.run_on_all(lambda: self._checkpoint_to_restore(resume) if self.ranks.is_main else None)
        checkpoint = self.ranks.gather(newest)[0]
        if checkpoint is None:
            return None
        if self.prepared.deepspeed:
            self._restore(checkpoint)
        else:
            self.ranks.run_on_all(lambda: self._restore(checkpoint))
        return checkpoint

    def _checkpoint_to_restore(self, resume: bool) -> Checkpoint | None:
        checkpoint = latest_checkpoint(self.out)
        if checkpoint is not None and not resume:
            raise UsageError(
                f"{str(self.out / 'checkpoints')!r} holds a run's checkpoints, up to step {checkpoint.step}: go on "
                "with --resume, set another out, or remove the folder"
            )
        return checkpoint

    def record_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Record a step's value of `checkpoints.metric`, from which the score of a checkpoint is computed.

        Raises UsageError if the metric is not among the metrics.
        """
        if not self.settings.keep_best:
            return
        if self.settings.metric not in metrics:
            known = ", ".join(name for name, value in metrics.items() if isinstance(value, int | float))
            raise UsageError(f"checkpoints.metric {self.settings.metric!r} is not a metric of this run; it has {known}")
        value = metrics[self.settings.metric]
        if value is not None:
            self.recent_scores = [*self.recent_scores, float(value)][-self.settings.window :]

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps: every `checkpoints.every` steps, and at the end."""
        every = self.settings.every
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def save(
        self, step: int, state: Mapping[str, Any], write_extra: Callable[[Path], None] = lambda folder: None
    ) -> None:
        """Write the checkpoint of `step` and delete the checkpoints that are no longer kept.

        state: of the training loop, JSON values. write_extra: writes further files into the folder, on each process.
        """
        ranks = self.ranks
        partial = ranks.run_on_all(lambda: begin_checkpoint(self.out, step) if ranks.is_main else None)
        folder = next(path for path in ranks.gather(partial) if path is not None)
        ranks.run_on_all(lambda: write_extra(folder))
        if self.prepared.deepspeed:
            ranks.accelerator.save_state(str(folder / "deepspeed"))
        weights = self._weights()
        optimizer = {} if self.prepared.deepspeed else self._optimizer_tensors()
        random_states = ranks.gather(random_state())
        tensors = {
            "learning": weights,
            **({"optimizer": optimizer} if optimizer else {}),
            "random": {
                f"{rank}.{name}": value for rank, states in enumerate(random_states) for name, value in states.items()
            },
        }
        about = {
            "processes": ranks.size,
            "scheduler": _json_values(self.scheduler.state_dict()),
            "rates": [_learning_rates(group) for group in self.optimizer.param_groups],
            "data": self.data,
            "score": sum(self.recent_scores) / len(self.recent_scores) if self.recent_scores else None,
            "recent": self.recent_scores,
            "loop": dict(state),
        }
        ranks.run_on_all(lambda: self._write(folder, step, tensors, about) if ranks.is_main else None)

    def _write(
        self, folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
    ) -> None:
        settings = self.settings
        finish_checkpoint(folder, step, tensors, about)
        prune_checkpoints(self.out, keep_last=settings.keep_last, keep_best=settings.keep_best, mode=settings.mode)

    def export(self) -> None:
        """Write the current student to `out/model` and, with `checkpoints.keep_best`, the best to `out/best`."""
        weights = self._weights() if self.prepared.lock_step else {}
        self.ranks.run_on_all(lambda: self._export(weights) if self.ranks.is_main else None)

    def _export(self, weights: Mapping[str, Tensor]) -> None:
        if self.prepared.lock_step:
            write_model(self.config.student, weights, self.out / "model")
        else:
            self.student.save(self.out / "model")
        if self.settings.keep_best and best_checkpoints(list_checkpoints(self.out), 1, self.settings.mode):
            run_export(self.out, "best", self.out / "best")

    def _weights(self) -> dict[str, Tensor]:
        """The trainable weights, unsharded; empty on all processes but the main one."""
        if self.prepared.deepspeed:
            with gathered_weights(self.prepared.module):
                return self._gather_on_main(trainable_parameters(self.student.model))
        return self._gather_on_main(trainable_parameters(self.student.model))

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's tensors, by state key and parameter name; empty on all processes but the main one."""
        state = self.optimizer.state
        return self._gather_on_main(
            {
                f"{key}.{name}": value
                for name, parameter in trainable_parameters(self.student.model).items()
                for key, value in state.get(parameter, {}).items()
            }
        )

    def _gather_on_main(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gathered = {}
        for name, value in tensors.items():
            full = full_tensor(value.detach())
            if self.ranks.is_main:
                gathered[name] = full.contiguous().cpu()
        return gathered

    def _restore(self, checkpoint: Checkpoint) -> None:
        parameters = trainable_parameters(self.student.model)
        saved = checkpoint.tensors("learning")
        if set(saved) != set(parameters):
            different = sorted(set(saved) ^ set(parameters))[0]
            raise UsageError(
                f"{checkpoint.path} is of another model or another student.freeze: {different!r} is only on one side"
            )
        if self.prepared.deepspeed:
            self._restore_deepspeed(checkpoint)
        else:
            for name, value in parameters.items():
                load_full_tensor(value, saved[name])
            self._restore_optimizer(checkpoint, parameters)
            for group, rates in zip(self.optimizer.param_groups, checkpoint.state["rates"], strict=True):
                group.update(rates)
        self.scheduler.load_state_dict(checkpoint.state["scheduler"])
        self.recent_scores = list(checkpoint.state["recent"])
        own_state = {
            name.partition(".")[2]: value
            for name, value in checkpoint.tensors("random").items()
            if name.partition(".")[0] == str(self.ranks.rank)
        }
        if own_state and checkpoint.state["processes"] == self.ranks.size:
            set_random_state(own_state)
        if checkpoint.state["data"] != self.data:
            console.print(
                f"[yellow]the data changed since {checkpoint.path.name} was written ({checkpoint.state['data']} then, "
                f"{self.data} now): the run continues with other prompts than it would have had"
            )

    def _restore_optimizer(self, checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter]) -> None:
        if (checkpoint.path / "deepspeed").is_dir():
            raise UsageError(f"{checkpoint.path} was written by DeepSpeed: resume under DeepSpeed, or `vold export` it")
        if not (checkpoint.path / "optimizer.safetensors").is_file():  # saved before the first step
            return
        for key, value in checkpoint.tensors("optimizer").items():
            name, _, parameter = key.partition(".")
            restore_state(self.optimizer, parameters[parameter], name, value)

    def _restore_deepspeed(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state["processes"] != self.ranks.size or not (checkpoint.path / "deepspeed").is_dir():
            raise UsageError(
                f"{checkpoint.path} is of {checkpoint.state['processes']} processes, and DeepSpeed resumes only in as "
                "many, from a checkpoint that it wrote"
            )
        self.ranks.accelerator.load_state(str(checkpoint.path / "deepspeed"))


def random_state() -> dict[str, Tensor]:
    """The states of the random number generators of torch, Python and NumPy in this process."""
    numpy_state: Any = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
        "numpy": torch.tensor([*np.asarray(numpy_state[1]).tolist(), numpy_state[2]], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Set the generators to the states that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"].tolist()), None))
    *keys, position = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, 0, 0.0))
    if "cuda" in state and torch.cuda.is_available():
        with suppress(RuntimeError):  # another kind of device
            torch.cuda.set_rng_state(state["cuda"])


def _learning_rates(group: Mapping[str, Any]) -> dict[str, float]:
    """The values that the schedule changes; the rest of a group follows from the config."""
    return {name: float(group[name]) for name in ("lr", "initial_lr") if name in group}


def _json_values(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, int | float | list | str | bool | None)}
