"""Sync clients and the trainer's clients of one process, opened and closed in any order."""

import asyncio
import concurrent.futures
import logging
import subprocess
import sys

import pytest
from paths import HELPERS
from vold_client import AsyncVerifierClient, Item, VerifierClient
from vold_trainer.tasks import ClientTasks

ITEMS = [Item("numeric", "so 4", "4")]


async def _verify(url):
    client = AsyncVerifierClient(url)
    try:
        return await client.verify(ITEMS * 8)
    finally:
        await client.aclose()


def test_closing_a_client_does_not_disturb_other_clients(verifier, caplog):
    with caplog.at_level(logging.ERROR, "asyncio"), VerifierClient(verifier.grpc) as client:
        for _ in range(30):
            tasks = ClientTasks()
            tasks.submit(_verify(verifier.grpc))  # in flight when its tasks are closed
            try:
                verdicts = tasks.run(_verify(verifier.grpc))
            finally:
                tasks.close()
            assert [verdict.error for verdict in verdicts] == [None] * 8
            assert client.verify(ITEMS)[0].error is None
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_closing_the_tasks_cancels_their_calls(verifier):
    tasks = ClientTasks()
    future = tasks.submit(asyncio.sleep(600))
    tasks.close()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=10)


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_a_process_with_clients_on_many_loops_exits_without_output(verifier, face):
    script = HELPERS / "many_clients.py"
    command = [sys.executable, str(script), getattr(verifier, face)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.stderr, ended.stdout, ended.returncode) == ("", "done\n", 0)
