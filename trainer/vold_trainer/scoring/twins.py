"""What a teacher reads where the student reads something else.

A teacher reads text only, so an image prompt comes with a twin in words; and a teacher may have a system prompt that
the student does not get, or want its own chat template. The completion's ids stay what they are: the teacher scores the
same tokens after another prompt.
"""

import contextlib
import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vold_trainer.data import Example, Message
from vold_trainer.data.messages import image_places, under_system
from vold_trainer.errors import HandshakeError, UsageError
from vold_trainer.scoring.teachers import Teacher
from vold_trainer.student.models import Student
from vold_trainer.terminal import progress

log = logging.getLogger("vold.twins")

BATCH = 256
"""Prompts tokenized together."""
SHOWN = 5000
"""From so many prompts on it takes seconds, and a bar is shown."""


def teacher_messages(example: Example, system: str = "") -> tuple[Message, ...]:
    """What a teacher with this system prompt reads of an example: text alone.

    Raises UsageError that names the row where it has an image and no twin.
    """
    messages = example.messages if example.twin is None else example.twin
    if image_places(messages):
        raise UsageError(
            f"row {example.id!r} has an image, and a teacher reads text only: give the row a 'twin', which says in "
            "words what the image shows; or leave out such rows, or choose an objective without a teacher (grpo)"
        )
    return tuple(under_system(messages, system))


def check_twins(examples: Sequence[Example]) -> None:
    """Raise UsageError for the first row that no teacher can read: before a service is started for it."""
    for example in examples:
        teacher_messages(example)


def flat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages of text with every content a string: what travels to a teacher as a conversation."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else "".join(part["text"] for part in message["content"]),
        }
        for message in messages
    ]


@dataclass(frozen=True)
class _Prepared:
    """ids: None where the teacher reads the student's own prompt. example: held, so that its id() stays its own."""

    example: Example
    ids: "array[int] | None"


class TeacherPrompts:
    """The prompts that one teacher, which was met, reads. Tokenized before the run, once for each example, so that the
    completions of an example share theirs.
    """

    def __init__(self, student: Student, teacher: Teacher) -> None:
        assert teacher.info is not None
        assert teacher.handshake is not None
        assert teacher.tokenizer is not None
        self.student = student
        self.teacher = teacher
        self.size = teacher.info.vocab_size
        differences = teacher.handshake.differences
        # An id that the student's tokenizer does not have stands in no prompt; one that only ends answers differs in
        # completions alone.
        self.foreign = {found.id for found in differences if found.student is not None and not found.ends}
        self._alike = not self.foreign and max(student.tokenizer.get_vocab().values()) < self.size
        self._reader = Tokenizer.from_buffer(teacher.tokenizer.tokenizer_json)
        self._templated = _templated(teacher, self._reader) if teacher.config.template == "teacher" else None
        self._prepared: dict[int, _Prepared] = {}

    def prepare(self, examples: Sequence[Example]) -> None:
        """Make the prompts of these examples. Raises UsageError for a row that the teacher cannot read."""
        rest = []
        for example in examples:
            if self._alike and self._reads_the_students(example):
                teacher_messages(example)
                self._prepared[id(example)] = _Prepared(example, None)
            else:
                rest.append(example)
        shown = len(rest) > SHOWN
        with progress(f"prompts for {self.teacher.key}", len(rest)) if shown else contextlib.nullcontext() as live:
            retold = 0
            for start in range(0, len(rest), BATCH):
                retold += self._prepare(rest[start : start + BATCH])
                if live is not None:
                    live.update(start)
        if retold:
            log.warning(
                "%s: %d of %d prompts hold ids that it reads differently: it gets their text in its own ids",
                self.teacher.key,
                retold,
                len(examples),
            )

    def know(self, example: Example) -> None:
        """Make the prompt of an example that was not there before the run."""
        if id(example) not in self._prepared:
            self.prepare([example])

    def _prepare(self, examples: Sequence[Example]) -> int:
        """Returns how many of the prompts hold ids that the teacher reads differently."""
        retold = 0
        texts = [self._render(example) for example in examples]
        for example, text, ids in zip(examples, texts, self._tokenize(texts), strict=True):
            foreign = self._templated is None and self._is_foreign(ids)
            if foreign:
                retold += 1
                ids = self._reader.encode(text, add_special_tokens=False).ids
            self._check(example, ids)
            own = not foreign and self._reads_the_students(example)
            self._prepared[id(example)] = _Prepared(example, None if own else array("i", ids))
        return retold

    def _reads_the_students(self, example: Example) -> bool:
        return self._templated is None and not self.teacher.config.system and example.twin is None

    def __call__(self, example: Example, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        """What the teacher reads in place of the student's `prompt_ids` of this example."""
        self.know(example)
        ids = self._prepared[id(example)].ids
        return prompt_ids if ids is None else tuple(ids)

    def _render(self, example: Example) -> str:
        messages = teacher_messages(example, self.teacher.config.system)
        if self._templated is None:
            return self.student.render(Example(example.id, messages, ""))
        try:
            return str(self._templated.apply_chat_template(flat(messages), tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template may raise whatever it likes
            raise UsageError(
                f"row {example.id!r}: the chat template of {self.teacher.key} refuses it: {error}"
            ) from error

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if self._templated is not None:
            return [found.ids for found in self._reader.encode_batch(list(texts), add_special_tokens=False)]
        ids: list[list[int]] = self.student.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _is_foreign(self, ids: Sequence[int]) -> bool:
        return not self.foreign.isdisjoint(ids) or max(ids, default=0) >= self.size

    def _check(self, example: Example, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError(f"row {example.id!r}: what {self.teacher.key} reads of it is empty: give it a prompt")
        if max(ids) >= self.size:
            raise UsageError(
                f"row {example.id!r}: its prompt holds the id {max(ids)} ({self._reader.id_to_token(max(ids))!r}), and "
                f"{self.teacher.key} knows the ids below {self.size}: give the row a 'twin' without it"
            )


def _templated(teacher: Teacher, core: Tokenizer) -> Any:
    """The teacher's tokenizer under its own chat template. Raises HandshakeError where it sent none."""
    assert teacher.tokenizer is not None
    assert teacher.info is not None
    if not teacher.tokenizer.chat_template:
        raise HandshakeError(
            f"{teacher.key}.template is 'teacher', and the teacher has no chat template: set it to 'student'"
        )
    special: Mapping[str, Any] = {
        f"{name}_token": core.id_to_token(index) for name, index in teacher.info.special_ids.items()
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=teacher.tokenizer.chat_template, **special)
