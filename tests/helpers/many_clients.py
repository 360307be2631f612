"""Opens and closes clients of every kind, and leaves one open at exit: python many_clients.py URL."""

import asyncio
import sys
import threading

from vold_client import AsyncVerifierClient, Item, VerifierClient

URL = sys.argv[1]
ITEMS = [Item("numeric", "so 4", "4", id=str(number)) for number in range(16)]


async def leave_stream_early():
    async with AsyncVerifierClient(URL) as client:
        async for verdict in client.verify_stream(ITEMS):
            assert verdict.error is None
            break


async def cancel_call():
    async with AsyncVerifierClient(URL) as client:
        task = asyncio.create_task(client.verify(ITEMS))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def leave_client_open():
    assert (await AsyncVerifierClient(URL).verify(ITEMS))[0].error is None


def run_each_on_its_own_loop():
    for work in (leave_stream_early, cancel_call, leave_client_open, leave_stream_early):
        asyncio.run(work())


with VerifierClient(URL) as client:
    for _ in range(2):
        run_each_on_its_own_loop()
        assert client.verify(ITEMS)[0].error is None
        next(client.verify_stream(ITEMS))
threads = [threading.Thread(target=run_each_on_its_own_loop) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
open_client = VerifierClient(URL)
open_stream = open_client.verify_stream(ITEMS)
assert next(open_stream).error is None
print("done")
