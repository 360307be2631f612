"""What networks, machines and strangers do to a teacher: it dies under load, its callers stop reading or speaking,
come by the hundred, or send what is no message. Nobody else notices, and nothing is lost or counted twice.
"""

import asyncio
import re
import signal
import socket
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import torch
from teacher_fixtures import VOCAB, Server, save_model, teacher_server
from vold_client import AsyncTeacherClient, Completion, InvalidArgument, TeacherClient
from vold_proto.arrays import pack_ids, unpack_floats
from vold_proto.v1 import status_pb2, teacher_pb2_grpc
from vold_proto.v1 import teacher_pb2 as pb

PROTOBUF = {"content-type": "application/x-protobuf"}
MIB = 1 << 20
BODY_LIMIT = 4 * MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def server(folder):
    options = ("--max-batch-tokens", "2000", "--max-body-bytes", str(BODY_LIMIT), "--idle-seconds", "2")
    with teacher_server(folder, *options) as server:
        yield server


def stub(server: Server) -> teacher_pb2_grpc.TeacherServiceStub:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return teacher_pb2_grpc.TeacherServiceStub(grpc.insecure_channel(server.grpc, options=options))


def metric(server: Server, pattern: str) -> float:
    """The sum over the samples whose name and labels match."""
    text = httpx.get(f"{server.http}/metrics", timeout=60).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(pattern, line))


def wait_until(condition) -> None:
    while not condition():
        time.sleep(0.05)


def assert_serves(server: Server) -> None:
    """Others are answered on both faces."""
    for url in (f"grpc://{server.grpc}", server.http):
        with TeacherClient(url) as client:
            (score,) = client.score([[5, 6]], [Completion(0, [7, 8])]).scores
            assert score.error is None
            assert len(score.logprobs) == 2


def accepts(url: str) -> bool:
    try:
        httpx.get(f"{url}/readyz", timeout=60)
    except httpx.TransportError:
        return False
    return True


