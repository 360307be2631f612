"""When distillation has levelled off, and that a checkpoint keeps what decides about it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.objectives import Grpo, OpdThenRl
from vold_trainer.training.plateau import DROP, PlateauSwitch

DISTILS = OpdThenRl(switch="plateau", window=3)


def feed(switch: PlateauSwitch, values: list[float | None], first: int = 1) -> int | None:
    """The number of values after which it switched; None if it did not. Steps are generated one ahead."""
    return next((n for n, value in enumerate(values, first) if switch.observe(value, next_step=n + 1)), None)


@given(st.floats(1e-6, 10), st.floats(0, 0.97), st.integers(1, 5))
def test_what_falls_fast_enough_has_not_levelled_off(start, left_of_each, window):
    values = [start * left_of_each**n for n in range(30)]
    switch = PlateauSwitch(OpdThenRl(switch="plateau", window=window))
    steepness = left_of_each**window
    switched = feed(switch, values)
    if steepness < 1 - DROP - 1e-6 and values[-1] > 0:
        assert switched is None
        assert switch.objective.switch == "plateau"
    elif steepness > 1 - DROP + 1e-6:
        assert switched == 2 * window


def test_it_switches_once_at_the_first_step_that_is_not_generated_yet(capsys):
    switch = PlateauSwitch(DISTILS)
    assert feed(switch, [8.0, 4.0, 2.0, 1.0, 1.0, None, 1.0, 1.0, 1.0, 1.0]) == 10
    assert switch.objective == OpdThenRl(switch=11, window=3)
    assert "teacher/k2 1 over 3 steps, 1 over those before): reinforcement learning from step 12" in " ".join(
        capsys.readouterr().err.split()
    )
    assert feed(switch, [1.0] * 20) is None


@pytest.mark.parametrize("done", range(12))
def test_a_switch_restored_from_a_checkpoint_goes_on_as_if_it_had_not_ended(done):
    values = [8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    whole, before, after = (PlateauSwitch(DISTILS) for _ in range(3))
    feed(whole, values)
    feed(before, values[:done])
    after.restore(json.loads(json.dumps(before.state())))
    feed(after, values[done:], done + 1)
    assert after.objective == whole.objective == OpdThenRl(switch=10, window=3)


@pytest.mark.parametrize("objective", [Grpo(), OpdThenRl(switch=5)])
def test_other_objectives_stay_as_they_are(objective):
    switch = PlateauSwitch(objective)
    switch.restore({"recent": [1.0], "switch": 3})
    assert feed(switch, [1.0] * 50) is None
    assert switch.objective == objective
