"""That the installed transformers does what the torch backend's own caches and attention build on."""

from functools import cache
from typing import Any

import numpy as np
import torch
from vold_packing.packed import ATTENTION, packed_states
from vold_packing.transformers import tiny_model, tried

from vold_teacher.backends.decoding import DecoderLimits, TorchDecoder
from vold_teacher.backends.prefix import shared_hidden
from vold_teacher.types import GeneratePrompt, SamplingOptions, ScoreOptions, Sequence


@cache
def try_transformers() -> None:
    """Score and generate with a tiny model in every layout. Raises UnfitError where what comes out is not that of the
    plain model.
    """
    ids = np.arange(1, 13, dtype=np.int32)
    cuts = [(ids[:6], ids[6:9]), (ids[:6], ids[7:10]), (ids[2:5], ids[5:9])]
    sequences = [Sequence(prompt, completion, ScoreOptions()) for prompt, completion in cuts]
    with torch.inference_mode():
        with tried("scoring"):
            model = tiny_model()
            plain = [_plain(model, one) for one in sequences]
        with tried("prompts that completions share"):
            shared = shared_hidden(model.base_model, sequences, [[0, 1], [2]])
            rows = [states[: len(one.completion)] for states, one in zip(shared, sequences, strict=True)]
            _compare(torch.cat(rows), torch.cat(plain))
        with tried("decoding with a cache of columns"):
            _generate(model)
        with tried("packed sequences"):
            model.set_attn_implementation(ATTENTION)
            groups = [(ids[:6], [ids[6:9], ids[7:10]]), (ids[2:5], [ids[5:9]])]
            _compare(packed_states(model.base_model, groups), torch.cat(plain))


def _plain(model: Any, sequence: Sequence) -> torch.Tensor:
    """The states that predict the completion's tokens."""
    whole = np.concatenate([sequence.prompt, sequence.completion[:-1]]).astype(np.int64)
    states: torch.Tensor = model.base_model(input_ids=torch.from_numpy(whole)[None]).last_hidden_state[0]
    return states[len(sequence.prompt) - 1 :]


def _generate(model: Any) -> None:
    """Two prompts together, greedily, against the whole sequence for each token."""
    prompts = [[1, 2, 3, 4], [5, 6]]
    decoder = TorchDecoder(model, model.get_output_embeddings(), DecoderLimits(), rows=8)
    asked = [GeneratePrompt(np.array(ids, np.int32), index, 3) for index, ids in enumerate(prompts)]
    decoder.add(0, asked, SamplingOptions(3, temperature=0.0), 0)
    while decoder.busy:
        for _, chunk in decoder.advance(60.0):
            ids = list(prompts[chunk.prompt])
            for found in chunk.ids:
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
                assert int(logits.argmax()) == found, "another token than without a cache"
                ids.append(int(found))


def _compare(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
