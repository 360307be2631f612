"""Which metrics share a panel, what each panel is for, and where every other metric goes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from vold_trainer.report.figures import Line, curves
from vold_trainer.report.read import Run


@dataclass(frozen=True)
class Panel:
    """Some metrics drawn together, with a sentence that says how to read them. floor: the axis begins at 0. news: it is
    left out where every value is 0.
    """

    title: str
    note: str
    lines: tuple[Line, ...]
    share: bool = False
    unit: str = ""
    smooth: bool = True
    floor: bool = False
    news: bool = False


@dataclass(frozen=True)
class Drawn:
    """A panel as the page shows it."""

    title: str
    note: str
    figure: go.Figure


@dataclass
class Group:
    """Panels under one heading."""

    name: str
    panels: list[Drawn] = field(default_factory=list)


def _lines(**labels: str) -> tuple[Line, ...]:
    return tuple(Line(key.replace("__", "/"), label) for key, label in labels.items())


SECTIONS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "What the verifier says",
        (
            Panel(
                "Reward",
                "Mean and standard deviation over a step's rollouts; by outcome where it is more than the verdict.",
                _lines(
                    reward__mean="mean", reward__std="std", reward__mean_correct="right", reward__mean_wrong="wrong"
                ),
                floor=True,
            ),
            Panel(
                "Right answers",
                "Share of the judged rollouts that the verifier called right.",
                _lines(reward__correct="right answers"),
                share=True,
                floor=True,
            ),
            Panel(
                "Groups that teach nothing",
                "Groups whose rollouts all have one outcome have no advantage: only the teacher moves them.",
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
                "Half the squared log-probability difference on sampled tokens, by outcome. VOLD pulls on the wrong.",
                _lines(teacher__k2="all", teacher__k2_correct="right", teacher__k2_wrong="wrong"),
                unit="nats²",
                floor=True,
            ),
            Panel(
                "Teacher minus student, by outcome",
                "Mean log-probability difference. Below 0 the teacher finds the student's tokens less likely.",
                _lines(teacher__gap="all", teacher__gap_correct="right", teacher__gap_wrong="wrong"),
                unit="nats",
            ),
            Panel(
                "Top-k overlap",
                "Share of the student's most likely ids that are among the teacher's. In good runs it rises "
                "(72 % to 91 % in arXiv 2604.13016).",
                _lines(overlap__ratio="all", overlap__ratio_correct="right", overlap__ratio_wrong="wrong"),
                share=True,
            ),
            Panel(
                "Probability on the common ids",
                "How much of its probability each side gives to the ids that both have on top.",
                _lines(overlap__student_mass="student", overlap__teacher_mass="teacher"),
                share=True,
            ),
            Panel(
                "Entropy",
                "Of the next-token distribution at sampled positions. A student that falls to 0 no longer explores.",
                _lines(student__entropy="student", teacher__entropy="teacher"),
                unit="nats",
                floor=True,
            ),
            Panel(
                "Entropy gap",
                "Teacher minus student at the same positions. Below 0 the teacher is surer than the student.",
                _lines(entropy__gap="all", entropy__gap_correct="right", entropy__gap_wrong="wrong"),
                unit="nats",
            ),
            Panel(
                "Probability on the support",
                "How much probability the ids that the divergence looks at hold on each side.",
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
                "Tokens a completion, by outcome.",
                _lines(length__mean="all", length__mean_correct="right", length__mean_wrong="wrong"),
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
                "Scores that never came, and positions the teacher reads differently: masked, never taken as 0.",
                _lines(
                    missing__teacher="teacher's", missing__verifier="verifier's", missing__masked_positions="positions"
                ),
                floor=True,
                smooth=False,
            ),
        ),
    ),
    (
        "Optimiser",
        (
            Panel(
                "Loss",
                "The quantity that is minimised; compare it only between runs of one objective.",
                _lines(loss="loss"),
            ),
            Panel("Gradient norm", "Before clipping.", _lines(grad_norm="gradient norm"), floor=True),
            Panel(
                "Clipped tokens",
                "Share of tokens whose ratio left the trust region.",
                _lines(clip__high="above", clip__low="below"),
                share=True,
                floor=True,
            ),
            Panel(
                "Sampling against training",
                "How far the engine that draws and the weights that learn disagree about the drawn tokens: "
                "log-probability at sampling minus before the update.",
                _lines(mismatch__abs="size", mismatch__k1="mean", mismatch__k3="k3"),
                unit="nats",
            ),
            Panel(
                "Staleness",
                "Updates that the weights had between drawing a step's completions and learning from them.",
                _lines(staleness="staleness"),
                unit="updates",
                smooth=False,
                floor=True,
                news=True,
            ),
            Panel("Learning rate", "As the schedule set it.", _lines(lr="learning rate"), smooth=False, floor=True),
        ),
    ),
    (
        "Work",
        (
            Panel(
                "Where a step's time goes",
                "Waiting for scores is what overlap with generation could not hide.",
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
                "Completion tokens a second of the whole step.",
                _lines(tokens__per_second="tokens a second"),
                unit="tokens/s",
                floor=True,
            ),
        ),
    ),
)


def draw_sections(runs: Sequence[Run]) -> list[Group]:
    """The sections above, with the panels that any of the runs has a metric for."""
    present = _keys(runs)
    drawn = []
    for name, panels in SECTIONS:
        section = Group(name)
        for panel in panels:
            lines = [line for line in panel.lines if line.key in present]
            told = not panel.news or any(any(run.series(line.key)) for run in runs for line in lines)
            if lines and told:
                look = {"share": panel.share, "unit": panel.unit, "smooth": panel.smooth, "floor": panel.floor}
                section.panels.append(Drawn(panel.title, panel.note, curves(runs, lines, **look)))  # type: ignore[arg-type]
        if section.panels:
            drawn.append(section)
    return drawn


def draw_others(runs: Sequence[Run]) -> list[Group]:
    """A panel for each metric that no panel above names, in groups."""
    known = {line.key for _, panels in SECTIONS for panel in panels for line in panel.lines}
    groups: dict[str, Group] = {}
    for key in _keys(runs):
        if key not in known:
            prefix, slash, _ = key.partition("/")
            name = prefix if slash else "other"
            panel = Drawn(key, "", curves(runs, [Line(key, key)]))
            groups.setdefault(name, Group(name)).panels.append(panel)
    return list(groups.values())


def _keys(runs: Sequence[Run]) -> list[str]:
    seen: dict[str, Any] = {}
    for run in runs:
        seen.update(dict.fromkeys(run.keys))
    return list(seen)
