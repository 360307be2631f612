"""Configs: files, overrides, and mistakes that are named."""

from pathlib import Path

import pytest
import yaml
from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig, dump, load
from vold_trainer.errors import UsageError
from vold_trainer.objectives import REGISTRY, Gspo, Kdrl, Vold

KINDS = {"traces": TracesConfig, "sft": SftConfig, "grpo": TrainConfig, "vold": TrainConfig, "eval": EvalConfig}


@pytest.mark.parametrize("name", KINDS)
def test_shipped_configs_load_and_survive_a_round_trip(name, tmp_path):
    config = load(KINDS[name], Path(f"pocket:{name}"))
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(KINDS[name], tmp_path / "dumped.yaml") == config


def test_overrides_are_typed_nested_and_last_wins():
    config = load(
        TrainConfig,
        Path("pocket:vold"),
        ["optim.lr=1e-5", "objective.masked=false", "steps=3", "steps=4", "teacher.url=[grpc://a:1, grpc://b:2]"],
    )
    assert (config.optim.lr, config.objective.masked, config.steps) == (1e-5, False, 4)
    assert config.teacher.url == ["grpc://a:1", "grpc://b:2"]


def test_another_objective_starts_from_its_own_defaults():
    """pocket:vold sets eps_high, beta and masked: they are VOLD's."""
    same = load(TrainConfig, Path("pocket:vold"), ["objective.name=vold", "objective.beta=0.5"]).objective
    assert same == Vold(beta=0.5, masked=True, eps_low=0.2, eps_high=0.3)
    assert load(TrainConfig, Path("pocket:vold"), ["objective.name=gspo"]).objective == Gspo()
    chosen = load(TrainConfig, Path("pocket:vold"), ["objective.name=kdrl", "objective.mask=group"]).objective
    assert chosen == Kdrl(mask="group")


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_objective_is_chosen_by_its_name_and_survives_a_round_trip(name, tmp_path):
    traces = ["objective.traces=traces.jsonl"] if name == "gkd" else []
    config = load(TrainConfig, Path("pocket:vold"), [f"objective.name={name}", *traces])
    assert type(config.objective) is REGISTRY[name]
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(TrainConfig, tmp_path / "dumped.yaml") == config


def test_a_url_that_looks_like_a_mapping_is_a_url():
    config = load(TrainConfig, Path("pocket:vold"), ["verifier.url=local:", "verifier.parameters={accept: [boxed]}"])
    assert config.verifier.url == "local:"
    assert config.verifier.parameters == {"accept": ["boxed"]}


@pytest.mark.parametrize("value", ["off", "'off'", "false"])
def test_what_yaml_reads_as_false_is_off_for_a_teachers_alarms(value, tmp_path):
    config = load(TrainConfig, Path("pocket:vold"), [f"teacher.sane={value}"])
    assert config.teacher.sane == "off"
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(TrainConfig, tmp_path / "dumped.yaml") == config
    with pytest.raises(UsageError, match=r"teacher\.sane: .*'warn', 'stop' or 'off'; got 'wran'"):
        load(TrainConfig, Path("pocket:vold"), ["teacher.sane=wran"])


def test_overrides_reach_into_lists():
    config = load(EvalConfig, Path("pocket:eval"), ["data.1.limit=7"])
    assert [data.limit for data in config.data] == [500, 7]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning_rate=1"], "unknown key 'learning_rate'; did you mean 'optim.lr'?"),
        (["optim.learning_rate=1"], "unknown key 'optim.learning_rate'; did you mean 'optim.lr'?"),
        (["lr=1"], "unknown key 'lr'; did you mean 'optim.lr'?"),
        (["reward=math"], "unknown key 'reward'; did you mean 'verifier.name'?"),
        (["num_generations=4"], "unknown key 'num_generations'; did you mean 'rollout.group'?"),
        (["per-device-train-batch-size=4"], "'per-device-train-batch-size'; did you mean 'batch.micro'?"),
        (["temperature=1"], "unknown key 'temperature'; did you mean 'rollout.temperature'?"),
        (["model=x"], "unknown key 'model'; did you mean 'student.path'?"),
        (["teacher.modle=x"], "unknown key 'teacher.modle'; did you mean 'model'?"),
        (["kl_coef=1"], "unknown key 'kl_coef'; did you mean 'objective.beta'?"),
        (["quux=1"], "unknown key 'quux'; known keys here: out, seed"),
        (["objective.betta=1"], "unknown key 'objective.betta'; did you mean 'beta'"),
        (["learning_rate=1"], "unknown key 'learning_rate'"),
        (["optim.lr=fast"], "optim.lr: .*'fast'"),
        (["optim.lr=-1"], "optim.lr: .*greater than 0.*-1"),
        (["objective.name=ppo"], "objective.name: 'ppo' is no objective; known: grpo, dr-grpo, dapo"),
        (["objective.name=grop"], "'grop' is no objective; did you mean 'grpo'"),
        (["objective=vold"], "'vold' is no objective; write objective: {name: ...}"),
        (["objective={name: grpo, masked: true}"], "unknown key 'objective.masked'; known keys of objective 'grpo'"),
        (["objective.beta=-1"], "objective.beta: .*greater than or equal to 0; got -1"),
        (["objective.top_k=1"], "objective.top_k: .*greater than or equal to 2; got 1"),
        (["objective={name: kdrl, mask: some}"], "objective.mask: .*'none', 'response' or 'group'; got 'some'"),
        (["objective.name=gkd"], "objective.traces is not set.*student_share=1"),
        (["objective.name=srpo", "verifier=null"], "'srpo' needs a verifier: set verifier.url"),
        (["steps"], "'steps' is not KEY=VALUE"),
        (["student.path.deep=1"], "'path'"),
        (["data.3.limit=1"], "unknown key 'data.3'"),
        (["teacher=null"], "'vold' needs a teacher: set teacher.url"),
        (["rollout.group=1"], "rollout.group is 1"),
    ],
)
def test_mistakes_name_the_key_the_value_and_the_remedy(overrides, message):
    with pytest.raises(UsageError, match=message):
        load(TrainConfig, Path("pocket:vold"), overrides)


def test_files_that_are_not_configs(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml' does not exist"):
        load(TrainConfig, tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="holds a list"):
        load(TrainConfig, tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        load(TrainConfig, tmp_path / "broken.yaml")
    with pytest.raises(UsageError, match="'student' is missing"):
        load(SftConfig, None, ["out=x", "traces=y"])
    with pytest.raises(UsageError, match="pocket:vold"):
        load(TrainConfig, Path("pocket:wold"))


@pytest.mark.parametrize("key", ["vold_abcdefghijklmnop", "sk-123456", ""])
def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_shown(key):
    with pytest.raises(UsageError, match="not the name of an environment variable") as caught:
        load(TrainConfig, Path("pocket:vold"), ["out=x", f"teacher.api_key_env={key!r}"])
    assert not key or key not in str(caught.value)


def test_a_dumped_config_names_the_variable_and_the_files_and_holds_no_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", "vold_secret")
    overrides = ["out=x", "teacher.api_key_env=MY_KEY", "teacher.tls.ca=ca.pem"]
    text = dump(load(TrainConfig, Path("pocket:vold"), overrides))
    assert "vold_secret" not in text
    teacher = yaml.safe_load(text)["teacher"]
    assert (teacher["api_key_env"], teacher["tls"]["ca"]) == ("MY_KEY", "ca.pem")
