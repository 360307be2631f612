"""A quota below the run's pace is told before the first step, in seconds a step."""

import yaml
from known_keys import known_key
from servers import serving
from vold_client import Quota
from vold_service.keys import digest_of
from vold_trainer.checking import run_check
from vold_trainer.config import RolloutConfig, TrainConfig, load
from vold_trainer.data import Example
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.scoring.pace import StepTokens, describe_slow_quota, verifier_tokens
from vold_trainer.training.train import run_train


def quota(tokens_per_minute):
    return Quota("red", tokens_per_minute, None, None, None, 0, 0)


def test_a_step_that_fits_into_a_minute_is_no_matter():
    tokens = StepTokens(completions=10, max_tokens=9, prompts=2, prompt=5.0)
    assert describe_slow_quota("teacher", quota(None), 1, tokens) is None
    assert describe_slow_quota("teacher", quota(100), 1, tokens) is None
    assert describe_slow_quota("teacher", quota(50), 2, tokens) is None
    said = describe_slow_quota("teachers.big", quota(40), 1, tokens)
    assert "teachers.big: the tenant 'red' may send 40 tokens a minute, and a step sends up to 100: 10 comp" in said
    assert "A step then takes 150 s or longer. Ask the service's operator for more tokens_per_minute" in said


def test_the_verifier_counts_characters():
    example = Example("a", ({"role": "user", "content": "x" * 30},), "y" * 10)
    assert verifier_tokens(RolloutConfig(prompts=2, group=3, max_tokens=7), [example] * 500).total == 6 * (7 + 10)


def test_a_run_and_its_check_tell_a_small_quota_before_the_first_step(tmp_path, verifier, monkeypatch, capsys):
    keys, limits = tmp_path / "keys.yaml", {"red": 100, "blue": 1000}
    tenants = [
        {"name": name, "keys": [{"sha256": digest_of(known_key(name)).hex()}], "tokens_per_minute": limit}
        for name, limit in limits.items()
    ]
    keys.write_text(yaml.safe_dump({"tenants": tenants}))
    overrides = [f"out={tmp_path / 'run'}", f"verifier.url={verifier.grpc}", "student.path=pocket:student"]
    overrides += ["rollout.prompts=2", "rollout.group=2", "rollout.max_tokens=24", "data.limit=8", "steps=1"]
    with serving("teacher", "--model", str(checkpoint_path("teacher")), "--api-keys", str(keys)) as teacher:
        config = load(TrainConfig, None, [*overrides, f"teacher.url={teacher.grpc}", "diagnostics.every=0"])
        monkeypatch.setenv("VOLD_TEACHER_API_KEY", known_key("red"))
        run_train(config)  # one request, which the full account admits
        monkeypatch.setenv("VOLD_TEACHER_API_KEY", known_key("blue"))
        config.rollout.prompts = 32
        report = run_check(config, dry=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "teacher: the tenant 'red' may send 100 tokens a minute, and a step sends up to 1" in said
    assert said.index("s or longer") < said.index("vold on text prompts")
    (warning,) = [finding.text for finding in report.of_topic("teacher") if finding.level == "warning"]
    assert "teacher: the tenant 'blue' may send 1,000 tokens a minute, and a step sends up to " in warning
