"""An item's verdict does not depend on the load of the machine or on the other items of the batch."""

import multiprocessing

import pytest
from verifier_server import running
from vold_client import Item
from vold_client.sync import VerifierClient

BOMBS = [
    Item("math", r"\boxed{" + r"\frac{1}{" * 30 + "x" + "}" * 30 + "}", r"\int_0^1 \frac{\sin(x^{50})}{1+x^{99}} dx"),
    Item("spin", "", ""),
    Item("crash", "", ""),
    Item("hog", "", ""),
    Item("native", "", ""),
    Item("math", "x" * 300_000, "1"),
]


def innocents():
    """Items of every kind, right and wrong."""
    items = []
    for n in range(24):
        items += [
            Item("numeric", f"\\boxed{{{n}}}", str(n - n % 2)),
            Item("choice", f"The answer is ({'ABCD'[n % 4]})", "ABCD"[n % 3]),
            Item("math", rf"\boxed{{\frac{{{n}}}{{7}} + x}}", rf"x + \frac{{{n}}}{{{7 + n % 3 // 2}}}"),
            Item("math", rf"\boxed{{(x+{n})^2}}", rf"x^2 + {2 * n}x + {n * n + n % 2}"),
            Item("exact", f"answer {n}", f"answer {n - n % 2}"),
        ]
    return items


def verdicts_of(client, items):
    return [(v.reward, v.correct, v.extracted, v.reason, str(v.error)) for v in client.verify(items, timeout=240)]


def busy_loop():
    while True:
        pass


@pytest.fixture(scope="module")
def client():
    with running("--workers", "2") as server, VerifierClient(server.grpc_url, timeout=240) as client:
        yield client


@pytest.fixture(scope="module")
def expected(client):
    verdicts = verdicts_of(client, innocents())
    assert {reward for reward, *_ in verdicts} == {0.0, 1.0}
    return verdicts


def test_verdicts_are_the_same_beside_busy_loops(client, expected):
    busy_processes = [multiprocessing.get_context("spawn").Process(target=busy_loop, daemon=True) for _ in range(6)]
    for busy_process in busy_processes:
        busy_process.start()
    try:
        assert verdicts_of(client, innocents()) == expected
    finally:
        for busy_process in busy_processes:
            busy_process.kill()
            busy_process.join()


def test_bombs_change_no_other_result(client, expected):
    """More than 2 % of the batch are bombs."""
    items = innocents()
    positions = range(0, len(items), 20)
    for shift, position in enumerate(positions):
        items.insert(position + shift, BOMBS[shift % len(BOMBS)])
    verdicts = verdicts_of(client, items)
    bombs = [position + shift for shift, position in enumerate(positions)]
    assert [verdict for n, verdict in enumerate(verdicts) if n not in bombs] == expected
    assert not any(verdicts[n][1] for n in bombs)


def test_zero_on_failure_gives_reward_0_if_the_completion_is_at_fault(client):
    completions_fault = [Item("spin", "", ""), Item("crash", "", ""), Item("numeric", "1" * 300_000, "1")]
    callers_fault = [
        Item("numeric", "1", "a lot"),
        Item("nothing", "", ""),
        Item("numeric", "1", "1", parameters={"x": 1}),
    ]
    for zero in (False, True):
        items = [
            Item(each.verifier, each.completion, each.reference, parameters=each.parameters, zero_on_failure=zero)
            for each in completions_fault + callers_fault
        ]
        verdicts = client.verify(items)
        assert all(verdict.error is not None for verdict in verdicts)
        assert [verdict.reward for verdict in verdicts] == [0.0 if zero else None] * 3 + [None] * 3


def test_deep_parameters_are_refused(client):
    deep: dict = {}
    for _ in range(26):
        deep = {"a": deep}
    (verdict,) = client.verify([Item("numeric", "1", "1", parameters=deep)])
    assert verdict.error.code == "INVALID_ARGUMENT"
    assert "nested deeper than 24" in str(verdict.error)
