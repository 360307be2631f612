"""The report's figures: values in, plotly figures out.

A figure sets no colours for text, grid or background: `report.js` sets them from the page's theme, light or dark. The
data colours are distinguishable with colour vision deficiencies and visible in both themes. Text from a run must go
through `plain`, because plotly interprets HTML tags in names and hover texts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from vold_trainer.report.formats import MISSING, percent
from vold_trainer.report.read import LANES, Run, Span
from vold_trainer.report.stats import ema, evenly_spaced, mean_and_std, wilson

COLOURS = ("#2f86d6", "#d9730d", "#15976e", "#b65fa6", "#7f8791", "#1fa3b8", "#b8912a", "#6a6fd0")
DASHES = ("solid", "dot", "dash", "dashdot", "longdash")
LANE_COLOURS = dict(zip(LANES, (*(COLOURS[i] for i in (0, 2, 3, 4, 5, 1, 6, 7)), "#c23b3b", "#c28a3b"), strict=True))
TONES = {"right": COLOURS[2], "wrong": COLOURS[1], "teacher": COLOURS[3]}
"""The colours of legend entries that have the same meaning in every panel."""
MODALITIES = {"image_accuracy": ("pictures", COLOURS[1]), "text_accuracy": ("text", COLOURS[0])}

# Transparent in the middle, so that a gap of 0 has the background colour of the page in both themes.
_DIVERGING = ((0.0, "#d9730d"), (0.499, "rgba(217,115,13,0.03)"), (0.501, "rgba(47,134,214,0.03)"), (1.0, "#2f86d6"))

_RISING = ((0.0, "rgba(47,134,214,0.06)"), (1.0, "#2f86d6"))

_MAX_POINTS = 1500
_MAX_POINTS_WITH_MARKERS = 25

MAX_PROCESSES = 8
"""How many processes a timeline shows."""


@dataclass(frozen=True)
class Line:
    """One metric in a panel: its key in metrics.jsonl and its name in the legend."""

    key: str
    label: str

    def colour(self, index: int) -> str:
        return TONES.get(self.label, COLOURS[index % len(COLOURS)])


def plain(text: str) -> str:
    """Text escaped for plotly, which would otherwise interpret tags such as `<b>` and `<a href>`."""
    return escape(text, quote=False)


def curves(
    runs: Sequence[Run],
    lines: Sequence[Line],
    *,
    share: bool = False,
    unit: str = "",
    smooth: bool = True,
    floor: bool = False,
) -> go.Figure:
    """Metrics over steps: a smoothed line over the faint raw line.

    With one run each metric has a colour. With several runs each run has a colour and each metric a dash pattern; only
    the first metric is visible until the reader clicks another in the legend. A run without a key has no curve for it.
    share: the values are in [0, 1] and shown as percentages. smooth: False for metrics without noise, where an average
    only lags. floor: the axis starts at 0. The page's controls smooth again from the raw line, and can plot the curves
    over the minutes in `customdata`.
    """
    figure = _figure(height=270, x_title="step", y_title=unit)
    several = len(runs) > 1
    values: list[float] = []
    for i, run in enumerate(runs):
        for j, line in enumerate(lines):
            if line.key not in run.keys:
                continue
            style = {"color": COLOURS[i % len(COLOURS)], "dash": DASHES[j % len(DASHES)]}
            if not several:
                style = {"color": line.colour(j), "dash": "solid"}
            points = _known_points(run, line.key)
            values += [point[1] for point in points]
            label = " · ".join([run.name] * several + [line.label] * (len(lines) > 1)) or line.label
            first = len(figure.data)
            _add_curve(figure, points, plain(label), style, share=share, smooth=smooth)
            for trace in figure.data[first:]:
                trace.update(legendgroup=plain(line.label), meta={"kind": trace.meta, "run": i})
                if several:
                    trace.update(showlegend=False, visible=True if j == 0 else "legendonly")
    if several and len(lines) > 1:
        _add_dash_key(figure, lines)
    if share:
        figure.update_yaxes(tickformat="~%")
    if values and min(values) == max(values):  # plotly would show a constant line in a range of 2
        edge = 2 * values[0] or (0.1 if share else 1.0)
        figure.update_yaxes(range=sorted([0.0, edge]))
    elif floor:
        figure.update_yaxes(rangemode="tozero")
    return figure


def _add_dash_key(figure: go.Figure, lines: Sequence[Line]) -> None:
    """Add legend entries for the metrics only; the page names the runs once."""
    for j, line in enumerate(lines):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": COLOURS[4], "dash": DASHES[j % len(DASHES)], "width": 2},
            name=plain(line.label),
            legendgroup=plain(line.label),
            visible=True if j == 0 else "legendonly",
            hoverinfo="skip",
        )


def _known_points(run: Run, key: str) -> list[tuple[int, float, float | None]]:
    """(step, value, minutes) of the steps with a value, so that a metric of every tenth step is a line."""
    return [
        (row["step"], value, None if row.get("time") is None else round(row["time"] / 60, 3))
        for row, value in zip(run.metrics, run.series(key), strict=True)
        if value is not None
    ]


def _add_curve(
    figure: go.Figure,
    points: Sequence[tuple[int, float, float | None]],
    label: str,
    style: dict[str, str],
    *,
    share: bool,
    smooth: bool,
) -> None:
    average = ema([value for _, value, _ in points], default_span(len(points)) if smooth else 1.0)
    shown = evenly_spaced(list(zip(points, average, strict=True)), _MAX_POINTS)
    x = [point[0] for point, _ in shown]
    raw = [point[1] for point, _ in shown]
    hover = f"%{{y:{'.1%' if share else '.4g'}}}<extra>{label}</extra>"
    figure.add_scatter(
        x=x,
        y=raw,
        mode="lines",
        line=style | {"width": 1},
        opacity=0.28,
        showlegend=False,
        hoverinfo="skip",
        meta="raw" if smooth else "plain",
    )
    figure.add_scatter(
        x=x,
        y=[value for _, value in shown],
        customdata=[point[2] for point, _ in shown],
        # few points get markers: a run that has just started, or a metric that is measured rarely
        mode="lines+markers" if len(x) <= _MAX_POINTS_WITH_MARKERS else "lines",
        marker={"size": 5},
        line=style | {"width": 2},
        name=label,
        hovertemplate=hover,
        meta="smooth" if smooth else "plain",
    )


def default_span(count: int) -> float:
    """The span of the moving average for a curve of `count` points."""
    return max(3.0, min(20.0, count / 8))


def by_position(run: Run, key: str, unit: str) -> go.Figure | None:
    """A heat map of a metric with a value for each relative position: x is the step, y the position.

    unit: "nats", centred on 0, or "%", a share in [0, 1]. None if the run does not have the metric.
    """
    rows = [(row["step"], row[key]) for row in run.metrics if isinstance(row.get(key), list) and row[key]]
    if not rows:
        return None
    rows = evenly_spaced(rows, 200)
    height = max(len(row) for _, row in rows)
    z = [[row[i] if i < len(row) else None for _, row in rows] for i in range(height)]
    labels = [f"{100 * i // height} to {100 * (i + 1) // height} %" for i in range(height)]
    values = sorted(value for row in z for value in row if value is not None)
    if unit == "nats":
        # The 98th percentile bounds the colour scale, so that one outlier does not make all other steps pale.
        sizes = sorted(map(abs, values))
        bound = (sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0) or 1.0
        scale = {"zmin": -bound, "zmax": bound, "colorscale": _DIVERGING}
        shown = "%{z:.3f} nats"
    else:
        low, high = (values[0], values[-1]) if values else (0.0, 1.0)
        scale = {"zmin": low, "zmax": high if high > low else low + 1e-3, "colorscale": _RISING}
        shown = "%{z:.1%}"
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "title": {"text": "nats" if unit == "nats" else ""}}
    if unit == "%":
        bar["tickformat"] = "~%"
    figure = _figure(height=300, x_title="step", y_title="position in the completion")
    figure.add_heatmap(
        x=[step for step, _ in rows],
        y=labels,
        z=z,
        colorbar=bar,
        hovertemplate=f"step %{{x}}<br>position %{{y}}<br>{shown}<extra></extra>",
        **scale,
    )
    figure.update_yaxes(showgrid=False)
    figure.update_xaxes(showgrid=False)
    return figure


def timeline(spans: Sequence[Span], steps: Sequence[int]) -> go.Figure:
    """The work in `steps` over time: a bar per span, a row per lane and process, a vertical line at each step."""
    shown = [span for span in spans if span.step in set(steps) and span.process < MAX_PROCESSES]
    origin = min((span.start for span in shown), default=0.0)
    lanes = [*LANES, *sorted({span.lane for span in shown} - set(LANES))]
    rows = sorted({(lanes.index(span.lane), span.process) for span in shown})
    names = []
    figure = _figure(
        height=90 + (44 if len({row[1] for row in rows}) < 2 else 26) * max(len(rows), 1), x_title="seconds"
    )
    for i, process in rows:
        lane = lanes[i]
        own = [span for span in shown if (span.lane, span.process) == (lane, process)]
        names.append(plain(f"{lane} {process}" if process else lane))
        figure.add_bar(
            orientation="h",
            y=[names[-1]] * len(own),
            base=[span.start - origin for span in own],
            x=[span.end - span.start for span in own],
            customdata=[span.step for span in own],
            width=0.62,
            marker={"color": LANE_COLOURS.get(lane, COLOURS[(4 + i) % len(COLOURS)]), "line": {"width": 0}},
            hovertemplate=f"step %{{customdata}} · {names[-1]}<br>%{{x:.2f}} s<extra></extra>",
            showlegend=False,
        )
    for step in steps:
        start = min((span.start for span in shown if span.step == step), default=None)
        if start is not None:
            figure.add_vline(
                x=start - origin,
                line={"width": 1, "dash": "dot", "color": COLOURS[4]},
                annotation={"text": str(step), "font": {"size": 11}, "yref": "paper", "y": 1.0, "yanchor": "bottom"},
                annotation_position="top right",
            )
    # Without overlay plotly would stack the bars of a row.
    figure.update_layout(barmode="overlay", margin={"t": 26}, hovermode="closest")
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], showgrid=False)
    return figure


def hidden_share(spans: Iterable[Span]) -> float | None:
    """The share of the scoring time (teacher and verifier together) during which the trainer process worked too. The
    times of several processes are summed.

    1 means that scoring added no time; None if nothing was scored.
    """
    intervals: dict[int, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {}
    for span in spans:
        if span.lane not in ("wait", "outage", "throttled"):
            scoring, training = intervals.setdefault(span.process, ([], []))
            (scoring if span.lane in ("teacher", "reference", "verifier") else training).append((span.start, span.end))
    total = sum(_covered(scoring) for scoring, _ in intervals.values())
    hidden = sum(
        _covered(scoring) + _covered(training) - _covered(scoring + training)
        for scoring, training in intervals.values()
    )
    return hidden / total if total else None


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of the union of the intervals, seconds."""
    covered, latest = 0.0, -math.inf
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, latest))
        latest = max(latest, end)
    return covered


