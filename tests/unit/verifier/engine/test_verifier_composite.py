"""The combination of the results of parts into the result of a composite."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_verifier.engine.composite import PartCollector, combine, part_field, part_items
from vold_verifier.verifiers.composite import CompositeParameters

FAULT = status_pb2.Status(code=status_pb2.DEADLINE_EXCEEDED, message="too slow")


def result(reward, correct=None):
    if reward is None:
        return verifier_pb2.VerifyResult(error=FAULT, seconds=1)
    correct = reward >= 1 if correct is None else correct
    return verifier_pb2.VerifyResult(reward=reward, correct=correct, reason=f"got {reward}", seconds=1)


def composite(parts, gates=(), penalties=()):
    return CompositeParameters.model_validate({"parts": parts, "gates": gates, "penalties": penalties})


TWO = [{"verifier": "math", "weight": 0.75}, {"verifier": "format", "weight": 0.25}]


def test_parts_add_up_by_weight():
    combined = combine(composite(TWO), [result(1.0), result(0.5, False)])
    assert combined.reward == 0.875
    assert not combined.correct
    assert combined.seconds == 2
    assert [(p.name, p.role, p.weight, p.result.reward) for p in combined.parts] == [
        ("math", "part", 0.75, 1.0),
        ("format", "part", 0.25, 0.5),
    ]
    assert combine(composite(TWO), [result(1.0), result(1.0)]).correct


def test_penalties_count_if_a_gate_fails():
    parameters = composite(TWO, [{"verifier": "format"}], [{"verifier": "overlong"}])
    with_gate_held = combine(parameters, [result(1.0), result(1.0), result(1.0), result(-0.5, False)])
    with_gate_failed = combine(parameters, [result(1.0), result(1.0), result(0.0), result(-0.5, False)])
    assert with_gate_held.reward == 0.5
    assert with_gate_held.correct
    assert with_gate_failed.reward == -0.5
    assert not with_gate_failed.correct
    assert "gate format: got 0.0" in with_gate_failed.reason


def test_a_gate_may_need_a_minimum_reward():
    parameters = composite(TWO[:1], [{"verifier": "judge", "at_least": 0.3}])
    assert combine(parameters, [result(1.0), result(0.3, False)]).reward == 0.75
    assert combine(parameters, [result(1.0), result(0.29, True)]).reward == 0.0


@pytest.mark.parametrize(("weight", "reward", "penalty"), [(2, -0.5, -1.0), (-0.5, 1.0, -0.5), (1, 0.9, 0.0)])
def test_a_penalty_only_subtracts(weight, reward, penalty):
    parameters = composite(TWO[:1], penalties=[{"verifier": "p", "weight": weight}])
    assert combine(parameters, [result(0.0), result(reward)]).reward == penalty


def test_an_error_of_a_part_is_an_error_of_the_composite():
    parameters = composite(TWO, [{"verifier": "format"}])
    for number, field in ((0, "parts[0]"), (1, "parts[1]"), (2, "gates[0]")):
        results = [result(1.0) if n != number else result(None) for n in range(3)]
        combined = combine(parameters, results)
        assert not combined.HasField("reward")
        assert combined.error.code == status_pb2.DEADLINE_EXCEEDED
        assert combined.error.field == f"parameters.{field}"
        assert "too slow" in combined.error.message
        assert len(combined.parts) == 3


def test_the_other_parts_take_the_weight_of_an_optional_part_with_an_error():
    parameters = composite([{**TWO[0]}, {**TWO[1], "optional": True}])
    assert combine(parameters, [result(0.5), result(None)]).reward == 0.5
    combined = combine(composite([{"verifier": "judge", "optional": True}]), [result(None)])
    assert combined.HasField("error")
    assert not combined.HasField("reward")


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=8).filter(lambda p: p[0][0] > 0))
def test_the_reward_stays_within_the_weights(pairs):
    parameters = composite([{"verifier": "math", "name": str(n), "weight": w} for n, (w, _) in enumerate(pairs)])
    combined = combine(parameters, [result(reward) for _, reward in pairs])
    assert -1e-9 <= combined.reward <= sum(weight for weight, _ in pairs) + 1e-9


@given(st.permutations(range(4)))
def test_results_may_come_in_any_order(order):
    parameters = composite(TWO, [{"verifier": "format"}], [{"verifier": "overlong"}])
    results = [result(1.0), result(0.5), result(1.0), result(-0.25, False)]
    arrived = []
    collector = PartCollector(parameters, arrived.append)
    for number in order:
        assert not arrived
        collector.callback(number)(results[number])
    assert arrived == [combine(parameters, results)]


def test_each_part_becomes_an_item():
    item = verifier_pb2.VerifyItem(completion="c", reference="r", prompt="p", verifier="composite")
    parameters = composite(
        [{"verifier": "math"}, {"verifier": "exact", "reference": "x", "parameters": {"strip": True}}]
    )
    math, exact = part_items(item, parameters)
    assert (math.verifier, math.completion, math.reference, math.prompt) == ("math", "c", "r", "p")
    assert (exact.verifier, exact.reference, exact.parameters["strip"]) == ("exact", "x", True)
    assert part_field(composite(TWO, TWO[:0], [{"verifier": "p"}]), 2) == "parameters.penalties[0]"


@pytest.mark.parametrize(
    ("parameters", "message"),
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
def test_invalid_parameters_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        CompositeParameters.model_validate(parameters)
