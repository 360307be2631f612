"""Fingerprints of the teacher's weights and of its tokenizer."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FINGERPRINT_LENGTH = 32

VOLATILE_KEYS = {"_name_or_path", "_commit_hash", "transformers_version"}
"""Config keys that say where a model came from and what saved it; they do not change what it computes."""


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over the config and the weights of a model folder; 32 hex digits.

    It covers the config as canonical JSON without its volatile keys (so another rope or norm setting is another model),
    then the content of the *.safetensors files in the order of their names.
    """
    config = _without_volatile_keys(json.loads((folder / "config.json").read_text("utf-8")))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def _without_volatile_keys(node: Any) -> Any:
    """A config without the volatile keys, in nested configs too."""
    if isinstance(node, dict):
        return {key: _without_volatile_keys(value) for key, value in node.items() if key not in VOLATILE_KEYS}
    return [_without_volatile_keys(item) for item in node] if isinstance(node, list) else node


def tokenizer_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 over the map from id to token, added tokens included; 32 hex digits.

    The map is written as compact UTF-8 JSON, [[id, token], ...] in the order of ids. So two tokenizers with the same
    vocabulary have the same fingerprint, whatever their files look like.
    """
    pairs = sorted((index, token) for token, index in vocabulary.items())
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
