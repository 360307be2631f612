"""The parts of a student, and freezing them.

Every parameter belongs to one part: embeddings, head (part of embeddings if tied to them), language (the decoder's
layers), vision (the tower), projector (between tower and decoder). Module names are those of transformers.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel

from vold_trainer.errors import UsageError

PARTS = ("vision", "projector", "language", "embeddings", "head")

TOWERS = ("visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "vision_embed_tokens")
PROJECTORS = ("merger", "merger_list", "deepstack_merger_list", "downsample")
"""Projectors inside the tower's module, as in Qwen and GLM."""


def parameter_parts(model: PreTrainedModel) -> dict[str, str]:
    """The part of every parameter, by parameter name."""
    embeddings = {id(value) for value in model.get_input_embeddings().parameters()}
    output = model.get_output_embeddings()
    head = {id(value) for value in output.parameters()} if output is not None else set()
    decoder = model.get_decoder()
    language = {id(value) for value in decoder.parameters()}
    parts = {}
    for name, value in model.named_parameters():
        modules = name.split(".")
        if id(value) in embeddings:
            parts[name] = "embeddings"
        elif id(value) in head:
            parts[name] = "head"
        elif any(module in TOWERS for module in modules):
            parts[name] = "projector" if any(module in PROJECTORS for module in modules) else "vision"
        else:
            parts[name] = "language" if id(value) in language else "projector"
    return parts


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> int:
    """Freeze `parts`; return the number of frozen values.

    If the head is tied to the embeddings, freezing either freezes both. Raises UsageError for an unknown part, and for
    a part without parameters, except vision and projector of a text model.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"student.freeze: {unknown[0]!r} is no part; choose from {list(PARTS)}")
    part_of = parameter_parts(model)
    reads_images = bool({"vision", "projector"} & set(part_of.values()))
    frozen = 0
    for part in parts:
        tied_head = part == "head" and "head" not in part_of.values()
        target = "embeddings" if tied_head else part
        chosen = [value for name, value in model.named_parameters() if part_of[name] == target]
        if not chosen and (reads_images or part not in ("vision", "projector")):
            raise UsageError(f"student.freeze: {type(model).__name__} has no parameters known as {part!r}: drop it")
        for parameter in chosen:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen
