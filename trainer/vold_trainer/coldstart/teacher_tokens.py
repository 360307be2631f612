"""The teacher's tokens beside its traces, so that the cold start can give them to the student without the teacher."""

import logging
from pathlib import Path

from vold_client import AsyncTeacherClient, VoldError

from vold_trainer.config import OF_TEACHER, SftConfig, TokenConfig
from vold_trainer.errors import UsageError
from vold_trainer.student.added_tokens import read_tokens, tokens_of_tokenizer, write_record

log = logging.getLogger("vold.traces")


def tokens_file(traces: Path) -> Path:
    """The file beside a file of traces that has the added tokens of the teacher that wrote them."""
    return traces.with_name(f"{traces.stem}-tokens.json")


async def record_tokens(traces: Path, teacher: AsyncTeacherClient) -> None:
    """Write the teacher's added tokens beside the traces. A teacher that does not give its tokenizer has none there."""
    path = tokens_file(traces)
    try:
        file = await teacher.tokenizer()
        tokens = tokens_of_tokenizer(file.tokenizer_json, "the teacher's tokenizer file")
    except (VoldError, UsageError) as error:
        log.warning("the teacher's tokens are not recorded beside the traces: %s", error)
        path.unlink(missing_ok=True)
        return
    about = {"model": file.identity.model, "tokenizer_fingerprint": file.identity.tokenizer_fingerprint}
    write_record(path, tokens, about)


def tokens_of_traces(config: SftConfig) -> list[TokenConfig] | None:
    """The added tokens of the teacher that wrote the traces; None if the config does not ask for them, or no file has
    them.
    """
    path = tokens_file(config.traces)
    if config.student.add_tokens != OF_TEACHER or not path.is_file():
        return None
    return read_tokens(str(path))
