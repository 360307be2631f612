"""A service's container is killed in mid-run and started again: it costs time and nothing else."""

import pytest
from compose_project import FIGURES, docker, until

pytestmark = pytest.mark.compose

STEPS = 8


@pytest.fixture(scope="module")
def undisturbed(services, keys):
    return services.train("undisturbed", f"steps={STEPS}", key=keys["red"]).wait()


@pytest.mark.parametrize("who", ["teacher", "verifier"])
def test_a_container_that_is_killed_and_comes_back_costs_no_score(who, services, keys, undisturbed):
    key = keys["green"]
    before = services.scored(key)
    trainer = services.train(f"without-{who}", f"steps={STEPS}", key=key)
    until("a step is done", lambda: trainer.rows() or not trainer.running())
    docker("pause", trainer.container)  # so that the run cannot end before the kill, however fast it is
    done = len(trainer.rows())
    assert 1 <= done < STEPS, trainer.log()
    docker("kill", services.container(who))
    docker("unpause", trainer.container)
    until("the run says who is away", lambda: "is away for" in trainer.log() or not trainer.running())
    assert trainer.running(), trainer.log()
    assert len(trainer.rows()) <= done + 1, "a step went on without its scores"
    docker("start", services.container(who))
    rows = trainer.wait()
    services.wait_healthy(who)
    said = " ".join(trainer.log().split())
    assert f"{who} grpc://{who}:" in said
    assert "answers again" in said
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, expected in zip(rows, undisturbed, strict=True):
        assert row["missing/teacher"] == row["missing/verifier"] == 0
        for figure in FIGURES:
            assert row[figure] == pytest.approx(expected[figure], rel=1e-4, abs=1e-5), (row["step"], figure)
    if who == "verifier":  # the teacher was there all the time, and its account is whole
        assert services.scored(key) - before == trainer.tokens()
