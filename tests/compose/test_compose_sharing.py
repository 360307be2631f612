"""Three trainers at once, each with a key of its own, and one teacher that accounts for all of them."""

import pytest
from compose_project import inspect

pytestmark = pytest.mark.compose

STEPS = 6


@pytest.fixture(scope="module")
def trainers(services, keys):
    """By tenant, after all of them have ended; and the tokens that the teacher has scored for each meanwhile."""
    before = {tenant: services.scored(keys[tenant]) for tenant in ("red", "green", "blue")}
    started = {
        tenant: services.train(
            f"shared-{tenant}", f"seed={seed}", f"data.seed={seed}", f"steps={STEPS}", key=keys[tenant]
        )
        for seed, tenant in enumerate(before)
    }
    for trainer in started.values():
        trainer.wait()
    return started, {tenant: services.scored(keys[tenant]) - count for tenant, count in before.items()}


def test_three_trainers_share_one_teacher_at_the_same_time(trainers):
    started, _ = trainers
    states = [inspect(trainer.container)["State"] for trainer in started.values()]
    assert max(state["StartedAt"] for state in states) < min(state["FinishedAt"] for state in states)
    for tenant, trainer in started.items():
        rows = trainer.rows()
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), tenant
        assert not any(row["missing/teacher"] or row["missing/verifier"] for row in rows), tenant
    assert len({trainer.rows()[0]["loss"] for trainer in started.values()}) == 3, "the runs are three different ones"


def test_usage_accounts_for_each_tenant_to_the_token(trainers):
    started, scored = trainers
    assert scored == {tenant: trainer.tokens() for tenant, trainer in started.items()}


def test_a_trainer_without_a_key_is_refused(services):
    stranger = services.train("stranger", "steps=1", key="")
    with pytest.raises(AssertionError, match="api_key_env"):
        stranger.wait()
    assert not stranger.rows()
