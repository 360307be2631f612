"""The page: run folders in, one self-contained HTML file out.

Model output is untrusted: Jinja escapes every value, figures are JSON with `<` escaped, images must be raster data
URIs, and a content security policy allows only the page's own scripts, by hash, and no network access.
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
from vold_trainer.report.compare import HEIGHT, WIDTH, compare_key_metrics, config_differences
from vold_trainer.report.evaluation import Score, count, number, share
from vold_trainer.report.panels import render_other_metrics, render_sections
from vold_trainer.report.read import OUTCOMES, Run, read_runs
from vold_trainer.report.stats import mean_and_std, wilson

STAGE_LABELS = {
    "base": "base",
    "sft": "SFT",
    "grpo": "SFT + GRPO",
    "vold": "VOLD, the paper's form",
    "vold-candidates": "VOLD, candidates",
}

SPANS = (1, 3, 5, 10, 20, 50, 100)
"""The values of the smoothing control: the span of the moving average, points."""

POSITIONS = (
    ("gap_by_position", "teacher minus student", "nats"),
    ("overlap_by_position", "top-k overlap", "%"),
)
"""The metrics by position in the completion: key, name, unit."""

_TIMELINE_STEPS = 6


@dataclass(frozen=True)
class SwitcherChoice:
    """One of the figures that a switcher offers."""

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
    loaded = read_runs(runs)
    stages = stage_rows(summary or {})
    variants = ablation_rows(ablation or {})
    scripts = [Markup(get_plotlyjs()), Markup(_resource("report.js"))]  # noqa: S704 - our own script and plotly's, no input
    html = _environment().get_template("report.html").render(
        title=title,
        csp=_security_policy(scripts),
        scripts=scripts,
        style=Markup(_resource("report.css")),  # noqa: S704 - our own
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=loaded,
        lead=lead_paragraph(loaded, stages),
        warnings=warnings(loaded, summary or {}),
        summary=summary,
        stages=stages,
        stage_figure=figures.stages([(row["label"], row, row["n"]) for row in stages]) if stages else None,
        variants=variants,
        ablation_figure=figures.ablation([(row["label"], row["values"]) for row in variants]) if variants else None,
        comparisons=compare_key_metrics(loaded),
        spark=(WIDTH, HEIGHT),
        differences=config_differences(loaded) if len(loaded) > 1 else [],
        colours=figures.COLOURS,
        spans=SPANS,
        span=default_span(loaded),
        sections=render_sections(loaded),
        groups=render_other_metrics(loaded),
        heat_maps=heat_maps(loaded),
        timelines=timelines(loaded),
        legend=tokens.legend(),
        outcomes=OUTCOMES,
        evaluations=evaluation_rows(loaded),
        measures=measure_names(loaded),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    # A reader may reload the page during a run, so it is replaced atomically. UTF-8 cannot encode lone surrogates.
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(partial, out)
    return out


def stage_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per stage: label, both accuracies, their Wilson intervals and their change from the first stage."""
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
    """A row per variant: label, number of seeds, and the values, mean and standard deviation of each metric."""
    rows = []
    for raw in ablation.get("rows", ()):
        seeds = raw.get("seeds") or []
        values = {
            key: [value for seed in seeds if (value := parse(seed.get(key))) is not None]
            for key, parse in (("text_accuracy", share), ("image_accuracy", share), ("reward", number))
        }
        statistics = {key: mean_and_std(value) for key, value in values.items()}
        label = str(raw.get("label") or raw.get("name"))
        rows.append({"label": label, "seeds": len(seeds), "values": values, "statistics": statistics})
    return rows


