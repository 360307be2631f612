"""What may change across --resume: every key of both configs, one at a time, generated from the schema."""

import re
from pathlib import Path

import pytest
from paths import ROOT
from vold_trainer.config import SftConfig, TracesConfig, TrainConfig
from vold_trainer.config.resuming import (
    RULES,
    TRACES_RULES,
    changes,
    flat,
    require_resumable,
    require_same_traces,
    rule_of,
)
from vold_trainer.errors import ResumeRefusedError
from vold_trainer.objectives import REGISTRY

STUDENT = {"path": "pocket:student"}
LORA = {**STUDENT, "lora": {"r": 4, "alpha": 8}}


def train(**values) -> TrainConfig:
    return TrainConfig.model_validate({"out": "run", "student": STUDENT, **values})


def objective(name: str) -> dict:
    return {"name": name, **({"traces": "traces.jsonl"} if REGISTRY[name]().needs.traces else {})}


CONFIGS = {
    "sft": SftConfig.model_validate({"out": "run", "student": STUDENT, "traces": "traces.jsonl"}),
    "lora": train(student=LORA),
    "teachers": train(teachers={"mathematics": {"default": True}, "code": {"tags": ["code"]}}),
    **{name: train(objective=objective(name)) for name in REGISTRY},
}


def dumped(config) -> dict:
    return config.model_dump(mode="json")


def other_value(value):
    """Another value of the same kind; whether the config takes it is not asked here."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "other"]
    return {"other": 1} if isinstance(value, dict) else "other"


def with_value(values: dict, key: str, value) -> dict:
    """A copy of the settings with another value at a dotted key."""
    name, _, rest = key.partition(".")
    if not rest:
        return {**values, name: value}
    return {**values, name: with_value(values[name], rest, value)}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_has_a_rule_and_a_change_of_it_is_found_and_treated_by_it(name):
    before = dumped(CONFIGS[name])
    set_keys = flat(CONFIGS[name].model_dump(mode="json", exclude_defaults=True))
    assert changes(before, before, set_keys) == []
    for key, value in flat(before).items():
        rule, _ = rule_of(key)
        now = with_value(before, key, other_value(value))
        found = changes(before, now, flat(now))
        if key == "teachers":  # one has come
            assert [change.key for change in found] == ["teachers.other"]
            continue
        assert [change.key for change in found] == [key]
        assert (found[0].before, found[0].now, found[0].rule) == (value, other_value(value), rule)
        if rule == "refused":
            with pytest.raises(ResumeRefusedError, match=re.escape(str(found[0]))):
                require_resumable(found, [], allow_data=False)
        else:
            require_resumable(found, [], allow_data=False)


def test_every_key_of_traces_has_a_rule_and_is_treated_by_it():
    before = dumped(TracesConfig.model_validate({"out": "t.jsonl"}))
    for key, value in flat(before).items():
        found = changes(before, with_value(before, key, other_value(value)), {})
        assert [change.key for change in found] == [key]
        rule, _ = rule_of(key, TRACES_RULES)
        require_same_traces([] if rule == "refused" else found, same_rows=True)
        if rule == "refused":
            with pytest.raises(ResumeRefusedError, match=re.escape(str(found[0]))):
                require_same_traces(found, same_rows=True)
        said = re.escape(str(found[0])) if rule == "content" else "data: leads to other rows"
        with pytest.raises(ResumeRefusedError, match=said):
            require_same_traces(found, same_rows=False)
    without = with_value(before, "verifier", None)
    with pytest.raises(ResumeRefusedError, match="verifier"):
        require_same_traces(changes(before, without, {}), same_rows=True)


def test_content_counts_and_not_the_path_to_it():
    before = dumped(CONFIGS["vold"])
    found = changes(before, with_value(before, "data.source", "moved.jsonl"), {})
    require_resumable(found, [], allow_data=False)
    with pytest.raises(ResumeRefusedError, match=r"data\.source: pocket -> moved\.jsonl: leads to other content"):
        require_resumable(found, ["data.source"], allow_data=False)
    require_resumable(found, ["data.source"], allow_data=True)
    with pytest.raises(ResumeRefusedError, match=r"student\.path: leads to other content"):
        require_resumable([], ["student.path"], allow_data=True)


def test_adapters_that_come_or_go_are_refused():
    with_lora, without = dumped(CONFIGS["lora"]), dumped(CONFIGS["vold"])
    for before, now in ((with_lora, without), (without, with_lora)):
        found = changes(before, now, flat({"student": LORA}))
        assert {change.key.rpartition(".")[0] or change.key for change in found} <= {"student.lora", "student"}
        with pytest.raises(ResumeRefusedError, match=r"student\.lora"):
            require_resumable(found, [], allow_data=False)


def test_a_key_that_is_newer_than_the_checkpoint_counts_if_it_is_set():
    now = dumped(CONFIGS["vold"])
    old = with_value(now, "optim", {key: value for key, value in now["optim"].items() if key != "max_skipped"})
    assert changes(old, now, {}) == []
    now["optim"]["max_skipped"] = 9
    (change,) = changes(old, now, {"optim.max_skipped"})
    assert str(change) == "optim.max_skipped: not set -> 9"


def test_the_documented_table_is_that_of_the_rules():
    """If it is not, paste the expected lines into the page."""
    tables = (RULES, TRACES_RULES)
    expected = [f"| `{key}` | {rule} | {reason} |" for table in tables for key, (rule, reason) in table.items()]
    page = Path(ROOT / "docs/guides/resume.md").read_text().splitlines()
    assert [line for line in page if line.startswith("| `")] == expected
