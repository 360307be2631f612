"""Who this teacher is: fingerprints of its weights and of its tokenizer."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FINGERPRINT_LENGTH = 32


VOLATILE_KEYS = {"_name_or_path", "_commit_hash", "transformers_version"}
"""Of a config: where a model came from and what saved it, which change nothing that it computes."""


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over what the folder's model computes with; 32 hex digits.

    It covers the config as canonical JSON without its volatile keys, so that another rope or norm setting is another
    model, and then the content of the *.safetensors files in the order of their names.
    """
    config = _lasting(json.loads((folder / "config.json").read_text("utf-8")))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def _lasting(node: Any) -> Any:
    """A config, its nested ones included, without the volatile keys."""
    if isinstance(node, dict):
        return {key: _lasting(value) for key, value in node.items() if key not in VOLATILE_KEYS}
    return [_lasting(item) for item in node] if isinstance(node, list) else node


def tokenizer_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 over the map from id to token, added tokens included; 32 hex digits.

    The map is written as compact UTF-8 JSON, [[id, token], ...] in the order of ids, so that two tokenizers that name
    every id alike have the same fingerprint, however their files are laid out.
    """
    pairs = sorted((index, token) for token, index in vocabulary.items())
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
