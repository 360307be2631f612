"""What the trainer keeps of a real verifier's answers."""

import math
from collections.abc import Sequence

import pytest
from verifier_server import running
from vold_client import AsyncVerifierClient
from vold_trainer.data import Example
from vold_trainer.objectives import Needs
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.scorer import Scorer
from vold_trainer.scoring.scores import StepScores


def score(verifier: str, answers: Sequence[str], *, zero_on_limit: bool = False) -> StepScores:
    """What the scorer keeps of the answers, one a row."""
    rollouts = [
        Rollout(row, Example(f"row-{row}", ({"role": "user", "content": "?"},), "1"), (1,), (2,), answer, False)
        for row, answer in enumerate(answers)
    ]
    with running("--workers", "1", "--time-limit", "0.3") as server:
        scorer = Scorer(
            make_teachers=dict,
            make_verifier=lambda: AsyncVerifierClient(server.url),
            route=lambda example: "",
            verifier_name=verifier,
            zero_on_limit=zero_on_limit,
        )
        try:
            pending = scorer.begin(Needs(reward=True))
            pending.submit(rollouts)
            pending.flush()
            return pending.collect()
        finally:
            scorer.close()


@pytest.mark.parametrize("zero_on_limit", [False, True])
def test_an_answer_past_a_limit_is_missing_or_gets_0_as_the_run_asks(zero_on_limit):
    scores = score("spin", ["slow"], zero_on_limit=zero_on_limit)
    assert "used 0.3 s of CPU time" in scores.rows[0].reason
    if zero_on_limit:
        assert (scores.rows[0].reward, scores.rows[0].correct, scores.missing) == (0.0, False, {})
    else:
        assert (scores.rows[0].reward, scores.missing) == (None, {"verifier: DeadlineExceeded": 1})


def test_a_reward_that_is_no_number_is_missing_and_an_error_is_said_with_its_row():
    """A verifier of somebody's own may divide by 0: an infinite reward would reach the loss of its whole group."""
    scores = score("echo", ("0.5", "inf", "nan", "no number"))
    assert [scores.rows[row].reward for row in range(4)] == [0.5, None, None, None]
    assert scores.missing == {"verifier: no value": 2, "verifier: Internal": 1}
    assert (
        "row 'row-1': the reward is inf: an echo; row 'row-2': the reward is nan: an echo" in scores.describe_missing()
    )
    assert "row 'row-3': INTERNAL: " in scores.describe_missing()
    assert all(math.isfinite(score.reward) for score in scores.rows.values() if score.reward is not None)
    assert scores.rows[1].missing == {"verifier": scores.rows[1].reason}
