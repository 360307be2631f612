"""The teacher's prompts, where they differ from the student's.

A teacher reads text only, so an image prompt comes with a twin in words. A teacher may also have a system prompt that
the student does not get, or use its own chat template. The completion's ids stay the same: the teacher scores the same
tokens after another prompt.
"""

import contextlib
import logging
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from vold_packing.marks import Marks, Prompt

from vold_trainer.data import Example, Message
from vold_trainer.data.faults import RowFault
from vold_trainer.data.messages import count_image_parts, prepend_system
from vold_trainer.errors import HandshakeError, UsageError
from vold_trainer.scoring.teachers import Teacher
from vold_trainer.student.encoding import RESERVED_VARIABLES
from vold_trainer.student.models import Student
from vold_trainer.terminal import progress

log = logging.getLogger("vold.twins")

OnRefused = Callable[[Example, Exception], None]
"""Receives an example that a teacher cannot read, and the error."""

BATCH = 256
"""Prompts tokenized together."""
PROGRESS_FROM = 5000
"""The number of prompts above which a progress bar is shown: they take seconds."""


def teacher_messages(example: Example, system: str = "") -> tuple[Message, ...]:
    """The messages of an example for a teacher with this system prompt: text alone.

    Raises UsageError that names the row if it has an image and no twin.
    """
    messages = example.messages if example.twin is None else example.twin
    if count_image_parts(messages):
        raise UsageError(
            f"{example.label} has an image, and a teacher reads text only: give the row a 'twin', which says in "
            "words what the image shows; or leave out such rows, or choose an objective without a teacher (grpo)"
        )
    return tuple(prepend_system(messages, system))


def check_twins(examples: Sequence[Example]) -> None:
    """Raise UsageError for the first row that no teacher can read: before a service is started for it."""
    for example in examples:
        teacher_messages(example)


def flatten_content(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Text messages with each content as one string: the form that a chat request to a teacher takes."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else "".join(part["text"] for part in message["content"]),
        }
        for message in messages
    ]


@contextlib.contextmanager
def _refusing(example: Example, on_refused: OnRefused | None) -> Iterator[None]:
    """Give an error about the example to on_refused. Without it the error is raised, with the row's place."""
    try:
        yield
    except Exception as error:  # a template may raise any exception
        if on_refused is not None:
            on_refused(example, error)
        elif not isinstance(error, UsageError):
            raise UsageError(f"{RowFault.of(example, error)}. Mend the row, or set data.skip_broken=true") from error
        elif example.where and not str(error).startswith(example.where):
            raise UsageError(f"{example.where}: {error}") from error
        else:
            raise


@dataclass(frozen=True)
class _PreparedPrompt:
    """ids: None if the teacher reads the student's own prompt. example: held so that no other gets the same id()."""

    example: Example
    ids: "array[int] | None"


