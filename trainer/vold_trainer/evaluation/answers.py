"""The answers of an evaluation on disk: answers.jsonl, one line per completion, so that an evaluation can continue.

The first line holds the digest of the student and the generation settings. Every further line is one completion of one
problem, with a digest of its prompt. Lines are appended in batches, and a batch is on disk before the next one is
generated. An incomplete last line, which a killed evaluation leaves, is dropped. If a completion is there twice, the
later one counts.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vold_trainer.data import Example
from vold_trainer.errors import UsageError

NAME = "answers.jsonl"
GREEDY = -1
"""The number of the greedy completion; sampled completions count from 0."""


@dataclass(frozen=True)
class Answer:
    """One completion of problem `key` of set `set`. tokens: its length. prompt: digest of the prompt."""

    set: str
    key: str
    sample: int
    completion: str
    tokens: int
    truncated: bool
    prompt: str


class AnswerStore:
    """The answers in answers.jsonl."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open the file of an evaluation with these generation settings, or create it.

        fresh: delete the answers in the file. Raises UsageError that names the difference if the file holds answers of
        another student or with other generation settings.
        """
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._answers: dict[tuple[str, str, int], Answer] = {}
        if fresh:
            self.path.unlink(missing_ok=True)
        size = self._load(settings) if self.path.is_file() else 0
        self._stream = self.path.open("r+b" if size else "wb")
        self._stream.seek(size)
        self._stream.truncate()
        if not size:
            self._append([{"drawn": dict(settings)}])

    def _load(self, settings: Mapping[str, Any]) -> int:
        """Read the answers in the file. Returns the size of its complete lines, bytes."""
        text = self.path.read_bytes()
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        size = 0
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if number == 1:
                    _compare_settings(self.path, row["drawn"], settings)
                else:
                    answer = Answer(**row)
                    self._answers[answer.set, answer.key, answer.sample] = answer
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(
                    f"{self.path}:{number} is no line of an evaluation ({error}): give another `out`, or start "
                    "again with --fresh"
                ) from error
            size += len(line)
        return size

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, label: str, key: str, sample: int, prompt: str) -> Answer | None:
        """The answer in the file, or None. Raises UsageError if it answers another prompt than `prompt`."""
        answer = self._answers.get((label, key, sample))
        if answer is not None and answer.prompt != prompt:
            raise UsageError(
                f"{self.path}: the answer to {key!r} of set {label!r} is to another prompt than the data has now: "
                "give another `out`, or start again with --fresh"
            )
        return answer

    def add(self, answers: Sequence[Answer]) -> None:
        """Append a batch of answers. Returns once they are on disk."""
        self._append(asdict(answer) for answer in answers)
        self._answers.update({(answer.set, answer.key, answer.sample): answer for answer in answers})

    def close(self) -> None:
        self._stream.close()

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _compare_settings(path: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    for name in {**stored, **current}:
        if stored.get(name) != current.get(name):
            raise UsageError(
                f"{path} holds answers with {name} {stored.get(name)!r}, and this evaluation has "
                f"{current.get(name)!r}: give another `out`, or start again with --fresh"
            )


def prompt_digest(example: Example) -> str:
    """A short digest of the messages and the number of images."""
    text = json.dumps([list(map(dict, example.messages)), len(example.images)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
