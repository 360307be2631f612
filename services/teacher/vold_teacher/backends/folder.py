"""Reads a model's config files without loading the model."""

import json
from pathlib import Path
from typing import Any


def text_config(folder: Path) -> dict[str, Any]:
    """config.json, overlaid with the language model's part in a multimodal model; {} without a file."""
    config = _read(folder / "config.json")
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def eos_ids(folder: Path, loaded: int | list[int] | None = None) -> tuple[int, ...]:
    """Every id that ends a generation: of the generation config, of the config, and `loaded`.

    loaded: eos_token_id of the loaded config, which has its class's default if the file sets none.
    """
    ids: set[int] = set()
    configs = (text_config(folder), _read(folder / "generation_config.json"))
    for value in (loaded, *(config.get("eos_token_id") for config in configs)):
        ids.update([value] if isinstance(value, int) else value or [])
    return tuple(sorted(ids))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not JSON ({error}): save it again") from error
    return config if isinstance(config, dict) else {}
