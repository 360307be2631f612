"""Which metrics share a panel, what each panel is for, and where every other metric goes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from vold_trainer.report.figures import Line, curves
from vold_trainer.report.read import Run


@dataclass(frozen=True)
class Panel:
    """Some metrics drawn together, with a sentence that says how to read them."""

    title: str
    note: str
    lines: tuple[Line, ...]
    share: bool = False
    unit: str = ""
    smooth: bool = True


@dataclass(frozen=True)
class Drawn:
    """A panel as the page shows it."""

    title: str
    note: str
    figure: go.Figure


@dataclass
class Group:
    """Metrics nobody grouped by hand, by the part of their names before the slash."""

    name: str
    panels: list[Drawn] = field(default_factory=list)


def _lines(**labels: str) -> tuple[Line, ...]:
    return tuple(Line(key.replace("__", "/"), label) for key, label in labels.items())


PANELS = (
    Panel(
        "Reward",
        "Mean reward of the rollouts of a step, and its spread.",
        _lines(reward__mean="mean", reward__std="std"),
    ),
    Panel(
        "Accuracy while training",
        "Share of sampled rollouts the verifier called correct.",
        _lines(accuracy__sampled="sampled", reward__correct="correct"),
        share=True,
    ),
    Panel(
        "Loss", "The quantity that is minimised; compare it only between runs of one objective.", _lines(loss="loss")
    ),
    Panel(
        "Distance to the teacher (k2)",
        "Half the squared log-probability difference on sampled tokens, by outcome. VOLD pulls on the wrong ones.",
        _lines(teacher__k2="all", teacher__k2_correct="right", teacher__k2_wrong="wrong"),
        unit="nats²",
    ),
    Panel(
        "Teacher minus student, by outcome",
        "Mean log-probability difference. Below 0 the teacher finds the student's tokens less likely than the student.",
        _lines(teacher__gap="all", teacher__gap_correct="right", teacher__gap_wrong="wrong"),
        unit="nats",
    ),
    Panel(
        "Entropy",
        "Of the next-token distribution at sampled positions. A student that falls to 0 no longer explores.",
        _lines(student__entropy="student", teacher__entropy="teacher"),
        unit="nats",
    ),
    Panel("Completion length", "Tokens a completion.", _lines(length__mean="mean"), unit="tokens"),
    Panel(
        "Truncated completions",
        "Share that reached the token limit.",
        _lines(length__truncated="truncated"),
        share=True,
    ),
    Panel(
        "Groups that teach nothing",
        "Groups whose rollouts all have the same outcome have no advantage: only the teacher term moves them.",
        _lines(groups__all_correct="all right", groups__all_wrong="all wrong"),
        share=True,
    ),
    Panel(
        "Clipped tokens",
        "Share of tokens whose ratio left the trust region.",
        _lines(clip__high="above", clip__low="below"),
        share=True,
    ),
    Panel("Gradient norm", "Before clipping.", _lines(grad_norm="gradient norm")),
    Panel("Learning rate", "", _lines(lr="learning rate"), smooth=False),
    Panel(
        "Missing scores",
        "Scores that never came: masked and counted, never taken as 0.",
        _lines(missing__teacher="teacher", missing__verifier="verifier", missing__masked_positions="masked positions"),
    ),
    Panel(
        "Where a step's time goes",
        "Waiting for scores is what overlap with generation could not hide.",
        _lines(
            time__generate="generate", time__score_wait="wait for scores", time__optimise="optimise", time__step="step"
        ),
        unit="s",
    ),
)


def draw_panels(runs: Sequence[Run]) -> list[Drawn]:
    """The panels above that any of the runs has a metric for."""
    present = _keys(runs)
    drawn = []
    for panel in PANELS:
        lines = [line for line in panel.lines if line.key in present]
        if lines:
            figure = curves(runs, lines, share=panel.share, unit=panel.unit, smooth=panel.smooth)
            drawn.append(Drawn(panel.title, panel.note, figure))
    return drawn


def draw_others(runs: Sequence[Run]) -> list[Group]:
    """A panel for each metric that no panel above names, in groups."""
    known = {line.key for panel in PANELS for line in panel.lines}
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
