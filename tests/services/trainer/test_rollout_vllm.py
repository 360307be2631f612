"""Rollouts from a real vLLM, built for the CPU: `make test-vllm`. The students are tiny ones (vllm_students.py).

What a CPU cannot show is the transport of NCCL and of CUDA IPC. Everything around it, vLLM's weight-transfer API from
handshake to finished update included, runs here with a TCP store in NCCL's place (store_weights.py).
"""

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from servers import serving
from store_weights import STORE, plugin_path, store_transfer
from teacher_fixtures import save_model
from upstream_fixtures import free_port, process
from vllm_students import save_text_student
from vold_trainer.config import RolloutConfig, StudentConfig, TrainConfig
from vold_trainer.config import load as load_config
from vold_trainer.data.faults import RowError
from vold_trainer.errors import RunError, UsageError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout.base import Sampling
from vold_trainer.rollout.engines import make_engine
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student
from vold_trainer.training.train import run_train

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here: make test-vllm"),
    pytest.mark.timeout(1800),  # an engine comes up in a minute, on a busy machine in ten
]
TOLERANCE = 1e-3  # float32 on both sides; 2e-4 between vLLM's kernels and transformers' was seen on this checkpoint
ON_A_CPU = ["--enforce-eager", "--gpu-memory-utilization", "0.25", "--max-num-batched-tokens", "512"]
PROMPTS = make_examples("train", 3, modality="text")
SAMPLING = Sampling(group=2, max_tokens=24, logprobs=True)


