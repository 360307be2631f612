"""The tokens of a run's teachers that its student may get, over the wire: `student.add_tokens: teacher`."""

from vold_trainer.config import OF_TEACHER, TokenConfig, TrainConfig, teacher_key
from vold_trainer.errors import UsageError
from vold_trainer.services.local import Services, teacher_client
from vold_trainer.student.added_tokens import tokens_of_tokenizer
from vold_trainer.tasks import ClientTasks


def tokens_of_teachers(config: TrainConfig, services: Services) -> list[TokenConfig] | None:
    """The added tokens of the teachers' tokenizer files; None if the config does not ask for them, or the objective
    needs no teacher. Raises UsageError if two teachers have different tokens at one id.
    """
    teachers = config.used_teachers
    if config.student.add_tokens != OF_TEACHER or not teachers:
        return None
    tasks = ClientTasks()

    async def fetch(name: str) -> list[TokenConfig]:
        async with teacher_client(teachers[name], services, config.out.name, name) as client:
            file = await client.tokenizer()
        return tokens_of_tokenizer(file.tokenizer_json, f"the tokenizer file of {teacher_key(name)}")

    try:
        return _joined({teacher_key(name): tasks.run(fetch(name)) for name in teachers})
    finally:
        tasks.close()


def _joined(by_teacher: dict[str, list[TokenConfig]]) -> list[TokenConfig]:
    by_id: dict[int, tuple[str, TokenConfig]] = {}
    for key, tokens in by_teacher.items():
        for token in tokens:
            owner, other = by_id.setdefault(token.id, (key, token))
            if other.content != token.content:
                raise UsageError(
                    f"student.add_tokens is 'teacher', and id {token.id} is {other.content!r} at {owner} and "
                    f"{token.content!r} at {key}: set it to the tokenizer of one of them, or to null"
                )
    return [token for _, token in by_id.values()]
