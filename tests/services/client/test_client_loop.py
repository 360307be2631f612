"""Clients of one process, sync and the trainer's, that come and go in any order."""

import asyncio
import concurrent.futures
import logging
import subprocess
import sys

import pytest
from paths import HELPERS
from vold_client import AsyncVerifierClient, Item, VerifierClient
from vold_trainer.tasks import ClientTasks

RIGHT = [Item("numeric", "so 4", "4")]


async def _ask(url):
    client = AsyncVerifierClient(url)
    try:
        return await client.verify(RIGHT * 8)
    finally:
        await client.aclose()


def test_a_closed_client_leaves_nothing_behind_that_others_stumble_over(verifier, caplog):
    with caplog.at_level(logging.ERROR, "asyncio"), VerifierClient(verifier.grpc) as client:
        for _ in range(30):
            tasks = ClientTasks()
            tasks.submit(_ask(verifier.grpc))  # under way when its loop's owner goes
            try:
                verdicts = tasks.run(_ask(verifier.grpc))
            finally:
                tasks.close()
            assert [verdict.error for verdict in verdicts] == [None] * 8
            assert client.verify(RIGHT)[0].error is None
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_what_is_asked_ends_with_whoever_asked(verifier):
    tasks = ClientTasks()
    future = tasks.submit(asyncio.sleep(600))
    tasks.close()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=10)


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_clients_on_many_loops_end_with_their_process_and_leave_no_word(verifier, face):
    script = HELPERS / "many_clients.py"
    command = [sys.executable, str(script), getattr(verifier, face)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.stderr, ended.stdout, ended.returncode) == ("", "done\n", 0)
