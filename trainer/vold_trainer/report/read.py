"""The files of a run's folder as dataclasses. files.py reads the lines, also of unfinished files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vold_trainer.report.evaluation import Evaluation, evaluation_of, number
from vold_trainer.report.files import config_text, json_object, read_lines, read_records, read_records_at
from vold_trainer.report.stats import evenly_spaced

LANES = ("generate", "teacher", "verifier", "wait", "diagnose", "optimise", "sync", "checkpoint", "outage", "throttled")
OUTCOMES = ("right", "wrong", "unverified")

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """A piece of work in a lane of a process; `start` and `end` in seconds since the start of the run."""

    step: int
    lane: str
    start: float
    end: float
    process: int = 0


@dataclass(frozen=True)
class Rollout:
    """One sampled completion. The log-probabilities are as many as `tokens`; None is a missing score.

    images: data URIs of the prompt's pictures. missing: why a service gave no score, by service.
    """

    step: int
    id: str
    prompt: str
    reference: str
    tokens: tuple[str, ...]
    student_logprobs: tuple[float | None, ...]
    teacher_logprobs: tuple[float | None, ...]
    reward: float | None
    correct: bool | None
    extracted: str | None
    reason: str
    images: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        return outcome_of(self.correct)


@dataclass(frozen=True)
class EvalSample:
    """A test problem with its answer. `image` is a data URI of a raster image, or None."""

    modality: str
    id: str
    prompt: str
    completion: str
    reference: str
    extracted: str | None
    correct: bool | None
    image: str | None

    @property
    def outcome(self) -> str:
        return outcome_of(self.correct)


@dataclass(frozen=True)
class Run:
    """The data of one run in the report.

    metrics: one mapping per step, in order: "step" an int, every other value a finite float, a list or None. Those
    whose name ends with /reasons are lists of sentences.
    config: the configuration as YAML without secrets, None if there is none.
    rollout_count: how many rollouts the run wrote; `rollouts` holds the few that are shown.
    read_errors: sentences about lines and files that could not be read.
    """

    name: str
    path: Path
    meta: Mapping[str, Any]
    config: str | None
    metrics: tuple[Mapping[str, Any], ...]
    timeline: tuple[Span, ...]
    rollouts: tuple[Rollout, ...]
    rollout_count: int
    evaluation: Evaluation | None
    samples: tuple[EvalSample, ...]
    read_errors: tuple[str, ...]

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row in self.metrics]

    @property
    def keys(self) -> list[str]:
        """Names of the scalar metrics that hold a number at least once, in order of first appearance."""
        seen: dict[str, None] = {}
        for row in self.metrics:
            for key, value in row.items():
                if key not in ("step", "time") and isinstance(value, float):
                    seen.setdefault(key)
        return list(seen)

    @property
    def has_teacher(self) -> bool:
        """Whether any shown token has a teacher score."""
        return any(value is not None for rollout in self.rollouts for value in rollout.teacher_logprobs)

    def series(self, key: str) -> list[float | None]:
        """The value of each step, None if the step has none."""
        return [value if isinstance(value := row.get(key), float) else None for row in self.metrics]

    def last_sentences(self, key: str) -> list[str]:
        """The sentences of the last step that has some under `key`."""
        for row in reversed(self.metrics):
            if sentences := row.get(key):
                return list(sentences)
        return []

    def total(self, key: str) -> float:
        return sum(value for value in self.series(key) if value is not None)


def outcome_of(correct: bool | None) -> str:
    return OUTCOMES[2] if correct is None else OUTCOMES[0] if correct else OUTCOMES[1]


def read_runs(
    paths: Sequence[Path], *, rollout_steps: int = 5, rollouts_per_step: int = 6, samples: int = 12
) -> list[Run]:
    """The runs in `paths`. The name of a run is the shortest end of its path that is unique.

    rollout_steps, rollouts_per_step: how many steps, evenly spaced, and how many rollouts of each are read.
    samples: how many evaluation samples of each modality are read.
    Raises FileNotFoundError for a path that is not a folder, so that a typo does not make an empty report.
    """
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(
                f"run folder {str(path)!r} does not exist; give the folder that holds metrics.jsonl"
            )
    return [
        _read_run(path, name, rollout_steps, rollouts_per_step, samples)
        for path, name in zip(paths, _names(paths), strict=True)
    ]


def _read_run(path: Path, name: str, rollout_steps: int, rollouts_per_step: int, samples: int) -> Run:
    read_errors: list[str] = []
    meta = json_object(path / "run.json", read_errors)
    evaluation = json_object(path / "eval.json", read_errors)
    metrics = {row["step"]: row for row in read_records(path / "metrics.jsonl", _metrics_row, read_errors)}
    index = [
        (offset, step, outcome)
        for offset, (step, outcome) in read_lines(path / "rollouts.jsonl", _rollout_key, read_errors)
        if step is not None
    ]
    offsets = _pick_rollouts(index, rollout_steps, rollouts_per_step)
    return Run(
        name=name,
        path=path,
        meta=meta,
        config=config_text(path / "config.yaml", read_errors),
        # A resumed run writes some steps again: the later line counts.
        metrics=tuple(metrics[step] for step in sorted(metrics)),
        timeline=tuple(read_records(path / "timeline.jsonl", _span, read_errors)),
        rollouts=tuple(read_records_at(path / "rollouts.jsonl", offsets, _rollout, read_errors)),
        rollout_count=len(index),
        evaluation=evaluation_of(evaluation) if evaluation else None,
        samples=tuple(_pick_samples(list(read_records(path / "eval_samples.jsonl", _sample, read_errors)), samples)),
        read_errors=tuple(read_errors),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({i})" for i, path in enumerate(paths, 1)]  # the same folder twice


def _pick_rollouts(index: Sequence[tuple[int, int, str]], steps: int, per_step: int) -> list[int]:
    """Byte offsets of some right, wrong and unverified rollouts of evenly spaced steps."""
    by_step: dict[int, dict[str, list[int]]] = {}
    for offset, step, outcome in index:
        by_step.setdefault(step, {}).setdefault(outcome, []).append(offset)
    return [
        offset
        for step in evenly_spaced(sorted(by_step), steps)
        for offset in sorted(_take_in_turn([by_step[step].get(outcome, []) for outcome in OUTCOMES], per_step))
    ]


def _pick_samples(samples: Sequence[EvalSample], limit: int) -> list[EvalSample]:
    modalities = sorted({sample.modality for sample in samples}, key=lambda m: (m != "image", m))
    chosen: list[EvalSample] = []
    for modality in modalities:
        of_outcome = [[s for s in samples if (s.modality, s.outcome) == (modality, outcome)] for outcome in OUTCOMES]
        chosen += _take_in_turn(of_outcome, limit)
    return chosen


def _take_in_turn(lists: Sequence[Sequence[T]], limit: int) -> list[T]:
    """Items of the lists in turn, at most `limit`."""
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)][:limit]


# Lines


def _metrics_row(raw: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        key: _sentences(value) if key.endswith("/reasons") else _metric(value) for key, value in raw.items()
    }
    return row | {"step": _step(raw), "time": number(raw.get("time"))}


def _metric(value: Any) -> float | list[float | None] | None:
    return [number(item) for item in value] if isinstance(value, list) else number(value)


def _sentences(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _span(raw: dict[str, Any]) -> Span:
    start, end = number(raw["start"]), number(raw["end"])
    if start is None or end is None or end < start:
        raise ValueError(f"start {raw['start']!r} and end {raw['end']!r} are not two times in order")
    lane, _, process = str(raw["lane"]).rpartition(" ")
    if not (lane and process.isdecimal()):  # the lanes of the first process have no number
        lane, process = str(raw["lane"]), "0"
    return Span(step=_step(raw), lane=lane, start=start, end=end, process=int(process))


def _rollout_key(raw: dict[str, Any]) -> tuple[int, str]:
    if not isinstance(raw["tokens"], list):
        raise TypeError(f"tokens must be a list, not {type(raw['tokens']).__name__}")
    return _step(raw), outcome_of(_flag(raw.get("correct")))


def _rollout(raw: dict[str, Any]) -> Rollout:
    tokens = tuple(map(str, raw["tokens"]))
    return Rollout(
        step=_step(raw),
        id=_text(raw.get("id")),
        prompt=_text(raw.get("prompt")),
        reference=_text(raw.get("reference")),
        tokens=tokens,
        student_logprobs=_logprobs(raw.get("student_logprobs"), len(tokens)),
        teacher_logprobs=_logprobs(raw.get("teacher_logprobs"), len(tokens)),
        reward=number(raw.get("reward")),
        correct=_flag(raw.get("correct")),
        extracted=None if raw.get("extracted") is None else str(raw["extracted"]),
        reason=_text(raw.get("reason")),
        images=_images(raw),
        missing=_texts(raw.get("missing")),
    )


def _texts(value: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, Mapping) else {}


def _images(raw: Mapping[str, Any]) -> tuple[str, ...]:
    value = raw.get("images", raw.get("image"))
    images = value if isinstance(value, list) else [value]
    return tuple(image for image in images if isinstance(image, str))


def _logprobs(value: Any, length: int) -> tuple[float | None, ...]:
    """Exactly `length` values. If the number of scores is not that of the tokens, all scores are missing."""
    if not isinstance(value, list) or len(value) != length:
        return (None,) * length
    return tuple(map(number, value))


def _sample(raw: dict[str, Any]) -> EvalSample:
    image = raw.get("image")
    return EvalSample(
        modality=_text(raw.get("modality")) or "text",
        id=_text(raw.get("id")),
        prompt=_text(raw.get("prompt")),
        completion=_text(raw.get("completion")),
        reference=_text(raw.get("reference")),
        extracted=None if raw.get("extracted") is None else str(raw["extracted"]),
        correct=_flag(raw.get("correct")),
        image=image if isinstance(image, str) else None,
    )


# Values


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _step(raw: Mapping[str, Any]) -> int:
    step = number(raw["step"])
    if step is None:
        raise ValueError(f"step must be a number, not {raw['step']!r}")
    return int(step)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
