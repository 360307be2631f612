"""A hostile tenant beside an honest one: it wastes its own share of every resource, and nothing else.

The attacks are finite, so no test waits for a clock: an honest request is done while most of the attack is still to do.
"""

import asyncio
import re
import time
from contextlib import suppress

import grpc
import httpx
import numpy as np
import pytest
import yaml
from known_keys import known_key
from teacher_fixtures import VOCAB, Server, save_model, teacher_server
from verifier_server import item, running
from vold_client import AsyncTeacherClient, Completion, ResourceExhausted, VoldError
from vold_proto.v1 import verifier_pb2, verifier_pb2_grpc
from vold_service.keys import digest_of

HOSTILE, HONEST, OPS = known_key("hostile"), known_key("honest"), known_key("ops")
METERED = [known_key(f"metered-{number}") for number in range(6)]
TOKENS_A_MINUTE = 600
MAX_QUEUE = 8000


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    tenants = [{"name": "hostile"}, {"name": "honest"}, {"name": "ops", "admin": True}]
    tenants += [{"name": f"metered-{number}", "tokens_per_minute": TOKENS_A_MINUTE} for number in range(len(METERED))]
    for tenant in tenants:
        tenant["keys"] = [{"sha256": digest_of(known_key(tenant["name"])).hex()}]
    file.write_text(yaml.safe_dump({"tenants": tenants}))
    return file


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, keys):
    model = save_model(tmp_path_factory.mktemp("teacher") / "tiny")
    limits = ("--max-rows", "4", "--max-batch-tokens", "2000", "--max-queue-tokens", str(MAX_QUEUE))
    with teacher_server(model, "--api-keys", str(keys), *limits) as server:
        yield server


@pytest.fixture(scope="module")
def verifier(keys):
    with running("--workers", "1", "--api-keys", str(keys), "--max-queued-items", "1000") as server:
        yield server


def metric(url: str, pattern: str) -> float:
    """The sum over the samples whose name and labels match."""
    text = httpx.get(f"{url}/metrics", headers=bearer(OPS), timeout=60).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(pattern, line))


def wait_until(condition) -> None:
    while not condition():
        time.sleep(0.02)


def completions(count: int, length: int, seed: int) -> list[Completion]:
    rng = np.random.default_rng(seed)
    return [Completion(0, rng.integers(0, VOCAB, length)) for _ in range(count)]


def test_a_generation_waits_for_no_priority_of_another_tenant(teacher: Server):
    async def generate(client: AsyncTeacherClient, tokens: int, priority: int, seed: int) -> int:
        found = [chunk async for chunk in client.generate([[5, 6]], max_tokens=tokens, priority=priority, seed=seed)]
        return len(found)

    async def main() -> None:
        url = f"grpc://{teacher.grpc}"
        async with AsyncTeacherClient(url, api_key=HOSTILE) as hostile, AsyncTeacherClient(url, api_key=HONEST) as mine:
            attack = [asyncio.create_task(generate(hostile, 200, 1000, seed)) for seed in range(60)]
            await asyncio.to_thread(wait_until, lambda: metric(teacher.http, "vold_teacher_generate_requests") > 50)
            assert await generate(mine, 20, 0, 0) == 1
            done = sum(task.done() for task in attack)
            for task in attack:
                task.cancel()
            await asyncio.gather(*attack, return_exceptions=True)
            assert done < 30

    asyncio.run(main())


def test_a_tenant_that_keeps_the_queue_full_gets_nobody_else_refused(teacher: Server):
    async def main() -> None:
        reasons: list[str] = []
        stop = asyncio.Event()

        async def flood(client: AsyncTeacherClient, number: int) -> None:
            while not stop.is_set():
                try:
                    await client.score([[5, 6]], completions(20, 100, number))
                except ResourceExhausted as error:
                    reasons.append(error.reason)
                number += 100

        async with (
            AsyncTeacherClient(teacher.http, api_key=HOSTILE, retries=0) as hostile,
            AsyncTeacherClient(teacher.http, api_key=HONEST, retries=0) as honest,
        ):
            attack = [asyncio.create_task(flood(hostile, number)) for number in range(12)]
            await asyncio.to_thread(wait_until, lambda: reasons)
            for number in range(12):
                await honest.score([[7]], completions(10, 60, 10_000 + number))
            stop.set()
            await asyncio.gather(*attack)
            assert set(reasons) == {"queue_full"}

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["score", "generate"])
def test_the_accounts_add_up_to_what_was_computed_for_those_too_who_left(teacher: Server, kind: str):
    """But for padding, which depends on what others send. Of a completion, its prompt has one token here, so that its
    positions are its tokens.
    """
    names = ("computed", "padding", "generated")

    async def books(ops: AsyncTeacherClient) -> tuple[float, ...]:
        counts = [await asyncio.to_thread(metric, teacher.http, f"vold_teacher_{name}_tokens_total") for name in names]
        return sum(row.computed_tokens for row in await ops.usage()), *counts

    async def settled(ops: AsyncTeacherClient) -> tuple[float, ...]:
        before = await books(ops)
        while (after := await books(ops)) != before:  # until the last batch of those that left is done
            before = after
            await asyncio.sleep(0.3)
        return after

    async def main() -> None:
        async with (
            AsyncTeacherClient(f"grpc://{teacher.grpc}", api_key=OPS) as ops,
            AsyncTeacherClient(f"grpc://{teacher.grpc}", api_key=HOSTILE, retries=0) as client,
        ):

            async def leave(number: int) -> None:
                with suppress(VoldError, TimeoutError):
                    async with asyncio.timeout(0.02 * (number % 4)):
                        if kind == "score":
                            await client.score([[5]], completions(30, 100, 20_000 + number))
                        else:
                            async for _ in client.generate([[5]], max_tokens=400, seed=number):
                                pass

            before = await settled(ops)
            await asyncio.gather(*(leave(number) for number in range(10)))
            accounted, computed, padding, generated = (
                new - old for new, old in zip(await settled(ops), before, strict=True)
            )
            assert computed > 0
            if kind == "score":
                assert accounted == pytest.approx(computed - padding, rel=1e-6)
            else:
                assert generated <= accounted <= computed

    asyncio.run(main())


