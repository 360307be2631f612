"""The helper processes of a service, which tenants share by the characters of their work."""

import json
import subprocess
import sys

SCRIPT = """
import asyncio, json
from vold_service.processes import Processes
from vold_service.tenants import Tenant

async def main(processes):
    order = []

    async def work(tenant, size):
        assert await processes.run(len, b"x" * size, tenant=tenant) == size
        order.append(tenant.name)

    large, small = Tenant("large"), Tenant("small")
    jobs = [asyncio.create_task(work(large, 1 << 20)) for _ in range(20)]
    await asyncio.sleep(0)
    jobs += [asyncio.create_task(work(small, 1 << 10)) for _ in range(20)]
    await asyncio.gather(*jobs)
    left = asyncio.create_task(work(large, 1))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    await work(small, 1)
    await processes.stop()
    print(json.dumps(order))

asyncio.run(main(Processes.fork()))
"""


def test_small_work_does_not_wait_for_the_large_work_of_another_tenant():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    order = json.loads(done.stdout)
    assert order.count("large") == 20
    before = order[: len(order) - order[::-1].index("small", 1) - 1]  # before the last of the 20 small ones
    assert before.count("small") == 19
    assert before.count("large") <= 4