class TeacherPrompts:
    """The prompts of one teacher, after its handshake. They are tokenized before the run, once for each example, so
    that the completions of an example share a prompt.
    """

    def __init__(self, student: Student, teacher: Teacher) -> None:
        assert teacher.info is not None
        assert teacher.handshake is not None
        assert teacher.tokenizer is not None
        self.student = student
        self.teacher = teacher
        self.vocab_size = teacher.info.vocab_size
        # An id that the student's tokenizer does not have is in no prompt; an id that differs only in ending
        # completions differs in completions alone.
        self.foreign_ids = {
            difference.id
            for difference in teacher.handshake.differences
            if difference.student is not None and not difference.student_eos_only
        }
        self._same_vocabulary = not self.foreign_ids and max(student.tokenizer.get_vocab().values()) < self.vocab_size
        self._tokenizer = Tokenizer.from_buffer(teacher.tokenizer.tokenizer_json)
        self._marks = Marks(self._tokenizer)
        self._template = _template_tokenizer(teacher, self._tokenizer) if teacher.config.template == "teacher" else None
        self._prepared: dict[int, _PreparedPrompt] = {}

    def prepare(self, examples: Sequence[Example], on_refused: OnRefused | None = None) -> None:
        """Make the prompts of these examples. on_refused: receives those that the teacher cannot read.

        Raises UsageError for the first of them without on_refused.
        """
        remaining = []
        for example in examples:
            if self._same_vocabulary and self._reads_student_messages(example):
                with _refusing(example, on_refused):
                    teacher_messages(example)
                    self._prepared[id(example)] = _PreparedPrompt(example, None)
            else:
                remaining.append(example)
        shown = len(remaining) > PROGRESS_FROM
        with progress(f"prompts for {self.teacher.key}", len(remaining)) if shown else contextlib.nullcontext() as live:
            retokenized = 0
            for start in range(0, len(remaining), BATCH):
                retokenized += self._prepare(remaining[start : start + BATCH], on_refused)
                if live is not None:
                    live.update(start)
        if retokenized:
            log.warning(
                "%s: %d of %d prompts hold ids that it reads differently: it gets their text in its own ids",
                self.teacher.key,
                retokenized,
                len(examples),
            )

    def ensure_prepared(self, example: Example) -> None:
        """Make the prompt of an example unless it is there."""
        if id(example) not in self._prepared:
            self.prepare([example])

    def _prepare(self, examples: Sequence[Example], on_refused: OnRefused | None) -> int:
        """Returns how many of the prompts were tokenized again, by the teacher's tokenizer."""
        retokenized = 0
        marks = self.student.shield.marks if self._template is None else self._marks
        prompts: list[Prompt] = []
        rendered = []
        for example in examples:
            with _refusing(example, on_refused):
                prompts.append(self._render(example, marks))
                rendered.append(example)
        for example, own in zip(rendered, marks.ids(prompts), strict=True):
            foreign, ids = self._template is None and self._has_foreign(own), own
            if foreign:
                retokenized += 1
                (ids,) = self._marks.ids([self._render(example, self._marks)])
            with _refusing(example, on_refused):
                self._check(example, ids)
                same = not foreign and self._reads_student_messages(example)
                self._prepared[id(example)] = _PreparedPrompt(example, None if same else array("i", ids))
        return retokenized

    def _reads_student_messages(self, example: Example) -> bool:
        return self._template is None and not self.teacher.config.system and example.twin is None

    def __call__(self, example: Example, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The teacher's prompt ids of this example. prompt_ids: the student's."""
        self.ensure_prepared(example)
        ids = self._prepared[id(example)].ids
        return prompt_ids if ids is None else tuple(ids)

    def length(self, example: Example) -> int:
        """How many ids the teacher's prompt of this example has."""
        own = self(example, ())  # empty if the teacher reads the student's ids, and so no image
        return len(own) or len(self.student.text_ids([example])[0])

    def _render(self, example: Example, marks: Marks) -> Prompt:
        messages = teacher_messages(example, self.teacher.config.system)
        if self._template is None:
            return self.student.prompt(Example(example.id, messages, ""), marks)
        shielded, found = marks.shield(flatten_content(messages))
        try:
            text = self._template.apply_chat_template(
                list(shielded),
                tokenize=False,
                add_generation_prompt=True,
                **self.teacher.config.chat_template_kwargs,
            )
        except Exception as error:  # a template may raise any exception
            raise UsageError(f"{example.label}: the chat template of {self.teacher.key} refuses it: {error}") from error
        return Prompt(str(text), found)

    def _has_foreign(self, ids: Sequence[int]) -> bool:
        return not self.foreign_ids.isdisjoint(ids) or max(ids, default=0) >= self.vocab_size

    def _check(self, example: Example, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError(f"{example.label}: the prompt for {self.teacher.key} is empty: give the row a prompt")
        if max(ids) >= self.vocab_size:
            raise UsageError(
                f"{example.label}: its prompt holds the id {max(ids)} ({self._tokenizer.id_to_token(max(ids))!r}), "
                f"and {self.teacher.key} knows the ids below {self.vocab_size}: give the row a 'twin' without it"
            )


def _template_tokenizer(teacher: Teacher, tokenizer: Tokenizer) -> Any:
    """The teacher's tokenizer with the teacher's chat template. Raises HandshakeError if the teacher has none."""
    assert teacher.tokenizer is not None
    assert teacher.info is not None
    if not teacher.tokenizer.chat_template:
        raise HandshakeError(
            f"{teacher.key}.template is 'teacher', and the teacher has no chat template: set it to 'student'"
        )
    for name in teacher.config.chat_template_kwargs:
        if name in RESERVED_VARIABLES or not re.search(rf"\b{re.escape(name)}\b", teacher.tokenizer.chat_template):
            raise HandshakeError(
                f"{teacher.key}.chat_template_kwargs: the teacher's chat template reads no variable {name!r}: leave it "
                "out"
            )
    special: Mapping[str, Any] = {
        f"{name}_token": tokenizer.id_to_token(index) for name, index in teacher.info.special_ids.items()
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=teacher.tokenizer.chat_template, **special)
