"""Prompts and completions as padded batches.

Shapes: B sequences, S positions (prompt and completion), T completion positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vold_trainer.data import Example
from vold_trainer.student.models import Student
from vold_trainer.student.prefill import COMPLETION_IDS, COMPLETION_MASK, PROMPT_OF


@dataclass(frozen=True)
class Batch:
    """inputs: what CompletionScorer takes. predicts_BS: True where the next token belongs to a completion. ids_N: those
    tokens, row by row. mask_BT: bool, the completions as a padded rectangle, the N True places in the same order.
    """

    inputs: dict[str, Tensor]
    predicts_BS: Tensor
    ids_N: Tensor
    mask_BT: Tensor

    def rectangle(self, values_N: Tensor, fill: float = 0.0) -> Tensor:
        """Values of the N completion tokens, [N] or [N, K], laid out as [B, T] or [B, T, K]; gradients flow through."""
        further = values_N.shape[1:]
        out_BT = values_N.new_full((*self.mask_BT.shape, *further), fill)
        mask_BT = self.mask_BT.view(*self.mask_BT.shape, *(1 for _ in further)).expand_as(out_BT)
        return out_BT.masked_scatter(mask_BT, values_N)


def make_batch(
    student: Student,
    examples: Sequence[Example],
    completions: Sequence[Sequence[int]],
    *,
    device: torch.device | None = None,
    share: bool = True,
) -> Batch:
    """Prompts (left-padded by the processor) followed by completions (right-padded), on `device`. Where several
    completions are of one example, its prompt is there once, unless activations are checkpointed, which no cache is, or
    `share` is off: with it, how often the model's layers run depends on the batch.

    Raises ValueError for an empty completion: there is nothing to learn from it.
    """
    if not all(completions):
        raise ValueError(
            f"completions[{[bool(c) for c in completions].index(False)}] is empty: drop it before batching"
        )
    place = {id(example): index for index, example in enumerate({id(one): one for one in examples}.values())}
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in student.model.modules())
    if share and len(place) < len(examples) and not checkpointed:
        batch = _sharing(student, examples, completions, place)
    else:
        batch = _repeating(student, examples, completions)
    if device is None:
        return batch
    moved = {name: value.to(device) for name, value in batch.inputs.items()}
    return Batch(moved, batch.predicts_BS.to(device), batch.ids_N.to(device), batch.mask_BT.to(device))


def _padded(student: Student, completions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids_BT, mask_BT, ids_N) of the completions."""
    lengths_B = torch.tensor([len(ids) for ids in completions])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B.unsqueeze(-1)
    ids_N = torch.tensor([token for ids in completions for token in ids])
    ids_BT = torch.full(mask_BT.shape, student.pad_id).masked_scatter(mask_BT, ids_N)
    return ids_BT, mask_BT, ids_N


def _sharing(
    student: Student, examples: Sequence[Example], completions: Sequence[Sequence[int]], place: Mapping[int, int]
) -> Batch:
    first = {place[id(example)]: example for example in examples}
    ids_BT, mask_BT, ids_N = _padded(student, completions)
    inputs = student.encode([first[index] for index in range(len(place))])
    inputs[PROMPT_OF] = torch.tensor([place[id(example)] for example in examples])
    inputs[COMPLETION_IDS] = ids_BT
    inputs[COMPLETION_MASK] = mask_BT.to(inputs["attention_mask"].dtype)
    return Batch(inputs, mask_BT, ids_N, mask_BT)


def _repeating(student: Student, examples: Sequence[Example], completions: Sequence[Sequence[int]]) -> Batch:
    ids_BT, mask_BT, ids_N = _padded(student, completions)
    prompts = student.encode(examples)
    shape = prompts["input_ids"].shape
    inputs = {}
    for name, value in prompts.items():
        if name == "input_ids":
            inputs[name] = torch.cat([value, ids_BT], -1)
        elif name == "attention_mask":
            inputs[name] = torch.cat([value, mask_BT.to(value.dtype)], -1)
        elif value.shape == shape:  # one value a token, such as the token's type: completions are text, type 0
            inputs[name] = torch.cat([value, value.new_zeros(mask_BT.shape)], -1)
        else:
            inputs[name] = value
    if not student.numbers_positions:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    predicts_BS = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    start = shape[1] - 1
    predicts_BS[:, start : start + mask_BT.shape[1]] = mask_BT
    return Batch(inputs, predicts_BS, ids_N, mask_BT)


def micro_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of at most `size`, neighbours in length together so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]
