"""The teacher's term of a step is that of the teacher's own values at the same positions.

A step of the trainer, through the real services, against loss and gradient computed here with transformers from the
same completions: without the term, or with the teacher's values moved by one position, both are others.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from vold_trainer.config import StudentConfig, TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.objectives import Rollouts, Support, Vold
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.student.models import load_student
from vold_trainer.training.train import run_train
from vold_trainer.training.update import PolicyUpdater

BETA = 0.5


def logprobs_of_all(model, prompt, ids):
    """The log-probabilities that the model gives every id at each position of a completion, [T, V]."""
    logits_SV = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0]
    return logits_SV[len(prompt) - 1 : -1].log_softmax(-1)


def loss_and_norm(student, teacher, scored, objective, *, shift=0):
    """The loss and the gradient's norm. shift: the teacher's values at position t are those at t + shift."""
    rows = []
    for rollout in scored.rollouts:
        student_TV = logprobs_of_all(student, rollout.prompt_ids, rollout.ids)
        with torch.no_grad():
            teacher_TV = logprobs_of_all(teacher, rollout.prompt_ids, rollout.ids)
        ids_T1 = torch.tensor(rollout.ids).unsqueeze(-1)
        support_TK = torch.from_numpy(rollout.candidates).long() if rollout.candidates is not None else ids_T1
        rows.append(
            {
                "student": student_TV.gather(-1, ids_T1)[:, 0],
                "teacher": teacher_TV.gather(-1, ids_T1)[:, 0].roll(-shift, 0),
                "student_support": student_TV.gather(-1, support_TK),
                "teacher_support": teacher_TV.gather(-1, support_TK).roll(-shift, 0),
            }
        )

    def padded(name):
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)

    lengths_C1 = torch.tensor([[len(rollout.ids)] for rollout in scored.rollouts])
    mask_CT = torch.arange(int(lengths_C1.max())) < lengths_C1
    support_mask_CTK = mask_CT.unsqueeze(-1).expand_as(padded("student_support"))
    outcome = objective(
        Rollouts(
            logprobs_CT=padded("student"),
            old_logprobs_CT=padded("student").detach(),
            mask_CT=mask_CT,
            advantages_C=scored.advantages_C,
            rewarded_C=scored.rewarded_C,
            correct_C=scored.correct_C,
            teacher_logprobs_CT=padded("teacher"),
            teacher_mask_CT=mask_CT,
            support=Support(padded("student_support"), padded("teacher_support"), support_mask_CTK),
        )
    )
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(outcome.loss, trained, allow_unused=True)
    norm = torch.stack([part.norm() for part in gradients if part is not None]).norm()
    return outcome.loss.item(), norm.item()


@pytest.mark.parametrize("divergence", ["k2", pytest.param("reverse-kl", marks=pytest.mark.slow)])
def test_a_step_has_the_teachers_values_at_their_own_positions(
    divergence, tmp_path, pocket_teacher, verifier, monkeypatch
):
    batches = []
    update = PolicyUpdater.update

    def keep_the_batch(self, step, scored, *rest):
        figures = update(self, step, scored, *rest)
        batches.append(scored)
        return figures

    monkeypatch.setattr(PolicyUpdater, "update", keep_the_batch)
    objective = Vold(beta=BETA, divergence=divergence, eps_high=0.3)
    settings = [
        *(f"out={tmp_path}", f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}", "steps=1"),
        *("student.path=pocket:student", "rollout.prompts=8", "rollout.group=4", "rollout.max_tokens=32", "threads=1"),
        *("optim.warmup_steps=0", "diagnostics.every=0", "batch.micro=5", f"objective.beta={BETA}"),
        f"objective.divergence={divergence}",
    ]
    config = load(TrainConfig, Path("pocket:vold"), settings)
    run_train(config)
    (row,) = read_json_lines(tmp_path / "metrics.jsonl")
    (scored,) = batches

    student = load_student(StudentConfig(path="pocket:student", freeze=config.student.freeze)).model
    teacher = AutoModelForCausalLM.from_pretrained(checkpoint_path("teacher"), dtype=torch.float32)
    expected = loss_and_norm(student, teacher, scored, objective)
    assert (row["loss"], row["grad_norm"]) == pytest.approx(expected, rel=1e-4)
    others = [
        loss_and_norm(student, teacher, scored, replace(objective, beta=0.0)),
        *(loss_and_norm(student, teacher, scored, objective, shift=shift) for shift in (-1, 1)),
    ]
    for loss, norm in others:
        assert abs(loss - row["loss"]) > 1e-3 * abs(row["loss"])
        assert abs(norm - row["grad_norm"]) > 0.1 * row["grad_norm"]
