"""What the trainer keeps of a real verifier's answers."""

import math

from verifier_server import running
from vold_client import AsyncVerifierClient
from vold_trainer.data import Example
from vold_trainer.objectives import Needs
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.scorer import Scorer


def test_a_reward_that_is_no_number_is_missing_and_an_error_is_said_with_its_row():
    """A verifier of somebody's own may divide by 0: an infinite reward would reach the loss of its whole group."""
    answers = ("0.5", "inf", "nan", "no number")
    rollouts = [
        Rollout(row, Example(f"row-{row}", ({"role": "user", "content": "?"},), "1"), (1,), (2,), answer, False)
        for row, answer in enumerate(answers)
    ]
    with running("--workers", "1") as server:
        scorer = Scorer(
            make_teachers=dict,
            make_verifier=lambda: AsyncVerifierClient(server.url),
            route=lambda example: "",
            verifier_name="echo",
        )
        try:
            pending = scorer.begin(Needs(reward=True))
            pending.submit(rollouts)
            pending.flush()
            scores = pending.collect()
        finally:
            scorer.close()
    assert [scores.rows[row].reward for row in range(4)] == [0.5, None, None, None]
    assert scores.missing == {"verifier: no value": 2, "verifier: Internal": 1}
    assert (
        "row 'row-1': the reward is inf: an echo; row 'row-2': the reward is nan: an echo" in scores.describe_missing()
    )
    assert "row 'row-3': INTERNAL: " in scores.describe_missing()
    assert all(math.isfinite(score.reward) for score in scores.rows.values() if score.reward is not None)
    assert scores.rows[1].missing == {"verifier": scores.rows[1].reason}