def stages(rows: Sequence[tuple[str, Mapping[str, float | None], int | None]]) -> go.Figure:
    """Accuracy by stage, text and pictures side by side, with Wilson intervals if n is known.

    rows: (label, {"text_accuracy", "image_accuracy"} in [0, 1] or None, n).
    """
    figure = _figure(height=340)
    for key, (label, colour) in MODALITIES.items():
        values = [scores.get(key) for _, scores, _ in rows]
        ends = [
            wilson(value, n) if value is not None and n else None for value, (_, _, n) in zip(values, rows, strict=True)
        ]
        figure.add_bar(
            x=[plain(name) for name, _, _ in rows],
            y=values,
            name=label,
            marker={"color": colour},
            text=[percent(value, 0) if value is not None else "" for value in values],
            textposition="inside",
            insidetextanchor="start",
            textfont={"color": "#ffffff"},
            textangle=0,
            error_y={
                "type": "data",
                "symmetric": False,
                "thickness": 1.2,
                "width": 4,
                "color": COLOURS[4],
                "array": [
                    end[1] - value if end and value is not None else 0 for end, value in zip(ends, values, strict=True)
                ],
                "arrayminus": [
                    value - end[0] if end and value is not None else 0 for end, value in zip(ends, values, strict=True)
                ],
            },
            hovertemplate=f"%{{x}}, {label}: %{{y:.1%}}<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.35, hovermode="closest")
    figure.update_yaxes(tickformat="~%", range=[0, 1])
    figure.update_xaxes(showgrid=False)
    return figure


def ablation(rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> go.Figure:
    """A row per variant: a dot per seed and a bar at the mean, text and pictures in different colours.

    rows: (label, {"text_accuracy", "image_accuracy": a value in [0, 1] per seed}), the first at the top.
    """
    figure = _figure(height=110 + 40 * max(len(rows), 1))
    for offset, (key, (label, colour)) in zip((-0.16, 0.16), MODALITIES.items(), strict=True):
        dots = [(value, i + offset, name) for i, (name, scores) in enumerate(rows) for value in scores.get(key, ())]
        means = [
            (mean, i + offset, name, sd)
            for i, (name, scores) in enumerate(rows)
            for mean, sd in [mean_and_std(scores.get(key, ()))]
            if mean is not None
        ]
        figure.add_scatter(
            x=[dot[0] for dot in dots],
            y=[dot[1] for dot in dots],
            mode="markers",
            name=label,
            legendgroup=label,
            marker={"color": colour, "size": 8, "opacity": 0.55},
            customdata=[plain(dot[2]) for dot in dots],
            hovertemplate=f"%{{customdata}}, {label}: %{{x:.1%}}<extra></extra>",
        )
        figure.add_scatter(
            x=[mean[0] for mean in means],
            y=[mean[1] for mean in means],
            mode="markers",
            legendgroup=label,
            showlegend=False,
            marker={"color": colour, "symbol": "line-ns", "size": 15, "line": {"width": 3, "color": colour}},
            customdata=[[plain(mean[2]), MISSING if mean[3] is None else f"± {100 * mean[3]:.1f}"] for mean in means],
            hovertemplate=f"%{{customdata[0]}}, {label}: mean %{{x:.1%}} %{{customdata[1]}}<extra></extra>",
        )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[plain(name) for name, _ in rows],
        zeroline=False,
        range=[len(rows) - 0.5, -0.5],
    )
    figure.update_xaxes(tickformat="~%", rangemode="tozero")
    figure.update_layout(hovermode="closest")
    return figure


def _figure(*, height: int, x_title: str = "", y_title: str = "") -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        hovermode="x unified",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=True,
    )
    figure.update_xaxes(title={"text": x_title, "standoff": 6}, automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False, exponentformat="e")
    if y_title:
        figure.update_yaxes(title={"text": y_title, "standoff": 6})
    return figure
