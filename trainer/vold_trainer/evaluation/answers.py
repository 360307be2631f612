"""The answers of an evaluation on disk: answers.jsonl, a line a completion, so that a killed evaluation goes on.

The first line says whose answers they are and how they were drawn. Every further line is one completion of one
problem, with a digest of the prompt it answers. Lines are added a batch at a time and reach the disk before the next
batch begins; half a line at the end, which is what a kill leaves, is dropped. Where a completion is there twice, the
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
"""The number of the greedy completion; sampled ones count from 0."""


@dataclass(frozen=True)
class Answer:
    """One completion of problem `key` of set `set`. tokens: its length. prompt: digest of what was asked."""

    set: str
    key: str
    sample: int
    completion: str
    tokens: int
    truncated: bool
    prompt: str


class Answers:
    """What is in answers.jsonl, and a way to add to it."""

    def __init__(self, path: Path, drawn: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open the file of an evaluation whose completions are drawn as `drawn` says, or begin it.

        fresh: drop what is there. Raises UsageError that names what differs where the file holds the answers of
        another student, or answers that were drawn otherwise.
        """
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._found: dict[tuple[str, str, int], Answer] = {}
        if fresh:
            self.path.unlink(missing_ok=True)
        whole = self._read(drawn) if self.path.is_file() else 0
        self._stream = self.path.open("r+b" if whole else "wb")
        self._stream.seek(whole)
        self._stream.truncate()
        if not whole:
            self._write([{"drawn": dict(drawn)}])

    def _read(self, drawn: Mapping[str, Any]) -> int:
        """Take in the file. Returns how many bytes of it are whole lines, 0 where not even the first one is."""
        text = self.path.read_bytes()
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        whole = 0
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if number == 1:
                    _compare(self.path, row["drawn"], drawn)
                else:
                    answer = Answer(**row)
                    self._found[answer.set, answer.key, answer.sample] = answer
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(
                    f"{self.path}:{number} is no line of an evaluation ({error}): give another `out`, or begin anew "
                    "with --fresh"
                ) from error
            whole += len(line)
        return whole

    def __len__(self) -> int:
        return len(self._found)

    def get(self, label: str, key: str, sample: int, prompt: str) -> Answer | None:
        """The completion that is there. Raises UsageError where it answers another prompt than this one."""
        found = self._found.get((label, key, sample))
        if found is not None and found.prompt != prompt:
            raise UsageError(
                f"{self.path}: the answer to {key!r} of set {label!r} is to another prompt than the data holds now: "
                "give another `out`, or begin anew with --fresh"
            )
        return found

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep a batch. Returns once it is on the disk."""
        self._write(asdict(answer) for answer in answers)
        self._found.update({(answer.set, answer.key, answer.sample): answer for answer in answers})

    def close(self) -> None:
        self._stream.close()

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _compare(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in {**there, **now}:
        if there.get(name) != now.get(name):
            raise UsageError(
                f"{path} holds answers with {name} {there.get(name)!r}, and this evaluation has {now.get(name)!r}: "
                "give another `out`, or begin anew with --fresh"
            )


def keys(examples: Sequence[Example]) -> list[str]:
    """A name for every example of a set: its id, with #2, #3, ... where the id comes again."""
    names: list[str] = []
    taken: set[str] = set()
    times: dict[str, int] = {}
    for example in examples:
        name = example.id
        while name in taken:
            times[example.id] = times.get(example.id, 1) + 1
            name = f"{example.id}#{times[example.id]}"
        taken.add(name)
        names.append(name)
    return names


def prompt_digest(example: Example) -> str:
    """A short digest of the messages and of how many pictures there are."""
    asked = json.dumps([list(map(dict, example.messages)), len(example.images)], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]
