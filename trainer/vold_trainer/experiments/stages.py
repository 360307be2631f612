"""The stages of the recipe in the pocket world, which `vold demo` and `vold ablation` run.

Each stage is a command of the trainer with a shipped config (pocket:traces, pocket:sft, ...), in which the URLs of the
services and the output folder are set.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import TracesSummary, run_traces
from vold_trainer.config import (
    ConfigT,
    EvalConfig,
    RunConfig,
    SftConfig,
    TeacherConfig,
    TracesConfig,
    TrainConfig,
    VerifierConfig,
    load,
)
from vold_trainer.config.resuming import flat
from vold_trainer.config.stages import stage_and_key
from vold_trainer.errors import ResumeRefusedError
from vold_trainer.evaluation import SetResult, run_eval
from vold_trainer.runs.checkpoint import latest_checkpoint
from vold_trainer.services.local import Services, open_services
from vold_trainer.training.train import run_train


@dataclass(frozen=True)
class Recipe:
    """The output folder, the services, the seed and the overrides of the stages of one run of the recipe.

    overrides: [STAGE:]KEY=VALUE; without STAGE an override applies to every stage.
    """

    out: Path
    services: Services
    seed: int = 0
    overrides: Sequence[str] = ()

    def _load(self, kind: type[ConfigT], name: str, *extra: str) -> ConfigT:
        settings = []
        if "teacher" in kind.model_fields and name != "grpo":
            settings.append(f"teacher.url={json.dumps(list(self.services.teacher_urls))}")
        if "verifier" in kind.model_fields:
            settings.append(f"verifier.url={json.dumps(list(self.services.verifier_urls))}")
        if "seed" in kind.model_fields:
            settings.append(f"seed={self.seed}")
        overrides = [
            o for o in self.overrides if stage_and_key(o)[0] in ("", kind.__name__.removesuffix("Config").lower())
        ]
        return load(kind, Path(f"pocket:{name}"), [*settings, *extra, *(stage_and_key(o)[1] for o in overrides)])

    def traces(self, name: str = "traces.jsonl") -> tuple[Path, TracesSummary]:
        """Generate the teacher's traces for the training prompts; only those that the verifier accepts are written."""
        config = self._load(TracesConfig, "traces", f"out={self.out / name}", f"data.seed={self.seed}")
        return config.out, run_traces(config)

    def sft(self, traces: Path, name: str = "sft", *extra: str) -> Path:
        """Train a cold start from the base student. Returns the student's folder."""
        config = self._load(SftConfig, "sft", f"out={self.out / name}", f"traces={traces}", *extra)
        return _go_on_or_begin(config, partial(run_sft, config))

    def train(
        self,
        kind: str,
        student: Path | str,
        name: str,
        *extra: str,
        change: Callable[[TrainConfig], TrainConfig] | None = None,
    ) -> Path:
        """Train `student` by the shipped config `kind`: "grpo", "vold" or "vold-candidates". Returns the student's
        folder. change: of the whole config, for what no setting says.
        """
        config = self._load(
            TrainConfig, kind, f"out={self.out / name}", f"student.path={student}", f"data.seed={self.seed}", *extra
        )
        if change is not None:
            config = change(config)
        return _go_on_or_begin(config, partial(run_train, config))

    def train_steps(self, kind: str) -> int:
        """The steps of the shipped config `kind` with the overrides of this recipe."""
        return self._load(TrainConfig, kind).steps

    def evaluate(self, student: Path | str, name: str, *extra: str) -> dict[str, SetResult]:
        """Evaluate greedy accuracy on text and on pictures. eval.json is written into the folder of the run `name`."""
        config = self._load(EvalConfig, "eval", f"out={self.out / name}", f"student.path={student}", *extra)
        return run_eval(config, fresh=True)


def _go_on_or_begin(config: RunConfig, run: Callable[..., Path]) -> Path:
    """Run in a folder that the recipe owns: go on with the run in it if it was interrupted and is the same run; begin
    anew over one that is finished, or that had other settings or data.
    """
    checkpoint = latest_checkpoint(config.out)
    now = config.model_dump(mode="json")
    same = checkpoint is not None and _without_urls(checkpoint.state.get("config", {})) == _without_urls(now)
    if checkpoint is not None and same and checkpoint.step < config.steps:
        with contextlib.suppress(ResumeRefusedError):  # other rows, or another student, under the same names
            return run(resume=True)
    return run(overwrite=True)


def _without_urls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings but for the addresses of the services, which a local service has anew in every run."""
    return {key: value for key, value in flat(settings).items() if not key.endswith(".url")}


@contextlib.contextmanager
def pocket_services(teacher_url: str | None, verifier_url: str) -> Iterator[Services]:
    """Teacher and verifier by URL; `local:` starts them as child processes. Without a teacher's URL, the verifier."""
    teacher = None if teacher_url is None else TeacherConfig(url=teacher_url)
    verifier = VerifierConfig(url=verifier_url)
    with open_services(teacher=teacher, verifier=verifier) as services:
        yield services
