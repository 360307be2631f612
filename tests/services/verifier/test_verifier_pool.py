"""Hangs, crashes and memory hogs through real workers: a bad item costs only its own verdict."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import psutil
import pytest
from verifier_server import item
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service.errors import ServiceError
from vold_service.tenants import OPEN_TENANT, Tenant
from vold_verifier.engine.options import PoolOptions
from vold_verifier.engine.pool import Pool


@contextlib.asynccontextmanager
async def started(**options: object) -> AsyncIterator[Pool]:
    pool = Pool(
        PoolOptions(
            **{"workers": 2, "cpu_seconds": 0.3, "wall_seconds": 3.0, "plugins": ("verifier_plugin",), **options}
        )
    )
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


async def verify(pool: Pool, items: list[verifier_pb2.VerifyItem], cost: int = 1) -> list[verifier_pb2.VerifyResult]:
    results: dict[int, verifier_pb2.VerifyResult] = {}
    done = asyncio.Event()

    def on_result(key: int, result: verifier_pb2.VerifyResult) -> None:
        assert key not in results
        results[key] = result
        if len(results) == len(items):
            done.set()

    queue = pool.open_queue(on_result)
    for key, each in enumerate(items):
        queue.put(key, each.SerializeToString(), cost)
    pool.dispatch()
    await asyncio.wait_for(done.wait(), 60)
    queue.close()
    return [results[key] for key in range(len(items))]


def innocents(count: int) -> list[verifier_pb2.VerifyItem]:
    return [item("numeric", str(n), str(n)) for n in range(count)]


BAD = {
    "spin": (status_pb2.DEADLINE_EXCEEDED, "used 0.3 s of CPU time"),
    "native": (status_pb2.DEADLINE_EXCEEDED, "0.6 s of CPU time: the item's worker was killed"),
    "stubborn": (status_pb2.DEADLINE_EXCEEDED, "no verdict within 4 s: the item's worker was killed"),
    "crash": (status_pb2.INTERNAL, "SIGSEGV"),
    "hog": (status_pb2.INTERNAL, "memory_limit"),
    "broken": (status_pb2.INTERNAL, "RuntimeError"),
}


def test_bad_items_have_errors_and_no_rewards_and_change_no_other_result():
    async def main() -> None:
        async with started(wall_seconds=4.0) as pool:
            items = innocents(200)
            bad_at = dict(zip(range(9, 200, 30), [*BAD, "crash"], strict=True))
            for key, bad in bad_at.items():
                items[key] = item(bad)
            results = await verify(pool, items)
        for key, result in enumerate(results):
            if key in bad_at:
                code, message = BAD[bad_at[key]]
                assert result.error.code == code
                assert message in result.error.message
                assert not result.HasField("reward")
            else:
                assert result.reward == 1.0

    asyncio.run(main())


def test_a_crash_is_tried_once_more_in_a_fresh_worker(tmp_path):
    async def main() -> None:
        async with started() as pool:
            (result,) = await verify(pool, [item("crash", str(tmp_path / "seen"))])
            assert result.reward == 1.0

    asyncio.run(main())


def test_workers_are_replaced_after_recycle_after_items():
    async def main() -> None:
        async with started(workers=1, recycle_after=10) as pool:
            results = await verify(pool, [item("sleep", seconds=0.0) for _ in range(35)])
            assert len({result.extracted for result in results}) == 4

    asyncio.run(main())


def test_a_small_batch_is_not_starved_by_a_large_one():
    async def main() -> None:
        async with started(workers=1) as pool:
            order: list[str] = []
            large = pool.open_queue(lambda key, result: order.append("large"))
            done = asyncio.Event()

            def on_small_result(key: int, result: verifier_pb2.VerifyResult) -> None:
                order.append("small")
                if order.count("small") == 5:
                    done.set()

            small = pool.open_queue(on_small_result)
            slow = item("sleep", seconds=0.01).SerializeToString()
            for key in range(60):
                large.put(key, slow, 8)
            for key in range(5):
                small.put(key, slow, 8)
            pool.dispatch()
            await asyncio.wait_for(done.wait(), 60)
            assert order.count("large") < 30
            large.close()

    asyncio.run(main())


def test_the_queued_items_of_a_closed_queue_are_dropped():
    async def main() -> None:
        async with started(workers=1) as pool:
            queue = pool.open_queue(lambda key, result: None)
            for key in range(1000):
                queue.put(key, item("sleep", seconds=0.2).SerializeToString(), 8)
            pool.dispatch()
            queue.close()
            assert pool.queued == 0
            assert (await verify(pool, innocents(1)))[0].reward == 1.0

    asyncio.run(main())


def test_a_full_queue_names_the_delay_before_a_retry():
    async def main() -> None:
        async with started(workers=1, max_queued=10) as pool:
            pool.check_capacity(10)
            queue = pool.open_queue(lambda key, result: None)
            for key in range(10):
                queue.put(key, item("sleep").SerializeToString(), 8)
            with pytest.raises(ServiceError) as caught:
                pool.check_capacity(5)
            assert caught.value.code == status_pb2.RESOURCE_EXHAUSTED
            assert (caught.value.reason, caught.value.retry_seconds > 0) == ("queue_full", True)
            assert not pool.has_room(OPEN_TENANT)
            waiting = asyncio.create_task(pool.wait_for_room(OPEN_TENANT))
            await asyncio.sleep(0)
            assert not waiting.done()
            queue.close()
            await waiting
            pool.check_capacity(5)


def test_a_tenant_that_fills_its_part_of_the_queue_keeps_no_other_out():
    async def main() -> None:
        flood, other = Tenant("flood"), Tenant("other")
        async with started(workers=1, max_queued=10) as pool:
            full = pool.open_queue(lambda key, result: None, flood)
            pool.check_capacity(10, flood)
            for key in range(10):
                full.put(key, item("sleep").SerializeToString(), 8)
            with pytest.raises(ServiceError, match="10 items of the tenant 'flood'"):
                pool.check_capacity(1, flood)
            pool.check_capacity(5, other)  # its half
            queue = pool.open_queue(lambda key, result: None, other)
            for key in range(5):
                queue.put(key, item("sleep").SerializeToString(), 8)
            with pytest.raises(ServiceError, match="part of 5"):
                pool.check_capacity(1, other)
            full.close()
            queue.close()

    asyncio.run(main())

    asyncio.run(main())


def children() -> set[psutil.Process]:
    """The children of this process: the pool's, and those of other tests' fixtures."""
    return set(psutil.Process(os.getpid()).children())


@pytest.mark.slow
def test_a_lost_fork_server_is_replaced_with_its_workers():
    async def main() -> None:
        before = children()
        async with started() as pool:
            assert (await verify(pool, innocents(5)))[4].reward == 1.0
            (fork_server,) = children() - before
            workers = fork_server.children()
            fork_server.kill()
            results = await verify(pool, innocents(50))
            assert all(result.reward == 1.0 for result in results)
            assert not psutil.wait_procs(workers, timeout=10)[1]

    asyncio.run(main())


def test_stop_leaves_no_process():
    before = children()

    async def main() -> list[psutil.Process]:
        async with started():
            (fork_server,) = children() - before
            return [fork_server, *fork_server.children(recursive=True)]

    processes = asyncio.run(main())
    assert len(processes) == 3
    assert not psutil.wait_procs(processes, timeout=10)[1]


def test_a_plugin_that_cannot_load_is_named():
    async def main() -> None:
        with pytest.raises(OSError, match="no_such_plugin"):
            await Pool(PoolOptions(workers=1, plugins=("no_such_plugin",))).start()

    asyncio.run(main())
