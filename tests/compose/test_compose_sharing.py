"""Three trainers at once, each with a key of its own, and one teacher that accounts for all of them."""

import pytest
from compose_project import inspect

pytestmark = pytest.mark.compose

USAGE = """
import json, os, urllib.request as http
request = http.Request("http://teacher:8000/v1/usage", headers={"authorization": "Bearer " + os.environ["KEY"]})
print(http.urlopen(request, timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def trainers(services, keys):
    """By tenant, after all of them have ended. They wait for each other before the first of them begins to train."""
    started = {
        tenant: services.train(f"shared-{tenant}", f"seed={seed}", f"data.seed={seed}", "steps=8", key=keys[tenant])
        for seed, tenant in enumerate(("red", "green", "blue"))
    }
    for trainer in started.values():
        trainer.wait()
    return started


def test_three_trainers_share_one_teacher_at_the_same_time(trainers):
    states = [inspect(trainer.container)["State"] for trainer in trainers.values()]
    assert max(state["StartedAt"] for state in states) < min(state["FinishedAt"] for state in states)
    for tenant, trainer in trainers.items():
        rows = trainer.rows()
        assert [row["step"] for row in rows] == list(range(1, 9)), tenant
        assert not any(row["missing/teacher"] or row["missing/verifier"] for row in rows), tenant
    assert len({trainer.rows()[0]["loss"] for trainer in trainers.values()}) == 3, "the runs are three different ones"


def test_usage_accounts_for_each_tenant_to_the_token(services, trainers, keys):
    for tenant, trainer in trainers.items():
        rows = services.ask(USAGE, key=keys[tenant])["usage"]
        assert {row["tenant"] for row in rows} == {tenant}, "a key sees its own tenant"
        assert sum(row["scored_tokens"] for row in rows) == trainer.tokens()
        assert sum(row["requests"] for row in rows) >= 8


def test_a_trainer_without_a_key_is_refused(services):
    stranger = services.train("stranger", "steps=1", key="")
    with pytest.raises(AssertionError, match="api_key_env"):
        stranger.wait()
    assert not stranger.rows()
