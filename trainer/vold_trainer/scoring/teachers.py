"""The teachers of a run: who each of them is, which of its ids mean the same, and which rows it teaches."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vold_client import AsyncTeacherClient, Identity, TeacherInfo, TokenizerFile

from vold_trainer.config import TeacherConfig, TrainConfig
from vold_trainer.data import Example
from vold_trainer.errors import RunError, UsageError
from vold_trainer.objectives import Needs
from vold_trainer.scoring.handshake import Handshake, check_offers, compare, teacher_vocabulary, vocabulary
from vold_trainer.student.models import Student

log = logging.getLogger("vold.teachers")

ONLY = ""
"""The name of a run's teacher where there is one alone."""


@dataclass
class Teacher:
    """One teacher: its client, and from the handshake on who it is. changes: who else answered, where that may be."""

    name: str
    config: TeacherConfig
    client: AsyncTeacherClient
    info: TeacherInfo | None = None
    handshake: Handshake | None = None
    tokenizer: TokenizerFile | None = None
    changes: list[Identity] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Where the config says what it is."""
        return f"teachers.{self.name}" if self.name else "teacher"

    def meet(self, info: TeacherInfo, tokenizer: TokenizerFile, student: Student, asks: "TeacherRequirements") -> None:
        """Compare the tokenizers; from now on only this teacher may answer. Raises HandshakeError."""
        check_offers(asks.objective, asks.needs, info, asks.temperature, self.key)
        self.info = info
        self.tokenizer = tokenizer
        self.handshake = compare(
            vocabulary(student.tokenizer),
            teacher_vocabulary(tokenizer.tokenizer_json),
            min_shared=self.config.min_shared,
            size=student.vocab_size,
            student_eos=student.eos_ids,
            teacher_eos=info.eos_ids,
        )

    def check_identity(self, answered: Identity) -> None:
        """Raise RunError where somebody else answered than was met, unless the config allows it."""
        assert self.info is not None
        if answered == self.info.identity:
            return
        if not self.config.allow_identity_change:
            raise self.changed(f"{self.info.identity} was asked, {answered} answered")
        if answered not in self.changes:
            self.changes.append(answered)
            log.warning("%s: another teacher answers, as the config allows: %s", self.key, answered)

    def changed(self, how: object) -> RunError:
        which = f"{self.key}: " if self.name else ""
        return RunError(
            f"{which}the teacher changed in mid-run: {how}. Start a new run with it, or set "
            f"{self.key}.allow_identity_change=true"
        )

    def about(self) -> dict[str, str]:
        """Its identity as run.json keeps it."""
        assert self.info is not None
        identity = self.info.identity
        return {
            "model": identity.model,
            "revision": identity.revision,
            "weights_fingerprint": identity.weights_fingerprint,
            "tokenizer_fingerprint": identity.tokenizer_fingerprint,
        }


@dataclass(frozen=True)
class TeacherRequirements:
    """What a run will ask its teachers for."""

    objective: str
    needs: Needs
    temperature: float


def configured(config: TrainConfig) -> dict[str, TeacherConfig]:
    """A run's teachers by name, whether the config has one or several; none where the objective needs none."""
    if not config.objective.needs.teacher:
        return {}
    if config.teacher is not None:
        return {ONLY: config.teacher}
    return dict(config.teachers)


class TeacherRouter:
    """Which teacher a row asks: the one that its field `teacher` names; else the one that claims one of its `tags`, or
    its `category`; else the default one.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.names = list(configured(config))
        self.by_tag = {tag: name for name, teacher in config.teachers.items() for tag in teacher.tags}
        self.default = next((name for name, teacher in config.teachers.items() if teacher.default), None)

    def __call__(self, example: Example) -> str:
        """The teacher's name. Raises UsageError that names the row, and what it asks for in vain."""
        if self.names == [ONLY]:
            return ONLY
        asked = example.meta.get("teacher")
        if asked is not None:
            if asked not in self.names:
                raise UsageError(
                    f"row {example.id!r}: field 'teacher' is {asked!r}; the config's teachers are "
                    f"{', '.join(self.names)}: mend the row, or add teachers.{asked}"
                )
            return str(asked)
        tags = [*example.meta.get("tags", ()), *([example.category] if example.category else ())]
        for tag in tags:
            if tag in self.by_tag:
                return self.by_tag[tag]
        if self.default is None:
            raise UsageError(
                f"row {example.id!r} names no teacher, and nobody claims its tags {tags}: give it a field 'teacher', "
                "put a tag into teachers.NAME.tags, or set teachers.NAME.default=true"
            )
        return self.default

    def check(self, examples: Sequence[Example]) -> None:
        """Raise UsageError for the first row that no teacher teaches: before the run, not in the middle of it."""
        for example in examples:
            self(example)


def make_teachers(
    configs: Mapping[str, TeacherConfig], make_client: Callable[[str, TeacherConfig], AsyncTeacherClient]
) -> dict[str, Teacher]:
    """The teachers, not yet met. To be called on the event loop that will use the clients."""
    return {name: Teacher(name, config, make_client(name, config)) for name, config in configs.items()}
