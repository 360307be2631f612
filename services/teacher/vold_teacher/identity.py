"""Who this teacher is: fingerprints of its weights and of its tokenizer."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

FINGERPRINT_LENGTH = 32


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over the content of the folder's *.safetensors files in the order of their names; 32 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def tokenizer_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 over the map from id to token, added tokens included; 32 hex digits.

    The map is written as compact UTF-8 JSON, [[id, token], ...] in the order of ids, so that two tokenizers that name
    every id alike have the same fingerprint, however their files are laid out.
    """
    pairs = sorted((index, token) for token, index in vocabulary.items())
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