LONG_TEXT = "a b " * (TOKENS_A_MINUTE - 1)
BODIES = {
    "/tokenize": {"prompt": LONG_TEXT},
    "/tokenize of messages": {"messages": [{"role": "user", "content": LONG_TEXT}]},
    "/detokenize": {"tokens": [5] * (TOKENS_A_MINUTE // 2 + 1)},
    "/v1/completions": {"model": "tiny", "prompt": [LONG_TEXT], "max_tokens": 1},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": LONG_TEXT}], "max_tokens": 1},
}


@pytest.mark.parametrize("name", BODIES)
def test_reading_a_text_costs_tokens_whether_or_not_the_request_can_be_served(teacher: Server, name: str):
    headers = bearer(METERED[list(BODIES).index(name)])
    first, second = (
        httpx.post(f"{teacher.http}{name.split()[0]}", json=BODIES[name], headers=headers, timeout=60) for _ in range(2)
    )
    assert first.status_code in (200, 400, 422)  # the text may be longer than a sequence
    assert second.status_code == 429
    assert second.json()["error"]["reason"] == "quota"


def test_a_cached_score_is_charged_to_the_quota(teacher: Server):
    async def main() -> None:
        async with AsyncTeacherClient(teacher.http, api_key=METERED[-1], retries=0) as client:
            sent = completions(4, 80, 30_000)
            first = await client.score([[5]], sent)
            again = await client.score([[5]], sent[:3])
            assert [score.cached for score in (*first.scores, *again.scores)] == [False] * 4 + [True] * 3
            with pytest.raises(ResourceExhausted) as raised:
                await client.score([[5]], sent)
            assert raised.value.reason == "quota"

    asyncio.run(main())


def test_splitting_work_into_many_requests_takes_no_verifier_from_another_tenant(verifier):
    def send(key: str, items: list[verifier_pb2.VerifyItem]) -> grpc.Future:
        request = verifier_pb2.VerifyRequest(items=items)
        return verifier.stub.Verify.future(request, metadata=[("authorization", f"Bearer {key}")], timeout=120)

    def sleeps(number: int, count: int) -> list[verifier_pb2.VerifyItem]:
        return [item("sleep", str((number, index)), seconds=0.01) for index in range(count)]

    attack = [send(HOSTILE, sleeps(number, 5)) for number in range(60)]
    wait_until(lambda: metric(verifier.url, "vold_verifier_queued_items") > 200)
    assert len(send(HONEST, sleeps(-1, 20)).result().results) == 20
    done = sum(each.done() for each in attack)
    for each in attack:
        each.cancel()
    assert done < 30


def test_items_that_cost_more_than_they_look_are_charged_what_they_cost(verifier):
    """A pattern that backtracks: 13 "tokens" and a good part of a second."""
    pattern = [item("regex", "a" * (22 + index % 2) + f"b{index}", "x", pattern="(a+)+$") for index in range(16)]
    done = 0

    async def main() -> None:
        nonlocal done
        async with grpc.aio.insecure_channel(verifier.ready["grpc"]) as channel:
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)

            async def attack() -> None:
                nonlocal done
                stream = stub.VerifyStream(iter(pattern), metadata=[("authorization", f"Bearer {HOSTILE}")])
                async for _ in stream:
                    done += 1

            attacking = asyncio.create_task(attack())
            await asyncio.to_thread(wait_until, lambda: metric(verifier.url, "vold_verifier_queued_items") > 8)
            # By estimate they cost as much as the attack's, so that only what they take makes the difference.
            items = [item("regex", str(index), str(index)) for index in range(20)]
            reply = await stub.Verify(
                verifier_pb2.VerifyRequest(items=items), metadata=[("authorization", f"Bearer {HONEST}")]
            )
            assert all(result.reward == 1.0 for result in reply.results)
            attacking.cancel()

    asyncio.run(main())
    assert done <= 4
