"""Tokens that a student gets from another tokenizer, at that tokenizer's ids: `student.add_tokens`.

Qwen2.5 writes `<think>` in three pieces where Qwen3 has the id 151667. A student that is to say what such a teacher
expects needs the same id. The tokens become part of the student's tokenizer file; their rows of the embedding and of
the output head begin as the mean of the rows of the pieces that spelled them.

Shapes: N new tokens, H hidden size.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file
from vold_packing.marks import Marks

from vold_trainer.config import OF_TEACHER, RunConfig, StudentConfig, TokenConfig
from vold_trainer.errors import UsageError
from vold_trainer.hub import explain_hub_failure
from vold_trainer.paths import is_evident_path
from vold_trainer.pocket.shipped import resolve_model

ConfigT = TypeVar("ConfigT", bound=RunConfig)

RECORD = "vold_tokens.json"
"""The file of a student's folder that says which tokens were added."""
MAX_ADDED = 4096
"""New tokens of a student, at most: each is a row of embedding and head."""


def tokens_of_tokenizer(tokenizer_json: bytes, name: str) -> list[TokenConfig]:
    """The tokens that a tokenizer.json has beside its model. name: of the file, for the error.

    Raises UsageError if it is no tokenizer.json.
    """
    try:
        added = json.loads(tokenizer_json)["added_tokens"]
        return [TokenConfig.model_validate(token) for token in added]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{name} is no tokenizer.json whose added tokens can be read: {_first_line(error)}") from error


def read_tokens(source: str) -> list[TokenConfig]:
    """The added tokens of a tokenizer: of a file, or of a model's folder or hub name. A file may also be a record of
    tokens (`write_record`). Raises UsageError if there is none.
    """
    said = f"student.add_tokens {source!r}"
    path = Path(resolve_model(source))
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        if path.exists() or is_evident_path(source):
            raise UsageError(f"{said}: there is no file {str(path)!r}: give the folder or the file of a tokenizer.json")
        try:
            path = Path(str(cached_file(source, "tokenizer.json")))
        except (OSError, ValueError) as error:
            why = explain_hub_failure(error, source)
            raise UsageError(f"{said}: {why or _first_line(error)}") from error
    return tokens_of_tokenizer(path.read_bytes(), f"{said}: {str(path)!r}")


def write_record(path: Path, tokens: Sequence[TokenConfig], about: Mapping[str, str] | None = None) -> None:
    """Write tokens to a file that `read_tokens` reads. about: whose they are."""
    values = {**(about or {}), "added_tokens": [token.model_dump() for token in tokens]}
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def choose_tokens(
    config: StudentConfig, path: str, tokenizer: Any, offered: Sequence[TokenConfig] | None
) -> list[TokenConfig]:
    """The tokens that the config has the student get, those among them that it has got before. path: of the student.
    offered: the added tokens of the run's teacher; None if the command has none.

    Raises UsageError if the config names no tokens that can be had, or one of them cannot have its id.
    """
    if config.add_tokens is None:
        return []
    if not isinstance(config.add_tokens, str):
        tokens = list(config.add_tokens)
        _missing(tokens, tokenizer)
        return tokens
    record = Path(path) / RECORD
    recorded: dict[int, TokenConfig] = {}
    if record.is_file():
        recorded = {token.id: token for token in tokens_of_tokenizer(record.read_bytes(), str(record))}
    if config.add_tokens != OF_TEACHER:
        offered = read_tokens(config.add_tokens)
    elif offered is None and not recorded:
        raise UsageError(
            "student.add_tokens is 'teacher', and there is no teacher to take them from: neither one that the "
            "objective needs, nor the file with its tokens that `vold traces` writes beside the traces. Set it to the "
            "folder or the file of the teacher's tokenizer, or to null"
        )
    elif offered is None:
        offered = list(recorded.values())
    missing = {token.id for token in _missing(offered, tokenizer)}
    return sorted((t for t in offered if t.id in missing or t.id in recorded), key=lambda token: token.id)


