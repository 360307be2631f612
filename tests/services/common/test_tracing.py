"""One trace from a caller, or from a trainer's step, to the teacher's batch, over the real wire to a real collector."""

import asyncio
from pathlib import Path

import pytest
from servers import serving
from teacher_fixtures import save_model, teacher_server
from vold_client import AsyncTeacherClient, Completion, InvalidArgument, Item, ScoreRequest, VerifierClient
from vold_trainer.config import TrainConfig, load
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.training.train import run_train

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
from opentelemetry.sdk.trace import TracerProvider
from trace_collector import collecting


@pytest.fixture
def collector(monkeypatch):
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield collector


def test_a_callers_span_is_linked_to_the_batch_on_both_faces(tmp_path, collector):
    tracer = TracerProvider().get_tracer("caller")
    ids = {}

    async def call(urls: dict[str, str]) -> None:
        for face, url in urls.items():
            async with AsyncTeacherClient(url, run_id="run-7") as client:
                with tracer.start_as_current_span(face) as span:
                    ids[face] = span.get_span_context()
                    await client.score([[5, 6]], [Completion(0, [7, 8, 9])], request_id=f"request-{face}")
                with tracer.start_as_current_span(f"{face} stream") as span:
                    ids[f"{face} stream"] = span.get_span_context()
                    requests = [ScoreRequest([[5, index]], [Completion(0, [7, 8])]) for index in range(3)]
                    assert len([reply async for reply in client.score_stream(requests)]) == 3
                with tracer.start_as_current_span(f"{face} wrong"), pytest.raises(InvalidArgument):
                    await client.score([[5, 6]], [Completion(0, [7, 8])], top_k=10**6)

    # Without a cache, so that every request has a batch.
    with teacher_server(save_model(tmp_path / "tiny"), "--cache-bytes", "0") as server:
        asyncio.run(call({"grpc": f"grpc://{server.grpc}", "http": server.http}))

    batches = collector.named("score batch")
    linked = {span_id: batch for batch in batches for _, span_id in batch.links}
    methods = {"grpc": "Score", "grpc stream": "ScoreStream/request", "http": "POST /v1/score"}
    for face, method in (*methods.items(), ("http stream", "POST /v1/score")):
        trace_id = ids[face].trace_id.to_bytes(16, "big")
        spans = [span for span in collector.named(method) if span.trace_id == trace_id]
        assert len(spans) == (3 if "stream" in face else 1)
        for span in spans:
            assert span.service == "vold-teacher"
            assert span.parent == ids[face].span_id.to_bytes(8, "big")
            assert span.attributes["vold.run_id"] == "run-7"
            assert span.attributes["vold.tokens"] == (2 if "stream" in face else 3)
            batch = linked[span.span_id]
            assert (trace_id, span.span_id) in batch.links
            assert (batch.trace_id, batch.span_id) in span.links, "the request's span links to the batch"
    assert sum(batch.attributes["vold.sequences"] for batch in batches) == 8
    assert sum(batch.attributes["vold.requests"] for batch in batches) == len(linked) == 8
    assert sum(batch.attributes["vold.tokens"] for batch in batches) == 2 * (2 + 3 - 1) + 6 * (2 + 2 - 1)
    failed = [span for span in collector.spans if span.failed]
    assert [span.attributes["vold.reason"] for span in failed] == ["invalid", "invalid"]
    assert {span.attributes["vold.request_id"] for span in collector.named("Score")} >= {"request-grpc"}


def test_a_step_of_the_trainer_is_one_trace_through_both_services(tmp_path, collector):
    model = str(checkpoint_path("teacher"))
    with serving("teacher", "--model", model) as teacher, serving("verifier", "--workers", "1") as verifier:
        overrides = [
            f"out={tmp_path / 'traced'}",
            "student.path=pocket:student",
            f"teacher.url={teacher.grpc}",
            f"verifier.url={verifier.http}",
            *(
                "rollout.prompts=2",
                "rollout.group=2",
                "rollout.max_tokens=16",
                "steps=2",
                "data.limit=16",
                "threads=1",
                "diagnostics.every=0",
            ),
        ]
        run_train(load(TrainConfig, Path("pocket:vold"), overrides))
        assert (teacher.stop(), verifier.stop()) == (0, 0)  # the last spans are exported at shutdown

    steps = collector.named("step", "vold-trainer")
    assert [step.attributes["vold.step"] for step in steps] == [1, 2]
    assert len({step.trace_id for step in steps}) == 2
    batches = {span_id: batch for batch in collector.named("score batch") for _, span_id in batch.links}
    for step in steps:
        own = [span for span in collector.spans if span.trace_id == step.trace_id]
        children = {span.name: span for span in own if span.parent == step.span_id}
        assert set(children) == {"generate", "score", "verify", "update"}
        score = next(span for span in own if span.service == "vold-teacher")
        assert score.parent == children["score"].span_id
        assert score.span_id in batches
        verify = next(span for span in own if span.service == "vold-verifier")
        assert (verify.name, verify.parent) == ("POST /v1/verify", children["verify"].span_id)
        assert verify.attributes["vold.items"] == 4


@pytest.mark.slow
def test_an_unreachable_collector_does_not_fail_requests(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serving("verifier", "--workers", "1") as server:
        with VerifierClient(server.grpc) as client:
            (verdict,) = client.verify([Item("exact", "a", "a")])
        assert verdict.correct
        assert server.stop() == 0
