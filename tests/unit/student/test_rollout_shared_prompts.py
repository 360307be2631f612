"""Decoding with shared prompts, whose keys and values are stored once, gives the logits of separate sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_prompts import IMAGE_PROMPTS, TEXT_PROMPTS
from tiny_students import FAMILIES, tiny_student
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from vold_trainer.config import StudentConfig
from vold_trainer.errors import RunError
from vold_trainer.pocket.world import make_examples
from vold_trainer.student.cache import ReservedLayer
from vold_trainer.student.decoder import Decoder
from vold_trainer.student.models import load_student
from vold_trainer.student.shared_prompts import ATTENTION, SharedPrompts

SIZE = 4


def _filled(generator, prompts, kv_heads, positions):
    layer = ReservedLayer(0)
    layer.update(*torch.randn(2, prompts, kv_heads, positions, SIZE, generator=generator))
    cache = DynamicCache()
    cache.layers = [layer]
    return cache


@st.composite
def decodings(draw):
    """(the prompt of each sequence, and after each token the sequences that continue)."""
    prompts = draw(st.integers(1, 3))
    prompt_B = draw(
        st.permutations([*range(prompts), *draw(st.lists(st.integers(0, prompts - 1), min_size=1, max_size=6))])
    )
    selections, left = [], len(prompt_B)
    for _ in range(draw(st.integers(1, 4))):
        selections.append(draw(st.lists(st.integers(0, left - 1), min_size=1, max_size=left, unique=True)))
        left = len(selections[-1])
    return list(prompt_B), selections


@settings(max_examples=60, deadline=None)
@given(decoding=decodings(), heads=st.sampled_from([(2, 2), (4, 2), (6, 1)]), seed=st.integers(0, 1000))
def test_attention_is_that_of_each_sequence_with_its_own_copy_of_the_prompt(decoding, heads, seed):
    prompt_B, selections = decoding
    query_heads, kv_heads = heads
    rng = torch.Generator().manual_seed(seed)
    prompts, positions = max(prompt_B) + 1, 5
    cache = _filled(rng, prompts, kv_heads, positions)
    mask_PS = (torch.arange(positions) >= torch.randint(0, positions, (prompts, 1), generator=rng)).long()
    keys, values = cache.layers[0].keys, cache.layers[0].values
    sequences = [(keys[p], values[p], mask_PS[p]) for p in prompt_B]  # each with its copy
    shared = SharedPrompts(cache, torch.tensor(prompt_B), mask_PS, len(selections))
    for number, selection in enumerate(selections):
        assert cache.get_seq_length() == positions + number
        query, *new = torch.randn(3, len(sequences), query_heads, 1, SIZE, generator=rng)
        new = [part[:, :kv_heads] for part in new]
        key, _ = cache.update(*new, 0)
        found = shared.attend(shared.find_layer(key), query, None)
        for index, (own_keys, own_values, own_mask) in enumerate(sequences):
            own_keys, own_values = torch.cat([own_keys, new[0][index]], 1), torch.cat([own_values, new[1][index]], 1)
            own_mask = torch.cat([own_mask, torch.ones(1, dtype=torch.long)])
            alone = scaled_dot_product_attention(
                query[index], own_keys, own_values, attn_mask=own_mask.bool()[None, None], enable_gqa=True
            )
            torch.testing.assert_close(found[index], alone.transpose(0, 1), atol=1e-5, rtol=1e-5)
            sequences[index] = (own_keys, own_values, own_mask)
        shared.select(torch.tensor(selection))
        sequences = [sequences[index] for index in selection]


def _logits(student, prompts, group, tokens, share):
    """Of each position after the prompts, with a row in between that ends."""
    inputs = student.encode(prompts)
    with torch.no_grad():
        decoder = Decoder(student.model, inputs, tokens)
        if share:
            decoder.select(torch.arange(len(prompts)).repeat_interleave(group))
        else:  # first as many as there are prompts, so that there is nothing to share
            decoder.select(torch.arange(len(prompts)))
            decoder._cache.reorder_cache(torch.arange(len(prompts)).repeat_interleave(group))
            for name in ("logits_BV", "_next_B1", "_mask_BS"):
                setattr(decoder, name, getattr(decoder, name).repeat_interleave(group, 0))
        found = [decoder.logits_BV]
        for position in range(tokens - 1):
            decoder.feed(torch.arange(len(decoder.logits_BV)) + 7 + position)
            if position == 1:
                decoder.select(torch.tensor([i for i in range(len(decoder.logits_BV)) if i % 4 != 2]))
            found.append(decoder.logits_BV)
    return decoder, found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same_with_shared_prompts(family, tmp_path):
    student = load_student(StudentConfig(path=str(tiny_student(family, tmp_path))))
    student.model.eval()
    prompts = TEXT_PROMPTS if family == "qwen3" else [*TEXT_PROMPTS, *IMAGE_PROMPTS]
    usual = student.model.config.get_text_config()._attn_implementation
    sharing, found = _logits(student, prompts, 3, 5, share=True)
    apart, expected = _logits(student, prompts, 3, 5, share=False)
    assert apart._shared is None
    assert (sharing._shared is None) == (family == "gemma3")  # a window that slides holds no whole prompt
    assert student.model.config.get_text_config()._attn_implementation == usual
    for logits, expected_logits in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_stored_once_and_dropped_with_its_last_sequence():
    student = load_student(StudentConfig(path="pocket:student"))
    prompts = make_examples("train", 4, modality="text")
    decoder, _ = _logits(student, prompts, 8, 3, share=True)
    layer = decoder._cache.layers[0]
    assert layer.prompt_keys.shape[0] == 4
    assert layer.keys.shape[0] == 24
    decoder.select(torch.tensor([0, 1, 23]))
    assert layer.prompt_keys.shape[0] == 2


def test_other_attention_than_sdpa_goes_on_as_it_is():
    student = load_student(StudentConfig(path="pocket:student"))
    prompts = make_examples("train", 2, modality="text")
    _, expected = _logits(student, prompts, 4, 4, share=True)
    student.model.set_attn_implementation("eager")
    decoder, found = _logits(student, prompts, 4, 4, share=True)
    assert decoder._shared is None
    for logits, expected_logits in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)


def test_a_model_with_an_attention_of_its_own_is_refused(monkeypatch):
    student = load_student(StudentConfig(path="pocket:student"))
    inputs = student.encode(make_examples("train", 2, modality="text"))
    with torch.no_grad():
        decoder = Decoder(student.model, inputs, 4)
        decoder.select(torch.tensor([0, 0, 1, 1]))
        # As in a model whose layers do not use transformers' attention interface.
        monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION, sdpa_attention_forward)
        with pytest.raises(RunError, match="layers have keys and values"):
            decoder.feed(torch.tensor([5, 5, 5, 5]))


@pytest.mark.parametrize("family", ["qwen3", "qwen2.5-vl"])
@pytest.mark.parametrize("share", [True, False])
def test_keys_stored_in_the_dtype_of_products_give_the_logits_of_keys_in_float32(family, share, tmp_path, monkeypatch):
    student = load_student(StudentConfig(path=str(tiny_student(family, tmp_path)), compute="bfloat16"))
    prompts = TEXT_PROMPTS[:2] if family == "qwen3" else IMAGE_PROMPTS[:2]
    student.model.eval()
    _, narrow = _logits(student, prompts, 3, 5, share)
    update = ReservedLayer.update
    stored = set()

    def wide(layer, key_states, value_states, *args, **kwargs):
        found = update(layer, key_states.float(), value_states.float(), *args, **kwargs)
        stored.add(layer.keys.dtype)
        return found

    monkeypatch.setattr(ReservedLayer, "update", wide)
    _, expected = _logits(student, prompts, 3, 5, share)
    assert all(torch.equal(logits, other) for logits, other in zip(narrow, expected, strict=True))
    assert stored == {torch.float32}
