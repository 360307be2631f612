"""The parts of the backends that need no engine: settings, memory, checks of replies, the decoder on a loop."""

import asyncio
import time

import numpy as np
import pytest
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid
from vold_teacher.backends.folder import eos_ids, text_config
from vold_teacher.backends.loop import LoopDecoder, LoopThread, completion_seed
from vold_teacher.backends.replies import candidate_rows, checked_score, split_candidate_rows
from vold_teacher.backends.vllm import VllmOptions, batched_tokens, engine_arguments
from vold_teacher.settings import TeacherSettings, check_backend
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, ScoreOptions, Sequence

IDS = np.array([3, 1, 4, 1, 5], np.int32)
HALF = float(np.log(0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vllm+http://a:1"}, "an address needs --backend upstream"),
        ({"model": "http://a:1", "backend": "upstream"}, "is no address of an upstream server"),
        ({"model": "vllm+http://a:1", "backend": "upstream"}, "needs --tokenizer PATH"),
        ({"model": "vllm+http://a:1", "backend": "upstream", "tokenizer": "/none"}, "--tokenizer /none: there is no"),
        ({"model": "/none", "backend": "vllm"}, "--model /none: there is no such folder"),
        ({"model": "/none", "compile": True, "backend": "vllm"}, "--compile is an option of --backend torch, not of v"),
        ({"model": "/none", "gpu_memory_utilization": 0.5}, "--gpu-memory-utilization is an option of --backend vllm"),
        ({"model": "/none", "upstream_timeout": 5}, "--upstream-timeout is an option of --backend upstream"),
    ],
)
def test_settings_that_do_not_fit_the_backend_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check_backend(TeacherSettings(**settings))


def test_the_engine_is_memory_safe_where_nothing_is_said(tmp_path):
    def asked(device: str, vocab_size: int, **options):
        return engine_arguments(
            tmp_path, VllmOptions(**options), dtype="auto", device=device, vocab_size=vocab_size, max_sequence=100
        )

    assert asked("cpu", 152_000)["max_num_batched_tokens"] == 512
    assert asked("cuda", 152_000)["max_num_batched_tokens"] == 2048
    assert batched_tokens(100, "cpu") == 8192
    assert batched_tokens(10**9, "cpu") == 256
    on_cpu, on_gpu = asked("cpu", 1000), asked("cuda", 1000)
    assert (on_cpu["gpu_memory_utilization"], on_gpu["gpu_memory_utilization"]) == (0.25, 0.8)
    assert (on_cpu["enforce_eager"], on_gpu["enforce_eager"]) == (True, False)
    assert (on_cpu["dtype"], on_gpu["dtype"]) == ("float32", "auto")
    assert on_cpu["max_model_len"] == 101
    assert on_cpu["max_logprobs"] == 1000
    assert asked("cpu", 152_000, max_num_batched_tokens=64)["max_num_batched_tokens"] == 64


def test_a_folder_names_every_id_that_ends_a_generation(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 1, "text_config": {"vocab_size": 9, "eos_token_id": 4}}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 4]}')
    assert text_config(tmp_path)["vocab_size"] == 9
    assert eos_ids(tmp_path, 2) == (2, 4, 7)
    assert eos_ids(tmp_path / "none") == ()


def scored(**reply):
    wanted = Sequence(IDS[:3], IDS[3:], ScoreOptions(top_k=2))
    good = {
        "sampled_ids": IDS[3:],
        "logprobs": np.array([HALF, -3.0]),
        "top_ids": np.array([[1, 2], [3, 4]]),
        "top_logprobs": np.array([[HALF, -2.0], [-1.0, -1.5]]),
    }
    return checked_score(wanted, **{**good, **reply})


def test_a_good_reply_passes():
    score = scored(logprobs=np.array([HALF, -np.inf]))
    assert score.logprobs.dtype == np.float32
    assert score.top_ids.dtype == np.int32


