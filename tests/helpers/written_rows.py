"""What the commands write of the rows that they have read, and whether json and pyarrow read the same in the file."""

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vold_trainer.data.examples import Example
from vold_trainer.student.encoded import EncodedTraces

FIELDS = {"id", "prompt", "reference", "completion", "tags", "parameters"}


@dataclass(frozen=True)
class Written:
    """A row as a command has written it. completion: None where the command writes one of its own."""

    id: str
    prompt: str
    reference: str
    completion: str | None = None

    def is_of(self, row: Any) -> bool:
        """Whether it says what the row says, as another library read it."""
        return (
            isinstance(row, dict)
            and self.prompt == row.get("prompt")
            and (row.get("id") in (None, "") or says(self.id, row["id"]))
            and (says(self.reference, value := row.get("reference")) or (not self.reference and is_null(value)))
            and self.completion in (None, row.get("completion"))
        )


def says(text: str, value: Any) -> bool:
    """Whether the text is that of the value; a number may be of 32 bits."""
    if isinstance(value, float) and math.isfinite(value):
        ours = float(text)
        return ours == value or struct.pack("f", ours) == struct.pack("f", value)
    return text == str(value)


def is_null(value: Any) -> bool:
    """Whether a cell holds nothing, for which some libraries write NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def text_of(content: str | Sequence[dict[str, str]]) -> str:
    """The text of a message's content, without its images."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def traces(path: Path) -> list[Written]:
    """What `vold traces` wrote, of one sample for a prompt."""
    return [
        Written(row["id"].removesuffix("-0"), text_of(row["messages"][-1]["content"]), row["reference"])
        for row in lines(path)
    ]


def prompts(path: Path) -> list[Written]:
    """The rollouts of `vold train`, or the samples of `vold eval`."""
    return [Written(row["id"], row["prompt"].removeprefix("[image]"), row["reference"]) for row in lines(path)]


def encoded(file: Path, tokenizer: Any) -> list[Written]:
    """The traces of the file that `vold sft` has encoded beside it, with what their ids spell."""
    return [
        written
        for folder in sorted(file.with_name(f"{file.name}.encoded").glob("*"))
        for written in _encoded(EncodedTraces(folder, file), tokenizer)
    ]


def _encoded(traces: EncodedTraces, tokenizer: Any) -> Iterator[Written]:
    for trace in traces:
        example: Example = trace.example
        *ids, end = trace.ids
        assert end == tokenizer.eos_token_id
        prompt = text_of(example.messages[-1]["content"])
        yield Written(example.id, prompt, example.reference, tokenizer.decode(ids))


def is_whole(row: Any) -> bool:
    """Whether nothing is wrong with a row of corrupted_files, so that no command may leave it out."""
    return (
        isinstance(row, dict)
        and row.keys() <= {*FIELDS, "category"}
        and all(isinstance(row.get(name), str) and row[name].isprintable() for name in ("id", "prompt", "completion"))
        and (isinstance(answer := row.get("reference"), str) or (type(answer) in (int, float) and abs(answer) < 1e9))
        and isinstance(row.get("tags"), list)
        and all(isinstance(tag, str) for tag in row["tags"])
        and row.get("parameters") in (None, {"relative_tolerance": 0.25})
    )
