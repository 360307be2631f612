"""A process with clients of every kind that come and go, and one that is left open: python many_clients.py URL."""

import asyncio
import sys
import threading

from vold_client import AsyncVerifierClient, Item, VerifierClient

URL = sys.argv[1]
ITEMS = [Item("numeric", "so 4", "4", id=str(number)) for number in range(16)]


async def left_early():
    async with AsyncVerifierClient(URL) as client:
        async for verdict in client.verify_stream(ITEMS):
            assert verdict.error is None
            break


async def cancelled():
    async with AsyncVerifierClient(URL) as client:
        task = asyncio.create_task(client.verify(ITEMS))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def never_closed():
    assert (await AsyncVerifierClient(URL).verify(ITEMS))[0].error is None


def each_on_a_loop_of_its_own():
    for work in (left_early, cancelled, never_closed, left_early):
        asyncio.run(work())


with VerifierClient(URL) as client:
    for _ in range(2):
        each_on_a_loop_of_its_own()
        assert client.verify(ITEMS)[0].error is None
        next(client.verify_stream(ITEMS))
threads = [threading.Thread(target=each_on_a_loop_of_its_own) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
left_open = VerifierClient(URL)
under_way = left_open.verify_stream(ITEMS)
assert next(under_way).error is None
print("done")
