"""The memory estimate of `vold check`, against the tensors that torch allocates."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from vold_packing.transformers import cache_name
from vold_trainer.checking.memory import ModelSize, estimate_memory, format_bytes
from vold_trainer.student.models import checkpoint_activations

SHAPE = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip


@pytest.fixture(params=[(Qwen3Config, Qwen3ForCausalLM), (LlamaConfig, LlamaForCausalLM)], ids=["qwen3", "llama"])
def causal(request):
    config_of, model_of = request.param
    config = config_of(**SHAPE)
    return config, model_of(config)


def test_weights_gradients_and_moments_are_exact(causal):
    config, model = causal
    model.model.layers[0].requires_grad_(False)
    found = estimate_memory(
        ModelSize.of(model, config, "float32"), tokens=10, micro_batch=1, generation_batch=1, checkpointing=False
    )
    total = sum(value.numel() for value in model.parameters())
    trainable = total - sum(value.numel() for value in model.model.layers[0].parameters())
    assert (found.weights, found.gradients, found.moments) == (4 * total, 4 * trainable, 8 * trainable)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_autograd_saves(causal, checkpointing):
    config, model = causal
    rows, tokens = 4, 100
    if checkpointing:
        checkpoint_activations(model)
    model.train()
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        states = model.base_model(torch.randint(0, 1000, (rows, tokens)), use_cache=False).last_hidden_state
    assert states.requires_grad
    real = sum(count for pointer, count in saved.items() if pointer not in parameters)
    found = estimate_memory(
        ModelSize.of(model, config, "float32"),
        tokens=tokens,
        micro_batch=rows,
        generation_batch=rows,
        checkpointing=checkpointing,
    )
    if checkpointing:  # the activations that one layer saves while it is recomputed are not yet there
        layer = found.activations - config.num_hidden_layers * rows * tokens * config.hidden_size * 4
        real += layer
    assert 0.75 < found.activations / real < 1.25


def test_the_cache_has_the_size_of_transformers_cache(causal):
    config, model = causal
    cache = DynamicCache()
    model(torch.randint(0, 1000, (4, 50)), use_cache=True, **{cache_name(model.forward): cache})
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    found = estimate_memory(
        ModelSize.of(model, config, "float32"), tokens=50, micro_batch=1, generation_batch=4, checkpointing=False
    )
    assert found.cache == real


def test_bytes_are_formatted_in_readable_units():
    assert [format_bytes(count) for count in (10, 3 << 10, 5 << 20, 3 << 29)] == ["10 B", "3 KiB", "5 MiB", "1.5 GiB"]
