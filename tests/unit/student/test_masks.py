"""Where attention is plainly causal the layers get no mask, which would send sdpa to a slower kernel on a GPU."""

import pytest
import torch
from noise_prompts import IMAGE_PROMPTS, TEXT_PROMPTS
from tiny_students import FAMILIES, tiny_student
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from vold_trainer.config import StudentConfig
from vold_trainer.rollout.hf import generate
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student

QUICK = ("qwen2.5-vl", "qwen3")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in QUICK]


@pytest.fixture
def masks(monkeypatch):
    """(number of queries, whether there is a mask) of each attention of the decoder."""
    seen = []

    def attention(module, query, key, value, attention_mask, **options):
        if getattr(module, "is_causal", False):
            seen.append((query.shape[2], attention_mask is not None))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", attention)
    return seen


@pytest.mark.parametrize(
    ("family", "recomputed"),
    [("qwen2.5-vl", False), ("qwen3", True), pytest.param("qwen3-vl", False, marks=pytest.mark.slow)],
)
def test_a_micro_batch_of_one_completion_has_no_mask(family, recomputed, masks, tmp_path):
    folder = tiny_student(family, tmp_path)
    student = load_student(StudentConfig(path=str(folder), checkpoint_activations=recomputed))
    masks.clear()  # of what loading tries
    prompt = TEXT_PROMPTS[1] if family == "qwen3" else IMAGE_PROMPTS[1]
    batch = make_batch(student, [prompt], [[20, 21, 22]])
    CompletionScorer(student.model).train()(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N.sum().backward()
    assert {mask for _, mask in masks} == {False}
    assert len(masks) == 2 * (1 + recomputed)


def test_the_prompt_of_a_group_has_no_mask(masks, tmp_path):
    student = load_student(StudentConfig(path=str(tiny_student("qwen3", tmp_path))))
    masks.clear()
    with torch.no_grad():
        generate(student, TEXT_PROMPTS[1:2], group=3, max_tokens=3)
    prompts = [mask for queries, mask in masks if queries > 1]
    assert prompts == [False, False]


@pytest.mark.parametrize("family", [*QUICK, *OTHERS])
def test_a_batch_without_a_mask_has_the_scores_and_gradients_of_one_with_a_mask(family, masks, tmp_path):
    student = load_student(StudentConfig(path=str(tiny_student(family, tmp_path)), freeze=[]))
    some = TEXT_PROMPTS if family == "qwen3" else [IMAGE_PROMPTS[1], TEXT_PROMPTS[1], IMAGE_PROMPTS[2]]
    completions = [[20, 21, 22, 23, 24, 25], [30], [31, 20, 40]]
    found = []
    for masked in (True, False):
        masks.clear()
        student.model.zero_grad()
        batch = make_batch(student, some, completions, masked=masked)
        scores = CompletionScorer(student.model).train()(batch.inputs, batch.predicts_BS, batch.ids_N)
        weights_BT = torch.linspace(-1, 1, batch.mask_BT.numel()).view(batch.mask_BT.shape)
        (batch.pad(scores.logprobs_N) * weights_BT).sum().backward()
        gradients = {n: v.grad.clone() for n, v in student.model.named_parameters() if v.grad is not None}
        found.append((scores.logprobs_N.detach(), gradients))
        if family != "gemma3":  # a sliding window and pictures that see all of themselves are masks
            assert {mask for _, mask in masks} == {masked}
    (expected, gradients), (logprobs, others) = found
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
