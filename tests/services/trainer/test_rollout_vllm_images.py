"""Rollouts from pictures, with a real vLLM, built for the CPU: `make test-vllm`."""

import importlib.util
from dataclasses import replace

import pytest
from test_rollout_vllm import ON_A_CPU, SAMPLING, TOLERANCE, load, mismatch, perturb
from vllm_students import save_image_student
from vold_trainer.config import RolloutConfig
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout.engines import make_engine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here: make test-vllm"),
    pytest.mark.timeout(1800),
]
PICTURES = make_examples("train", 2, modality="image")


def test_images_give_the_students_prompt_ids_and_logprobs_before_and_after_sync(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    student = load(save_image_student(tmp_path))
    engine = make_engine(RolloutConfig(engine="vllm", vllm_args=ON_A_CPU), student)
    try:
        rollouts = engine.generate(PICTURES, replace(SAMPLING, candidates=3), seed=5)
        assert [list(r.prompt_ids) for r in rollouts[::2]] == student.prompt_ids(PICTURES)
        assert not any(set(r.ids) & set(student.placeholder_ids) for r in rollouts)
        assert mismatch(student, rollouts) < TOLERANCE
        swapped = [
            replace(r, example=replace(r.example, images=PICTURES[1 - i // 2].images)) for i, r in enumerate(rollouts)
        ]
        assert mismatch(student, swapped) > 0.01  # the log-probabilities depend on the image
        perturb(student)
        assert mismatch(student, rollouts) > 0.1
        engine.sync(1)
        assert mismatch(student, engine.generate(PICTURES, SAMPLING, seed=5)) < TOLERANCE
    finally:
        engine.close()
