"""What follows for the loss from the numbers that a run samples and trains in, in its first line."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from vold_trainer.config import TrainConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.training.opening_line import opening_line

ALONE = SimpleNamespace(mixed_precision="no", distributed_type=DistributedType.NO)
FSDP2 = SimpleNamespace(mixed_precision="bf16", distributed_type=DistributedType.FSDP)
DDP = SimpleNamespace(mixed_precision="bf16", distributed_type=DistributedType.MULTI_GPU)


def config(*overrides: str) -> TrainConfig:
    return load(TrainConfig, None, ["out=runs/x", "student.path=pocket:student", *overrides])


@pytest.mark.parametrize(
    ("overrides", "cap", "said"),
    [
        ((), None, "hf samples in float32, without importance weights"),
        (("student.compute=bfloat16",), 2.0, "samples in bfloat16: importance weights up to objective.rollout_cap 2"),
        (("student.dtype=bfloat16",), 2.0, "hf samples in bfloat16: importance weights"),
        (("student.dtype=bfloat16", "objective.rollout_cap=0"), 0.0, "in bfloat16, without importance weights"),
        (("rollout.engine=vllm",), 2.0, "vllm samples: importance weights"),
        (("rollout.engine=vllm", "objective.rollout_cap=3"), 3.0, "up to objective.rollout_cap 3"),
        (("rollout.ahead=1",), 2.0, "importance weights"),
    ],
)  # fmt: skip
def test_importance_weights_are_on_where_completions_come_from_other_probabilities(overrides, cap, said):
    found = config(*overrides)
    assert found.objective.rollout_cap == cap
    assert found.objective.needs.rollout_logprobs == bool(cap)
    assert said in opening_line(found, ALONE)


def test_an_objective_without_importance_weights_says_so():
    line = opening_line(config("rollout.engine=vllm", "objective.name=opd-top-k"), ALONE)
    assert "objective 'opd-top-k' has no importance weights" in line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "one optimiser step a batch"),
        (("batch.size=50",), "3 optimiser steps a batch, divergences of sampled tokens weighed by the ratio"),
        (("batch.size=64", "objective.kl_ratio=false"), "is not that of the divergence"),
        (("batch.size=64", "objective.divergence=reverse-kl"), "2 optimiser steps a batch"),
        (("student.head_dtype=float32",), "the output head in float32"),
        (("teacher.only=used",), "the metrics teacher/* are over the completions that are sent"),
    ],
)
def test_the_first_line_says_what_the_loss_is_computed_from(overrides, said):
    line = opening_line(config(*overrides), ALONE)
    assert said in line
    assert ("weighed" in line) == ("weighed" in said)


def test_mixed_precision_of_the_launch_is_told():
    assert "norms and the residual stream are bf16 too" in opening_line(config(), FSDP2)
    assert "accelerate trains with mixed_precision bf16, and samples without it" in opening_line(config(), DDP)
    assert "mixed_precision" not in opening_line(config(), ALONE)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.rollout_cap=-1", "objective.rollout_cap: Input should be greater than or equal to 0"),
        ("rollout.stop=['']", "rollout.stop: a text of 0 characters: give 1 to 256"),
        ("rollout.stop=[true]", "rollout.stop.0.int: Input should be a valid integer"),
        (f"rollout.stop={list(range(17))}", "rollout.stop: 17 entries: give at most 16"),
        ("teacher.chat_template_kwargs={thinks: true}", "set teacher.template=teacher, or leave them out"),
        ("objective={name: gkd, kl_beta: 1, traces: t.jsonl}", "set objective.student_share=1"),
        ("objective.kl_beta=-1", "objective.kl_beta: Input should be greater"),
        ("rollout.max_mismatch=0", "rollout.max_mismatch: Input should be greater than 0"),
        ("reference={system: x}", "'reference.url' is missing"),
        (f"student.chat_template_kwargs={{a: {'x' * 70_000}}}", "bytes as JSON: give at most 65,536"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(override, message):
    with pytest.raises(UsageError) as caught:
        config(override)
    assert message in str(caught.value)


def test_a_reference_that_is_a_service_is_opened_beside_the_teacher():
    both = config("objective.kl_beta=0.1", "reference.url=grpc://reference:1")
    assert [model.url for model in both.used_scoring_models.values()] == ["local:pocket:teacher", "grpc://reference:1"]
    assert not both.copies_start
    assert list(config("reference.url=grpc://reference:1").used_scoring_models) == [""], "kl_beta is 0"
    assert config("objective={name: grpo, kl_beta: 0.1}").copies_start
