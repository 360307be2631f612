"""What a student makes of texts: needs its processor and its tokenizer, and no model."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from vold_packing.marks import Marks, Prompt, reveal

from vold_trainer.data import Example
from vold_trainer.data.faults import PromptTooLongError
from vold_trainer.student import encoding
from vold_trainer.student.marks import Shield


class Texts:
    """A student's way with texts. `processor` is the tokenizer if the model reads text only. vocab_size: rows of the
    embedding, padding included.
    """

    processor: Any
    tokenizer: Any
    path: str
    vocab_size: int
    template_variables: Mapping[str, Any]
    """Further variables of the chat template."""

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a completion, the tokenizer's EOS first."""
        raise NotImplementedError

    @property
    def max_positions(self) -> int | None:
        """The most positions of a sequence; None if the model states no such limit."""
        raise NotImplementedError

    def too_long(self, length: int, others: str) -> PromptTooLongError:
        """The error for a prompt of `length` tokens that takes too many positions. others: what comes after it."""
        return PromptTooLongError(
            f"its prompt has {length:,} tokens, and with {others} that is more than the {self.max_positions:,} "
            f"positions of the student {self.path!r}"
        )

    def render(self, example: Example) -> str:
        """The prompt as the student's chat template renders it, up to the start of the answer.

        Raises UsageError if the template drops text of the last message.
        """
        return reveal(self.prompt(example, self.shield.marks))

    def prompt(self, example: Example, marks: Marks) -> Prompt:
        """The prompt as `render` has it, for a tokenizer with these marks."""
        return encoding.render(self.processor, self.tokenizer, marks, example, self.template_variables)

    def text_ids(self, examples: Sequence[Example]) -> list[list[int]]:
        """The token ids of the text of each prompt, with one placeholder for an image. Raises as `render`."""
        marks = self.shield.marks
        return marks.ids([self.prompt(example, marks) for example in examples])

    @functools.cached_property
    def shield(self) -> Shield:
        """Keeps the texts of rows from becoming control tokens."""
        return Shield(self.processor, self.tokenizer)


@dataclass
class DetachedTexts(Texts):
    """A student's way with texts in another process than its model's. It reads no images: of the processor it has the
    chat template and the texts that stand for images.
    """

    processor: Any
    tokenizer: Any
    path: str
    vocab_size: int
    ends: list[int]
    limit: int | None
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def eos_ids(self) -> list[int]:
        return self.ends

    @property
    def max_positions(self) -> int | None:
        return self.limit

    @classmethod
    def of(cls, texts: Texts) -> "DetachedTexts":
        """Those of a student. They travel pickled, which a processor itself may not."""
        processor = texts.tokenizer
        if texts.processor is not texts.tokenizer:
            plain = {name: value for name, value in vars(texts.processor).items() if isinstance(value, str)}
            processor = SimpleNamespace(**plain | {"chat_template": texts.processor.chat_template})
        return cls(
            processor,
            texts.tokenizer,
            texts.path,
            texts.vocab_size,
            texts.eos_ids,
            texts.max_positions,
            dict(texts.template_variables),
        )
