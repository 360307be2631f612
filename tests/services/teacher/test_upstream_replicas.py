"""The gateway when its servers die, come back, lie or refuse; and the whole service in front of one.

The servers are stand-ins as processes (upstream_servers.py), on real ports, killed with real signals.
"""

import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from teacher_fixtures import VOCAB, make_model, save_model, save_tokenizer, teacher_server
from upstream_fixtures import free_port, gateway, stand_in
from vold_client import Completion, InvalidArgument, TeacherClient
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError
from vold_teacher.backends.upstream.backend import UpstreamBackend, UpstreamOptions, served_fingerprint
from vold_teacher.backends.upstream.dialects import ServedModel
from vold_teacher.backends.upstream.pool import PoolLimits
from vold_teacher.backends.upstream.urls import parse_urls
from vold_teacher.types import GeneratePrompt, SamplingOptions, ScoreOptions, Sequence
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import TracesConfig, load
from vold_trainer.pocket.shipped import checkpoint_path

QUICK = PoolLimits(timeout_seconds=60, health_seconds=1, probe_seconds=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def port(folder, tmp_path_factory):
    """Of a stand-in that nobody kills."""
    port = free_port()
    other = save_model(tmp_path_factory.mktemp("other"), seed=9)
    with stand_in(folder, port, "--other", str(other)):
        yield port


@pytest.fixture(scope="module")
def reference():
    return make_model("qwen3")


def batch(seed: int, count: int = 4, **options) -> list[Sequence]:
    draw = np.random.default_rng(seed)
    return [
        Sequence(
            draw.integers(0, VOCAB, 6).astype(np.int32),
            draw.integers(0, VOCAB, 10).astype(np.int32),
            ScoreOptions(**options),
        )
        for _ in range(count)
    ]


def assert_right(reference, sequences, scores) -> None:
    for wanted, score in zip(sequences, scores, strict=True):
        assert not isinstance(score, ServiceError), score
        ids = torch.from_numpy(np.concatenate([wanted.prompt, wanted.completion]).astype(np.int64))
        with torch.inference_mode():
            rows = reference(ids[None]).logits[0].log_softmax(-1)[len(wanted.prompt) - 1 : -1]
        expected = rows.gather(-1, ids[len(wanted.prompt) :, None])[:, 0]
        np.testing.assert_allclose(score.logprobs, expected.numpy(), atol=1e-4)


def until(true) -> None:
    while not true():
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_a_replica_killed_under_load_loses_nothing_and_is_back_after_a_restart(folder, reference):
    ports = [free_port(), free_port()]
    with stand_in(folder, ports[0]) as steady:
        with stand_in(folder, ports[1]) as doomed:
            backend = gateway(folder, "vllm", *(f"{port}/vllm" for port in ports), pool=QUICK)
            first, second = backend._pool.replicas
            assert first.up
            until(lambda: second.up)
            results: list = [None] * 24
            calls = iter(range(24))
            lock = threading.Lock()

            def work() -> None:
                while True:
                    with lock:
                        call = next(calls, None)
                    if call is None:
                        return
                    results[call] = backend.score(batch(call)).scores

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            until(lambda: second.tokens > 0 and any(results))
            doomed.kill()
            for thread in threads:
                thread.join()
            for call, scores in enumerate(results):
                assert_right(reference, batch(call), scores)
            assert not second.up
            assert first.up
        with stand_in(folder, ports[1]):
            until(lambda: second.up)
            steady.kill()
            assert_right(reference, batch(100), backend.score(batch(100)).scores)
        with pytest.raises(ServiceError) as gone:
            backend.score(batch(101))
        assert gone.value.code == status_pb2.UNAVAILABLE
        assert gone.value.retry_seconds > 0
        backend.close()


def test_a_replica_of_other_weights_takes_no_requests(folder, reference, port):
    backend = gateway(folder, "vllm", f"{port}/vllm", f"{port}/vllm-other", pool=QUICK)
    replicas = backend._pool.replicas
    assert [replica.up for replica in replicas].count(True) == 1  # whichever answered first says what is served
    assert "it serves other weights" in "".join(replica.down_reason for replica in replicas)
    results = {float(score.logprobs[0]) for _ in range(4) for score in backend.score(batch(0, 1)).scores}
    assert len(results) == 1
    backend.close()


def test_weights_swapped_behind_a_running_gateway_are_found_out(folder, port):
    backend = gateway(folder, "vllm", f"{port}/vllm", pool=QUICK)
    (replica,) = backend._pool.replicas
    httpx.post(f"http://127.0.0.1:{port}/swap").raise_for_status()
    try:
        until(lambda: "other weights" in replica.down_reason)
        with pytest.raises(ServiceError, match="no upstream server answers"):
            backend.score(batch(0))
    finally:
        httpx.post(f"http://127.0.0.1:{port}/swap").raise_for_status()
    until(lambda: replica.up)
    backend.close()


@pytest.mark.parametrize("speaks", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("fault", "message"), [("short", "positions for|for \\d+ and one more"),
                           ("other-ids", "not the token|other tokens"), ("positive", "no log-probability")]
)  # fmt: skip
def test_a_misaligned_reply_is_an_error_and_never_a_number(folder, port, speaks, fault, message):
    with pytest.raises(OSError, match=message):
        gateway(folder, speaks, f"{port}/{speaks}-{fault}", pool=QUICK)


def test_null_candidates_are_asked_for_again_without_the_prefix_cache(folder, reference, port):
    backend = gateway(folder, "vllm", f"{port}/vllm-rows-null-cache")
    assert backend.info.capabilities.candidates
    assert backend.info.capabilities.max_candidates == backend.info.capabilities.max_top_k - 1 == 39
    assert_right(reference, batch(1), backend.score(batch(1)).scores)
    backend.close()


def test_processed_logprobs_are_replaced_by_scores(folder, reference, port):
    """A server that divides what it reports by the temperature must not change what the teacher reports."""
    backend = gateway(folder, "vllm", f"{port}/vllm-processed")
    decoder = backend.decoder()
    prompt = np.arange(5, 11, dtype=np.int32)
    options = SamplingOptions(max_tokens=6, temperature=1.8, seed=4)
    decoder.add(0, [GeneratePrompt(prompt, 0, 6)], options, 0)
    chunks: list = []
    while decoder.busy:
        chunks += decoder.advance(0.05)
    ((_, chunk),) = chunks
    assert_right(reference, [Sequence(prompt, chunk.ids, ScoreOptions())], [chunk])
    backend.close()


def test_a_refused_item_costs_no_other(folder, reference, port):
    backend = gateway(folder, "vllm", f"{port}/vllm-refuse-long")
    long = Sequence(np.full(150, 7, np.int32), np.full(3, 8, np.int32), ScoreOptions())
    scores = backend.score([*batch(2), long]).scores
    assert_right(reference, batch(2), scores[:-1])
    assert isinstance(scores[-1], ServiceError)
    assert scores[-1].code == status_pb2.INVALID_ARGUMENT
    assert "maximum context length" in scores[-1].message
    backend.close()


def test_a_busy_server_is_asked_again(folder, reference, port):
    backend = gateway(folder, "vllm", f"{port}/vllm-busy")
    assert_right(reference, batch(6, 8), backend.score(batch(6, 8)).scores)
    assert backend._pool.replicas[0].up
    backend.close()


def test_a_wrong_key_is_named_and_a_right_one_works(folder, reference, port):
    with pytest.raises(OSError, match="refuses this server's key"):
        gateway(folder, "vllm", f"{port}/vllm-key", key="guess", pool=QUICK)
    backend = gateway(folder, "vllm", f"{port}/vllm-key", key="secret")
    assert_right(reference, batch(3), backend.score(batch(3)).scores)
    backend.close()


def test_no_server_at_all(folder):
    with pytest.raises(OSError, match="no upstream server can be used: http"):
        gateway(folder, "vllm", free_port(), pool=QUICK)


def test_sglang_refuses_more_different_candidates_than_it_can_give(folder, reference, port):
    backend = gateway(folder, "sglang", f"{port}/sglang")
    backend._vocab_size = 5000  # the limit is above what a tiny vocabulary has
    (bare,) = batch(4, 1)
    many = np.arange(1100, dtype=np.int32)
    counts = np.full(len(bare.completion), 110, np.int32)
    wanted = Sequence(bare.prompt, bare.completion, bare.options, many, counts)
    scores = backend.score([wanted, bare]).scores
    assert "1100 different ids" in scores[0].message
    assert_right(reference, [bare], scores[1:])
    backend.close()


def service(url: str, folder: Path):
    """`vold-teacher serve` in front of that server, which sends no tokenizer."""
    save_tokenizer(folder)
    options = ["--backend", "upstream", "--tokenizer", str(folder), "--vocab-size", str(VOCAB), "--name", "big"]
    return teacher_server(url, *options)


def test_the_service_in_front_of_an_upstream_server(port, reference, tmp_path):
    """`vold-teacher serve --backend upstream` and the real client: numbers, refusals, what GetInfo says."""
    with (
        service(f"vllm+http://127.0.0.1:{port}/vllm", tmp_path) as server,
        TeacherClient(f"grpc://{server.grpc}") as teacher,
    ):
        info = teacher.info()
        assert info.backend == "upstream-vllm"
        assert info.identity.model == "big"
        assert "candidates" not in info.capabilities
        assert "generate" in info.capabilities
        (wanted,) = batch(5, 1)
        sent = Completion(prompt=0, ids=wanted.completion.tolist())
        result = teacher.score([wanted.prompt.tolist()], [sent], top_k=2)
        assert_right(reference, [wanted], result.scores)
        with pytest.raises(InvalidArgument, match="scores at 1 alone"):
            teacher.score([wanted.prompt.tolist()], [sent], temperature=0.7)
        with pytest.raises(InvalidArgument, match="gives none"):
            teacher.score([wanted.prompt.tolist()], [sent], entropy=True)


def test_a_seed_without_effect_is_refused_and_traces_say_so(port, tmp_path, caplog):
    with service(f"sglang+http://127.0.0.1:{port}/sglang-unseeded", tmp_path) as server:
        with TeacherClient(f"grpc://{server.grpc}") as teacher:
            assert "seed" not in teacher.info().capabilities
            refusal = r"options.seed is 7: the upstream-sglang backend samples without"
            with pytest.raises(InvalidArgument, match=refusal):
                list(teacher.generate([[3, 4, 5]], max_tokens=4, seed=7))
            assert len(list(teacher.generate([[3, 4, 5]], max_tokens=4, seed=7, temperature=0))) == 1
            (failed,) = teacher.generate([[3, 4, 5]], max_tokens=4, seeds=[7])
            assert "prompts[0].seed is 7: the upstream-sglang backend samples without" in str(failed.error)
            assert next(teacher.generate([[3, 4, 5]], max_tokens=4, seeds=[7], temperature=0)).error is None
        out = tmp_path / "traces.jsonl"
        settings = ["verifier=null", "keep=all", "data.limit=4", "samples=4", "max_tokens=60", "temperature=2.0"]
        run_traces(
            load(TracesConfig, Path("pocket:traces"), [f"out={out}", f"teacher.url=grpc://{server.grpc}", *settings])
        )
    assert out.read_text()
    assert "big ignores seeds" in caplog.text


def test_addresses():
    assert parse_urls("vllm+http://a:1,b:2") == ("vllm", ["http://a:1", "http://b:2"])
    assert parse_urls("sglang+https://a:1/, sglang+https://b:2") == ("sglang", ["https://a:1", "https://b:2"])
    for text, message in (
        ("", "is empty"),
        ("http://a:1", "no address of an upstream"),
        ("tgi+http://a:1", "no address of an upstream"),
        ("vllm+http://a:1,sglang+http://b:1", "mixes vllm and sglang"),
        ("vllm+http://a:1,b:1/v1/", "'b:1/v1/' ends in /v1, which the teacher adds"),
        ("vllm+http://a:1,a:1", "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_urls(text)


def test_the_fingerprint_is_of_what_the_server_says():
    said = ServedModel("m", "/models/m", 100)
    assert served_fingerprint("vllm", said) == served_fingerprint("vllm", ServedModel("m", "/models/m", 100))
    others = [
        ServedModel("n", "/models/m", 100),
        ServedModel("m", "/models/m2", 100),
        ServedModel("m", "/models/m", 100, "step-2"),
    ]
    assert len({served_fingerprint("vllm", served) for served in [said, *others]}) == 4
    assert served_fingerprint("vllm", ServedModel("m", "", 100, weights_fingerprint="f" * 32)) == "f" * 32


def test_a_vocabulary_of_unknown_size_is_asked_for(tmp_path):
    with pytest.raises(OSError, match="--vocab-size"):
        UpstreamBackend(UpstreamOptions("vllm+http://127.0.0.1:1", tokenizer=tmp_path))


def test_a_teacher_of_ours_stands_behind_the_gateway_as_a_stock_server_does(pocket_teacher):
    """It lists what the gateway asks of a server, and is taken by its word for who it is."""
    tokenizer = checkpoint_path("teacher")
    backend = UpstreamBackend(UpstreamOptions(f"vllm+{pocket_teacher.http}", tokenizer, pool=QUICK))
    try:
        with TeacherClient(pocket_teacher.grpc) as client:
            info = client.info()
            (expected,) = client.score([[1, 5, 6]], [Completion(0, [7, 8, 9])]).scores
        assert backend.info.weights_fingerprint == info.identity.weights_fingerprint
        assert backend.info.max_sequence == info.max_sequence - 1
        ids = np.array([1, 5, 6], np.int32), np.array([7, 8, 9], np.int32)
        (found,) = backend.score([Sequence(*ids, ScoreOptions())]).scores
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
    finally:
        backend.close()


@pytest.mark.parametrize("dialect", ["vllm", "vllm-rows", "sglang"])
def test_no_prefix_of_a_tenant_is_reused_for_another(folder, port, dialect):
    """Sequences of 15 tokens are scored, prompts of 5 tokens are continued."""
    backend = gateway(folder, dialect.removesuffix("-rows"), f"{port}/{dialect}")
    owners = ["red", "blue", "red", "", "open"]
    try:
        ids = np.arange(15, dtype=np.int32)
        backend.score([Sequence(ids[:6], ids[6:], ScoreOptions(), owner=owner) for owner in owners])
        decoder = backend.decoder()
        prompts = [GeneratePrompt(np.arange(5, dtype=np.int32), n, 1, owner=who) for n, who in enumerate(owners)]
        decoder.add(0, prompts, SamplingOptions(1), 0)
        left = len(owners)
        while left:
            left -= sum(chunk.finish_reason is not None for _, chunk in decoder.advance(0.1))
        decoder.close()
    finally:
        backend.close()
    noted = httpx.get(f"http://127.0.0.1:{port}/{dialect}/salts").json()
    for length in (15, 5):
        salts = [salt for size, salt in noted if size == length]
        assert sorted(map(salts.count, set(salts))) == [1, 2, 2], salts  # blue; red; nobody's, and that of no keys
        assert salts.count(None) == 2
        assert all(len(salt) == 43 for salt in salts if salt)
