"""What a run trains and tests on: examples, whatever file or world they come from."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from vold_trainer.config import DataConfig
from vold_trainer.errors import UsageError

log = logging.getLogger("vold.data")

Message = Mapping[str, Any]
"""A chat message: {"role", "content"}, content a string or a list of {"type": "text", "text"} / {"type": "image"}."""


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer.

    messages: what the student reads, ending with the user's turn. images: one for each image part, in order.
    category: what results are also reported by. meta: anything else, kept as it is.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    images: tuple[Image.Image, ...] = ()
    category: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_text(self) -> str:
        """The last user turn's words, an image part as [image]: what a person or a verifier reads."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part["text"] if part["type"] == "text" else "[image]" for part in content)


def load_examples(config: DataConfig) -> list[Example]:
    """The examples that a config asks for. Raises UsageError that names file, line and field."""
    if config.source == "pocket":
        from vold_trainer.pocket.world import examples

        return examples(
            config.split, config.limit or 4096, modality=config.modality, seed=config.seed, offset=config.offset
        )
    if config.adapter:
        from vold_trainer.adapters.rows import adapted_examples

        return adapted_examples(config)
    path = Path(config.source)
    if not path.is_file():
        raise UsageError(f"data.source {config.source!r} is neither 'pocket' nor a file that exists")
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        raise UsageError(f"data.source {config.source!r} is not JSONL: convert it, one JSON object a line")
    found = list(_read_jsonl(path, config.skip_broken))[config.offset :][: config.limit]
    if not found:
        raise UsageError(f"data.source {config.source!r} has no rows from data.offset {config.offset} on")
    return found


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | UsageError]]:
    """(line number from 1, object or what is wrong with the line) of a JSONL file; empty lines are left out."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, UsageError(f"{path}:{number}: not JSON ({error}): {line.strip()[:60]!r}")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                yield (
                    number,
                    UsageError(f"{path}:{number}: a {type(row).__name__}, not an object: {line.strip()[:60]!r}"),
                )


def _read_jsonl(path: Path, skip_broken: bool) -> Iterator[Example]:
    skipped = 0
    for number, row in read_lines(path):
        try:
            if isinstance(row, UsageError):
                raise row
            yield _example(row, f"{path}:{number}", path.parent)
        except UsageError as error:
            if not skip_broken:
                raise UsageError(f"{error}. Mend the line, or set data.skip_broken=true") from error
            skipped += 1
            log.warning("left out %s", error)
    if skipped:
        log.warning("%s: %d broken rows left out", path, skipped)


def _example(row: Mapping[str, Any], where: str, folder: Path) -> Example:
    """One row: "prompt" (text) or "messages", "reference" or "answer", and optionally "id", "image(s)", "category",
    "tags", "teacher", "verifier" and its "parameters".
    """
    reference = row.get("reference", row.get("answer"))
    if not isinstance(reference, str | int | float) or isinstance(reference, bool):
        raise UsageError(f"{where}: field 'reference' is {reference!r}: give the reference answer as text or a number")
    names = row.get("images", [row["image"]] if row.get("image") else [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{where}: field 'images' is {names!r}: give a list of file paths")
    messages = row.get("messages")
    if messages is None:
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise UsageError(f"{where}: field 'prompt' is {prompt!r}: give the prompt as text, or 'messages'")
        content: Any = prompt
        if names:
            content = [{"type": "image"} for _ in names] + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
    _check_messages(messages, where, len(names))
    tags = row.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UsageError(f"{where}: field 'tags' is {tags!r}: give a list of words")
    return Example(
        id=str(row.get("id", where)),
        messages=tuple(messages),
        reference=str(reference),
        images=tuple(_image(folder / name, where) for name in names),
        category=str(row.get("category", "")),
        meta={key: row[key] for key in ("verifier", "parameters", "teacher", "tags") if key in row},
    )


def _check_messages(messages: Any, where: str, images: int) -> None:
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: field 'messages' is {str(messages)[:60]!r}: give a list of role and content")
    places = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise UsageError(f"{where}: field 'messages[{index}]' is {str(message)[:60]!r}: give role and content")
        if isinstance(message["content"], list):
            places += sum(part.get("type") == "image" for part in message["content"] if isinstance(part, dict))
    if places != images:
        raise UsageError(f"{where}: the messages have {places} image places, field 'images' has {images} files")


def _image(path: Path, where: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"{where}: image {str(path)!r} cannot be read: {error}") from error


class PromptOrder:
    """Which examples each step takes: a fresh shuffle for every pass over the data, a function of seed and step
    alone, so that a resumed run goes on where it was.
    """

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self.count = count
        self.per_step = per_step
        self.seed = seed
        self._passes: dict[int, Sequence[int]] = {}

    def indices(self, step: int) -> list[int]:
        """The `per_step` indices of step `step`, counted from 0."""
        first = step * self.per_step
        return [self._pass(n // self.count)[n % self.count] for n in range(first, first + self.per_step)]

    def _pass(self, number: int) -> Sequence[int]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._passes = {kept: order for kept, order in self._passes.items() if kept >= number - 1} | {
                number: torch.randperm(self.count, generator=generator).tolist()
            }
        return self._passes[number]
