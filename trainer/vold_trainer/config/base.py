"""The base of all config classes, and the kinds of values that several of them have."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StrictInt, StrictStr


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


def _check_stops(stops: list[int | str]) -> list[int | str]:
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{len(stops)} entries: give at most {MAX_STOPS}")
    for item in stops:
        if isinstance(item, str) and not 0 < len(item) <= MAX_STOP_CHARACTERS:
            raise ValueError(f"a text of {len(item)} characters: give 1 to {MAX_STOP_CHARACTERS}")
    return stops


MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256

Stops = Annotated[list[StrictInt | StrictStr], AfterValidator(_check_stops)]
"""Ids and texts that end a completion."""


def _check_variables(variables: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(variables))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a value that JSON has not: {error}") from error
    if size > MAX_VARIABLE_BYTES:
        raise ValueError(f"{size:,} bytes as JSON: give at most {MAX_VARIABLE_BYTES:,}")
    return variables


MAX_VARIABLE_BYTES = 65_536

TemplateVariables = Annotated[dict[str, Any], AfterValidator(_check_variables)]
"""Variables of a chat template beside those that every template has."""


def _check_variable_name(name: str) -> str:
    """Refuse an invalid name without showing it, because it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.startswith("vold_"):
        raise ValueError(
            "not the name of an environment variable: put the API key into a variable and give the variable's name, so "
            "that no config and no log holds the key"
        )
    return name


VariableName = Annotated[str, AfterValidator(_check_variable_name)]


def _check_key_file(file: Path | None) -> Path | None:
    """Refuse a key in place of a file's name, without showing it."""
    if file is not None and str(file).startswith("vold_") and not file.exists():
        raise ValueError(
            "no such file, and it looks like a key: put the API key into a file and give the file's path, so that no "
            "config and no log holds the key"
        )
    return file


KeyFilePath = Annotated[Path | None, AfterValidator(_check_key_file)]

KEY_FILE = "file with the API key, before api_key_env; read again when the service refuses the key"
