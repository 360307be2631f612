"""The marks of a student's processor, and its inputs of texts that spell one (vold_packing.marks)."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from vold_packing.marks import FIRST, Marks, media_marks, with_stand_ins


class Shield:
    """The marks of a processor and its tokenizer, which is the processor itself if the model reads text only."""

    def __init__(self, processor: Any, tokenizer: Any) -> None:
        self.marks = Marks(tokenizer.backend_tokenizer, media_marks(processor, tokenizer))
        self._own = (processor, tokenizer)
        self._copies: tuple[Any, Any] | None = None

    def copies(self) -> tuple[Any, Any]:
        """(a processor, its tokenizer) that read stand-ins, and else as the own ones."""
        if self._copies is None:
            processor, tokenizer = self._own
            processor = copy.deepcopy(processor)
            tokenizer = processor if self._own[0] is tokenizer else processor.tokenizer
            with_stand_ins(tokenizer.backend_tokenizer)
            self._copies = processor, tokenizer
        return self._copies

    def expand(self, inputs: Mapping[str, Tensor], found: Sequence[Sequence[str]], pad_id: int) -> dict[str, Tensor]:
        """The inputs that the copies made of several prompts, padded on the left, with the letters' ids in place of the
        stand-ins', and padded again. found: the marks of each prompt.
        """
        ids_BS, mask_BS = inputs["input_ids"], inputs["attention_mask"].bool()
        backend = self.copies()[1].backend_tokenizer
        rows = []
        for row, marks in enumerate(found):
            lengths = {
                backend.token_to_id(chr(FIRST + index)): len(self.marks.letters(mark))
                for index, mark in enumerate(marks)
            }
            kept = mask_BS[row].nonzero().flatten()
            repeats = torch.tensor([lengths.get(token, 1) for token in ids_BS[row, kept].tolist()])
            source = torch.repeat_interleave(kept, repeats)
            rows.append((source, self.marks.expand(ids_BS[row, kept].tolist(), marks, backend)))
        length = max(len(ids) for _, ids in rows)
        expanded = dict(inputs)
        for name, value in inputs.items():
            if value.shape == ids_BS.shape:
                values = [
                    value.new_tensor(ids) if name == "input_ids" else value[row, source]
                    for row, (source, ids) in enumerate(rows)
                ]
                fill = pad_id if name == "input_ids" else 0
                expanded[name] = torch.stack([pad(each, (length - len(each), 0), value=fill) for each in values])
        return expanded
