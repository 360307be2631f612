"""The panels of the page: which metrics share a panel, and how to read it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from vold_trainer.report.figures import Line, curves
from vold_trainer.report.read import Run


@dataclass(frozen=True)
class Panel:
    """Metrics in one figure. note: how to read them. floor: the axis starts at 0. hide_zero: leave the panel out if all
    values are 0. share, unit, smooth: as in `curves`.
    """

    title: str
    note: str
    lines: tuple[Line, ...]
    share: bool = False
    unit: str = ""
    smooth: bool = True
    floor: bool = False
    hide_zero: bool = False


@dataclass(frozen=True)
class RenderedPanel:
    """A panel with its figure."""

    title: str
    note: str
    figure: go.Figure


@dataclass
class PanelGroup:
    """Panels under one heading."""

    name: str
    panels: list[RenderedPanel] = field(default_factory=list)


def _lines(**labels: str) -> tuple[Line, ...]:
    return tuple(Line(key.replace("__", "/"), label) for key, label in labels.items())


def _by_outcome(key: str) -> tuple[Line, ...]:
    """A metric over all completions, over the right ones and over the wrong ones."""
    return Line(key, "all"), Line(f"{key}_correct", "right"), Line(f"{key}_wrong", "wrong")


SECTIONS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Rewards",
        (
            Panel(
                "Reward",
                "Mean and standard deviation over the rollouts of a step; by outcome if rewards are not just 0 and 1.",
                _lines(
                    reward__mean="mean", reward__std="std", reward__mean_correct="right", reward__mean_wrong="wrong"
                ),
                floor=True,
            ),
            Panel(
                "Right answers",
                "Share of the rollouts with a verdict that are correct.",
                _lines(reward__correct="right answers"),
                share=True,
                floor=True,
            ),
            Panel(
                "Groups without advantage",
                "If all rollouts of a group have one outcome, their advantage is 0: only the teacher gives a gradient.",
                _lines(groups__all_correct="right", groups__all_wrong="wrong"),
                share=True,
                floor=True,
            ),
        ),
    ),
    (
        "Student and teacher",
        (
            Panel(
                "Distance to the teacher (k2)",
                "Half the squared log-probability difference on sampled tokens. VOLD reduces it on wrong rollouts.",
                _by_outcome("teacher/k2"),
                unit="nats²",
                floor=True,
            ),
            Panel(
                "Teacher minus student, by outcome",
                "Mean log-probability difference. Below 0: the tokens are less likely under the teacher.",
                _by_outcome("teacher/gap"),
                unit="nats",
            ),
            Panel(
                "Top-k overlap",
                "Share of the student's most likely ids that are among the teacher's. In good runs it rises "
                "(72 % to 91 % in arXiv 2604.13016).",
                _by_outcome("overlap/ratio"),
                share=True,
            ),
            Panel(
                "Probability on the common ids",
                "The probability that each model gives to the ids that are among the most likely of both.",
                _lines(overlap__student_mass="student", overlap__teacher_mass="teacher"),
                share=True,
            ),
            Panel(
                "Entropy",
                "Of the next-token distribution at sampled positions. Near 0 the student no longer explores.",
                _lines(student__entropy="student", teacher__entropy="teacher"),
                unit="nats",
                floor=True,
            ),
            Panel(
                "Entropy gap",
                "Teacher minus student at the same positions. Below 0: the teacher is more certain than the student.",
                _by_outcome("entropy/gap"),
                unit="nats",
            ),
            Panel(
                "Probability on the support",
                "The probability that each model gives to the ids that the divergence is computed over.",
                _lines(support__student_mass="student", support__teacher_mass="teacher"),
                share=True,
            ),
        ),
    ),
    (
        "Completions",
        (
            Panel(
                "Completion length",
                "Tokens per completion, by outcome.",
                _by_outcome("length/mean"),
                unit="tokens",
                floor=True,
            ),
            Panel(
                "Truncated completions",
                "Share that reached the token limit.",
                _lines(length__truncated="truncated"),
                share=True,
                floor=True,
            ),
            Panel(
                "Missing scores",
                "Scores not received, and positions whose token the teacher's tokenizer lacks: masked, never 0.",
                _lines(
                    missing__teacher="teacher's", missing__verifier="verifier's", missing__masked_positions="positions"
                ),
                floor=True,
                smooth=False,
            ),
            Panel(
                "Alarms about the teacher",
                "Conditions that the teacher's values met and a language model's do not (teacher.sane).",
                _lines(sane__alarms="alarms"),
                floor=True,
                smooth=False,
                hide_zero=True,
            ),
        ),
    ),
    (
        "Optimiser",
        (
            Panel(
                "Loss",
                "The loss that is minimised; comparable only between runs with the same objective.",
                _lines(loss="loss"),
            ),
            Panel(
                "Loss on held-out traces",
                "Of traces that are not learned. If it rises while the loss falls, the student learns by heart.",
                _lines(validation__loss="held out"),
                unit="nats",
                smooth=False,
            ),
            Panel("Gradient norm", "Before clipping.", _lines(grad_norm="gradient norm"), floor=True),
            Panel(
                "Clipped tokens",
                "Share of tokens whose ratio is outside the clip range.",
                _lines(clip__high="above", clip__low="below"),
                share=True,
                floor=True,
            ),
            Panel(
                "Rollout mismatch",
                "Difference between rollout engine and trainer on the sampled tokens: log-probability at sampling "
                "minus log-probability before the update.",
                _lines(mismatch__abs="size", mismatch__k1="mean", mismatch__k3="k3"),
                unit="nats",
            ),
            Panel(
                "Staleness",
                "Policy updates between the generation of the completions and the step that trains on them.",
                _lines(staleness="staleness"),
                unit="updates",
                smooth=False,
                floor=True,
                hide_zero=True,
            ),
            Panel("Learning rate", "As set by the schedule.", _lines(lr="learning rate"), smooth=False, floor=True),
        ),
    ),
    (
        "Time and throughput",
        (
            Panel(
                "Where a step's time goes",
                "The wait for scores is the scoring time that does not overlap with generation.",
                _lines(
                    time__step="whole step",
                    time__generate="generate",
                    time__score_wait="wait for scores",
                    time__optimise="optimise",
                ),
                unit="s",
                floor=True,
            ),
            Panel(
                "Throughput",
                "Completion tokens per second over the whole step.",
                _lines(tokens__per_second="tokens per second"),
                unit="tokens/s",
                floor=True,
            ),
        ),
    ),
)


def render_sections(runs: Sequence[Run]) -> list[PanelGroup]:
    """The sections above, with the panels for which at least one run has a metric."""
    present = _keys(runs)
    sections = []
    for name, panels in SECTIONS:
        section = PanelGroup(name)
        for panel in panels:
            lines = [line for line in panel.lines if line.key in present]
            shown = not panel.hide_zero or any(any(run.series(line.key)) for run in runs for line in lines)
            if lines and shown:
                options = {"share": panel.share, "unit": panel.unit, "smooth": panel.smooth, "floor": panel.floor}
                section.panels.append(RenderedPanel(panel.title, panel.note, curves(runs, lines, **options)))  # type: ignore[arg-type]
        if section.panels:
            sections.append(section)
    return sections


def render_other_metrics(runs: Sequence[Run]) -> list[PanelGroup]:
    """A panel for each metric that is in no panel above, grouped by prefix."""
    known = {line.key for _, panels in SECTIONS for panel in panels for line in panel.lines}
    groups: dict[str, PanelGroup] = {}
    for key in _keys(runs):
        if key not in known:
            prefix, slash, _ = key.partition("/")
            name = prefix if slash else "other"
            panel = RenderedPanel(key, "", curves(runs, [Line(key, key)]))
            groups.setdefault(name, PanelGroup(name)).panels.append(panel)
    return list(groups.values())


def _keys(runs: Sequence[Run]) -> list[str]:
    seen: dict[str, Any] = {}
    for run in runs:
        seen.update(dict.fromkeys(run.keys))
    return list(seen)
