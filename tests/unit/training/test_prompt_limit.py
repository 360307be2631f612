"""`data.max_prompt_tokens`: prompts with more tokens are dropped and counted, or named, by a run and by its check."""

import pytest
from vold_trainer.checking.findings import CheckReport
from vold_trainer.checking.run import _limited
from vold_trainer.config import DataConfig, EvalConfig, StudentConfig, TracesConfig, TrainConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.pocket.world import make_examples
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.student.models import load_student
from vold_trainer.training.prompts import limited_prompts


@pytest.fixture(scope="module")
def student():
    return load_student(StudentConfig(path="pocket:student"))


@pytest.fixture(scope="module")
def examples():
    return [*make_examples("train", 6, modality="text"), *make_examples("train", 4, modality="image")]


def test_a_prompt_counts_with_its_pictures(student, examples, capsys):
    ranks = Ranks(make_accelerator())
    lengths = [len(student.prompt_ids([example])[0]) for example in examples]
    limit = sorted(lengths)[len(lengths) // 2]
    kept = limited_prompts(DataConfig(max_prompt_tokens=limit, too_long="drop"), student, examples, ranks)
    assert kept == [example for example, length in zip(examples, lengths, strict=True) if length <= limit]
    assert 0 < len(kept) < len(examples)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(kept)} prompts; dropped {len(examples) - len(kept)} with more than data.max_prompt_tokens" in said
    first = next(index for index, length in enumerate(lengths) if length > limit)
    message = rf"row '{examples[first].id}': its prompt has {lengths[first]} tokens, more than .* So have"
    with pytest.raises(UsageError, match=message):
        limited_prompts(DataConfig(max_prompt_tokens=limit), student, examples, ranks)
    with pytest.raises(UsageError, match=r"is 1, and each of the 10 prompts has more: raise it"):
        limited_prompts(DataConfig(max_prompt_tokens=1, too_long="drop"), student, examples, ranks)
    assert limited_prompts(DataConfig(), student, examples, ranks) == examples


@pytest.mark.parametrize(
    ("too_long", "limit", "level", "text", "kept"),
    [
        ("drop", 20, "ok", "1 of 3 prompts have more than data.max_prompt_tokens 20 and are dropped", [10, 20]),
        ("error", 20, "error", "1 of 3 prompts have more than data.max_prompt_tokens 20: raise it, or leave", [10, 20]),
        ("error", 30, "ok", "0 of 3 prompts have more than data.max_prompt_tokens 30", [10, 20, 30]),
        ("drop", 5, "error", "3 of 3 prompts have more than data.max_prompt_tokens 5: raise it", []),
    ],
)
def test_check_counts_them_too(examples, too_long, limit, level, text, kept):
    overrides = ["out=x", "student.path=pocket:student", f"data.max_prompt_tokens={limit}", f"data.too_long={too_long}"]
    report = CheckReport()
    measured = list(zip(examples, [10, 20, 30], strict=False))
    assert _limited(load(TrainConfig, None, overrides), report, measured) == measured[: len(kept)]
    assert [length for _, length in measured[: len(kept)]] == kept
    (finding,) = report.findings
    assert (finding.topic, finding.level) == ("data", level)
    assert finding.text.startswith(text)


@pytest.mark.parametrize(
    ("kind", "key"), [(TracesConfig, "data.max_prompt_tokens=9"), (EvalConfig, "data=[{max_prompt_tokens: 9}]")]
)
def test_a_command_that_does_not_apply_the_limit_refuses_it(kind, key):
    with pytest.raises(UsageError, match=r"data\.max_prompt_tokens is 9, and vold (traces|eval) counts no tokens"):
        load(kind, None, ["out=x", *(["student.path=pocket:student"] if kind is EvalConfig else []), key])
