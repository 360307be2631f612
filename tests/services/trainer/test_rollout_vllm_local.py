"""`rollout.url: local:` with a real vLLM, built for the CPU: `make test-vllm`."""

import importlib.util
from dataclasses import replace

import psutil
import pytest
import torch
from test_rollout_vllm import ON_A_CPU, PROMPTS, SAMPLING, TOLERANCE, load, mismatch
from transformers import AutoTokenizer
from vllm_students import save_text_student
from vold_trainer.config import RolloutConfig, StudentConfig, TokenConfig
from vold_trainer.errors import RunError, UsageError
from vold_trainer.rollout import vllm_server
from vold_trainer.rollout.engines import make_engine
from vold_trainer.student.models import load_student

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here: make test-vllm"),
    pytest.mark.timeout(1800),
]


def servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "vllm.entrypoints.openai.api_server" in child.cmdline()]


def test_a_server_of_its_own_at_another_temperature_and_its_end(monkeypatch, tmp_path):
    """A local server reports log-probabilities at the temperature; after it is killed, closing leaves no process."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setattr(vllm_server, "RETRY_SECONDS", 2.0)
    student = load(save_text_student(tmp_path))
    arguments = [*ON_A_CPU, "--logprobs-mode", "processed_logprobs"]
    engine = make_engine(RolloutConfig(engine="vllm", vllm_args=arguments), student)
    try:
        rollouts = engine.generate(PROMPTS, replace(SAMPLING, temperature=0.7), seed=5)
        assert mismatch(student, rollouts, 0.7) < TOLERANCE
        assert mismatch(student, rollouts) > 0.01
        with pytest.raises(UsageError, match=r"rollout\.top_p 0\.9.*does not report the log-probabilities"):
            engine.generate(PROMPTS, replace(SAMPLING, top_p=0.9), seed=5)
        finished: list[int] = []
        (server,) = servers()
        workers = server.children(recursive=True)
        server.kill()
        with pytest.raises(RunError, match=r"rollout\.url local:.*cannot be reached.*still running there"):
            engine.generate(PROMPTS, SAMPLING, seed=6, on_finished=lambda new: finished.extend(r.row for r in new))
        assert not finished
    finally:
        engine.close()
    assert not servers()
    assert not [
        worker for worker in psutil.wait_procs(workers, timeout=5)[1] if worker.status() != psutil.STATUS_ZOMBIE
    ]


def test_tokens_that_the_student_has_got_are_drawn_and_learned(monkeypatch, tmp_path):
    """The server starts with the new rows, draws the new token, and gets the rows again once they have changed."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    path = save_text_student(tmp_path / "student")
    mark = TokenConfig(id=len(AutoTokenizer.from_pretrained(path)), content="<mark>")
    student = load_student(StudentConfig(path=str(path), add_tokens=[mark], freeze=["embeddings"]))
    learned = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    engine = make_engine(RolloutConfig(engine="vllm", vllm_args=ON_A_CPU), student)
    try:
        before = engine.generate(PROMPTS, replace(SAMPLING, group=5), seed=7)
        assert any(mark.id in rollout.ids for rollout in before)
        assert mismatch(student, before) < TOLERANCE
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in learned:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        engine.sync(1)
        fresh = engine.generate(PROMPTS, replace(SAMPLING, group=5), seed=7)
        assert any(mark.id in rollout.ids for rollout in fresh)
        assert mismatch(student, before) > 0.01
        assert mismatch(student, fresh) < TOLERANCE
    finally:
        engine.close()


def test_a_server_that_does_not_start_is_reported_with_its_log(tmp_path):
    with pytest.raises(UsageError, match=r"(?s)vLLM did not start:.*no-such-option"):
        make_engine(RolloutConfig(engine="vllm", vllm_args=["--no-such-option"]), load(save_text_student(tmp_path)))
