"""A fingerprint of what a checkpoint of a student does not hold: its frozen weights, its vocabulary, its template."""

import hashlib
import json

import torch

from vold_trainer.student.models import Student

SAMPLES = 1024
"""Values of each tensor that are read, spread evenly: a model that was trained on has other values everywhere."""


@torch.no_grad()
def fingerprint(student: Student, *, trained: bool = False) -> str:
    """Of a student as it was loaded, before its weights are sharded. trained: with the weights that are trained, for a
    run whose reference they are.
    """
    state = hashlib.blake2b(digest_size=12)
    for name, value in student.model.named_parameters():
        if value.requires_grad and "lora_" in name:  # the adapters: they are in the checkpoint
            continue
        state.update(f"{name} {tuple(value.shape)}\n".encode())
        if trained or not value.requires_grad:
            flat = value.detach().reshape(-1)
            chosen = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
            state.update(chosen.float().cpu().numpy().tobytes())
    state.update(json.dumps(sorted(student.tokenizer.get_vocab().items())).encode())
    for owner in (student.processor, student.tokenizer):
        state.update(str(getattr(owner, "chat_template", None)).encode())
    return state.hexdigest()