def load(path: Path):
    return load_student(StudentConfig(path=str(path), freeze=[]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_text_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A stock server that was started with other weights than the student's."""
    port, other = free_port(), save_text_student(tmp_path_factory.mktemp("other"), seed=1)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(other)]
    command += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", *ON_A_CPU]
    command += ["--weight-transfer-config", f'{{"backend": "{STORE}"}}']
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
    path = plugin_path(tmp_path_factory.mktemp("plugin"))
    with process(command, port, seconds=1200, PYTHONPATH=path, **environment):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def engine(url, folder):
    """An engine whose first `generate` sends the student's weights to the server."""
    opened = make_engine(RolloutConfig(engine="vllm", url=url), load(folder))
    yield opened
    opened.close()


def own_logprobs(student, rollouts, temperature: float = 1.0) -> list[np.ndarray]:
    batch = make_batch(student, [r.example for r in rollouts], [r.ids for r in rollouts])
    with torch.no_grad():
        scores = CompletionScorer(student.model).eval()(batch.inputs, batch.predicts_BS, batch.ids_N, temperature)
    return [part.numpy() for part in scores.logprobs_N.split([len(r.ids) for r in rollouts])]


def mismatch(student, rollouts, temperature: float = 1.0) -> float:
    own = own_logprobs(student, rollouts, temperature)
    return max(float(np.abs(a - r.logprobs).max()) for a, r in zip(own, rollouts, strict=True))


def perturb(student) -> None:
    """Change the weights, as a large training step would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_rollouts_are_the_students_own(engine):
    student = engine.student
    seen: Counter[int] = Counter()
    rollouts = engine.generate(
        PROMPTS,
        replace(SAMPLING, candidates=5),
        seed=1,
        first_row=10,
        on_finished=lambda new: seen.update(r.row for r in new),
    )
    assert [r.row for r in rollouts] == list(range(10, 16))
    assert seen == Counter(range(10, 16))
    assert mismatch(student, rollouts) < TOLERANCE
    for index, rollout in enumerate(rollouts):
        assert rollout.example is PROMPTS[index // 2]
        assert list(rollout.prompt_ids) == student.prompt_ids([rollout.example])[0]
        assert rollout.text == student.tokenizer.decode(rollout.ids, skip_special_tokens=True)
        assert rollout.truncated == (rollout.ids[-1] not in student.eos_ids)
        assert not set(rollout.ids[:-1]) & set(student.eos_ids)
        assert len(rollout.ids) == 24 if rollout.truncated else len(rollout.ids) <= 24
        with torch.no_grad():
            logits = student.model(torch.tensor([[*rollout.prompt_ids, *rollout.ids]])).logits[0]
        likely = logits[len(rollout.prompt_ids) - 1 : -1].topk(5)
        clear = (likely.values[:, :-1] - likely.values[:, 1:]).min(-1).values > TOLERANCE  # two that tie may swap
        assert clear.float().mean() > 0.9
        np.testing.assert_array_equal(rollout.candidates[clear], likely.indices[clear].numpy())


def test_a_row_does_not_depend_on_other_rows(engine):
    together = engine.generate(PROMPTS, SAMPLING, seed=2)
    assert together[0].ids != together[1].ids
    for row in (1, 4):
        single = replace(SAMPLING, group=1)
        (alone,) = engine.generate([PROMPTS[row // 2]], single, seed=2, first_row=row)
        assert alone.ids == together[row].ids
        np.testing.assert_allclose(alone.logprobs, together[row].logprobs, atol=TOLERANCE)
    assert [r.ids for r in engine.generate(PROMPTS, SAMPLING, seed=3)] != [r.ids for r in together]


def test_greedy_rollouts_are_transformers_own(engine):
    rollouts = engine.generate(PROMPTS, Sampling(max_tokens=16, temperature=0, logprobs=True), seed=0)
    inputs = engine.student.encode(PROMPTS)
    expected = engine.student.model.generate(**inputs, max_new_tokens=16, do_sample=False)[
        :, inputs["input_ids"].shape[1] :
    ]
    for row, rollout in zip(expected.tolist(), rollouts, strict=True):
        assert list(rollout.ids) == row[: len(rollout.ids)]
    assert mismatch(engine.student, rollouts) < TOLERANCE


@pytest.mark.parametrize("weights", ["disk", STORE])
def test_new_weights_are_used_after_sync_and_not_before(url, folder, weights, tmp_path):
    student = load(folder)
    config = RolloutConfig(engine="vllm", url=url, weights_folder=tmp_path)
    engine = make_engine(config, student)
    if weights == STORE:
        engine.transfer.close()
        engine.transfer = store_transfer(engine)
    try:
        before = engine.generate(PROMPTS, SAMPLING, seed=4)
        assert mismatch(student, before) < TOLERANCE
        perturb(student)
        stale = engine.generate(PROMPTS, SAMPLING, seed=4)
        assert [r.ids for r in stale] == [r.ids for r in before]
        assert mismatch(student, stale) > 0.1
        engine.sync(1)
        assert engine.version == 1
        fresh = engine.generate(
            PROMPTS, SAMPLING, seed=4
        )  # the same prompts: none of their keys and values may be left
        assert mismatch(student, fresh) < TOLERANCE
        assert [r.ids for r in fresh] != [r.ids for r in before]
    finally:
        engine.close()
    assert not list(tmp_path.iterdir())


def test_a_server_with_other_weights_than_the_last_ones_sent_stops_the_run(engine, url):
    engine.generate(PROMPTS[:1], SAMPLING, seed=0)
    httpx.post(f"{url}/update_weight_version", json={"new_version": "another run's"})
    with pytest.raises(
        RunError, match=r"generates with weights \"another run's\", and was sent 'vold-.*' *: it was restarted"
    ):
        engine.generate(PROMPTS[:1], SAMPLING, seed=0)
    engine.sync(1)
    assert engine.generate(PROMPTS[:1], SAMPLING, seed=0)


def test_requests_that_do_not_fit_the_server_are_refused(engine):
    with pytest.raises(RowError, match=r"rollout\.max_tokens=500 that is more than the 512 of rollout\.url http"):
        engine.generate(PROMPTS, Sampling(max_tokens=500), seed=0)
    with pytest.raises(UsageError, match=r"21 most likely ids .* gives 20: start it with --max-logprobs 21"):
        engine.generate(PROMPTS, Sampling(candidates=21), seed=0)
    with pytest.raises(UsageError, match=r"temperature is 0\.7, .* --logprobs-mode processed_logprobs"):
        engine.generate(PROMPTS, Sampling(temperature=0.7, logprobs=True), seed=0)
    (rollout,) = engine.generate(PROMPTS[:1], Sampling(temperature=0.7, max_tokens=4), seed=0)
    assert rollout.ids
    assert rollout.logprobs is None


def test_a_student_that_the_server_cannot_serve_is_refused(url, folder, tmp_path):
    with pytest.raises(UsageError, match=r"whose tokenizer is not that of the student .*from token \d+ of a probe"):
        make_engine(RolloutConfig(engine="vllm", url=url), load(save_model(tmp_path / "other")))
    with pytest.raises(UsageError, match=r"rollout\.weights is 'nccl', and the student is on no CUDA device"):
        make_engine(RolloutConfig(engine="vllm", url=url, weights="nccl"), load(folder))
    with pytest.raises(UsageError, match=r"is vLLM's CPU build, .*tie_word_embeddings"):
        make_engine(RolloutConfig(engine="vllm", url=url), load(save_text_student(tmp_path / "tied", tied=True)))


def test_training_generates_with_the_updated_weights(url, folder, tmp_path, verifier):
    with serving("teacher", "--model", str(checkpoint_path("teacher"))) as teacher:
        config = load_config(
            TrainConfig,
            Path("pocket:vold"),
            [
                *(f"out={tmp_path / 'run'}", f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}"),
                *("rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=32", "steps=2", "data.limit=64"),
                *("threads=1", f"student.path={folder}", "student.freeze=[]", "optim.lr=1e-2"),
                *("optim.warmup_steps=0", "rollout.engine=vllm", f"rollout.url={url}"),
                "objective={name: vold, rollout_cap: 2}",
            ],
        )
        saved = run_train(config)
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["mismatch/ratio"] == pytest.approx(1, abs=1e-3)
        assert row["mismatch/abs"] < TOLERANCE
        assert row["grad_norm"] > 0
        assert row["missing/teacher"] == row["missing/verifier"] == 0
    assert rows[0]["student/entropy"] != rows[1]["student/entropy"]
    assert load(saved).vocab_size == load(folder).vocab_size
