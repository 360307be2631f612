"""Check that the installed transformers behaves as the trainer's caches, attention and processors require.

Shapes: P prompts, B sequences, S positions, T completion positions.
"""

from functools import cache

import torch
from transformers import AutoModelForImageTextToText, ProcessorMixin
from vold_packing.transformers import tiny_model, tried

from vold_trainer.student.decoder import Decoder
from vold_trainer.student.prefill import COMPLETION_IDS, COMPLETION_MASK, PROMPT_INDEX, shared_hidden


@cache
def try_transformers() -> None:
    """Decode with a tiny model, with shared prompts and without. Raises IncompatibleVersionError if the logits differ
    from those without a cache, or if a name is missing.
    """
    with tried("names that processors and students use"):
        for owner, name in (
            (AutoModelForImageTextToText, "_model_mapping"),
            (ProcessorMixin, "_get_arguments_from_pretrained"),
            (ProcessorMixin, "get_attributes"),
            (ProcessorMixin, "get_processor_dict"),
        ):
            getattr(owner, name)
    with tried("decoding from shared prompts"), torch.no_grad():
        assert _decode(torch.tensor([0, 0, 1])), "a model that uses sdpa does not say so"
    with tried("decoding"), torch.no_grad():
        assert not _decode(torch.tensor([1, 0]))
    with tried("completions that share prompts"), torch.no_grad():
        _score_shared()


def _prompts() -> dict[str, torch.Tensor]:
    ids_PS = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 6, 7, 8]])
    return {"input_ids": ids_PS, "attention_mask": (ids_PS > 0).long()}


def _decode(sequences_B: torch.Tensor) -> bool:
    """Decode sequences of the prompts and compare the logits. Returns whether the sequences shared their prompts."""
    model, prompts = tiny_model(), _prompts()
    decoder = Decoder(model, prompts, 3)
    decoder.select(sequences_B)
    ids_BS, mask_BS = (prompts[name][sequences_B] for name in ("input_ids", "attention_mask"))
    for token in range(3):
        alone = [
            model(input_ids=ids[mask.bool()][None]).logits[0, -1] for ids, mask in zip(ids_BS, mask_BS, strict=True)
        ]
        torch.testing.assert_close(decoder.logits_BV, torch.stack(alone), rtol=1e-3, atol=1e-4)
        next_B = torch.arange(len(sequences_B)) + 9 + token
        ids_BS = torch.cat([ids_BS, next_B[:, None]], 1)
        mask_BS = torch.cat([mask_BS, torch.ones_like(next_B)[:, None]], 1)
        if token < 2:
            decoder.feed(next_B)
    return decoder.shares_prompts


def _score_shared() -> None:
    """Compare the hidden states of completions that share prompts with those of whole sequences."""
    model, prompts = tiny_model(), _prompts()
    prompt_B, ids_BT = torch.tensor([0, 1]), torch.tensor([[9, 10, 11], [12, 13, 14]])
    inputs = prompts | {PROMPT_INDEX: prompt_B, COMPLETION_IDS: ids_BT, COMPLETION_MASK: torch.ones_like(ids_BT)}
    hidden_BTH = shared_hidden(model, inputs)
    for prompt, ids, hidden_TH in zip(prompts["input_ids"], ids_BT, hidden_BTH, strict=True):
        whole = torch.cat([prompt[prompt > 0], ids])[None]
        alone = model.base_model(input_ids=whole).last_hidden_state[0, -4:-1]
        torch.testing.assert_close(hidden_TH, alone, rtol=1e-3, atol=1e-4)
