"""The teacher's tokenizer: its file, its chat template, its special ids."""

import inspect
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vold_packing.marks import Marks, Prompt, TooManyMarksError, media_marks
from vold_service.errors import invalid, shown

from vold_teacher.identity import tokenizer_fingerprint
from vold_teacher.types import Ids

# Files that hold a tokenizer. Without any of them, transformers makes an empty tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")


RESERVED_VARIABLES = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}
"""What a call of the chat template sets besides its variables: the template itself is one of them."""


class Tokenizer:
    """The tokenizer of a folder. Raises OSError if the folder has none."""

    def __init__(self, folder: Path) -> None:
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise OSError(f"there is no tokenizer in {folder}: save one beside the model, such as tokenizer.json")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise OSError(f"cannot load a tokenizer from {folder}: {error}") from error
        self.folder = folder
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self.longest_token = max(map(len, vocabulary))  # in characters, or in bytes for a tokenizer of bytes
        self.size = max(vocabulary.values()) + 1
        self.fingerprint = tokenizer_fingerprint(vocabulary)
        file = folder / "tokenizer.json"
        self.file: bytes = file.read_bytes() if file.is_file() else self._tokenizer.backend_tokenizer.to_str().encode()
        template = self._tokenizer.chat_template
        self.chat_template: str = template if isinstance(template, str) else ""
        self._marks = Marks(self._tokenizer.backend_tokenizer, media_marks(self._tokenizer))
        self._tokens: dict[int, str] = {}
        special = {name: getattr(self._tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad", "unk")}
        self.special_ids: dict[str, int] = {name: index for name, index in special.items() if index is not None}

    def check_variables(self, names: Iterable[str], field: str) -> None:
        """Raise INVALID_ARGUMENT for a variable of the chat template that a caller may not set."""
        for name in names:
            if name in RESERVED_VARIABLES or name.startswith("_"):
                raise invalid(field, f"{field} sets {shown(name)}, which the service sets itself: leave it out")

    def spells_marks(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts spells a control token or another mark, so that `render` tokenizes it otherwise."""
        return any(map(self._marks.spelled_in, texts))

    def render(self, messages: Seq[tuple[str, str]], field: str, variables: Mapping[str, Any] | None = None) -> Ids:
        """The ids of a conversation of (role, content), up to the start of the assistant's reply. variables: of the
        chat template. No text of either becomes a control token (vold_packing.marks).
        """
        if not self._tokenizer.chat_template:
            raise invalid(field, f"{field}: this teacher's tokenizer has no chat template; send ids")
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            shielded, others, marks = self._marks.shield_all(conversation, variables or {})
        except TooManyMarksError as error:
            raise invalid(field, f"{field}: {error}") from error
        try:
            text = self._tokenizer.apply_chat_template(shielded, add_generation_prompt=True, tokenize=False, **others)
        except Exception as error:  # a template may raise any exception
            raise invalid(field, f"{field}: the chat template refused them: {str(error)[:200]}") from error
        if marks:
            (ids,) = self._marks.ids([Prompt(text, marks)])
        else:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(ids, np.int32)

    def encode(self, text: str, *, special: bool) -> Ids:
        """The ids of a text. special: add the special tokens that the tokenizer puts around a text, such as BOS."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=special), np.int32)

    def decode(self, ids: Ids | list[int], *, special: bool = False) -> str:
        """The text of ids. special: keep special tokens."""
        return str(self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=not special))

    def token(self, index: int) -> str:
        """The text of a single id; a part of a character becomes U+FFFD."""
        text = self._tokens.get(index)
        if text is None:
            text = self._tokens[index] = self.decode([index], special=True)
        return text
