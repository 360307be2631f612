"""How the results of parts become the result of the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_verifier.engine.composite import Collector, combine, field_of, part_items
from vold_verifier.verifiers.composite import CompositeParameters

FAULT = status_pb2.Status(code=status_pb2.DEADLINE_EXCEEDED, message="too slow")


def result(reward, correct=None):
    if reward is None:
        return verifier_pb2.VerifyResult(error=FAULT, seconds=1)
    correct = reward >= 1 if correct is None else correct
    return verifier_pb2.VerifyResult(reward=reward, correct=correct, reason=f"got {reward}", seconds=1)


def parameters(parts, gates=(), penalties=()):
    return CompositeParameters.model_validate({"parts": parts, "gates": gates, "penalties": penalties})


TWO = [{"verifier": "math", "weight": 0.75}, {"verifier": "format", "weight": 0.25}]


def test_parts_add_up_by_weight():
    whole = combine(parameters(TWO), [result(1.0), result(0.5, False)])
    assert whole.reward == 0.875
    assert not whole.correct
    assert whole.seconds == 2
    assert [(p.name, p.role, p.weight, p.result.reward) for p in whole.parts] == [
        ("math", "part", 0.75, 1.0),
        ("format", "part", 0.25, 0.5),
    ]
    assert combine(parameters(TWO), [result(1.0), result(1.0)]).correct


def test_a_gate_that_does_not_hold_leaves_the_penalties_alone():
    asked = parameters(TWO, [{"verifier": "format"}], [{"verifier": "overlong"}])
    open_gate = combine(asked, [result(1.0), result(1.0), result(1.0), result(-0.5, False)])
    shut_gate = combine(asked, [result(1.0), result(1.0), result(0.0), result(-0.5, False)])
    assert open_gate.reward == 0.5
    assert open_gate.correct
    assert shut_gate.reward == -0.5
    assert not shut_gate.correct
    assert "gate format: got 0.0" in shut_gate.reason


def test_a_gate_may_ask_for_a_reward():
    asked = parameters(TWO[:1], [{"verifier": "judge", "at_least": 0.3}])
    assert combine(asked, [result(1.0), result(0.3, False)]).reward == 0.75
    assert combine(asked, [result(1.0), result(0.29, True)]).reward == 0.0


@pytest.mark.parametrize(("weight", "reward", "taken"), [(2, -0.5, -1.0), (-0.5, 1.0, -0.5), (1, 0.9, 0.0)])
def test_a_penalty_takes_and_never_adds(weight, reward, taken):
    asked = parameters(TWO[:1], penalties=[{"verifier": "p", "weight": weight}])
    assert combine(asked, [result(0.0), result(reward)]).reward == taken


def test_an_error_of_a_part_is_an_error_of_the_whole():
    asked = parameters(TWO, [{"verifier": "format"}])
    for number, field in ((0, "parts[0]"), (1, "parts[1]"), (2, "gates[0]")):
        results = [result(1.0) if n != number else result(None) for n in range(3)]
        whole = combine(asked, results)
        assert not whole.HasField("reward")
        assert whole.error.code == status_pb2.DEADLINE_EXCEEDED
        assert whole.error.field == f"parameters.{field}"
        assert "too slow" in whole.error.message
        assert len(whole.parts) == 3


def test_the_others_make_up_for_an_optional_part():
    asked = parameters([{**TWO[0]}, {**TWO[1], "optional": True}])
    assert combine(asked, [result(0.5), result(None)]).reward == 0.5
    whole = combine(parameters([{"verifier": "judge", "optional": True}]), [result(None)])
    assert whole.HasField("error")
    assert not whole.HasField("reward")


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=8).filter(lambda p: p[0][0] > 0))
def test_the_reward_stays_within_the_weights(pairs):
    asked = parameters([{"verifier": "math", "name": str(n), "weight": w} for n, (w, _) in enumerate(pairs)])
    whole = combine(asked, [result(reward) for _, reward in pairs])
    assert -1e-9 <= whole.reward <= sum(weight for weight, _ in pairs) + 1e-9


@given(st.permutations(range(4)))
def test_results_may_come_in_any_order(order):
    asked = parameters(TWO, [{"verifier": "format"}], [{"verifier": "overlong"}])
    results = [result(1.0), result(0.5), result(1.0), result(-0.25, False)]
    arrived = []
    collector = Collector(asked, arrived.append)
    for number in order:
        assert not arrived
        collector.receiver(number)(results[number])
    assert arrived == [combine(asked, results)]


def test_parts_are_items_of_their_own():
    item = verifier_pb2.VerifyItem(completion="c", reference="r", prompt="p", verifier="composite")
    asked = parameters([{"verifier": "math"}, {"verifier": "exact", "reference": "x", "parameters": {"strip": True}}])
    one, two = part_items(item, asked)
    assert (one.verifier, one.completion, one.reference, one.prompt) == ("math", "c", "r", "p")
    assert (two.verifier, two.reference, two.parameters["strip"]) == ("exact", "x", True)
    assert field_of(parameters(TWO, TWO[:0], [{"verifier": "p"}]), 2) == "parameters.penalties[0]"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"parts": []}, "at least 1"),
        ({"parts": [{"verifier": "composite"}]}, "cannot be part of a composite"),
        ({"parts": [{"verifier": "math", "name": str(n)} for n in range(17)]}, "over the limit of 16"),
        ({"parts": [{"verifier": "math"}, {"verifier": "math"}]}, "called 'math'"),
        ({"parts": [{"verifier": "math", "weight": 0}]}, "weight 0"),
        ({"parts": [{"verifier": "math", "weight": -1}]}, "greater than or equal to 0"),
        ({"parts": [{"verifier": "math", "weight": float("inf")}]}, "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, says):
    with pytest.raises(ValidationError, match=says):
        CompositeParameters.model_validate(asked)
