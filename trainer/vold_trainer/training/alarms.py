"""Alarms about what the teachers of a run answer: counted over all processes, printed, and past a limit an error."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.markup import escape

from vold_trainer.errors import RunError
from vold_trainer.scoring.batch import teacher_logprobs
from vold_trainer.scoring.sanity import Alarm, Figures, TeacherSanity
from vold_trainer.scoring.teachers import Teacher
from vold_trainer.terminal import console
from vold_trainer.training.token_log import TokenLog

PATIENCE = 3
"""Consecutive steps with an alarm after which a teacher with `sane: stop` stops the run."""


class TeacherAlarms:
    """Watches every teacher whose `sane` is not off. teachers: by name, after their handshakes."""

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = {name: teacher for name, teacher in teachers.items() if teacher.sane != "off"}
        self.sanity: dict[str, TeacherSanity] = {}
        for name, teacher in self.teachers.items():
            assert teacher.info is not None
            self.sanity[name] = TeacherSanity(teacher.info.vocab_size)
        self._step = 0
        self._alarms: dict[str, list[Alarm]] = {}

    def figures(self, log: TokenLog, *, on_policy: bool) -> dict[str, Figures]:
        """The figures of this process's completions by teacher. log: after the step's update."""
        return {
            name: self._figures(name, sanity.vocab_size, log, on_policy=on_policy)
            for name, sanity in self.sanity.items()
        }

    def _figures(self, name: str, vocab_size: int, log: TokenLog, *, on_policy: bool) -> Figures:
        scores, rollouts = log.scored.scores, log.scored.rollouts
        rows = [row for row in sorted(log.logprobs) if scores[row].teacher == name]
        rows = [row for row in rows if scores[row].teacher_logprobs is not None]
        if not rows:
            return Figures(on_policy=on_policy)
        seen: set[tuple[int, tuple[int, ...]]] = set()
        repeated = []
        for row in rows:
            key = (id(rollouts[row].example), rollouts[row].ids)
            repeated.append(key in seen)
            seen.add(key)
        lengths = [len(rollouts[row].ids) for row in rows]
        entropies = [entropy for row in rows if (entropy := scores[row].entropy) is not None]
        return Figures.of(
            torch.cat([teacher_logprobs(scores[row], rollouts[row]) for row in rows]).numpy(),
            torch.cat([log.logprobs[row] for row in rows]).float().numpy(),
            np.repeat(np.array(repeated), lengths),
            np.concatenate(entropies) if entropies else None,
            vocab_size=vocab_size,
            invalid=sum(scores[row].invalid for row in rows),
            on_policy=on_policy,
        )

    def observe(self, step: int, figures: Mapping[str, Figures]) -> None:
        """Find the alarms of step `step`, counted from 1. figures: of all processes together."""
        self._step = step
        self._alarms = {name: sanity.observe(figures[name]) for name, sanity in self.sanity.items()}

    def metrics(self) -> dict[str, Any]:
        """The number of alarms of the step, and what they say; empty if no teacher is watched."""
        lines = [line for name in self._alarms for line in self._lines(name)]
        if not self.sanity:
            return {}
        return {"sane/alarms": float(len(lines)), **({"sane/reasons": lines} if lines else {})}

    def check(self) -> None:
        """Print the step's alarms. Raises RunError if a teacher with `sane: stop` has had alarms for too many steps."""
        for name, teacher in self.teachers.items():
            for line in self._lines(name):
                console.print(f"[yellow]step {self._step}: {escape(line)}", highlight=False, soft_wrap=True)
            in_a_row = self.sanity[name].in_a_row
            if teacher.sane == "stop" and self._alarms.get(name) and in_a_row >= PATIENCE:
                raise RunError(
                    f"{'; '.join(self._lines(name))}. This is step {in_a_row} in a row: the student has learned from "
                    f"such values since step {self._step - in_a_row + 1}. Check the service and restart it, then go on "
                    f"from a checkpoint before that step; {teacher.key}.sane=warn goes on regardless"
                )

    def _lines(self, name: str) -> list[str]:
        teacher = self.teachers[name]
        assert teacher.info is not None
        who = f"{teacher.key} ({teacher.info.identity.model}) does not answer as a language model does"
        return [f"{who} [{alarm.name}]: {alarm.text}" for alarm in self._alarms.get(name, [])]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON values, by the teacher's key in the config."""
        return {self.teachers[name].key: sanity.state() for name, sanity in self.sanity.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint. A teacher that it does not know begins anew."""
        for name, sanity in self.sanity.items():
            sanity.restore(state.get(self.teachers[name].key, {}))


def join_figures(parts: Sequence[Mapping[str, Figures]]) -> dict[str, Figures]:
    """The figures of several processes as one, by teacher."""
    return {name: Figures.joined(part[name] for part in parts) for name in parts[0]}
