"""The parts of a student, and which of them learn.

Every parameter belongs to one part: embeddings and head (which may be one matrix: then it is embeddings), language (the
decoder's layers), vision (the tower), projector (what joins the two). Names are those of transformers' own families.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel

from vold_trainer.errors import UsageError

PARTS = ("vision", "projector", "language", "embeddings", "head")

TOWERS = ("visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "vision_embed_tokens")
PROJECTORS = ("merger", "merger_list", "deepstack_merger_list", "downsample")
"""What a tower holds that is no part of it: Qwen's and GLM's projectors live inside."""


def part_of(model: PreTrainedModel) -> dict[str, str]:
    """The part of every parameter, by the parameter's name."""
    embeddings = {id(value) for value in model.get_input_embeddings().parameters()}
    output = model.get_output_embeddings()
    head = {id(value) for value in output.parameters()} if output is not None else set()
    decoder = model.get_decoder()
    language = {id(value) for value in decoder.parameters()}
    found = {}
    for name, value in model.named_parameters():
        steps = name.split(".")
        if id(value) in embeddings:
            found[name] = "embeddings"
        elif id(value) in head:
            found[name] = "head"
        elif any(step in TOWERS for step in steps):
            found[name] = "projector" if any(step in PROJECTORS for step in steps) else "vision"
        else:
            found[name] = "language" if id(value) in language else "projector"
    return found


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> int:
    """Stop `parts` from learning; returns how many values that froze.

    Where the head is tied to the embeddings, freezing either freezes both. Raises UsageError for an unknown part, and
    for one that an image model has under no name that is known; a text model has no vision to freeze.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"student.freeze: {unknown[0]!r} is no part; choose from {list(PARTS)}")
    owners = part_of(model)
    reads_images = bool({"vision", "projector"} & set(owners.values()))
    frozen = 0
    for part in parts:
        wanted = part
        if part == "head" and "head" not in owners.values():
            wanted = "embeddings"
        chosen = [value for name, value in model.named_parameters() if owners[name] == wanted]
        if not chosen and (reads_images or part not in ("vision", "projector")):
            raise UsageError(f"student.freeze: {type(model).__name__} has no parameters known as {part!r}: drop it")
        for parameter in chosen:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen
