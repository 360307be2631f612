"""A jump of the engine's log-probabilities away from the trainer's warns, and past a limit stops the run."""

import pytest
from vold_trainer.errors import RunError
from vold_trainer.training.mismatch import PATIENCE, MismatchWatch


def feed(watch: MismatchWatch, *values: float | None) -> None:
    for step, value in enumerate(values, 1):
        watch.observe(step, value)
        watch.check()


def test_steps_above_the_limit_stop_the_run_only_in_a_row(capsys):
    watch = MismatchWatch(0.5)
    feed(watch, *[0.6] * (PATIENCE - 1), 0.4, *[0.6] * (PATIENCE - 1))
    assert capsys.readouterr().err.count("rollout.max_mismatch is 0.5") == 2 * (PATIENCE - 1)
    with pytest.raises(RunError, match=f"for {PATIENCE} steps in a row, last 0.7 .* rollout.max_mismatch=null"):
        feed(watch, 0.7)


def test_a_jump_below_the_limit_is_told_and_does_not_stop_the_run(capsys):
    watch = MismatchWatch(0.5)
    feed(watch, *[0.01] * 8, 0.3, 0.3, 0.3, 0.3)
    told = capsys.readouterr().err
    assert told.count("the median of the steps before is 0.01") == 4
    feed(watch, 0.012)
    assert not capsys.readouterr().err


def test_rounding_and_steps_without_values_are_no_jump(capsys):
    watch = MismatchWatch(0.5)
    feed(watch, *[1e-7] * 8, 1e-4, 0.0, None, 0.019)
    feed(MismatchWatch(None), *[5.0] * 5)
    assert not capsys.readouterr().err


def test_a_resumed_run_goes_on_counting(capsys):
    watch = MismatchWatch(0.5)
    feed(watch, *[0.01] * 6, *[0.6] * (PATIENCE - 1))
    resumed = MismatchWatch(0.5)
    resumed.restore(watch.state())
    with pytest.raises(RunError):
        feed(resumed, 0.6)
    watch.restore({})
    assert watch.state() == {"recent": [], "in_a_row": 0}