def lead_paragraph(runs: Sequence[Run], stages: Sequence[Mapping[str, Any]]) -> str:
    """The first paragraph of the page: the accuracies reached, and the runs in the report."""
    sentences = []
    measured = [row for row in stages if row["image_accuracy"] is not None]
    if len(measured) > 1:
        first, last = measured[0], measured[-1]
        n = f" ({formats.number(last['n'])} test problems)" if last["n"] else ""
        sentences.append(
            f"Accuracy on pictures went from {formats.percent(first['image_accuracy'])} ({first['label']}) "
            f"to {formats.percent(last['image_accuracy'])} ({last['label']}){n}, with training on text only."
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
    """Conditions that make the report unreliable: missing scores, alarms about a teacher, missing verdicts,
    unreadable lines.
    """
    messages = []
    missing = number(summary.get("missing_scores"))
    if missing:
        messages.append(f"Missing scores over all stages: {formats.number(missing)}.")
    for run in runs:
        for service in ("teacher", "reference", "verifier"):
            if total := run.total(f"missing/{service}"):
                text = f"missing scores of the {service}: {formats.number(total)}"
                messages.append(f"{run.name}: {text}; they were masked, not set to 0.")
        if sent := [value for value in run.series("teacher/sent") if value is not None]:
            text = f"the teacher was asked for {100 * sum(sent) / len(sent):.0f} % of the completions (teacher.only)"
            messages.append(f"{run.name}: {text}, and its figures are over these alone.")
        messages += [f"{run.name}: the last of them: {text}." for text in run.last_sentences("missing/reasons")]
        if total := run.total("sane/alarms"):
            text = f"alarms about what the teacher answers: {formats.number(total)}"
            messages.append(f"{run.name}: {text}; the curves may show its fault.")
            messages += [f"{run.name}: the last of them: {text}." for text in run.last_sentences("sane/reasons")]
        if total := run.total("missing/rows"):
            messages.append(f"{run.name}: rows at fault, whose scores are missing: {formats.number(total)}.")
        if run.evaluation is not None and run.evaluation.errors:
            messages.append(f"{run.name}: test answers without a verdict: {formats.number(run.evaluation.errors)}.")
            messages += [f"{run.name}: {text}." for text in run.evaluation.reasons]
        messages += [f"{run.name}: {error}" for error in run.read_errors]
    teachers = {
        run.meta["teacher"].get("weights_fingerprint") for run in runs if isinstance(run.meta.get("teacher"), dict)
    }
    if len(teachers - {None}) > 1:
        messages.append("These runs had different teachers: their weights fingerprints differ.")
    return messages


def default_span(runs: Sequence[Run]) -> int:
    """The initial value of the smoothing control: the index in SPANS nearest to the span of the curves."""
    span = figures.default_span(max((len(run.steps) for run in runs), default=0))
    return min(range(len(SPANS)), key=lambda index: abs(SPANS[index] - span))


def heat_maps(runs: Sequence[Run]) -> list[SwitcherChoice]:
    """A heat map for each metric by position and each run."""
    return [
        SwitcherChoice(f"{name}, {run.name}", figure)
        for key, name, unit in POSITIONS
        for run in runs
        if (figure := figures.by_position(run, key, unit)) is not None
    ]


def timelines(runs: Sequence[Run]) -> list[SwitcherChoice]:
    """For each run a timeline of its last steps; for a long run also of its first and middle steps."""
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
            if (processes := len({span.process for span in spans})) > figures.MAX_PROCESSES:
                note = f"The first {figures.MAX_PROCESSES} of {processes} processes. {note}".strip()
            label = f"{run.name}: {name} steps ({window[0]} to {window[-1]})"
            choices.append(SwitcherChoice(label, figures.timeline(spans, window), note))
    return choices


def evaluation_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row per run and test set, with the interval in the file or else Wilson's."""
    return [
        {"run": run.name, "name": name, "score": score, "interval": score.interval or _interval(score)}
        for run in runs
        if run.evaluation is not None
        for name, score in run.evaluation.scores.items()
    ]


def measure_names(runs: Sequence[Run]) -> list[str]:
    """The names of the further metrics of the evaluations, in order of appearance."""
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
    }
    environment.globals["next_id"] = lambda: f"f{next(ids)}"
    return environment


def figure_json(figure: go.Figure) -> Markup:
    """A figure as JSON that is safe inside a script element: `<` cannot close it or open a comment."""
    text = json.dumps(figure.to_plotly_json(), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - escaped for a script element


def _security_policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"


def _resource(name: str) -> str:
    return resources.files("vold_trainer.report").joinpath(name).read_text("utf-8")