def sequences(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Prompts and completions, all different."""
    rng = np.random.default_rng(seed)
    return [
        ([index % VOCAB, index // VOCAB], rng.integers(0, VOCAB, int(rng.integers(2, 40))).tolist())
        for index in range(count)
    ]


def reference(server: Server, pairs: list[tuple[list[int], list[int]]]) -> list[np.ndarray]:
    """Their scores by one quiet request."""
    request = pb.ScoreRequest(
        prompts=[pb.Prompt(ids=pack_ids(prompt)) for prompt, _ in pairs],
        completions=[pb.Completion(prompt=i, ids=pack_ids(ids)) for i, (_, ids) in enumerate(pairs)],
    )
    return [unpack_floats(score.logprobs) for score in stub(server).Score(request).scores]


def test_a_server_killed_under_load_and_started_again_loses_and_repeats_nothing(folder):
    """Half of the callers on each face; every answer is right, and the second server counts each request once."""
    pairs = sequences(240)
    answers: dict[int, np.ndarray] = {}
    some = asyncio.Event()

    async def run(faces: dict[str, str], kill) -> None:
        slots = asyncio.Semaphore(24)
        clients = {face: AsyncTeacherClient(url, timeout=240, retries=1000) for face, url in faces.items()}

        async def one(index: int) -> None:
            prompt, completion = pairs[index]
            async with slots:
                client = clients["grpc" if index % 2 else "http"]
                (score,) = (await client.score([prompt], [Completion(0, completion)], request_id=f"r{index}")).scores
            assert score.error is None
            assert index not in answers
            answers[index] = score.logprobs
            if len(answers) >= 20:
                some.set()

        work = asyncio.gather(*(one(index) for index in range(len(pairs))))
        await some.wait()
        await asyncio.to_thread(kill)
        await work
        for client in clients.values():
            await client.aclose()

    with teacher_server(folder, "--max-batch-tokens", "200") as first:
        expected = reference(first, pairs)
        restarted: list[Server] = []
        before: list[int] = []
        again = teacher_server(
            folder, "--max-batch-tokens", "200", http=first.http.removeprefix("http://"), grpc=first.grpc
        )

        def kill() -> None:
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            before.append(len(answers))
            restarted.append(again.__enter__())

        try:
            asyncio.run(run({"grpc": f"grpc://{first.grpc}", "http": first.http}, kill))
            (second,) = restarted
            assert before[0] < len(pairs), "it died too late to matter"
            assert len(answers) == len(pairs)
            for index, logprobs in answers.items():
                np.testing.assert_allclose(logprobs, expected[index], atol=1e-4)
            answered = metric(second, r'vold_teacher_requests_total\{code="OK".*method="Score"')
            # An answer may have left the first server and still have been on its way when it died: at most one a slot.
            assert len(pairs) - before[0] - 24 <= answered <= len(pairs) - before[0]
            assert metric(second, r"vold_tenant_requests_total\{code=\"OK\"") == answered
            assert metric(second, r"vold_teacher_tenant_tokens_total") == metric(
                second, r"vold_teacher_scored_tokens_total"
            )
            sizes = sorted(len(completion) for _, completion in pairs)
            scored = metric(second, r"vold_teacher_scored_tokens_total")
            assert sum(sizes[: int(answered)]) <= scored <= sum(sizes[-int(answered) :])
        finally:
            if restarted:
                again.__exit__(None, None, None)


def test_two_hundred_clients_at_once_all_get_their_own_answers(server):
    pairs = sequences(400, seed=1)
    expected = reference(server, pairs)

    async def one(index: int) -> None:
        url = f"grpc://{server.grpc}" if index % 2 else server.http
        async with AsyncTeacherClient(url, timeout=240, run_id=f"run-{index}") as client:
            for number in (index, index + 200):
                prompt, completion = pairs[number]
                (score,) = (await client.score([prompt], [Completion(0, completion)])).scores
                assert score.error is None
                np.testing.assert_allclose(score.logprobs, expected[number], atol=1e-4)

    async def everybody() -> None:
        await asyncio.gather(*(one(index) for index in range(200)))

    asyncio.run(everybody())


def large(request_id: str = "") -> pb.ScoreRequest:
    """A small request whose reply has over 4 MiB: far more than a connection that is not read can hold."""
    request = pb.ScoreRequest(request_id=request_id, prompts=[pb.Prompt(ids=pack_ids([5]))])
    for index in range(160):
        request.completions.add(ids=pack_ids([index % VOCAB] * 60))
    request.options.top_k = VOCAB
    return request


def test_a_slow_http_reader_holds_nobody_up_and_gets_it_all(server):
    body = large().SerializeToString()
    whole = httpx.post(f"{server.http}/v1/score", content=body, headers=PROTOBUF, timeout=120).content
    assert len(whole) > 4 * MIB
    url = httpx.URL(server.http)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(120)
        slow.connect((url.host, url.port))
        head = "POST /v1/score HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/x-protobuf\r\n"
        slow.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert slow.recv(12) == b"HTTP/1.1 200"
        for _ in range(3):
            assert_serves(server)
        received = bytearray()
        while data := slow.recv(1 << 16):
            received += data
    reply = pb.ScoreReply.FromString(bytes(received).partition(b"\r\n\r\n")[2])
    first = pb.ScoreReply.FromString(whole)
    assert all(score.cached for score in reply.scores)
    for score in (*reply.scores, *first.scores):
        score.cached = False
    assert reply.scores == first.scores


def test_a_slow_stream_reader_holds_nobody_up_and_gets_it_all(server):
    asked, under_way = 80, 64  # of one stream at once: the server reads no further before replies are taken
    sent: list[str] = []

    def requests():
        for index in range(asked):
            sent.append(f"r{index}")
            yield (
                large(f"r{index}")
                if index % 8 == 0
                else pb.ScoreRequest(
                    request_id=f"r{index}",
                    prompts=[pb.Prompt(ids=pack_ids([5]))],
                    completions=[pb.Completion(ids=pack_ids([7]))],
                )
            )

    replies = stub(server).ScoreStream(requests())
    wait_until(lambda: metric(server, r'vold_teacher_requests_total\{.*method="ScoreStream"') >= under_way / 2)
    for _ in range(3):
        assert_serves(server)
    got = {reply.request_id: len(reply.scores) for reply in replies}
    assert got == {f"r{index}": 160 if index % 8 == 0 else 1 for index in range(asked)}


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-le",
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1000\r\n\r\n"
        + b"x" * 10,
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
    ids=["nothing", "half the headers", "half the body", "an endless body"],
)
def test_an_http_connection_that_falls_silent_is_closed(server, sent):
    """Also where bytes of its headers go on trickling in: see the next test."""
    url = httpx.URL(server.http)
    with socket.create_connection((url.host, url.port), timeout=120) as silent:
        silent.sendall(sent)
        assert_serves(server)
        assert silent.recv(1000) == b"", "closed by the server"
    wait_until(lambda: metric(server, "vold_teacher_queued_requests") == 0)


def test_headers_that_trickle_or_never_end_are_cut_off(server):
    url = httpx.URL(server.http)
    with socket.create_connection((url.host, url.port), timeout=120) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        closed = threading.Event()

        def read() -> None:
            assert slow.recv(1000) == b""
            closed.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while not closed.wait(0.2):
            try:
                slow.sendall(b"a: b\r\n")
            except OSError:
                break
        reader.join(120)
    with socket.create_connection((url.host, url.port), timeout=120) as endless:
        endless.sendall(b"GET /healthz HTTP/1.1\r\n")
        try:
            for _ in range(4000):
                endless.sendall(b"x-filler: " + b"y" * 1000 + b"\r\n")
        except OSError:
            pass  # cut off while sending
        else:
            pytest.fail("4 MB of headers were taken")
    assert_serves(server)


def test_a_connection_that_is_used_again_outlives_the_limit_on_silence(server):
    """The limit is on silence in mid-request: neither a long request nor keep-alive is cut by it."""
    with httpx.Client(timeout=120) as client:
        for _ in range(3):
            reply = client.post(f"{server.http}/v1/score", content=large().SerializeToString(), headers=PROTOBUF)
            assert reply.status_code == 200
            assert len(pb.ScoreReply.FromString(reply.content).scores) == 160


def test_a_grpc_connection_that_never_speaks_is_closed(server):
    host, port = server.grpc.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=120) as silent:
        while data := silent.recv(1000):  # the server's own greeting, and then the end
            assert len(data) < 1000
    assert_serves(server)


@pytest.mark.parametrize("method", ["GetInfo", "Score", "Generate"])
def test_what_is_no_message_is_invalid_on_both_faces(server, method):
    channel = grpc.insecure_channel(server.grpc)
    call = channel.unary_stream if method == "Generate" else channel.unary_unary
    ask = call(f"/vold.v1.TeacherService/{method}")
    with pytest.raises(grpc.RpcError) as raised:
        list(ask(b"\xff\xff\xff"))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = status_pb2.Status.FromString(dict(raised.value.trailing_metadata())["vold-status-bin"])
    assert (status.code, status.field) == (status_pb2.INVALID_ARGUMENT, "request")
    if method != "GetInfo":
        for content in (b"\xff\xff\xff", b"\x0a\xff\x01"):
            response = httpx.post(f"{server.http}/v1/{method.lower()}", content=content, headers=PROTOBUF)
            assert response.status_code == 422
            assert status_pb2.Status.FromString(response.content).field == "body"
        response = httpx.post(
            f"{server.http}/v1/{method.lower()}", content=b"{", headers={"content-type": "application/json"}
        )
        assert response.status_code == 422
        assert response.json()["error"]["code"] == "INVALID_ARGUMENT"
    assert_serves(server)


def test_rubbish_on_the_wire_itself_harms_nobody(server):
    rng = np.random.default_rng(0)
    for address in (server.grpc, server.http.removeprefix("http://")):
        host, port = address.rsplit(":", 1)
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=120) as stranger:
                try:
                    stranger.sendall(rng.bytes(5000) + b"\r\n\r\n")
                    while stranger.recv(1000):
                        pass
                except ConnectionError:
                    pass  # reset is as good as closed
    assert_serves(server)


def test_an_oversized_body_is_refused_on_both_faces_before_it_is_read(server):
    huge = pb.ScoreRequest(prompts=[pb.Prompt(ids=bytes(BODY_LIMIT + MIB))]).SerializeToString()
    channel = grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)])
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/vold.v1.TeacherService/Score")(huge)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    declared = httpx.post(f"{server.http}/v1/score", content=huge, headers=PROTOBUF, timeout=120)
    chunked = httpx.post(
        f"{server.http}/v1/score",
        content=(huge[at : at + MIB] for at in range(0, len(huge), MIB)),
        headers=PROTOBUF,
        timeout=120,
    )
    for response in (declared, chunked):
        assert response.status_code == 422
        assert b"over the limit" in response.content
    url = httpx.URL(server.http)
    with socket.create_connection((url.host, url.port), timeout=120) as liar:
        liar.sendall(b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        assert liar.recv(12) == b"HTTP/1.1 422", "by what it declares: nothing of it has been sent"
    for target in (f"grpc://{server.grpc}", server.http):
        with TeacherClient(target) as client, pytest.raises(InvalidArgument):
            client.score([[5]], [Completion(0, [7])] * 1 + [Completion(0, [7] * (BODY_LIMIT // 4 + 10))])
    assert_serves(server)


def test_a_draining_server_refuses_what_is_new_and_finishes_what_it_has(folder):
    """On a connection that was open before: gRPC says UNAVAILABLE, which clients take to another replica."""
    rng = np.random.default_rng(0)
    request, other = pb.ScoreRequest(), pb.ScoreRequest()
    for asked in (request, other):  # not alike: what is would be computed once for both
        for index in range(200):
            asked.prompts.add(ids=pack_ids([index % VOCAB, index // VOCAB]))
            asked.completions.add(prompt=index, ids=pack_ids(rng.integers(0, VOCAB, 199)))
    with teacher_server(folder, "--max-batch-tokens", "400", "--drain-seconds", "100") as server:
        channel = grpc.insecure_channel(server.grpc)
        held = teacher_pb2_grpc.TeacherServiceStub(channel)
        under_way = held.Score.future(request)
        by_http: list[httpx.Response] = []
        body = other.SerializeToString()
        poster = threading.Thread(
            target=lambda: by_http.append(
                httpx.post(f"{server.http}/v1/score", content=body, headers=PROTOBUF, timeout=120)
            )
        )
        poster.start()
        wait_until(lambda: metric(server, "vold_teacher_queued_requests") == 2)
        server.process.send_signal(signal.SIGTERM)
        small = pb.ScoreRequest(prompts=[pb.Prompt(ids=pack_ids([5]))], completions=[pb.Completion(ids=pack_ids([7]))])
        refused = None
        while refused is None:
            try:
                held.Score(small, timeout=60)
            except grpc.RpcError as error:
                refused = error
        # gRPC cancels what it was about to take when the server began to stop; the client reads both as UNAVAILABLE.
        assert refused.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        wait_until(lambda: not accepts(server.http))
        assert len(under_way.result().scores) == 200
        poster.join()
        assert len(pb.ScoreReply.FromString(by_http[0].content).scores) == 200
        assert server.process.wait(60) == 0
