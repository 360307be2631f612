"""What of a run is saved, and put back: weights, optimizer, schedule, random numbers, place in the data, and whatever
else its loop has to remember.

Tensors are saved whole, by the names of the parameters that they belong to, so that a run may go on in another number
of processes, or with its weights spread otherwise. Only DeepSpeed keeps its optimizer in a form of its own.
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
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.sharding import fill, full, trainable_parameters, whole
from vold_trainer.processes.wrapping import Wrapped
from vold_trainer.runs import checkpoint
from vold_trainer.runs.checkpoint import Checkpoint, best_of, listed
from vold_trainer.runs.export import run_export, write_model
from vold_trainer.student.models import Student
from vold_trainer.terminal import console


class Saver:
    """Writes a run's checkpoints and reads them. Every method is for all processes to call at the same time.

    data: what the place in the data depends on, such as how many rows there are: a run that goes on with other data is
    told so.
    """

    def __init__(
        self, config: RunConfig, student: Student, wrapped: Wrapped, ranks: Ranks, data: Mapping[str, int]
    ) -> None:
        self.config = config
        self.keep = config.checkpoints
        self.out = config.out
        self.student = student
        self.wrapped = wrapped
        self.optimizer = wrapped.optimizer
        self.scheduler = wrapped.scheduler
        self.ranks = ranks
        self.data = dict(data)
        self.recent: list[float] = []

    def begin(self, resume: bool) -> Checkpoint | None:
        """Put the newest whole checkpoint back where `resume` asks for it and there is one; returns it.

        Raises UsageError where a new run would write over another one's checkpoints.
        """
        found = self.ranks.together(lambda: self._found(resume) if self.ranks.first else None)
        found = self.ranks.gather(found)[0]
        if found is None:
            return None
        if self.wrapped.deepspeed:
            self._restore(found)
        else:
            self.ranks.together(lambda: self._restore(found))
        return found

    def _found(self, resume: bool) -> Checkpoint | None:
        found = checkpoint.latest(self.out)
        if found is not None and not resume:
            raise UsageError(
                f"{str(self.out / 'checkpoints')!r} holds a run's checkpoints, up to step {found.step}: go on with "
                "--resume, set another out, or remove the folder"
            )
        return found

    def saw(self, metrics: Mapping[str, Any]) -> None:
        """A step's figures: what the score of a checkpoint is made of.

        Raises UsageError where the metric to judge by is not among them.
        """
        if not self.keep.keep_best:
            return
        if self.keep.metric not in metrics:
            known = ", ".join(name for name, value in metrics.items() if isinstance(value, int | float))
            raise UsageError(f"checkpoints.metric {self.keep.metric!r} is no figure of this run; it has {known}")
        value = metrics[self.keep.metric]
        if value is not None:
            self.recent = [*self.recent, float(value)][-self.keep.window :]

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after `step` steps: every so often, and at the end."""
        every = self.keep.every
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def save(self, step: int, state: Mapping[str, Any], also: Callable[[Path], None] = lambda folder: None) -> None:
        """Write the checkpoint of `step` and drop those that nobody wants any more. state: of the loop, as JSON. also:
        writes further files into its folder, each process its own.
        """
        ranks = self.ranks
        partial = ranks.together(lambda: checkpoint.begin(self.out, step) if ranks.first else None)
        folder = next(path for path in ranks.gather(partial) if path is not None)
        ranks.together(lambda: also(folder))
        if self.wrapped.deepspeed:
            ranks.accelerator.save_state(str(folder / "deepspeed"))
        weights = self._weights()
        moments = {} if self.wrapped.deepspeed else self._moments()
        randoms = ranks.gather(random_state())
        tensors = {
            "learning": weights,
            **({"optimizer": moments} if moments else {}),
            "random": {f"{rank}.{name}": value for rank, one in enumerate(randoms) for name, value in one.items()},
        }
        about = {
            "processes": ranks.size,
            "scheduler": _plain(self.scheduler.state_dict()),
            "rates": [_rates(group) for group in self.optimizer.param_groups],
            "data": self.data,
            "score": sum(self.recent) / len(self.recent) if self.recent else None,
            "recent": self.recent,
            "loop": dict(state),
        }
        ranks.together(lambda: self._write(folder, step, tensors, about) if ranks.first else None)

    def _write(
        self, folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
    ) -> None:
        keep = self.keep
        checkpoint.finish(folder, step, tensors, about)
        checkpoint.prune(self.out, keep_last=keep.keep_last, keep_best=keep.keep_best, mode=keep.mode)

    def export(self) -> None:
        """The student as it is now as `out/model`; where the best are kept, the best as `out/best`."""
        weights = self._weights() if self.wrapped.even else {}
        self.ranks.together(lambda: self._export(weights) if self.ranks.first else None)

    def _export(self, weights: Mapping[str, Tensor]) -> None:
        if self.wrapped.even:
            write_model(self.config.student, weights, self.out / "model")
        else:
            self.student.save(self.out / "model")
        if self.keep.keep_best and best_of(listed(self.out), 1, self.keep.mode):
            run_export(self.out, "best", self.out / "best")

    def _weights(self) -> dict[str, Tensor]:
        """The weights that learn, whole; on the first process alone."""
        if self.wrapped.deepspeed:
            with whole(self.wrapped.module):
                return self._kept(trainable_parameters(self.student.model))
        return self._kept(trainable_parameters(self.student.model))

    def _moments(self) -> dict[str, Tensor]:
        """The optimizer's tensors, by name and parameter; on the first process alone."""
        state = self.optimizer.state
        return self._kept(
            {
                f"{key}.{name}": value
                for name, parameter in trainable_parameters(self.student.model).items()
                for key, value in state.get(parameter, {}).items()
            }
        )

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {}
        for name, value in tensors.items():
            everything = full(value.detach())
            if self.ranks.first:
                kept[name] = everything.contiguous().cpu()
        return kept

    def _restore(self, found: Checkpoint) -> None:
        learning = trainable_parameters(self.student.model)
        saved = found.tensors("learning")
        if set(saved) != set(learning):
            odd = sorted(set(saved) ^ set(learning))[0]
            raise UsageError(f"{found.path} is of another model or another student.freeze: {odd!r} is only on one side")
        if self.wrapped.deepspeed:
            self._restore_deepspeed(found)
        else:
            for name, value in learning.items():
                fill(value, saved[name])
            self._restore_moments(found, learning)
            for group, rates in zip(self.optimizer.param_groups, found.state["rates"], strict=True):
                group.update(rates)
        self.scheduler.load_state_dict(found.state["scheduler"])
        self.recent = list(found.state["recent"])
        randoms = found.tensors("random")
        own = {
            name.partition(".")[2]: value
            for name, value in randoms.items()
            if name.partition(".")[0] == str(self.ranks.rank)
        }
        if own and found.state["processes"] == self.ranks.size:
            set_random_state(own)
        if found.state["data"] != self.data:
            console.print(
                f"[yellow]the data changed since {found.path.name} was written ({found.state['data']} then, "
                f"{self.data} now): the run goes on, but not with the prompts that it would have had"
            )

    def _restore_moments(self, found: Checkpoint, learning: Mapping[str, nn.Parameter]) -> None:
        if (found.path / "deepspeed").is_dir():
            raise UsageError(f"{found.path} was written by DeepSpeed: go on under DeepSpeed, or `vold export` it")
        if not (found.path / "optimizer.safetensors").is_file():  # no step was done
            return
        for key, value in found.tensors("optimizer").items():
            name, _, parameter = key.partition(".")
            state = self.optimizer.state[learning[parameter]]
            if value.ndim:
                state[name] = torch.zeros_like(learning[parameter])
                fill(state[name], value)
            else:
                state[name] = value

    def _restore_deepspeed(self, found: Checkpoint) -> None:
        if found.state["processes"] != self.ranks.size or not (found.path / "deepspeed").is_dir():
            raise UsageError(
                f"{found.path} is of {found.state['processes']} processes, and DeepSpeed goes on only in as many, from "
                "a checkpoint of its own"
            )
        self.ranks.accelerator.load_state(str(found.path / "deepspeed"))


def random_state() -> dict[str, Tensor]:
    """The state of every generator that a library may draw from in this process."""
    numbers: Any = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
        "numpy": torch.tensor([*np.asarray(numbers[1]).tolist(), numbers[2]], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put the generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"].tolist()), None))
    *keys, place = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, 0, 0.0))
    if "cuda" in state and torch.cuda.is_available():
        with suppress(RuntimeError):  # another kind of device
            torch.cuda.set_rng_state(state["cuda"])


def _rates(group: Mapping[str, Any]) -> dict[str, float]:
    """What the schedule has changed; the rest of a group follows from the config."""
    return {name: float(group[name]) for name in ("lr", "initial_lr") if name in group}


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, int | float | list | str | bool | None)}
