"""The teacher's prompt where the student has an image, or no system prompt: the run's teacher log-probabilities equal
those of a direct request for the same tokens after the twin.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from servers import serving
from transformers import AutoTokenizer
from vold_client import Completion, TeacherClient
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import SftConfig, TracesConfig, TrainConfig, load
from vold_trainer.data.jsonl import read_jsonl
from vold_trainer.errors import UsageError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.pocket.world import make_examples
from vold_trainer.student.models import load_student
from vold_trainer.student.traces import read_traces
from vold_trainer.training.train import run_train

SMALL = (
    *("rollout.prompts=3", "rollout.group=2", "rollout.max_tokens=24", "steps=1", "data.limit=6", "data.offset=0"),
    *("student.path=pocket:student", "objective={name: opd}", "threads=1"),
)
SYSTEM = "Be brief."
PROMPTS = {example.id.rpartition("-")[0]: example for example in make_examples("train", 6, modality="text")}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint_path("teacher"))


def samples(out, teacher, verifier, *overrides):
    """The samples of a run of one step."""
    urls = [f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}"]
    run_train(load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, *overrides]))
    (row,) = read_json_lines(out / "metrics.jsonl")
    assert row["missing/teacher"] == row["missing/masked_positions"] == 0
    rollouts = read_json_lines(out / "rollouts.jsonl")
    assert len(rollouts) >= 3
    return rollouts


def score_directly(teacher, prompts, rollouts, tokenizer):
    """The teacher's log-probabilities of the same tokens after other prompts (ids)."""
    completions = [
        Completion(index, tokenizer.convert_tokens_to_ids(sample["tokens"])) for index, sample in enumerate(rollouts)
    ]
    with TeacherClient(teacher.grpc) as client:
        return [score.logprobs.tolist() for score in client.score(prompts, completions).scores]


def rendered(tokenizer, sample, system=""):
    """The text prompt of a sample's problem, rendered without any code of the trainer's."""
    message = PROMPTS[sample["id"].rpartition("-")[0]].messages[0]
    messages = [*([{"role": "system", "content": system}] if system else []), message]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def assert_scores(rollouts, expected):
    for sample, logprobs in zip(rollouts, expected, strict=True):
        assert len(sample["teacher_logprobs"]) == len(sample["tokens"])
        assert sample["teacher_logprobs"] == pytest.approx(logprobs, abs=1e-4)


def test_the_teacher_scores_the_completion_of_an_image_prompt_after_its_twin(
    tmp_path, pocket_teacher, verifier, tokenizer
):
    rollouts = samples(tmp_path / "run", pocket_teacher, verifier, "data.modality=twin")
    assert all("[image]" in sample["prompt"] for sample in rollouts), "the student reads the picture"
    assert_scores(
        rollouts, score_directly(pocket_teacher, [rendered(tokenizer, s) for s in rollouts], rollouts, tokenizer)
    )
    blind = score_directly(pocket_teacher, [rendered(tokenizer, rollouts[0])[-3:]] * len(rollouts), rollouts, tokenizer)
    assert blind[0] != pytest.approx(rollouts[0]["teacher_logprobs"], abs=1e-2), "the prompt matters"


def test_the_diagnostics_use_the_twin_too(tmp_path, pocket_teacher, verifier, tokenizer):
    overrides = ("data.modality=twin", "rollout.prompts=1", "rollout.group=3", "rollout.temperature=1")
    rollouts = samples(tmp_path / "run", pocket_teacher, verifier, *overrides)
    assert len(rollouts) == 3, "all rollouts of the step, so that the metrics are of the samples"
    (row,) = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    completions = [
        Completion(index, tokenizer.convert_tokens_to_ids(sample["tokens"])) for index, sample in enumerate(rollouts)
    ]
    prompts = [rendered(tokenizer, sample) for sample in rollouts]
    with TeacherClient(pocket_teacher.grpc) as client:
        scores = client.score(prompts, completions, top_k=1, entropy=True).scores
        blind = client.score([prompt[-3:] for prompt in prompts], completions, entropy=True).scores
    assert row["teacher/entropy"] == pytest.approx(np.concatenate([s.entropy for s in scores]).mean(), abs=1e-5)
    assert row["teacher/entropy"] != pytest.approx(np.concatenate([s.entropy for s in blind]).mean(), abs=1e-2)
    assert 0 < row["overlap/ratio"] <= 1


