"""The page itself: run folders in, one HTML file out, with everything it needs inside.

Model output is untrusted: Jinja escapes every value, figures travel as JSON with `<` escaped, pictures must be raster
data URIs, and a content security policy that names the page's own scripts by hash forbids every other script and all
network access.
"""

import base64
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from vold_trainer.report import figures, formats, tokens
from vold_trainer.report.compare import HEIGHT, WIDTH, config_differences, glances
from vold_trainer.report.evaluation import Score, count, number, share
from vold_trainer.report.panels import draw_others, draw_sections
from vold_trainer.report.read import OUTCOMES, Run, read_runs
from vold_trainer.report.stats import mean_and_spread, spread, wilson

STAGE_LABELS = {"base": "base", "sft": "SFT", "grpo": "SFT + GRPO", "vold": "VOLD"}

SPANS = (1, 3, 5, 10, 20, 50, 100)
"""The steps of the smoothing control: over how many points a curve is averaged."""

POSITIONS = (
    ("gap_by_position", "teacher minus student", "nats"),
    ("overlap_by_position", "top-k overlap", "%"),
)
"""What is known by position: its key, its name, its unit."""

_TIMELINE_STEPS = 6


@dataclass(frozen=True)
class Choice:
    """One figure of several in a switcher."""

    label: str
    figure: go.Figure
    note: str = ""


def build_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str,
    summary: Mapping[str, Any] | None = None,
    ablation: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of the run folders in `runs` to `out` and return `out`.

    summary: the demo's summary.json, {"stages": {name: {"text_accuracy", "image_accuracy", "n"}}, "seconds", "teacher",
    "missing_scores"}. ablation: {"rows": [{"name", "label", "seeds": [{"seed", "text_accuracy", "image_accuracy",
    "reward"}]}]}. Raises FileNotFoundError for a run folder that does not exist.
    """
    found = read_runs(runs)
    stages = stage_rows(summary or {})
    variants = ablation_rows(ablation or {})
    scripts = [Markup(get_plotlyjs()), Markup(_resource("report.js"))]  # noqa: S704 - our own and plotly's, no input
    html = _environment().get_template("report.html").render(
        title=title,
        csp=_security_policy(scripts),
        scripts=scripts,
        style=Markup(_resource("report.css")),  # noqa: S704 - our own
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=found,
        lead=lead(found, stages),
        warnings=warnings(found, summary or {}),
        summary=summary,
        stages=stages,
        stage_figure=figures.stages([(row["label"], row, row["n"]) for row in stages]) if stages else None,
        variants=variants,
        ablation_figure=figures.ablation([(row["label"], row["values"]) for row in variants]) if variants else None,
        glances=glances(found),
        spark=(WIDTH, HEIGHT),
        differences=config_differences(found) if len(found) > 1 else [],
        colours=figures.COLOURS,
        spans=SPANS,
        span=default_span(found),
        sections=draw_sections(found),
        groups=draw_others(found),
        heat_maps=heat_maps(found),
        timelines=timelines(found),
        legend=tokens.legend(),
        outcomes=OUTCOMES,
        evaluations=evaluation_rows(found),
        measures=measure_names(found),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    # A reader may reload the page while a run goes on: it is replaced whole. Lone surrogates cannot be UTF-8.
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(partial, out)
    return out


def stage_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a stage: label, both accuracies, their Wilson intervals and their change against the first stage."""
    rows: list[dict[str, Any]] = []
    stages = summary.get("stages")
    for name, raw in (stages if isinstance(stages, Mapping) else {}).items():
        n = count(raw.get("n"))
        row: dict[str, Any] = {"label": STAGE_LABELS.get(name, name), "n": n}
        for key in figures.MODALITIES:
            value = share(raw.get(key))
            first = rows[0][key] if rows else None
            row[key] = value
            row[f"{key}_interval"] = wilson(value, n) if value is not None and n else None
            row[f"{key}_change"] = None if value is None or first is None else value - first
        rows.append(row)
    return rows


