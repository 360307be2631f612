"""A batch whose completions share prompts has the scores and gradients of a batch that repeats every prompt."""

from dataclasses import replace

import pytest
import torch
from noise_prompts import IMAGE_PROMPTS, TEXT_PROMPTS
from tiny_students import FAMILIES, tiny_student
from vold_trainer.config import StudentConfig
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.student.prefill import PROMPT_INDEX

COMPLETIONS = [[20, 21, 22, 23, 24, 25], [30], [31, 20, 40], [33, 34], [41, 42, 20, 21, 22, 23, 24], [50, 51]]


def scores(student, prompts, completions):
    """(the batch, log-probabilities, gradients by name) in training mode."""
    student.model.zero_grad()
    batch = make_batch(student, prompts, completions)
    found = CompletionScorer(student.model).train()(batch.inputs, batch.predicts_BS, batch.ids_N)
    (found.logprobs_N * torch.linspace(-1, 1, len(batch.ids_N))).sum().backward()
    grads = {name: value.grad for name, value in student.model.named_parameters() if value.grad is not None}
    return batch, found.logprobs_N.detach(), {name: grad.clone() for name, grad in grads.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_changes_neither_scores_nor_gradients(family, tmp_path):
    student = load_student(StudentConfig(path=str(tiny_student(family, tmp_path))))
    some = TEXT_PROMPTS[:2] if family == "qwen3" else [IMAGE_PROMPTS[1], TEXT_PROMPTS[1], IMAGE_PROMPTS[2]]
    prompts = [some[index % len(some)] for index in (1, 0, 2, 1, 0, 0)]
    batch, shared, shared_grads = scores(student, prompts, COMPLETIONS)
    assert len(batch.inputs["input_ids"]) == len(some)
    apart, repeated, grads = scores(student, [replace(prompt) for prompt in prompts], COMPLETIONS)
    assert PROMPT_INDEX not in apart.inputs
    assert torch.equal(batch.ids_N, apart.ids_N)
    assert torch.allclose(shared, repeated, atol=1e-5)
    assert shared_grads.keys() == grads.keys()
    for name, grad in grads.items():
        assert torch.allclose(shared_grads[name], grad, rtol=1e-3, atol=1e-5), name
    # One token each: there is nothing to feed in after the prompts.
    assert scores(student, prompts, [[7]] * 6)[1].shape == (6,)


def test_checkpointed_activations_repeat_the_prompts():
    student = load_student(StudentConfig(path="pocket:student", checkpoint_activations=True))
    prompts = [TEXT_PROMPTS[0]] * 2
    student.model.train()
    assert PROMPT_INDEX not in make_batch(student, prompts, [[20], [21, 22]]).inputs