@pytest.mark.parametrize("modality", ["text", "twin"])
def test_only_the_teacher_reads_its_system_prompt(modality, tmp_path, pocket_teacher, verifier, tokenizer):
    overrides = (f"data.modality={modality}", "rollout.temperature=1")
    with_system = samples(tmp_path / "a", pocket_teacher, verifier, *overrides, f"teacher.system={SYSTEM}")
    prompts = [rendered(tokenizer, sample, SYSTEM) for sample in with_system]
    assert_scores(with_system, score_directly(pocket_teacher, prompts, with_system, tokenizer))
    without = samples(tmp_path / "b", pocket_teacher, verifier, *overrides)
    assert [s["tokens"] for s in with_system] == [s["tokens"] for s in without], "the student read the same"
    assert [s["student_logprobs"] for s in with_system] == [s["student_logprobs"] for s in without]
    assert with_system[0]["teacher_logprobs"] != pytest.approx(without[0]["teacher_logprobs"], abs=1e-4)


def test_an_image_prompt_without_a_twin_is_an_error_before_a_run_with_a_teacher(tmp_path, pocket_teacher, verifier):
    with pytest.raises(UsageError, match=r"row 'train-000000-image' has an image.*'twin'.*objective without a teacher"):
        samples(tmp_path / "run", pocket_teacher, verifier, "data.modality=image")
    assert not (tmp_path / "run").exists()
    urls = ["teacher=null", f"verifier.url={verifier.grpc}", "data.modality=image", "objective={name: grpo}"]
    run_train(load(TrainConfig, Path("pocket:vold"), [f"out={tmp_path / 'grpo'}", *SMALL, *urls]))
    assert "[image]" in read_json_lines(tmp_path / "grpo" / "rollouts.jsonl")[0]["prompt"]


def test_a_teacher_with_other_ids_gets_the_text_and_may_use_its_own_template(tmp_path, verifier, tokenizer):
    """A teacher whose ids of `user` and `system` are swapped, with a chat template of its own."""
    folder = tmp_path / "teacher"
    shutil.copytree(checkpoint_path("teacher"), folder)
    file = json.loads((folder / "tokenizer.json").read_text())
    vocab = file["model"]["vocab"]
    vocab["user"], vocab["system"] = vocab["system"], vocab["user"]
    (folder / "tokenizer.json").write_text(json.dumps(file))
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}{{ eos_token }}"
    (folder / "chat_template.jinja").write_text(template)
    teacher_tokenizer = AutoTokenizer.from_pretrained(folder)
    with serving("teacher", "--model", str(folder)) as teacher:
        rollouts = samples(tmp_path / "a", teacher, verifier, "data.modality=twin")
        retokenized = [
            teacher_tokenizer.encode(tokenizer.decode(rendered(tokenizer, s)), add_special_tokens=False)
            for s in rollouts
        ]
        assert retokenized[0] != rendered(tokenizer, rollouts[0])
        assert_scores(rollouts, score_directly(teacher, retokenized, rollouts, tokenizer))
        rollouts = samples(tmp_path / "b", teacher, verifier, "data.modality=twin", "teacher.template=teacher")
        templated = [rendered(teacher_tokenizer, sample) for sample in rollouts]
        assert templated[0][-1] == teacher_tokenizer.eos_token_id
        assert_scores(rollouts, score_directly(teacher, templated, rollouts, tokenizer))


def test_traces_of_image_prompts_are_of_the_twins_and_train_the_student_on_the_images(tmp_path, pocket_teacher):
    def traces(modality):
        out = tmp_path / f"{modality}.jsonl"
        urls = [f"teacher.url={pocket_teacher.grpc}", "verifier=null", "keep=all", "temperature=0"]
        run_traces(
            load(
                TracesConfig, Path("pocket:traces"), [f"out={out}", *urls, "data.limit=6", f"data.modality={modality}"]
            )
        )
        return [row for _, row in read_jsonl(out)]

    twins, texts = traces("twin"), traces("text")
    assert [row["completion"] for row in twins] == [row["completion"] for row in texts]
    assert [row["twin_messages"] for row in twins] == [row["messages"] for row in texts]
    assert all((tmp_path / row["images"][0]).is_file() for row in twins)
    config = load(
        SftConfig,
        Path("pocket:sft"),
        [f"out={tmp_path / 'sft'}", f"traces={tmp_path / 'twin.jsonl'}", "steps=8", "batch=6", "student.freeze=[]"],
    )
    loaded = read_traces(config.traces, load_student(config.student))
    expected = make_examples("train", 6, modality="twin")
    assert [list(trace.example.images) for trace in loaded] == [list(example.images) for example in expected]
    assert [trace.example.twin for trace in loaded] == [example.twin for example in expected]
    run_sft(config)
    losses = [row["loss"] for row in read_json_lines(tmp_path / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    with pytest.raises(UsageError, match=r"row 'train-000000-image' has an image"):
        traces("image")