def ablation_rows(ablation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a variant: label, number of seeds, and the values, mean and standard deviation of each measure."""
    rows = []
    for raw in ablation.get("rows", ()):
        seeds = raw.get("seeds") or []
        values = {
            key: [value for seed in seeds if (value := read(seed.get(key))) is not None]
            for key, read in (("text_accuracy", share), ("image_accuracy", share), ("reward", number))
        }
        statistics = {key: mean_and_spread(value) for key, value in values.items()}
        label = str(raw.get("label") or raw.get("name"))
        rows.append({"label": label, "seeds": len(seeds), "values": values, "statistics": statistics})
    return rows


def lead(runs: Sequence[Run], stages: Sequence[Mapping[str, Any]]) -> str:
    """The page's first paragraph: what was reached, and what it is a report of."""
    sentences = []
    measured = [row for row in stages if row["image_accuracy"] is not None]
    if len(measured) > 1:
        first, last = measured[0], measured[-1]
        n = f" ({formats.number(last['n'])} test problems)" if last["n"] else ""
        sentences.append(
            f"Accuracy on pictures went from {formats.percent(first['image_accuracy'])} ({first['label']}) "
            f"to {formats.percent(last['image_accuracy'])} ({last['label']}){n}, with training on text alone."
        )
    parts = []
    for run in runs:
        done, planned = (max(run.steps) if run.steps else 0), count(run.meta.get("steps"))
        progress = f"{done} of {planned} steps" if planned and done < planned else f"{done} steps"
        objective = run.meta.get("objective") or run.meta.get("kind")
        kind = f"{objective}, " if objective and objective != run.name else ""
        parts.append(f"{run.name} ({kind}{progress})")
    if parts:
        sentences.append(("The run: " if len(parts) == 1 else f"{len(parts)} runs: ") + "; ".join(parts) + ".")
    return " ".join(sentences)


def warnings(runs: Sequence[Run], summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a curve: missing scores, unanswered problems, unread lines."""
    found = []
    missing = number(summary.get("missing_scores"))
    if missing:
        found.append(f"Missing scores over all stages: {formats.number(missing)}.")
    for run in runs:
        for key, service in (("missing/teacher", "teacher"), ("missing/verifier", "verifier")):
            if total := run.total(key):
                missed = f"missing scores of the {service}: {formats.number(total)}"
                found.append(f"{run.name}: {missed}; they were masked, not set to 0.")
        if run.evaluation is not None and run.evaluation.errors:
            found.append(
                f"{run.name}: test problems that could not be answered: {formats.number(run.evaluation.errors)}."
            )
        found += [f"{run.name}: {problem}" for problem in run.problems]
    teachers = {
        run.meta["teacher"].get("weights_fingerprint") for run in runs if isinstance(run.meta.get("teacher"), dict)
    }
    if len(teachers - {None}) > 1:
        found.append("These runs had different teachers: their weights fingerprints differ.")
    return found


def default_span(runs: Sequence[Run]) -> int:
    """Where the smoothing control stands at first: an index of SPANS, the nearest to what the curves are drawn with."""
    span = figures.default_span(max((len(run.steps) for run in runs), default=0))
    return min(range(len(SPANS)), key=lambda index: abs(SPANS[index] - span))


def heat_maps(runs: Sequence[Run]) -> list[Choice]:
    """What is known by position, of each run."""
    return [
        Choice(f"{name}, {run.name}", figure)
        for key, name, unit in POSITIONS
        for run in runs
        if (figure := figures.by_position(run, key, unit)) is not None
    ]


def timelines(runs: Sequence[Run]) -> list[Choice]:
    """For each run a timeline of its last steps, and of its first and middle ones where it is long enough."""
    choices = []
    for run in runs:
        steps = sorted({span.step for span in run.timeline})
        windows = {"last": steps[-_TIMELINE_STEPS:]}
        if len(steps) >= 2 * _TIMELINE_STEPS:
            windows["first"] = steps[:_TIMELINE_STEPS]
        if len(steps) >= 3 * _TIMELINE_STEPS:
            middle = (len(steps) - _TIMELINE_STEPS) // 2
            windows["middle"] = steps[middle : middle + _TIMELINE_STEPS]
        for name, window in windows.items():
            if not window:
                continue
            spans = [span for span in run.timeline if window[0] <= span.step <= window[-1]]
            hidden = figures.hidden_share(spans)
            note = (
                f"{formats.percent(hidden, 0)} of the scoring time is hidden behind other work."
                if hidden is not None
                else ""
            )
            if (count_of := len({span.process for span in spans})) > figures.MOST_PROCESSES:
                note = f"The first {figures.MOST_PROCESSES} of {count_of} processes. {note}".strip()
            label = f"{run.name}: {name} steps ({window[0]} to {window[-1]})"
            choices.append(Choice(label, figures.timeline(spans, window), note))
    return choices


def evaluation_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a run and test set, with the interval of the file or else Wilson's."""
    return [
        {"run": run.name, "name": name, "score": score, "interval": score.interval or _interval(score)}
        for run in runs
        if run.evaluation is not None
        for name, score in run.evaluation.scores.items()
    ]


def measure_names(runs: Sequence[Run]) -> list[str]:
    """The further figures of the evaluations, in the order in which they appear."""
    scores = [score for run in runs if run.evaluation for score in run.evaluation.scores.values()]
    return list(dict.fromkeys(name for score in scores for name in score.measures))


def _interval(score: Score) -> tuple[float, float] | None:
    return wilson(score.accuracy, score.n) if score.accuracy is not None and score.n else None


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vold_trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ids = itertools.count(1)
    environment.filters |= {
        "count": lambda value: formats.number(number(value)),
        "number": formats.number,
        "percent": formats.percent,
        "points": formats.points,
        "interval": formats.interval,
        "measure": formats.measure,
        "seconds": lambda value: formats.seconds(number(value)),
        "visible": formats.visible,
        "image_uri": formats.image_uri,
        "view_tokens": tokens.view_tokens,
        "figure_json": figure_json,
        "spread": spread,
    }
    environment.globals["next_id"] = lambda: f"f{next(ids)}"
    return environment


def figure_json(figure: go.Figure) -> Markup:
    """A figure as JSON that is safe inside a script element: `<` cannot close it or open a comment."""
    text = json.dumps(figure.to_plotly_json(), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - escaped for where it stands


def _security_policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"


def _resource(name: str) -> str:
    return resources.files("vold_trainer.report").joinpath(name).read_text("utf-8")
