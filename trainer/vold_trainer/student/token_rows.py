"""Rows of a frozen embedding and output head that are trained: those of added tokens.

A frozen matrix stays as it is; beside it stands a parameter with the rows of the added tokens, which are used in their
place: one parameter for both where embedding and head are tied. peft calls the same `trainable_token_indices`.

Shapes: N added tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from vold_trainer.errors import UsageError

ROWS, BIAS = "added_rows", "added_bias"
"""The names of the parameters, in the modules of embedding and head."""


def train_rows(model: PreTrainedModel, ids: Sequence[int], dtype: torch.dtype | None = None) -> int:
    """Train the rows of `ids` in those of embedding and head that are frozen. Returns the number of trainable values.

    dtype: of the parameters; None: that of the rows. To be called last, after everything else that changes how the
    modules compute. Raises UsageError if the embedding is no lookup of its rows.
    """
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if not ids:
        return 0
    ids_N = torch.tensor(sorted(ids))
    tied = head.weight is embeddings.weight
    rows: nn.Parameter | None = None
    if not embeddings.weight.requires_grad:
        rows = _own_rows(embeddings.weight, ids_N, dtype)
        _use_in_embedding(embeddings, ids_N, rows)
    if not head.weight.requires_grad:
        own = rows if tied and rows is not None else _own_rows(head.weight, ids_N, dtype)
        bias = getattr(head, "bias", None)
        _use_in_head(head, ids_N, own, None if bias is None else _own_rows(bias, ids_N, dtype))
    return sum(value.numel() for name, value in model.named_parameters() if is_row(name))


def row_ids(model: nn.Module) -> dict[str, list[int]]:
    """The ids whose rows are trained beside a frozen matrix, by the name of the module."""
    return {name: module._added_ids.tolist() for name, module in model.named_modules() if ROWS in module._parameters}


def is_row(name: str) -> bool:
    """Whether a parameter of this name is such rows, or their biases."""
    return name.rpartition(".")[2] in (ROWS, BIAS)


@torch.no_grad()
def fold_rows(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor] | None:
    """The state dict with the trained rows in their matrices, under the names of the plain model; `state` itself if no
    such rows are trained. state: the whole state dict, if it was gathered elsewhere; None: that of the model.

    Without `state` the model's frozen matrices are written to: nothing else reads their rows of these ids.
    """
    ids = row_ids(model)
    if not ids:
        return state
    folded = dict(model.state_dict() if state is None else state)
    copies: dict[int, Tensor] = {}
    for module, ids_N in ids.items():
        prefix = f"{module}." if module else ""
        for name, rows in (("weight", folded.pop(prefix + ROWS)), ("bias", folded.pop(prefix + BIAS, None))):
            if rows is None:
                continue
            matrix = folded[prefix + name]
            if state is not None:  # tied matrices stay one tensor
                matrix = copies.setdefault(matrix.data_ptr(), matrix.clone())
            matrix[ids_N] = rows.to(matrix.device, matrix.dtype)
            folded[prefix + name] = matrix
    return folded


def _own_rows(matrix: Tensor, ids_N: Tensor, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(matrix.detach()[ids_N].to(dtype or matrix.dtype).clone())


def _on_device(ids_N: Tensor) -> Callable[[torch.device], Tensor]:
    """The ids on any device, copied there once."""
    copies: dict[torch.device, Tensor] = {}

    def on(device: torch.device) -> Tensor:
        if device not in copies:
            copies[device] = ids_N.to(device)
        return copies[device]

    return on


def _use_in_embedding(module: Any, ids_N: Tensor, rows: nn.Parameter) -> None:
    module.register_parameter(ROWS, rows)
    module._added_ids = ids_N
    lookup, own_ids = module.forward, _on_device(ids_N)
    scale = getattr(module, "embed_scale", None)  # Gemma
    expected = lookup(ids_N).detach()

    def forward(ids: Tensor) -> Tensor:
        hidden = lookup(ids)
        added_N = own_ids(ids.device)
        place = torch.searchsorted(added_N, ids.contiguous()).clamp(max=len(added_N) - 1)
        rows = functional.embedding(place, module.added_rows).to(hidden.dtype)
        if scale is not None:
            rows = rows * (scale.to(rows) if isinstance(scale, Tensor) else scale)
        return torch.where((added_N[place] == ids).unsqueeze(-1), rows, hidden)

    module.forward = forward
    if not torch.allclose(forward(ids_N), expected, rtol=1e-2, atol=1e-5):
        raise UsageError(
            f"{type(module).__name__} computes an embedding in a way that vold does not know: train all of it, without "
            "'embeddings' in student.freeze and with student.lora=null, or set student.add_tokens=null"
        )


def _use_in_head(module: Any, ids_N: Tensor, rows: nn.Parameter, bias: nn.Parameter | None) -> None:
    module.register_parameter(ROWS, rows)
    if bias is not None:
        module.register_parameter(BIAS, bias)
    module._added_ids = ids_N
    product, own_ids = module.forward, _on_device(ids_N)

    def forward(hidden: Tensor) -> Tensor:
        logits: Tensor = product(hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # the dtype is that of the other logits
            own_bias = None if bias is None else module.added_bias.to(logits.dtype)
            own = functional.linear(hidden.to(logits.dtype), module.added_rows.to(logits.dtype), own_bias)
        return logits.index_copy_(-1, own_ids(logits.device), own)

    module.forward = forward
