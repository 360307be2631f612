"""Runs side by side: where their key figures began and ended, and what their configurations say differently."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import yaml

from vold_trainer.report import formats
from vold_trainer.report.read import Run

WIDTH, HEIGHT = 120, 28


@dataclass(frozen=True)
class Figure:
    """A figure worth a place at the top: its key, its name, how it reads ("%" or a unit)."""

    key: str
    label: str
    unit: str = ""


KEY_FIGURES = (
    Figure("reward/mean", "reward"),
    Figure("teacher/k2_wrong", "k2, wrong answers", "nats²"),
    Figure("teacher/gap", "teacher minus student", "nats"),
    Figure("overlap/ratio", "top-k overlap", "%"),
    Figure("student/entropy", "entropy of the student", "nats"),
    Figure("length/mean", "completion length", "tokens"),
    Figure("length/truncated", "truncated", "%"),
    Figure("loss", "loss"),
    Figure("time/step", "time a step", "s"),
    Figure("tokens/per_second", "tokens a second"),
)


@dataclass(frozen=True)
class Course:
    """A figure's way through one run. start, end: means of the first and the last tenth. path: an SVG path."""

    start: float
    end: float
    path: str


@dataclass(frozen=True)
class Glance:
    """A figure of every run; None where a run does not have it."""

    figure: Figure
    courses: tuple[Course | None, ...]

    def value(self, value: float | None) -> str:
        return formats.percent(value) if self.figure.unit == "%" else formats.number(value)

    def change(self, course: Course | None, first: Course | None) -> str:
        """How far a run ended from where the first one did, with its sign."""
        if course is None or first is None or course is first:
            return ""
        difference = course.end - first.end
        shown = formats.points(difference) if self.figure.unit == "%" else formats.number(difference, 2)
        shown = shown.lstrip(f"+{formats.MINUS}")
        nothing = not any(digit in shown for digit in "123456789")
        return shown if nothing else f"{formats.MINUS if difference < 0 else '+'}{shown}"


def glances(runs: Sequence[Run]) -> list[Glance]:
    """The key figures that any run has."""
    found = []
    for figure in KEY_FIGURES:
        courses = tuple(course_of(run.series(figure.key)) for run in runs)
        if any(courses):
            found.append(Glance(figure, courses))
    return found


def course_of(values: Sequence[float | None]) -> Course | None:
    """None where no value is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    tenth = max(1, len(known) // 10)
    return Course(fmean(known[:tenth]), fmean(known[-tenth:]), svg_path(known))


def svg_path(values: Sequence[float], width: int = WIDTH, height: int = HEIGHT) -> str:
    """The values as the `d` of an SVG path, the least at the bottom and the most at the top, 2 units from the edges."""
    if len(values) > width // 2:  # each point the mean of its share
        ends = [round(i * len(values) / (width // 2)) for i in range(width // 2 + 1)]
        values = [fmean(values[a:b]) for a, b in itertools.pairwise(ends)]
    low, high = min(values), max(values)
    points = []
    for i, value in enumerate(values):
        x = 2 + (width - 4) * (i / (len(values) - 1) if len(values) > 1 else 0.5)
        y = height - 2 - (height - 4) * ((value - low) / (high - low) if high > low else 0.5)
        points.append(f"{x:.1f} {y:.1f}")
    return "M" + "L".join(points if len(points) > 1 else points * 2)


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(dotted key, the value of each run) of what the configurations do not agree on; `out` always differs, and is
    left out. Of a section that a run does without, only what the others do not agree on.
    """
    flats = [flat(yaml.safe_load(run.config)) if run.config else None for run in runs]
    known = [settings for settings in flats if settings is not None]
    rows = []
    for key in dict.fromkeys(key for settings in known for key in settings):
        parents = [key[:at] for at, letter in enumerate(key) if letter == "."]
        values = {s.get(key, formats.MISSING) for s in known if not any(parent in s for parent in parents)}
        if key != "out" and len(values) > 1:
            rows.append((key, [_shown(settings, key) for settings in flats]))
    return rows


def _shown(settings: Mapping[str, str] | None, key: str) -> str:
    if settings is None:
        return formats.MISSING
    if key not in settings and any(other.startswith(f"{key}.") for other in settings):
        return "given"
    return settings.get(key, formats.MISSING)


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of dotted names, each value as YAML writes it."""
    if isinstance(value, Mapping) and value:
        return {
            name: text
            for key, item in value.items()
            for name, text in flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(value, str) and value:
        return {prefix: value}
    return {prefix: yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()}