def _missing(tokens: Sequence[TokenConfig], tokenizer: Any) -> list[TokenConfig]:
    """Those of the tokens that the tokenizer has not got, by id. Raises UsageError for one that cannot have its id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    by_id = {index: token for token, index in vocabulary.items()}
    missing: dict[int, TokenConfig] = {}
    contents = set[str]()
    faults = []
    for token in sorted(tokens, key=lambda token: token.id):
        own = vocabulary.get(token.content)
        if own == token.id:
            continue
        if own is not None:
            faults.append(f"{token.content!r} is {token.id}, and the student has it at {own}")
        elif token.id in by_id:
            faults.append(f"{token.content!r} is {token.id}, which is {by_id[token.id]!r} in the student's vocabulary")
        elif token.id in missing or token.content in contents:
            faults.append(f"{token.content!r} or its id {token.id} is named twice")
        else:
            missing[token.id] = token
            contents.add(token.content)
    following = max(by_id, default=-1) + 1
    gap = next((index for place, index in enumerate(missing, following) if index != place), None)
    if gap is not None and not faults:
        faults.append(
            f"{missing[gap].content!r} is {gap}, and new ids follow on the student's last, {following - 1}, without a "
            "gap: so a tokenizer.json numbers them"
        )
    if len(missing) > MAX_ADDED:
        faults.append(f"{len(missing):,} tokens are missing, and at most {MAX_ADDED:,} can be added")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(
            f"student.add_tokens: the student cannot get the tokens at their ids: {'; '.join(faults[:3])}{more}. Set "
            "it to null: then a completion is translated for the teacher; or list the tokens that can be added"
        )
    return list(missing.values())


@torch.no_grad()
def add_tokens(model: PreTrainedModel, tokenizer: Any, tokens: Sequence[TokenConfig]) -> list[TokenConfig]:
    """Add those of the tokens that the tokenizer has not got, with rows of embedding and head, and return them.

    A row begins as the mean of the rows of the token's pieces, in the embedding, in an untied head and its bias; a
    model with fewer rows is resized. Raises UsageError as `choose_tokens`.
    """
    missing = _missing(tokens, tokenizer)
    if not missing:
        return []
    marks = Marks(tokenizer.backend_tokenizer)
    pieces = [marks.letters(token.content) for token in missing]
    before = _rows(model)
    tokenizer.add_tokens([AddedToken(**token.model_dump(exclude={"id"})) for token in missing])
    for token in missing:
        if (got := tokenizer.convert_tokens_to_ids(token.content)) != token.id:
            raise UsageError(
                f"student.add_tokens: the student's tokenizer gives {token.content!r} the id {got} instead of "
                f"{token.id}: set student.add_tokens=null"
            )
    if (count := missing[-1].id + 1) > before:
        with torch.random.fork_rng(devices=[]):  # the new rows are set below
            model.resize_token_embeddings(count, mean_resizing=False)
    ids_N = torch.tensor([token.id for token in missing])
    for weight in _row_tensors(model):
        means = [weight[list(ids)].float().mean(0) for ids in pieces]
        weight[ids_N] = torch.stack(means).to(weight.dtype)
    return missing


def with_tokens(config: ConfigT, tokens: Sequence[TokenConfig]) -> ConfigT:
    """The config with the student's tokens in place of where they come from, for what reads it without a teacher: the
    export, and the run that goes on from a checkpoint.
    """
    if config.student.add_tokens is None:
        return config
    student = config.student.model_copy(update={"add_tokens": list(tokens)})
    return config.model_copy(update={"student": student})


def describe_tokens(tokens: Sequence[TokenConfig]) -> str:
    shown = ", ".join(f"{token.content!r} ({token.id})" for token in tokens[:8])
    return shown + (f" and {len(tokens) - 8} more" if len(tokens) > 8 else "")


def _rows(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _row_tensors(model: PreTrainedModel) -> list[Tensor]:
    """The tensors with a row for each id: of the embedding, and of the head if it has its own."""
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tensors = [embeddings.weight]
    if head.weight is not embeddings.weight:
        tensors.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tensors.append(head.bias)
    return tensors


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
