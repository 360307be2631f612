"""Results as JSON lines, written as they come, and the page that is made of them."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpu_parts.tables import TABLES, Key, Table, table_named

NOT_RUN = "not run"
FACTS = ("chip", "memory", "driver", "cuda", "torch", "transformers", "python", "date", "size", "command")
COMPARABLE = tuple(fact for fact in FACTS if fact not in ("date", "command"))
"""Facts that figures of one section have in common: with others they are other figures."""


class Results:
    """Appends to gpu.jsonl. A later line of the same row and label takes the place of an earlier one on the page."""

    def __init__(self, folder: Path, label: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "gpu.jsonl"
        self.label = label
        _remove_cut_line(self.file)

    def machine(self, part: str, facts: Mapping[str, Any]) -> None:
        self._write({"kind": "machine", "part": part, **facts})

    def row(self, table: str, key: Key, values: Mapping[str, Any]) -> None:
        self._write({"kind": "row", "table": table, "key": list(key), "values": dict(values)})

    def skipped(self, table: str, key: Key, reason: str) -> None:
        self._write({"kind": "skipped", "table": table, "key": list(key), "reason": reason})

    def text(self, part: str, title: str, text: str) -> None:
        self._write({"kind": "text", "part": part, "title": title, "text": text})

    def _write(self, line: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"label": self.label, **line}) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of gpu.jsonl; a last line that a crash cut off is left out."""
    file = folder / "gpu.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{file}, line {number}: {error}; remove the line") from error
    return found


def _remove_cut_line(file: Path) -> None:
    """Remove a last line that a crash cut off: what is appended would become a part of it."""
    if file.is_file():
        with file.open("rb+") as lines:
            lines.truncate(lines.read().rfind(b"\n") + 1)


def _part_of(line: Mapping[str, Any]) -> str:
    return line["part"] if "part" in line else table_named(line["table"]).part


def of_last_machines(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of one label, without those of a part that another machine or other versions measured earlier: the page
    names one machine for a part's figures.
    """
    found: list[dict[str, Any]] = []
    facts_of: dict[str, list[Any]] = {}
    for line in lines:
        part = _part_of(line)
        if line["kind"] == "machine":
            facts = [line.get(fact) for fact in COMPARABLE]
            if facts_of.setdefault(part, facts) != facts:
                facts_of[part] = facts
                found = [one for one in found if _part_of(one) != part]
        found.append(line)
    return found


def measured_rows(lines: Iterable[dict[str, Any]], label: str, part: str) -> dict[tuple[str, Key], dict[str, Any]]:
    """The values of a part's rows that its last machine measured under the label, by table and key. A row whose last
    line is a reason is not among them.
    """
    own = of_last_machines(line for line in lines if line["label"] == label)
    rows = {}
    for line in own:
        if line["kind"] in ("row", "skipped") and _part_of(line) == part:
            rows[line["table"], tuple(line["key"])] = line.get("values")
    return {place: values for place, values in rows.items() if values is not None}


def write_page(folder: Path, size: str) -> Path:
    """Write gpu.md beside the results, and return it. size: of the tables where nothing has been measured."""
    page = folder / "gpu.md"
    page.write_text(render(read(folder), size))
    return page


def render(lines: list[dict[str, Any]], size: str) -> str:
    """The page: for each label, in the order of the results, the machine and every table."""
    out = [
        "# On a GPU\n",
        "Written by `make bench-gpu`; a cell that nobody has measured says so, and none is estimated. "
        "[docs/guides/gpu.md](../docs/guides/gpu.md) says how to run it.\n",
    ]
    labels = list(dict.fromkeys(line["label"] for line in lines)) or [""]
    for label in labels:
        own = of_last_machines(line for line in lines if line["label"] == label)
        if label:
            out.append(f"## {label}\n")
        out += _facts(own)
        sizes = [line["size"] for line in own if line["kind"] == "machine"]
        for table in TABLES:
            out += _table(table, own, sizes[-1] if sizes else size)
        for title, text in {line["title"]: line["text"] for line in own if line["kind"] == "text"}.items():
            out += [f"### {title}\n", "```", text.rstrip(), "```\n"]
    return "\n".join(out).rstrip() + "\n"


def _facts(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which machine measured which parts."""
    by_part = {line["part"]: line for line in lines if line["kind"] == "machine"}
    if not by_part:
        return ["No GPU has run it yet.\n"]
    parts_of: dict[tuple[str, ...], list[str]] = {}
    for part, line in by_part.items():
        parts_of.setdefault(tuple(str(line.get(fact, "")) for fact in FACTS), []).append(part)
    rows = ["| part | " + " | ".join(FACTS) + " |", "|---" * (len(FACTS) + 1) + "|"]
    rows += [f"| {', '.join(parts)} | {' | '.join(facts)} |" for facts, parts in parts_of.items()]
    return [*rows, ""]


def _table(table: Table, lines: list[dict[str, Any]], size: str) -> list[str]:
    own = [line for line in lines if line.get("table") == table.name]
    by_key = {tuple(line["key"]): line for line in own}
    headings = [*table.keys, *(heading for heading, _ in table.columns.values())]
    goal = f" Goal: {table.goals}." if table.goals else ""
    out = [
        f"### {table.title}\n",
        table.note + goal + "\n",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
    ]
    for key in table.rows[size]:
        line = by_key.get(key)
        if line is None or line["kind"] == "skipped":
            reason = f": {line['reason']}" if line else ""
            cells = [NOT_RUN + reason, *[NOT_RUN] * (len(table.columns) - 1)]
        else:
            cells = [_cell(line["values"].get(name), form) for name, (_, form) in table.columns.items()]
        out.append(f"| {' | '.join([*key, *cells])} |")
    return [*out, ""]


def _cell(value: Any, form: str) -> str:
    return NOT_RUN if value is None else form.format(value)


def command(arguments: Iterable[str]) -> str:
    """The command as somebody can repeat it."""
    return "python benchmarks/gpu.py " + shlex.join(arguments)
