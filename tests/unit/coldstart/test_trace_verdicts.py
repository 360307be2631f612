"""Verdicts on answers as they come: many in one call, asked again where the moment was to blame."""

import asyncio
from collections import Counter

import pytest
from vold_client import DeadlineExceeded, Internal, InvalidArgument, Unavailable, Verdict
from vold_trainer.coldstart.verdicts import BATCH, Verdicts
from vold_trainer.coldstart.window import ATTEMPTS
from vold_trainer.config import VerifierConfig
from vold_trainer.data import Example
from vold_trainer.services import outages
from vold_trainer.services.outages import Outages

EXAMPLE = Example("a", ({"role": "user", "content": "1 + 1"},), "2")


class Client:
    """Verifies completions by what they say: "right", "wrong", or the name of an error."""

    urls = ("grpc://verifier",)

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.asked: Counter = Counter()
        self.away = 0

    async def ready(self, seconds, *, every) -> None: ...

    async def verify(self, items):
        self.calls.append(len(items))
        self.asked.update(item.completion for item in items)
        if self.away:
            self.away -= 1
            raise Unavailable("away", url="grpc://verifier")
        for item in items:
            if item.completion == "poison":
                raise InvalidArgument("too large")
            if item.completion == "broken":
                raise Internal("broken")
        errors = {"slow": DeadlineExceeded("slow"), "once": DeadlineExceeded("once"), "bad": InvalidArgument("bad")}
        if self.asked["once"] > 1:
            del errors["once"]
        return [
            Verdict("", error=errors[item.completion])
            if item.completion in errors
            else Verdict("", reward=1.0, correct=item.completion != "wrong")
            for item in items
        ]


def verdicts_on(completions: list[str], client: Client, wanted=lambda item: True):
    """(what is said of each, the answers set aside)"""
    said: dict[int, str] = {}
    room: list[int] = []

    def on_verdict(item, example, verdict) -> None:
        assert example is EXAMPLE
        said[item[0]] = str(verdict.correct) if verdict.error is None else type(verdict.error).__name__

    async def run():
        verdicts = Verdicts(client, VerifierConfig(), Outages(), on_verdict, wanted, lambda: room.append(1))
        for number, completion in enumerate(completions):
            verdicts.submit((number, 0), EXAMPLE, completion)
        running = asyncio.create_task(verdicts.run())
        await verdicts.drain()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert verdicts.has_room
        return verdicts.unverified

    aside = asyncio.run(run())
    assert room or not completions
    return said, aside


def test_many_are_verified_in_one_call():
    client = Client()
    said, aside = verdicts_on(["right", "wrong"] * 100, client)
    assert said == {number: str(number % 2 == 0) for number in range(200)}
    assert not aside
    assert max(client.calls) == BATCH


def test_what_the_moment_was_to_blame_for_is_asked_again():
    client = Client()
    said, aside = verdicts_on(["once", "slow", "bad"], client)
    assert said == {0: "True", 1: "DeadlineExceeded", 2: "InvalidArgument"}
    assert (client.asked["once"], client.asked["slow"], client.asked["bad"]) == (2, ATTEMPTS, 1)
    assert not aside


def test_one_that_fails_the_call_fails_no_other():
    said, aside = verdicts_on(["right", "poison", "broken", "wrong"], Client())
    assert said == {0: "True", 1: "InvalidArgument", 3: "False"}
    assert [(item, str(error)) for item, error in aside.items()] == [((2, 0), "INTERNAL: broken")]


def test_an_outage_is_waited_for(monkeypatch):
    monkeypatch.setattr(outages, "PROBE_SECONDS", 0.01)
    client = Client()
    client.away = 2
    assert verdicts_on(["right"], client)[0] == {0: "True"}
    assert len(client.calls) == 3


@pytest.mark.parametrize("number", [0, 3])
def test_answers_that_are_not_wanted_any_more_are_left_out(number):
    said, _ = verdicts_on(["right"] * 5, Client(), wanted=lambda item: item[0] == number)
    assert said == {number: "True"}
