"""Every key of a run's config, changed across --resume, one at a time, in real runs: what is taken is in effect and
recorded, and what is refused is recorded nowhere.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from test_run_ends import settings
from vold_trainer.config import TrainConfig, load
from vold_trainer.config.resuming import flat, rule_of
from vold_trainer.errors import ResumeRefusedError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.training.train import run_train

pytestmark = pytest.mark.slow

VALUES = {
    "trackers": None, "student.path": str(checkpoint_path("student")), "student.dtype": "bfloat16",
    "student.add_tokens": [{"id": 110, "content": "<mark>"}],
    "student.compute": "bfloat16", "student.freeze": ["vision", "head"], "student.lora": {"r": 4},
    "steps": 3, "optim.betas": [0.8, 0.9], "optim.schedule": "linear", "teacher.template": "teacher",
    "teacher.sane": "warn", "teacher.min_shared": 0.5, "teachers": None, "verifier.name": "math",
    "verifier.on_limit": "zero",
    "verifier.parameters": {"relative_tolerance": 0.1}, "data.config": None, "data.split": "validation",
    "data.modality": "twin", "data.columns": None, "data.skip_broken": True, "data.image_folder": "/tmp",
    "data.check_images": "pixels", "data.adapter": None, "data.wording": "own", "rollout.top_p": 0.9,
    "rollout.engine": None, "rollout.vllm_args": ["--seed=1"], "rollout.weights": "disk",
    "rollout.weights_folder": "/tmp", "rollout.prompts": 4, "rollout.temperature": 0.7, "objective.name": "grpo",
    "objective.ratio": "sequence", "objective.support": "teacher", "objective.divergence": "k3",
    "objective.normalise": "token", "objective.clip": None, "missing.max_share": 0.5, "checkpoints.mode": "min",
    "checkpoints.metric": "loss", "student.trust_remote_code": None, "student.liger": None, "teacher.tls.ca": None,
    "teacher.tls.cert": None, "teacher.tls.key": None, "verifier.tls.ca": None, "verifier.tls.cert": None,
    "verifier.tls.key": None, "teacher.model": None, "teacher.url": None, "verifier.url": None, "out": None,
    "data.source": None, "data.image_token": "<picture>", "data.template": None, "data.too_long": "drop",
    "data.max_prompt_tokens": 500, "student.chat_template_kwargs": None,
    "student.head_dtype": "float32", "teacher.chat_template_kwargs": None, "teacher.only": "used",
    "reference": None, "rollout.stop": ["="], "rollout.image_backend": "pillow", "objective.truncated": "mask",
    "objective.kl_estimator": "k2", "objective.mask": "reward", "objective.rollout_cap": 2.0, "objective.gap_cap": 3.0,
    "optim.min_lr": 1e-4,
}  # fmt: skip
"""Other values of keys for which no value can be made from the present one. None: left out; the service, the file, the
package, the variable of a template or the GPU that it needs is not here, or another test is about it.
"""

BESIDE = {"optim.min_lr": "optim.schedule=cosine"}
"""What a key cannot be set without."""


def other_value(key, value):
    if key in VALUES:
        return VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    return None if value is None else f"{value}_OTHER"


@pytest.fixture(scope="module")
def run(tmp_path_factory, pocket_teacher, verifier) -> Path:
    """A run after two of its steps."""
    out = tmp_path_factory.mktemp("resumed") / "run"
    config = load(TrainConfig, Path("pocket:vold"), settings(out, pocket_teacher, verifier, "steps=2"))
    config.checkpoints.every = 2
    run_train(config, export=False)
    return out


def test_each_key_is_taken_refused_or_irrelevant_as_the_table_says(run, tmp_path, pocket_teacher, verifier):
    base = settings(run, pocket_teacher, verifier, "steps=4", "checkpoints.every=2")
    seen = {}
    for key, value in flat(load(TrainConfig, Path("pocket:vold"), base).model_dump(mode="json")).items():
        other = other_value(key, value)
        if other is None or other == value:
            continue
        out = tmp_path / key
        shutil.copytree(run, out)
        before = (out / "config.yaml").read_text()
        config = load(
            TrainConfig,
            Path("pocket:vold"),
            [*base, f"out={out}", f"{key}={json.dumps(other)}", *([BESIDE[key]] if key in BESIDE else [])],
        )
        now = flat(config.model_dump(mode="json"))
        rule = rule_of(key)[0]
        refusal = None
        try:
            run_train(config, resume=True, export=False)
        except ResumeRefusedError as error:
            refusal = str(error)
        if refusal is not None:
            seen[key] = "refused"
            assert rule in ("refused", "content"), key
            assert key.split(".")[0] in refusal, (key, refusal)
            assert (out / "config.yaml").read_text() == before, key
        else:
            seen[key] = "taken"
            assert rule != "refused", key
            recorded = flat(yaml.safe_load((out / "config.yaml").read_text()))
            assert recorded == now, key
            changed = json.loads((out / "run.json").read_text())["changes"]
            assert key in {change["key"].removesuffix(".r") for change in changed}, key
            assert len(read_json_lines(out / "metrics.jsonl")) == config.steps, key
        shutil.rmtree(out)
    assert {key for key, what in seen.items() if what == "refused"} == {
        *(
            "seed",
            "student.dtype",
            "student.add_tokens",
            "student.freeze",
            "student.lora",
            "rollout.prompts",
            "objective.name",
        ),
        *("checkpoints.metric", "checkpoints.mode", "data.split", "data.modality", "data.limit", "data.offset"),
        "data.seed",
    }
    assert len(seen) > 60
