"""Chats as ShareGPT and its kin write them: turns with `from` and `value`, in a column `conversations` or as the row.

The last turn of the assistant is the answer: a completion to learn, and no part of the prompt. Open-Reasoner-Zero's
files have `ground_truth` in its place, which is the reference answer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vold_trainer.data.parsing import parse_json

COLUMN = "conversations"
"""The column of such a chat."""

_ANSWERS = ("assistant", "gpt", "bot", "model", "chatgpt")


class Chat(NamedTuple):
    """turns: of the prompt. answer: the text of the assistant's last turn. reference: Open-Reasoner-Zero's."""

    turns: Any
    answer: str | None
    reference: Any


def as_row(value: Any) -> dict[str, Any] | None:
    """The row that a value of JSON is: an object, or a list of turns; None if it is neither."""
    if isinstance(value, dict):
        return value
    turns = isinstance(value, list) and value and all(isinstance(turn, dict) and "from" in turn for turn in value)
    return {COLUMN: value} if turns else None


def chat_of(fields: Mapping[str, Any]) -> Chat | None:
    """The chat among the fields of a row; None if the row has its prompt in another field, or no chat."""
    if COLUMN not in fields or fields.keys() & {"prompt", "messages"}:
        return None
    return _split(fields[COLUMN])


def _split(value: Any) -> Chat:
    """The chat of a column. What is not known here stays among the turns, whose reader names it."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            return Chat(value, None, None)
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        return Chat(value, None, None)
    last = {key: item for key, item in value[-1].items() if item is not None}
    if str(last.get("from", last.get("role", ""))).strip().lower() not in _ANSWERS:
        return Chat(value, None, None)
    truth = last.get("ground_truth")
    if last.keys() == {"from", "ground_truth"} and isinstance(truth, dict) and truth.keys() == {"value"}:
        return Chat(value[:-1], None, truth["value"])
    answer = last.get("value", last.get("content"))
    if last.keys() <= {"from", "value", "role", "content"} and isinstance(answer, str):
        return Chat(value[:-1], answer, None)
    return Chat(value, None, None)
