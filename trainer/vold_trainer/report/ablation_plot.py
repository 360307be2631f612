"""The result of an ablation as files for a repository: a markdown table and an SVG dot plot.

The plot is written as XML, so that it needs no plotting library that renders images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vold_trainer.report.evaluation import number, share
from vold_trainer.report.formats import MISSING, percent
from vold_trainer.report.page import ablation_rows
from vold_trainer.report.stats import mean_and_std

MEASURES = (("image_accuracy", "pictures", "#d9730d"), ("text_accuracy", "text", "#2f86d6"))

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 250, 24, 44, 40
# An SVG in an <img> follows the reader's theme through its own style sheet.
_STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1b2027 } .dim { fill: #5c6672; font-size: 12px }
.grid { stroke: #dfe3e8 } .page { fill: #ffffff }
@media (prefers-color-scheme: dark) { text { fill: #e6e9ed } .dim { fill: #9aa4b0 } .grid { stroke: #2b323b } .page { fill: #101317 } }
"""  # noqa: E501 - a style sheet


def write_ablation(result: Mapping[str, Any], out_dir: Path) -> tuple[Path, Path]:
    """Write NAME.md and NAME.svg into `out_dir`, for the result's name or else "ablation", and return both paths.

    result: {"name", "title", "n", "split", "baseline", "command", "rows": [{"name", "label", "seeds": [{"seed",
    "text_accuracy", "image_accuracy", "image_misread", "reward_over_stage", "text_pass", "image_pass"}], "minus":
    {accuracy: {"says", "p"}}}]}; all but the rows may be missing. text_pass, image_pass: {k: pass@k}. Shares in [0, 1];
    a null is shown as a dash and is in no mean. Raises ValueError if there is no row.
    """
    rows = ablation_rows(result)
    if not rows:
        raise ValueError("the ablation has no rows; run at least one variant first")
    out_dir.mkdir(parents=True, exist_ok=True)
    name = str(result.get("name") or "ablation")
    table, plot = out_dir / f"{name}.md", out_dir / f"{name}.svg"
    table.write_text(_heading(result) + markdown_table(result["rows"], rows, result.get("baseline")), "utf-8")
    ElementTree.ElementTree(dot_plot(rows)).write(plot, encoding="utf-8", xml_declaration=True)
    return table, plot


def _heading(result: Mapping[str, Any]) -> str:
    if not result.get("title"):
        return ""
    return (
        f"{result['title']}: `{result['command']}`, the {result['split']} set of {result['n']} problems as text and as "
        "pictures, greedy answers. Mean ± standard deviation over the seeds. Differences are paired by seed: mean ± "
        "standard error, how many seeds are above, and the sign test's p.\n\n"
    )


