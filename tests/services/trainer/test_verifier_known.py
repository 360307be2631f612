"""A verifier or a parameter that the service does not know ends a command before its first step, and before anything is
loaded; what may still work does not end it.
"""

import json
import logging

import pytest
from fresh_interpreter import in_a_fresh_interpreter
from vold_client import Item
from vold_trainer.coldstart import run_traces
from vold_trainer.config import EvalConfig, TracesConfig, TrainConfig, VerifierConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.evaluation import run_eval
from vold_trainer.services.items import MAX_TRIALS, verifier_trials
from vold_trainer.services.local import Services
from vold_trainer.services.verifiers import check_verifier
from vold_trainer.training.train import run_train
from vold_trainer.verification import run_verify


def example(number=0, reference="2", **meta):
    return Example(f"row-{number}", ({"role": "user", "content": "1 + 1?"},), reference, meta=meta)


@pytest.fixture(params=["grpc", "http"])
def check(verifier, request):
    url = getattr(verifier, request.param)

    def check(examples, *, skip_broken=False, **config):
        made = VerifierConfig(url=url, **config)
        trials = verifier_trials(examples, made.name, made.parameters)
        check_verifier(made, Services(verifier_urls=(url,)), trials, skip_broken=skip_broken)

    return check


def test_what_the_service_knows_passes(check):
    check([])
    check([example()], name="numeric", parameters={"relative_tolerance": 0.1})
    check([example(), example(verifier="exact", parameters={"ignore_case": False})])


@pytest.mark.parametrize(
    ("config", "meta", "message"),
    [
        ({"name": "mth"}, None, "verifier.name is 'mth': no verifier is called 'mth': did you mean 'math'? ["),
        ({"name": "mth"}, {}, "verifier.name is 'mth': no verifier is called 'mth': did you mean 'math'? ["),
        ({}, {"verifier": "mth"}, "row 'row-0', field 'verifier' is 'mth': no verifier is called 'mth'"),
        (
            {"name": "exact", "parameters": {"ignore_cas": True}},
            {},
            "verifier.parameters.ignore_cas: verifier 'exact' has no such parameter; did you mean 'ignore_case'?",
        ),
        (
            {},
            {"verifier": "exact", "parameters": {"zzz": 1}},
            "row 'row-0', field 'parameters.zzz': verifier 'exact' has no such parameter; it has ",
        ),
        (
            {"name": "exact", "parameters": {"ignore_case": "maybe"}},
            {},
            "verifier.parameters.ignore_case: Input should be a valid boolean",
        ),
        (
            {"name": "composite", "parameters": {"parts": [{"verifier": "mth"}]}},
            {},
            "no verifier is called 'mth'",
        ),
    ],
)
def test_what_the_service_does_not_know_is_told_with_its_place(check, config, meta, message):
    with pytest.raises(UsageError) as raised:
        check([] if meta is None else [example(**meta)], **config)
    assert message in str(raised.value)
    assert "items[" not in str(raised.value)


def test_rows_are_told_together_and_skipped_where_broken_rows_are(check, caplog):
    rows = [example(number, verifier=f"no-{number}") for number in range(8)]
    with pytest.raises(UsageError) as raised:
        check(rows)
    assert str(raised.value).count("is 'no-") == 5
    assert str(raised.value).endswith("and 3 more like these")
    with caplog.at_level(logging.WARNING):
        check(rows, skip_broken=True)
    assert caplog.text.count("is 'no-") == 8
    with pytest.raises(UsageError, match=r"verifier\.name is 'mth'"):
        check([*rows[:1], example(9)], name="mth", skip_broken=True)


def test_a_reference_that_cannot_be_read_is_no_fault_of_the_verifier(check):
    check([example(reference="a dog")], name="numeric")


