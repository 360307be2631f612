"""Checks that the installed transformers behaves as the torch backend's caches and attention need."""

from functools import cache
from typing import Any

import numpy as np
import torch
from vold_packing.packed import ATTENTION, packed_states
from vold_packing.transformers import tiny_model, tried

from vold_teacher.backends.decoding import DecoderLimits, TorchDecoder
from vold_teacher.backends.prefix import shared_prompt_states
from vold_teacher.types import GeneratePrompt, SamplingOptions, ScoreOptions, Sequence


@cache
def try_transformers() -> None:
    """Score and generate with a tiny model in every layout. Raises IncompatibleVersionError if a result differs from
    the plain model's.
    """
    ids = np.arange(1, 13, dtype=np.int32)
    cuts = [(ids[:6], ids[6:9]), (ids[:6], ids[7:10]), (ids[2:5], ids[5:9])]
    sequences = [Sequence(prompt, completion, ScoreOptions()) for prompt, completion in cuts]
    with torch.inference_mode():
        with tried("scoring"):
            model = tiny_model()
            plain = [_plain_states(model, sequence) for sequence in sequences]
        with tried("prompts that completions share"):
            shared = shared_prompt_states(model.base_model, sequences, [[0, 1], [2]])
            rows = [states[: len(sequence.completion)] for states, sequence in zip(shared, sequences, strict=True)]
            _compare(torch.cat(rows), torch.cat(plain))
        with tried("decoding with a cache of columns"):
            _generate(model)
        with tried("packed sequences"):
            model.set_attn_implementation(ATTENTION)
            groups = [(ids[:6], [ids[6:9], ids[7:10]]), (ids[2:5], [ids[5:9]])]
            _compare(packed_states(model.base_model, groups), torch.cat(plain))


def _plain_states(model: Any, sequence: Sequence) -> torch.Tensor:
    """The states that predict the completion's tokens, from one plain forward."""
    whole = np.concatenate([sequence.prompt, sequence.completion[:-1]]).astype(np.int64)
    states: torch.Tensor = model.base_model(input_ids=torch.from_numpy(whole)[None]).last_hidden_state[0]
    return states[len(sequence.prompt) - 1 :]


def _generate(model: Any) -> None:
    """Generate greedily for two prompts, and check each token against a forward of the whole sequence."""
    prompts = [[1, 2, 3, 4], [5, 6]]
    decoder = TorchDecoder(model, model.get_output_embeddings(), DecoderLimits(), rows=8)
    generate_prompts = [GeneratePrompt(np.array(ids, np.int32), index, 3) for index, ids in enumerate(prompts)]
    decoder.add(0, generate_prompts, SamplingOptions(3, temperature=0.0), 0)
    while decoder.busy:
        for _, chunk in decoder.advance(60.0):
            ids = list(prompts[chunk.prompt])
            for token in chunk.ids:
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
                assert int(logits.argmax()) == token, "another token than without a cache"
                ids.append(int(token))


def _compare(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