def markdown_table(
    raw_rows: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], baseline: str | None = None
) -> str:
    """A row per variant: accuracies, differences from the baseline, pass@k if there is any, misread pictures, the
    reward, the seeds.
    """
    passes = [
        (f"{name} pass@{k}, %", modality, k)
        for modality, name in (("image_pass", "pictures"), ("text_pass", "text"))
        for k in sorted(
            {k for raw in raw_rows for seed in raw.get("seeds") or [] for k in seed.get(modality, {})}, key=int
        )
    ]
    head = ["variant", *(f"{name}, %" for _, name, _ in MEASURES)]
    head += [f"minus {baseline}, {name}" for _, name, _ in MEASURES] if baseline else []
    head += [head for head, _, _ in passes]
    head += ["misread pictures, %", "reward over the stage", "seeds"]
    lines = [f"| {' | '.join(map(_cell, head))} |", f"|{'---|' + '---:|' * (len(head) - 1)}"]
    for raw, row in zip(raw_rows, rows, strict=True):
        seeds = raw.get("seeds") or []
        cells = [_cell(row["label"])]
        cells += [_mean_and_std(*row["statistics"][key], scale=100, digits=1) for key, _, _ in MEASURES]
        if baseline:
            cells += [_difference((raw.get("minus") or {}).get(key)) for key, _, _ in MEASURES]
        for _, modality, k in passes:
            values = [value for seed in seeds if (value := share(seed.get(modality, {}).get(k))) is not None]
            cells.append(_mean_and_std(*mean_and_std(values), scale=100, digits=1))
        misread = [value for seed in seeds if (value := share(seed.get("image_misread"))) is not None]
        reward = [value for seed in seeds if (value := number(seed.get("reward_over_stage"))) is not None]
        cells.append(_mean_and_std(*mean_and_std(misread), scale=100, digits=1))
        cells.append(_mean_and_std(*mean_and_std(reward), scale=1, digits=3))
        cells.append(_seeds([seed.get("seed") for seed in seeds]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _difference(minus: Mapping[str, Any] | None) -> str:
    return MISSING if not minus else f"{minus['says']}, p {minus['p']:.2g}"


def _seeds(seeds: Sequence[Any]) -> str:
    """Consecutive seeds as a range."""
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or MISSING


def dot_plot(rows: Sequence[Mapping[str, Any]]) -> ElementTree.Element:
    """The dot plot as an <svg> element: a row per variant, a dot per seed, a bar at the mean."""
    height = _TOP + _ROW * len(rows) + 34
    box = {"viewBox": f"0 0 {_WIDTH} {height}", "width": str(_WIDTH), "height": str(height), "role": "img"}
    svg = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **box})
    _add(svg, "title", text="Accuracy of each variant and seed")
    _add(svg, "style", text=_STYLE)
    _add(svg, "rect", width=_WIDTH, height=height, class_="page")
    highest = max((value for row in rows for key, _, _ in MEASURES for value in row["values"][key]), default=1.0)
    top = min(1.0, max(0.1, -(-highest * 10 // 1) / 10))  # rounded up to 10 %
    _draw_axis(svg, top, height)
    for i, row in enumerate(rows):
        middle = _TOP + _ROW * (i + 0.5)
        label = row["label"] if len(row["label"]) <= 34 else row["label"][:33] + "…"
        _add(svg, "text", text=label, x=_LEFT - 14, y=middle + 4, text_anchor="end")
        for (key, name, colour), shift in zip(MEASURES, (-7, 7), strict=True):
            for value in row["values"][key]:
                dot = _add(
                    svg, "circle", cx=_x(value, top), cy=middle + shift, r=4.5, fill=colour, fill_opacity=0.55
                )  # fmt: skip
                _add(dot, "title", text=f"{row['label']}, {name}: {percent(value)}")
            mean = row["statistics"][key][0]
            if mean is not None:
                _add(svg, "rect", x=_x(mean, top) - 1.5, y=middle + shift - 8, width=3, height=16, fill=colour)
    return svg


def _draw_axis(svg: ElementTree.Element, top: float, height: float) -> None:
    ticks = round(top * 10)
    every = 1 if ticks <= 5 else 2
    for tick in range(0, ticks + 1, every):
        x = _x(tick / 10, top)
        _add(svg, "line", x1=x, x2=x, y1=_TOP, y2=height - 30, class_="grid")
        _add(svg, "text", text=f"{10 * tick} %", x=x, y=height - 12, text_anchor="middle", class_="dim")
    for i, (_, name, colour) in enumerate(MEASURES):
        _add(svg, "circle", cx=_LEFT + 8 + 100 * i, cy=20, r=5, fill=colour)
        _add(svg, "text", text=name, x=_LEFT + 20 + 100 * i, y=24)


def _x(value: float, top: float) -> float:
    return round(_LEFT + value / top * (_WIDTH - _LEFT - _RIGHT), 2)


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: object) -> ElementTree.Element:
    names = {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
    element = ElementTree.SubElement(parent, tag, names)
    element.text = text
    return element


def _mean_and_std(mean: float | None, std: float | None, *, scale: float, digits: int) -> str:
    if mean is None:
        return MISSING
    text = f"{scale * mean:.{digits}f}"
    return text if std is None else f"{text} ± {scale * std:.{digits}f}"
