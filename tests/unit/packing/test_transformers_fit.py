"""What the teacher and the trainer take of transformers beyond its documentation: tried when a model is loaded."""

import re
import subprocess
import sys

import pytest
import torch
import transformers
from paths import ROOT
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from vold_packing import packed
from vold_packing.transformers import NEWEST, IncompatibleVersionError, cache_name, tiny_model, undocumented
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.backends.trial import try_transformers as try_teacher
from vold_trainer.config import StudentConfig
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.student import shared_prompts
from vold_trainer.student.models import load_student
from vold_trainer.student.trial import try_transformers as try_trainer


@pytest.fixture
def afresh():
    """Each process tries once."""
    for trial in (try_teacher, try_trainer):
        trial.cache_clear()
    yield
    for trial in (try_teacher, try_trainer):
        trial.cache_clear()


def _load_teacher():
    TorchBackend(checkpoint_path("teacher"), limits=DecoderLimits())


def _load_student():
    load_student(StudentConfig(path="pocket:student"))


BOTH = pytest.mark.parametrize("load", [_load_teacher, _load_student])


@BOTH
def test_a_cache_that_calls_its_layers_otherwise_is_refused_when_a_model_is_loaded(load, afresh, monkeypatch):
    def update(self, keys, values, layer_idx, *args, **kwargs):
        return self.layers[layer_idx].append(keys, values)

    monkeypatch.setattr(Cache, "update", update)
    with pytest.raises(IncompatibleVersionError) as refused:
        load()
    assert f"transformers {transformers.__version__} does not fit" in str(refused.value)
    assert f"transformers=={NEWEST}" in str(refused.value)
    assert "'append'" in str(refused.value)


@BOTH
def test_attention_that_models_no_longer_look_up_is_refused_when_a_model_is_loaded(load, afresh, monkeypatch):
    for name in (packed.ATTENTION, shared_prompts.ATTENTION):
        monkeypatch.setitem(AttentionInterface._global_mapping, name, sdpa_attention_forward)
    with pytest.raises(IncompatibleVersionError, match=r"packed sequences|layers have keys and values"):
        load()


def test_a_trial_leaves_random_numbers_alone(afresh):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    try_teacher()
    try_trainer()
    assert torch.equal(torch.rand(4), expected)


def test_a_name_that_is_gone_is_refused_and_a_package_that_is_missing_stays_a_missing_package():
    with pytest.raises(IncompatibleVersionError, match="no_such_name"), undocumented():
        from transformers import no_such_name  # noqa: F401
    with pytest.raises(IncompatibleVersionError, match="no_such_module"), undocumented():
        import transformers.no_such_module  # noqa: F401
    with pytest.raises(ModuleNotFoundError), undocumented():
        import no_such_package  # noqa: F401


def test_the_cache_goes_by_the_name_that_the_model_takes():
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3]])
    cache = DynamicCache()
    model(input_ids=ids, use_cache=True, **{cache_name(model.forward): cache})
    assert cache.get_seq_length() == 3
    assert cache_name(lambda input_ids, past_key_values=None: None) == "past_key_values"
    assert cache_name(lambda input_ids, cache=None: None) == "cache"


def test_the_version_to_go_back_to_is_the_locked_one():
    locks = ROOT / "locks"
    for name in ("dev", "teacher", "trainer"):
        assert re.findall(r"^transformers==(\S+)", (locks / f"{name}.txt").read_text(), re.M) == [NEWEST]


def test_a_command_line_that_computes_nothing_does_not_wait_for_torch():
    code = "import contextlib, sys; from vold_trainer import cli; sys.argv = ['vold', '--help']\n"
    code += "with contextlib.suppress(SystemExit):\n    cli.main()\nprint('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
