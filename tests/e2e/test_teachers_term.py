"""One training step of VOLD over real services against the same step computed by hand from the two models."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from vold_trainer.config import TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.student.models import load_student
from vold_trainer.training.train import run_train

BETA, GROUP = 0.1, 3


def logprobs(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """[T], of the completion's tokens."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return -cross_entropy(logits.float(), torch.tensor(completion), reduction="none")


@pytest.fixture(scope="module")
def step(tmp_path_factory, pocket_teacher, verifier):
    """(the config, the metrics, the rollouts) of one step."""
    out = tmp_path_factory.mktemp("vold")
    services = (f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}", "student.path=pocket:student")
    small = ("rollout.prompts=1", f"rollout.group={GROUP}", "rollout.max_tokens=40", "steps=1", "data.limit=8")
    config = load(TrainConfig, Path("pocket:vold"), [f"out={out}", *services, *small, f"objective.beta={BETA}"])
    run_train(config)
    return config, read_json_lines(out / "metrics.jsonl")[0], read_json_lines(out / "rollouts.jsonl")


@pytest.fixture(scope="module")
def by_hand(step):
    """(loss, gradient norm) of the teacher's term, if the teacher's scores stand `shift` tokens late."""
    config, _, rollouts = step
    student = load_student(config.student).model
    teacher = AutoModelForCausalLM.from_pretrained(checkpoint_path("teacher"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("teacher"))

    def compute(shift: int) -> tuple[float, float]:
        student.zero_grad()
        loss = torch.zeros(())
        for rollout in rollouts:
            message = [{"role": "user", "content": rollout["prompt"]}]
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
            with torch.no_grad():
                wanted = logprobs(teacher, prompt, rollout["ids"]).roll(shift)
            k2 = 0.5 * (logprobs(student, prompt, rollout["ids"]) - wanted) ** 2
            loss = loss + BETA * k2.mean() / len(rollouts)
        loss.backward()
        gradients = [weight.grad.norm() for weight in student.parameters() if weight.grad is not None]
        return loss.item(), float(torch.stack(gradients).norm())

    return compute


def test_a_step_has_the_teachers_term_at_the_right_positions(step, by_hand):
    _, metrics, rollouts = step
    assert len(rollouts) == GROUP
    assert not any(rollout["correct"] for rollout in rollouts)  # no advantage: the teacher's term is all there is
    loss, norm = by_hand(0)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert loss > 0.1  # so a step without the term, whose loss is 0, is not near
    for shift in (-1, 1):
        other_loss, other_norm = by_hand(shift)
        assert max(abs(other_loss / loss - 1), abs(other_norm / norm - 1)) > 0.05