@pytest.mark.parametrize(
    "reply",
    [
        {"sampled_ids": np.array([1, 6])},
        {"sampled_ids": np.array([1])},
        {"logprobs": np.array([HALF])},
        {"logprobs": np.array([HALF, np.nan])},
        {"logprobs": np.array([HALF, 0.5])},
        {"logprobs": np.array([-0.1, -3.0])},  # another number than its place in the top-k has
        {"top_logprobs": None},
        {"top_logprobs": np.array([[HALF, -2.0]])},
        {"top_logprobs": np.array([[HALF, -0.1], [-1.0, -1.5]])},  # not most likely first
        {"top_logprobs": np.array([[HALF, HALF], [-0.1, -0.1]])},  # adds up to more than 1
        {"top_ids": np.array([[1, 2], [3, -1]])},
    ],
    ids=str,
)
def test_a_bad_reply_is_an_error(reply):
    with pytest.raises(ServiceError) as error:
        scored(**reply)
    assert error.value.code == status_pb2.INTERNAL
    assert "the score is withheld" in error.value.message


def test_candidates_go_out_and_come_back_in_place():
    candidates, counts = np.array([7, 8, 9], np.int32), np.array([2, 0, 1], np.int32)
    wanted = Sequence(IDS[:2], IDS[2:], ScoreOptions(), candidates, counts)
    assert candidate_rows(wanted) == [[4, 7, 8], [1], [5, 9]]
    reply = -np.array([[1, 2, 3], [4, np.inf, np.inf], [5, 6, np.inf]], np.float32)
    logprobs, of_candidates = split_candidate_rows(wanted, reply)
    np.testing.assert_array_equal(logprobs, [-1, -4, -5])
    np.testing.assert_array_equal(of_candidates, [-2, -3, -6])
    with pytest.raises(ServiceError, match=r"shape \[2, 3\] for \[3, 3\]"):
        split_candidate_rows(wanted, reply[:2])


@pytest.fixture
def thread():
    thread = LoopThread("test")
    yield thread
    thread.close()
    thread.close()


def collect(decoder) -> list:
    found = []
    while decoder.busy:
        found += decoder.advance(0.05)
    return found


def test_a_completion_that_fails_ends_its_request_alone(thread):
    async def complete(prompt, index, options):
        if prompt.ids[0] == 1 and index == 1:
            raise invalid("prompts", "no")
        if prompt.ids[0] == 2:
            raise RuntimeError("a fault of ours")
        yield GenerateChunk(prompt.index, index, prompt.ids, np.zeros(1, np.float32), "stop")

    decoder = LoopDecoder(thread, complete, max_rows=2)
    for request in range(3):
        prompt = GeneratePrompt(np.array([request], np.int32), 0, 5)
        decoder.add(request, [prompt], SamplingOptions(5, n=2), 0)
    found = collect(decoder)
    ends = {request: chunk for request, chunk in found if isinstance(chunk, ServiceError)}
    assert {request: error.code for request, error in ends.items()} == {
        1: status_pb2.INVALID_ARGUMENT,
        2: status_pb2.INTERNAL,
    }
    assert sorted(chunk.index for request, chunk in found if request == 0) == [0, 1]


def test_higher_priorities_begin_first_and_no_more_than_rows_at_once(thread):
    begun, running, most = [], 0, 0
    gate = asyncio.Event()

    async def complete(prompt, index, options):
        nonlocal running, most
        begun.append(prompt.index)
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        yield GenerateChunk(prompt.index, index, prompt.ids, np.zeros(1, np.float32), "stop")

    decoder = LoopDecoder(thread, complete, max_rows=2)
    decoder.add(0, [GeneratePrompt(IDS[:1], 0, 5)], SamplingOptions(5, n=4), 0)
    while running < 2:
        time.sleep(0.01)
    decoder.add(1, [GeneratePrompt(IDS[:1], 9, 5)], SamplingOptions(5, n=2), 9)
    decoder.add(2, [GeneratePrompt(IDS[:1], 20, 5)], SamplingOptions(5), 20)
    decoder.cancel(2)
    thread.loop.call_soon_threadsafe(gate.set)
    assert len(collect(decoder)) == 6
    assert most == 2
    assert begun[2:4] == [9, 9]
    assert 20 not in begun


def test_seeds_differ_by_completion_and_by_nothing_else():
    prompt, other = GeneratePrompt(IDS, 0, 5), GeneratePrompt(IDS, 1, 5)
    options = SamplingOptions(5, seed=3)
    seeds = {completion_seed(of, index, options) for of in (prompt, other) for index in range(3)}
    assert len(seeds) == 6
    assert completion_seed(prompt, 1, options) == completion_seed(
        prompt, 1, SamplingOptions(9, n=7, temperature=0.3, seed=3)
    )
    assert all(0 <= seed < 2**63 for seed in seeds)