def test_trials_are_bounded_and_hold_every_verifier():
    rows = [example(number, parameters={f"p{number}": 1}) for number in range(MAX_TRIALS + 9)]
    rows += [example(number, verifier="exact") for number in range(3)]
    trials = verifier_trials(rows, "math", {})
    assert len(trials) == MAX_TRIALS
    assert [trial.item.verifier for trial in trials[:2]] == ["math", "exact"]
    assert trials[0].item == Item("math", "", "2", parameters={"p0": 1})
    assert len(verifier_trials([example(n) for n in range(9)], "math", {})) == 1


def test_a_service_that_is_away_is_left_to_the_run(caplog):
    config = VerifierConfig(url="grpc://127.0.0.1:9", timeout=0.2)
    with caplog.at_level(logging.WARNING):
        check_verifier(config, Services(verifier_urls=("grpc://127.0.0.1:9",)), verifier_trials([], "math", {}))
    assert "could not be checked" in caplog.text


COMMANDS = {
    "train": lambda out, student, verifier, teacher: run_train(
        TrainConfig(
            out=out, student=student, teacher=None, objective={"name": "grpo"}, steps=1, verifier=verifier,
            data={"limit": 4},
        )
    ),
    "eval": lambda out, student, verifier, teacher: run_eval(
        EvalConfig(out=out, student=student, verifier=verifier, data=[{"limit": 4}])
    ),
    "traces": lambda out, student, verifier, teacher: run_traces(
        TracesConfig(out=out / "traces.jsonl", teacher={"url": teacher}, verifier=verifier, data={"limit": 4})
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_ends_before_it_loads_anything(command, tmp_path, verifier, pocket_teacher):
    student, out = tmp_path / "student", tmp_path / "out"
    student.mkdir()
    (student / "config.json").write_text("{}")  # which no model can be loaded from
    out.mkdir()
    with pytest.raises(UsageError, match=r"verifier\.name is 'mth'.*did you mean 'math'"):
        command(out, {"path": str(student)}, {"url": verifier.grpc, "name": "mth"}, pocket_teacher.grpc)
    assert not list(out.iterdir())


def test_a_command_ends_before_torch_is_imported(tmp_path, verifier):
    common = [f"verifier.url={verifier.grpc}", "verifier.name=mth", "data.limit=4"]
    own = ["objective.name=grpo", "teacher=null", "student.path=pocket:student"]
    commands = [
        ["train", "pocket:vold", f"out={tmp_path}/run", *own, *common],
        ["eval", "pocket:eval", f"out={tmp_path}/run", "student.path=pocket:student", *common[:2]],
        ["verify", "-", "--verifier", "mth", "--url", verifier.grpc],
    ]
    for status, said, slow in in_a_fresh_interpreter(f"print(json.dumps([run(a) for a in {commands}]))"):
        assert (status, slow) == (1, [])
        assert "is 'mth': no verifier is called 'mth': did you mean 'math'?" in said


def test_a_row_is_told_with_its_line(tmp_path, verifier):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": str(n), "prompt": "1 + 1?", "reference": "2", "verifier": name} for n, name in enumerate(["math", "mth"])
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=r"rows\.jsonl:2: row '1', field 'verifier' is 'mth': no verifier is called"):
        run_eval(
            EvalConfig(
                out=tmp_path / "out", student={"path": "pocket:student"}, verifier={"url": verifier.grpc},
                data=[{"source": str(file)}],
            )
        )  # fmt: skip


def test_verify_with_an_unknown_verifier_ends_before_it_writes(tmp_path, verifier):
    file, out = tmp_path / "lines.jsonl", tmp_path / "verdicts.jsonl"
    file.write_text(json.dumps({"completion": "\\boxed{2}", "reference": "2"}) + "\n")
    with pytest.raises(UsageError, match=r"--verifier is 'mth': no verifier is called 'mth': did you mean 'math'"):
        run_verify(str(file), str(out), VerifierConfig(url=verifier.grpc, name="mth"))
    assert not out.exists()
    assert run_verify(str(file), str(out), VerifierConfig(url=verifier.grpc)) == 0
