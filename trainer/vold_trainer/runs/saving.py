"""Save and restore a run: weights, optimizer, schedule, and the state of its loop.

Tensors are saved unsharded, by parameter name, so that a run can resume with another number of processes or another
sharding. Only DeepSpeed saves its optimizer in its own format.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.markup import escape
from torch import Tensor, nn

from vold_trainer.config import RunConfig
from vold_trainer.config.resuming import Change, changes, flat, require_resumable
from vold_trainer.errors import ResumeRefusedError, RunError, UsageError
from vold_trainer.processes.optim import restore_state
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.sharding import full_tensor, gathered_weights, load_full_tensor, trainable_parameters
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.runs.checkpoint import (
    Checkpoint,
    begin_checkpoint,
    best_checkpoints,
    choose_checkpoint,
    finish_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    set_aside_after,
)
from vold_trainer.runs.export import run_export, write_model
from vold_trainer.runs.folder import change_history, extended
from vold_trainer.runs.start import Start, clear_run, holds_run
from vold_trainer.student.models import Student
from vold_trainer.terminal import console


class BrokenWeightsError(RunError):
    """The weights are not finite, and are not saved."""


class Saver:
    """Writes and restores the checkpoints of a run. All processes call its methods at the same time.

    content: digests of what the config leads to, by key: the rows, the frozen weights. changes: what differs in the
    config from that of the checkpoint that was restored; history: with the changes before, for every checkpoint holds
    those up to it; other_content: the keys that lead to other content.
    """

    def __init__(
        self, config: RunConfig, student: Student, prepared: PreparedModel, ranks: Ranks, content: Mapping[str, str]
    ) -> None:
        self.config = config
        self.settings = config.checkpoints
        self.out = config.out
        self.student = student
        self.prepared = prepared
        self.optimizer = prepared.optimizer
        self.scheduler = prepared.scheduler
        self.ranks = ranks
        self.content = dict(content)
        self.changes: list[Change] = []
        self.history: list[dict[str, Any]] = []
        self.other_content: list[str] = []
        self.recent_scores: list[float] = []
        self._configured = [{key: group[key] for key in _CONFIGURED if key in group} for group in self._groups()]
        self._saved_at = time.monotonic()

    def restore(self, start: Start) -> Checkpoint | None:
        """Restore and return the checkpoint that `start` names; None if the run begins anew.

        Settings that may change take effect; `changes` lists them. Raises UsageError if a run would be lost or cannot
        go on from there, before anything is changed.
        """
        found = self.ranks.run_on_all(lambda: self._choose(start) if self.ranks.is_main else None)
        checkpoint = self.ranks.gather(found)[0]
        if checkpoint is None:
            return None
        self.changes = self.ranks.run_on_all(lambda: self._compare(checkpoint))
        before = checkpoint.state.get("changes")  # a checkpoint of an older version has none
        before = change_history(self.out, checkpoint.step) if before is None else before
        used = self.changes if checkpoint.step < self.config.steps else []
        self.history = extended(before, used, checkpoint.step)
        if self.prepared.deepspeed:
            self._restore(checkpoint)
        else:
            self.ranks.run_on_all(lambda: self._restore(checkpoint))
        self.ranks.run_on_all(lambda: self._set_aside_after(checkpoint.step) if self.ranks.is_main else None)
        return checkpoint

    def _choose(self, start: Start) -> Checkpoint | None:
        start.check(self.out, self.config.student.path)
        if start.overwrite:
            clear_run(self.out)
            return None
        if not start.resume:
            return None
        if start.step != "last":
            return choose_checkpoint(self.out, start.step, self.settings.mode)
        checkpoint = latest_checkpoint(self.out)
        if checkpoint is None:
            what = "holds a run without a complete checkpoint" if holds_run(self.out) else "holds no run yet"
            console.print(
                f"[yellow]{escape(repr(str(self.out)))} {what}: --resume starts over, from step 0",
                highlight=False,
                soft_wrap=True,
            )
        return checkpoint

    def _compare(self, checkpoint: Checkpoint) -> list[Change]:
        """What differs in the config since the checkpoint. Raises ResumeRefusedError for what may not."""
        before = checkpoint.state.get("config") or self._written_config()
        now, not_default = (self.config.model_dump(mode="json", exclude_defaults=part) for part in (False, True))
        found = changes(before, now, flat(not_default)) if before else []
        recorded = checkpoint.state.get("content", {})
        other = [key for key, value in self.content.items() if recorded.get(key, value) != value]
        self.other_content = other
        allow_data = bool(flat(now).get("data.allow_change"))
        require_resumable(found, other, allow_data=allow_data)
        if checkpoint.step > self.config.steps:
            raise ResumeRefusedError(
                f"steps is {self.config.steps}, and the checkpoint is of step {checkpoint.step}: set steps higher, or "
                "go back with --step"
            )
        taken = [change for change in found if change.rule == "taken" or (other and change.rule == "content")]
        if taken or other:
            lines = [*map(str, taken), *(f"{key}: other content" for key in other)]
            text = "\n".join(f"  {escape(line)}" for line in lines)
            console.print(
                f"[yellow]going on after step {checkpoint.step} with changes:[/]\n{text}",
                highlight=False,
                soft_wrap=True,
            )
        return found

    def _written_config(self) -> dict[str, Any]:
        """config.yaml, for a checkpoint of a version that did not hold its config."""
        file = self.out / "config.yaml"
        loaded = yaml.safe_load(file.read_text()) if file.is_file() else None
        return loaded if isinstance(loaded, dict) else {}

    def _set_aside_after(self, step: int) -> None:
        left = set_aside_after(self.out, step)
        if left is not None:
            console.print(f"the checkpoints after step {step} are kept in {left}", highlight=False, soft_wrap=True)

    def record_metrics(self, metrics: Mapping[str, Any], *, complete: bool = True) -> None:
        """Record a step's value of `checkpoints.metric`, from which the score of a checkpoint is computed.

        complete: whether a step has every metric; one on traces has no rewards. Raises UsageError if the metric is not
        among those of a complete step.
        """
        if not self.settings.keep_best:
            return
        if self.settings.metric not in metrics:
            if not complete:
                return
            known = ", ".join(name for name, value in metrics.items() if isinstance(value, int | float))
            raise UsageError(f"checkpoints.metric {self.settings.metric!r} is not a metric of this run; it has {known}")
        value = metrics[self.settings.metric]
        if value is not None and math.isfinite(value):
            self.recent_scores = [*self.recent_scores, float(value)][-self.settings.window :]

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps: every `checkpoints.every` steps, `checkpoints.minutes` after
        the last one, and at the end. The clocks of the processes differ: that of the main process counts.
        """
        every, minutes = self.settings.every, self.settings.minutes
        by_steps = bool(every) and step % every == 0
        by_time = bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes
        return by_steps or by_time or (step == self.config.steps and bool(every or minutes))

    def save(
        self, step: int, state: Mapping[str, Any], write_extra: Callable[[Path], None] = lambda folder: None
    ) -> None:
        """Write the checkpoint of `step` and delete the checkpoints that are no longer kept.

        state: of the training loop, JSON values. write_extra: writes further files into the folder, on each process.
        Raises BrokenWeightsError if a weight is not finite: such weights are never saved.
        """
        ranks = self.ranks
        weights = self._weights()
        ranks.run_on_all(lambda: _require_finite(weights, step))
        partial = ranks.run_on_all(lambda: begin_checkpoint(self.out, step) if ranks.is_main else None)
        folder = next(path for path in ranks.gather(partial) if path is not None)
        ranks.run_on_all(lambda: write_extra(folder))
        if self.prepared.deepspeed:
            ranks.accelerator.save_state(str(folder / "deepspeed"))
        optimizer = {} if self.prepared.deepspeed else self._optimizer_tensors()
        tensors = {"learning": weights, **({"optimizer": optimizer} if optimizer else {})}
        about = {
            "processes": ranks.size,
            "scheduler": _json_values(self.scheduler.state_dict()),
            "config": self.config.model_dump(mode="json"),
            "content": self.content,
            "changes": self.history,
            "skipped": self.prepared.skipped.state(),
            "score": sum(self.recent_scores) / len(self.recent_scores) if self.recent_scores else None,
            "recent": self.recent_scores,
            "loop": dict(state),
        }
        ranks.run_on_all(lambda: self._write(folder, step, tensors, about) if ranks.is_main else None)
        self._saved_at = time.monotonic()

    def _write(
        self, folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
    ) -> None:
        settings = self.settings
        finish_checkpoint(folder, step, tensors, about)
        if self.prepared.skipped.diverging:
            return  # those from before may be needed
        prune_checkpoints(self.out, keep_last=settings.keep_last, keep_best=settings.keep_best, mode=settings.mode)

    def export(self) -> None:
        """Write the current student to `out/model` and, with `checkpoints.keep_best`, the best to `out/best`.

        Raises BrokenWeightsError if a weight is not finite.
        """
        weights = self._weights()
        self.ranks.run_on_all(lambda: _require_finite(weights, self.config.steps))
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
                if saved[name].shape != value.shape:
                    raise UsageError(
                        f"{checkpoint.path} is of another model or another student.lora: {name!r} is "
                        f"{list(saved[name].shape)} there and {list(value.shape)} here"
                    )
                load_full_tensor(value, saved[name])
            self._restore_optimizer(checkpoint, parameters)
        self._restore_schedule(checkpoint.state["scheduler"])
        self.prepared.skipped.restore(checkpoint.state.get("skipped", {}))
        self.recent_scores = list(checkpoint.state["recent"])

    def _restore_schedule(self, state: Mapping[str, Any]) -> None:
        """Put the config's schedule to the checkpoint's step. The rates follow from that, so that a changed rate, or
        another number of steps, takes effect; unchanged, they are what they were.
        """
        schedule: Any = self.scheduler
        schedule.last_epoch, schedule._step_count = state["last_epoch"], state["_step_count"]
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
        schedule._last_lr = rates
        for groups in (self._groups(), schedule.optimizer.param_groups):
            for group, configured, rate in zip(groups, self._configured, rates, strict=True):
                group.update({**configured, "lr": rate})

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

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


_CONFIGURED = ("initial_lr", "betas", "weight_decay")
"""Settings of an optimizer's group that come from the config, and may differ from those of a checkpoint."""


def _require_finite(weights: Mapping[str, Tensor], step: int) -> None:
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise BrokenWeightsError(f"the weights after step {step} are not finite ({name!r}), and are not saved")


def _json_values(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, int | float | list | str | bool | None)}
