"""The published layouts, and what a row of each becomes.

A layout has exactly the columns that are named here, on every level. Another column is an error, and so is a missing
one: the file is then of another revision, and what its columns mean is not known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vold_trainer.data.columns import Columns
from vold_trainer.data.fields import reference_text
from vold_trainer.data.quoting import quote
from vold_trainer.data.rows import IMAGE_TOKEN, Row
from vold_trainer.data.sharegpt import COLUMN as TURNS
from vold_trainer.errors import UsageError


class OtherLayoutError(ValueError):
    """A row or a file has other columns than the layout."""


class LayoutError(UsageError):
    """As OtherLayoutError, with the place, for the user. No row is left out for it: all others are like this one."""


class Dropped(Exception):  # noqa: N818 - no error: counted
    """A row has nothing to train on. The text says what it lacks, in two or three words."""


@dataclass(frozen=True)
class Options:
    """completions: keep the published completions, for `vold sft`. save_image: writes an image beside the output, and
    returns its path relative to that; raises ValueError for what is no image.
    """

    completions: bool
    save_image: Callable[[bytes], str]


@dataclass(frozen=True)
class Layout:
    """One published data set. published: where, and which revision. columns: of its rows. convert: makes a row of ours.

    convert raises OtherLayoutError, ValueError for a broken row, and Dropped for one without use.
    """

    name: str
    published: str
    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any], Options], dict[str, Any]]

    def row(self, row: Row, number: int, options: Options) -> dict[str, Any]:
        """Our row of a published one, the number-th of all from 0. Raises LayoutError, UsageError and Dropped."""
        if isinstance(row.values, UsageError):
            raise row.values
        try:
            require_keys(row.values, self.columns, "the row")
            return {"id": f"{self.name}-{number}", **self.convert(row.values, options)}
        except OtherLayoutError as error:
            raise LayoutError(f"{row.where}: {error}. {self.said}") from error
        except ValueError as error:
            raise UsageError(f"{row.where}: {error}. {self.said}") from error

    @property
    def said(self) -> str:
        return f"{self.name} is read as published: {self.published}"


class LayoutColumns(Columns):
    """All columns of a file, which have to be those of the layout."""

    def __init__(self, layout: Layout) -> None:
        super().__init__({}, {name: (name,) for name in layout.columns})
        self.layout = layout

    def columns_to_read(self, available: Sequence[str], where: str) -> list[str]:
        try:
            require_keys(dict.fromkeys(available), self.layout.columns, where)
        except OtherLayoutError as error:
            raise LayoutError(f"{error}. {self.layout.said}") from error
        return list(available)


def require_keys(row: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raise OtherLayoutError if the row has other keys than these. where: names the row, or what is inside of it."""
    for name in row:
        if name not in keys:
            raise OtherLayoutError(f"{where} has {quote(name)}, which is not in this layout ({', '.join(keys)})")
    for name in keys:
        if name not in row:
            raise OtherLayoutError(f"{where} has no {name!r}, which this layout has ({', '.join(keys)})")


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {quote(value)}, and no text")
    return value


def _required(text: str, missing: str) -> str:
    if not text.strip():
        raise Dropped(missing)
    return text


def _orz57k(row: Mapping[str, Any], options: Options) -> dict[str, Any]:
    turns = row[TURNS]
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"a row is two turns, not {quote(turns)}")
    human, assistant = turns
    require_keys(human, ("from", "value"), "the first turn")
    require_keys(assistant, ("from", "ground_truth"), "the second turn")
    if (human["from"], assistant["from"]) != ("human", "assistant"):
        raise ValueError(f"the turns are of {quote(human['from'])} and {quote(assistant['from'])}")
    truth = assistant["ground_truth"]
    if not isinstance(truth, dict):
        raise ValueError(f"ground_truth is {quote(truth)}")
    require_keys(truth, ("value",), "ground_truth")
    prompt = _required(_text(human["value"], "the question"), "no question")
    answer = "" if truth["value"] is None else reference_text(truth["value"])
    return {"prompt": prompt, "reference": _required(answer, "no answer")}


def _mixture_of_thoughts(row: Mapping[str, Any], options: Options) -> dict[str, Any]:
    turns = row["messages"]
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"messages are two turns, not {quote(turns)}")
    for turn, role in zip(turns, ("user", "assistant"), strict=True):
        require_keys(turn, ("role", "content"), f"the turn of the {role}")
        if turn["role"] != role:
            raise ValueError(f"the turn of the {role} is of {quote(turn['role'])}")
    prompt = _required(_text(turns[0]["content"], "the question"), "no question")
    made = {"prompt": prompt, "category": _text(row["source"], "source"), "reference": ""}
    if options.completions:
        made["completion"] = _required(_text(turns[1]["content"], "the completion"), "no completion")
    return made


def _geometry3k(row: Mapping[str, Any], options: Options) -> dict[str, Any]:
    values = row["images"]
    if not isinstance(values, list) or not values:
        raise ValueError(f"images is {quote(values)}, and no list of pictures")
    prompt = _required(_text(row["problem"], "problem"), "no question")
    marks = prompt.count(IMAGE_TOKEN)
    if marks not in (0, len(values)):
        raise ValueError(f"{IMAGE_TOKEN} is {marks} times in the problem, which has {len(values)} pictures")
    answer = _required("" if row["answer"] is None else reference_text(row["answer"]), "no answer")
    return {"prompt": prompt, "images": [options.save_image(_encoded(value)) for value in values], "reference": answer}


def _encoded(value: Any) -> bytes:
    """The encoded picture of a cell. A path in it is that of the machine that made the data set."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError(f"an image is {quote(value)}, and holds no bytes")
    return content


ORZ57K = Layout(
    "orz57k",
    "data/orz_math_57k_collected.json of github.com/Open-Reasoner-Zero/Open-Reasoner-Zero, commit f6d1ec7 (2025-02-20)",
    (TURNS,),
    _orz57k,
)
MIXTURE_OF_THOUGHTS = Layout(
    "mixture-of-thoughts",
    "the Parquet files of huggingface.co/datasets/open-r1/Mixture-of-Thoughts, revision ec22eec",
    ("messages", "num_tokens", "source"),
    _mixture_of_thoughts,
)
GEOMETRY3K = Layout(
    "geometry3k",
    "the Parquet files of huggingface.co/datasets/hiyouga/geometry3k, as EasyR1 and verl read them in 2025",
    ("images", "problem", "answer"),
    _geometry3k,
)
