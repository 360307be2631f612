"""Prompts and completions as padded batches.

Shapes: B sequences, S positions (prompt and completion), T completion positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vold_trainer.data import Example
from vold_trainer.student.models import Student
from vold_trainer.student.prefill import COMPLETION_IDS, COMPLETION_MASK, PROMPT_INDEX


@dataclass(frozen=True)
class Batch:
    """inputs: model inputs, for CompletionScorer. predicts_BS: True where the next token belongs to a completion.
    ids_N: the completion tokens, row by row. mask_BT: bool, True at the completion tokens of the padded batch, in the
    order of ids_N.
    """

    inputs: dict[str, Tensor]
    predicts_BS: Tensor
    ids_N: Tensor
    mask_BT: Tensor

    def pad(self, values_N: Tensor, fill: float = 0.0) -> Tensor:
        """Pad values of the N completion tokens, [N] or [N, K], to [B, T] or [B, T, K]. Gradients flow through."""
        value_shape = values_N.shape[1:]
        out_BT = values_N.new_full((*self.mask_BT.shape, *value_shape), fill)
        mask_BT = self.mask_BT.view(*self.mask_BT.shape, *(1 for _ in value_shape)).expand_as(out_BT)
        return out_BT.masked_scatter(mask_BT, values_N)


def make_batch(
    student: Student,
    examples: Sequence[Example],
    completions: Sequence[Sequence[int]],
    *,
    device: torch.device | None = None,
    share: bool = True,
    masked: bool | None = None,
) -> Batch:
    """Prompts, padded on the left, followed by completions, padded on the right, on `device`.

    If not `masked`, which is the default on a GPU, sequences whose prompts are not shared begin at the first position,
    with all padding on the right. Under causal attention no token attends to it, so there is no mask, which would send
    the attention to a slower kernel.

    If several completions have the same example and `share` is set, the batch holds its prompt once. Sharing makes the
    number of forward calls of the layers depend on the batch. It needs a key-value cache, so it is off if activations
    are checkpointed. Raises ValueError for an empty completion, and PromptTooLongError for too many positions.
    """
    if not all(completions):
        raise ValueError(
            f"completions[{[bool(c) for c in completions].index(False)}] is empty: drop it before batching"
        )
    prompts = {id(example): example for example in examples}
    prompt_indices = {key: index for index, key in enumerate(prompts)}
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in student.model.modules())
    if share and len(prompts) < len(examples) and not checkpointed:
        prompt_B = torch.tensor([prompt_indices[id(example)] for example in examples])
        batch = _shared_prompt_batch(student, list(prompts.values()), prompt_B, completions)
    else:
        batch = _repeated_prompt_batch(student, examples, completions)
        if not (masked if masked is not None else device is None or device.type != "cuda"):
            batch = _without_mask(batch)
    if device is None:
        return batch
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    return Batch(inputs, batch.predicts_BS.to(device), batch.ids_N.to(device), batch.mask_BT.to(device))


def _pad_completions(student: Student, completions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids_BT, mask_BT, ids_N) of the completions."""
    lengths_B = torch.tensor([len(ids) for ids in completions])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B.unsqueeze(-1)
    ids_N = torch.tensor([token for ids in completions for token in ids])
    ids_BT = torch.full(mask_BT.shape, student.pad_id).masked_scatter(mask_BT, ids_N)
    return ids_BT, mask_BT, ids_N


def _check_room(student: Student, lengths_B: Tensor, completions: Sequence[Sequence[int]]) -> None:
    """Raise PromptTooLongError if a prompt of these lengths [B] and its completion take too many positions."""
    limit = student.max_positions
    for length, ids in zip(lengths_B.tolist(), completions, strict=True):
        if limit is not None and length + len(ids) > limit:
            raise student.too_long(length, f"the {len(ids):,} of a completion")


def _shared_prompt_batch(
    student: Student, prompts: Sequence[Example], prompt_B: Tensor, completions: Sequence[Sequence[int]]
) -> Batch:
    ids_BT, mask_BT, ids_N = _pad_completions(student, completions)
    inputs = student.encode(prompts)
    _check_room(student, inputs["attention_mask"].sum(-1)[prompt_B], completions)
    inputs[PROMPT_INDEX] = prompt_B
    inputs[COMPLETION_IDS] = ids_BT
    inputs[COMPLETION_MASK] = mask_BT.to(inputs["attention_mask"].dtype)
    return Batch(inputs, mask_BT, ids_N, mask_BT)


def _repeated_prompt_batch(
    student: Student, examples: Sequence[Example], completions: Sequence[Sequence[int]]
) -> Batch:
    ids_BT, mask_BT, ids_N = _pad_completions(student, completions)
    prompts = student.encode(examples)
    _check_room(student, prompts["attention_mask"].sum(-1), completions)
    shape = prompts["input_ids"].shape
    inputs = {}
    for name, value in prompts.items():
        if name == "input_ids":
            inputs[name] = torch.cat([value, ids_BT], -1)
        elif name == "attention_mask":
            inputs[name] = torch.cat([value, mask_BT.to(value.dtype)], -1)
        elif value.shape == shape:  # one value per token, such as its type: 0 is text
            inputs[name] = torch.cat([value, value.new_zeros(mask_BT.shape)], -1)
        else:
            inputs[name] = value
    if not student.computes_positions:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    predicts_BS = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    start = shape[1] - 1
    predicts_BS[:, start : start + mask_BT.shape[1]] = mask_BT
    return Batch(inputs, predicts_BS, ids_N, mask_BT)


def _without_mask(batch: Batch) -> Batch:
    """The batch with the tokens of each row at its start, and no attention mask."""
    mask_BS = batch.inputs["attention_mask"].bool()
    order_BS = (~mask_BS).long().argsort(dim=-1, stable=True)[:, : int(mask_BS.sum(-1).max())]
    inputs = {
        name: value.gather(-1, order_BS) if value.shape == mask_BS.shape else value
        for name, value in batch.inputs.items()
        if name != "attention_mask"
    }
    if "position_ids" in inputs:  # counted on over the padding: a repeated position would begin another sequence
        inputs["position_ids"] = torch.arange(order_BS.shape[1]).expand_as(order_BS)
    return Batch(inputs, batch.predicts_BS.gather(-1, order_BS), batch.ids_N, batch.mask_BT)


def micro_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of at most `size`. Sequences of similar length are grouped, which saves padding."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]
