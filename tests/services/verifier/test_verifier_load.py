"""What an item gets does not depend on what else the machine and the batch are doing."""

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


def burn():
    while True:
        pass


@pytest.fixture(scope="module")
def client():
    with running("--workers", "2") as server, VerifierClient(server.grpc_url, timeout=240) as one:
        yield one


@pytest.fixture(scope="module")
def calm(client):
    verdicts = verdicts_of(client, innocents())
    assert {reward for reward, *_ in verdicts} == {0.0, 1.0}
    return verdicts


def test_verdicts_are_the_same_beside_busy_loops(client, calm):
    burners = [multiprocessing.get_context("spawn").Process(target=burn, daemon=True) for _ in range(6)]
    for burner in burners:
        burner.start()
    try:
        assert verdicts_of(client, innocents()) == calm
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def test_no_innocent_is_hurt_by_bombs(client, calm):
    """More than 2 % of the batch are bombs."""
    items = innocents()
    places = range(0, len(items), 20)
    for shift, place in enumerate(places):
        items.insert(place + shift, BOMBS[shift % len(BOMBS)])
    verdicts = verdicts_of(client, items)
    bombs = [place + shift for shift, place in enumerate(places)]
    assert [verdict for n, verdict in enumerate(verdicts) if n not in bombs] == calm
    assert not any(verdicts[n][1] for n in bombs)


def test_a_caller_may_ask_for_zero(client):
    failing = [Item("spin", "", ""), Item("crash", "", ""), Item("numeric", "1" * 300_000, "1")]
    callers_fault = [
        Item("numeric", "1", "a lot"),
        Item("nothing", "", ""),
        Item("numeric", "1", "1", parameters={"x": 1}),
    ]
    for zero in (False, True):
        items = [
            Item(one.verifier, one.completion, one.reference, parameters=one.parameters, zero_on_failure=zero)
            for one in failing + callers_fault
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
