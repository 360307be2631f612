"""The recipe as stages in the pocket world: what `vold demo` and `vold ablation` are made of.

Each stage is one of the trainer's commands with a shipped config (pocket:traces, pocket:sft, ...), the services'
URLs and a folder filled in.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import TracesSummary, run_traces
from vold_trainer.config import (
    ConfigT,
    EvalConfig,
    SftConfig,
    TeacherConfig,
    TracesConfig,
    TrainConfig,
    VerifierConfig,
    load,
)
from vold_trainer.evaluation import SetResult, run_eval
from vold_trainer.services.local import Services, open_services
from vold_trainer.training.train import run_train


@dataclass(frozen=True)
class Recipe:
    """Where the stages of one seed write, and which services they use.

    overrides: `a.b=value` for every stage whose config has the key's first part.
    """

    out: Path
    services: Services
    seed: int = 0
    overrides: Sequence[str] = ()

    def _load(self, kind: type[ConfigT], name: str, *own: str) -> ConfigT:
        urls = []
        if "teacher" in kind.model_fields and name != "grpo":
            urls.append(f"teacher.url={json.dumps(list(self.services.teacher_urls))}")
        if "verifier" in kind.model_fields:
            urls.append(f"verifier.url={json.dumps(list(self.services.verifier_urls))}")
        if "seed" in kind.model_fields:
            urls.append(f"seed={self.seed}")
        mine = [o for o in self.overrides if _stage_and_key(o)[0] in ("", kind.__name__.removesuffix("Config").lower())]
        return load(kind, Path(f"pocket:{name}"), [*urls, *own, *(_stage_and_key(o)[1] for o in mine)])

    def traces(self, name: str = "traces.jsonl") -> tuple[Path, TracesSummary]:
        """The teacher's answers to 3,000 training prompts, kept where the verifier finds them right."""
        config = self._load(TracesConfig, "traces", f"out={self.out / name}", f"data.seed={self.seed}")
        return config.out, run_traces(config)

    def sft(self, traces: Path, name: str = "sft", *own: str) -> Path:
        """A cold start from the base student. Returns the student's folder."""
        return run_sft(self._load(SftConfig, "sft", f"out={self.out / name}", f"traces={traces}", *own))

    def train(self, kind: str, student: Path | str, name: str, *own: str) -> Path:
        """GRPO ("grpo") or distillation ("vold") from `student`. Returns the student's folder."""
        config = self._load(
            TrainConfig, kind, f"out={self.out / name}", f"student.path={student}", f"data.seed={self.seed}", *own
        )
        return run_train(config)

    def evaluate(self, student: Path | str, name: str, *own: str) -> dict[str, SetResult]:
        """Greedy accuracy on text and on pictures; eval.json goes beside the stage's run."""
        config = self._load(EvalConfig, "eval", f"out={self.out / name}", f"student.path={student}", *own)
        return run_eval(config, fresh=True)


def _stage_and_key(override: str) -> tuple[str, str]:
    """`train:steps=5` in two; the stage is empty where the override is for all."""
    stage, colon, rest = override.partition(":")
    return (stage, rest) if colon and "=" not in stage else ("", override)


@contextlib.contextmanager
def pocket_services(teacher_url: str, verifier_url: str) -> Iterator[Services]:
    """The two services by URL; local: starts them as processes."""
    teacher, verifier = TeacherConfig(url=teacher_url), VerifierConfig(url=verifier_url)
    with open_services(teacher=teacher, verifier=verifier) as services:
        yield services
