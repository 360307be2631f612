"""The teachers of a run: their identities, their handshakes with the student, and which rows each of them scores."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vold_client import AsyncTeacherClient, Identity, TeacherInfo, TokenizerFile

from vold_trainer.config import SINGLE_TEACHER, ScoringModelConfig, TeacherConfig, TrainConfig, teacher_key
from vold_trainer.data import Example
from vold_trainer.errors import RunError, UsageError
from vold_trainer.objectives import Needs
from vold_trainer.scoring.handshake import (
    Handshake,
    check_capabilities,
    compare_vocabularies,
    teacher_tokenizer,
    vocabulary,
)
from vold_trainer.scoring.teacher_view import Translation
from vold_trainer.student.models import Student

log = logging.getLogger("vold.teachers")


@dataclass
class Teacher:
    """The client of a teacher, or of a reference. info, handshake, translation, tokenizer: set by the handshake.
    other_identities: identities other than the handshake's that have answered since, where the config allows that.
    """

    name: str
    config: ScoringModelConfig
    client: AsyncTeacherClient
    info: TeacherInfo | None = None
    handshake: Handshake | None = None
    translation: Translation | None = None
    tokenizer: TokenizerFile | None = None
    other_identities: list[Identity] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The teacher's key in the config."""
        return teacher_key(self.name)

    @property
    def sane(self) -> str:
        """What follows from an alarm about its values. The values of a reference are not watched."""
        return self.config.sane if isinstance(self.config, TeacherConfig) else "off"

    @property
    def only_used(self) -> bool:
        """Whether it scores only what the objective uses."""
        return isinstance(self.config, TeacherConfig) and self.config.only == "used"

    def complete_handshake(
        self, info: TeacherInfo, tokenizer: TokenizerFile, student: Student, requirements: "TeacherRequirements"
    ) -> None:
        """Check the teacher against the student and fix its identity. Raises HandshakeError."""
        check_capabilities(requirements.objective, requirements.needs, info, requirements.temperature, self.key)
        self.info = info
        self.tokenizer = tokenizer
        own = teacher_tokenizer(tokenizer.tokenizer_json)
        self.handshake = compare_vocabularies(
            vocabulary(student.tokenizer),
            vocabulary(own),
            min_shared=self.config.min_shared,
            size=student.vocab_size,
            student_eos=student.eos_ids,
            teacher_eos=info.eos_ids,
        )
        shared_V = self.handshake.shared_V
        self.translation = Translation(student.tokenizer.backend_tokenizer, own, shared_V, info.vocab_size)

    def describe_handshake(self) -> str:
        """What the handshake found, and what is done with it."""
        assert self.handshake is not None
        assert self.translation is not None
        return "; ".join(filter(None, (self.handshake.describe(), self.translation.describe())))

    def check_identity(self, identity: Identity) -> None:
        """Raise RunError if a reply has another identity than the handshake had, unless the config allows it."""
        assert self.info is not None
        if identity == self.info.identity:
            return
        if not self.config.allow_identity_change:
            raise self.changed_error(f"{self.info.identity} was asked, {identity} answered")
        if identity not in self.other_identities:
            self.other_identities.append(identity)
            log.warning("%s: another teacher answers, as the config allows: %s", self.key, identity)

    def changed_error(self, reason: object) -> RunError:
        key = f"{self.key}: " if self.name else ""
        return RunError(
            f"{key}the teacher changed in mid-run: {reason}. Start a new run with it, or set "
            f"{self.key}.allow_identity_change=true"
        )

    def identity_record(self) -> dict[str, str]:
        """The teacher's identity as run.json stores it."""
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
    """What a run needs from each of its teachers. objective: its name."""

    objective: str
    needs: Needs
    temperature: float


class TeacherRouter:
    """Maps a row to the teacher that scores it: the teacher that its field `teacher` names; else the teacher that has
    one of its `tags`, or its `category`; else the default teacher.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.names = list(config.used_teachers)
        self.by_tag = {tag: name for name, teacher in config.teachers.items() for tag in teacher.tags}
        self.default = next((name for name, teacher in config.teachers.items() if teacher.default), None)

    def __call__(self, example: Example) -> str:
        """The teacher's name. Raises UsageError if the row has no teacher."""
        if self.names == [SINGLE_TEACHER]:
            return SINGLE_TEACHER
        requested = example.meta.get("teacher")
        if requested is not None:
            if requested not in self.names:
                raise UsageError(
                    f"{example.label}: field 'teacher' is {requested!r}; the config's teachers are "
                    f"{', '.join(self.names)}: mend the row, or add teachers.{requested}"
                )
            return str(requested)
        tags = [*example.meta.get("tags", ()), *([example.category] if example.category else ())]
        for tag in tags:
            if tag in self.by_tag:
                return self.by_tag[tag]
        if self.default is None:
            raise UsageError(
                f"{example.label} names no teacher, and nobody claims its tags {tags}: give it a field 'teacher', "
                "put a tag into teachers.NAME.tags, or set teachers.NAME.default=true"
            )
        return self.default

    def check(self, examples: Sequence[Example]) -> None:
        """Raise UsageError for the first row that has no teacher: before the run, not in the middle of it."""
        for example in examples:
            self(example)


def make_teachers(
    configs: Mapping[str, ScoringModelConfig], make_client: Callable[[str, ScoringModelConfig], AsyncTeacherClient]
) -> dict[str, Teacher]:
    """The teachers, before their handshakes. To be called on the event loop that will use the clients."""
    return {name: Teacher(name, config, make_client(name, config)) for name, config in configs.items()}
