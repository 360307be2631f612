"""The registry: the verifiers of a server, its plugins, and the errors of unknown names."""

import sys
import types

import pytest
from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError
from vold_verifier import registry
from vold_verifier.verifiers.math import MathVerifier


@pytest.fixture
def plugin(monkeypatch):
    def make(**content: object) -> str:
        module = types.ModuleType("some_plugin")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, "some_plugin", module)
        return "some_plugin"

    return make


def test_the_built_in_verifiers_have_schemas():
    verifiers = registry.load()
    assert list(verifiers) == [
        "math",
        "numeric",
        "choice",
        "multi-choice",
        "exact",
        "regex",
        "list",
        "boolean",
        "json",
        "format",
        "overlong",
        "repetition",
        "reasoning-gym",
        "composite",
    ]
    for verifier in verifiers.values():
        assert verifier.parameters.model_json_schema()["additionalProperties"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no list VERIFIERS"),
        ({"VERIFIERS": [MathVerifier]}, "'math' is taken"),
        ({"VERIFIERS": [object]}, "has no name"),
    ],
)
def test_an_invalid_plugin_is_named(plugin, content, message):
    with pytest.raises(registry.PluginError, match=message):
        registry.load([plugin(**content)])


class Elsewhere(MathVerifier):
    name = "elsewhere"
    pool = "gpu"


class Bare:
    """A verifier without the names that the sandbox needs."""

    name, summary, parameters, cost = "bare", "", MathVerifier.parameters, 1

    def check(self, item, parameters):
        raise AssertionError

    def warm_up(self):
        return


@pytest.mark.parametrize(("verifier", "message"), [(Elsewhere, "its pool is 'gpu'"), (Bare, "has no pool, tripwire")])
def test_a_plugin_without_a_valid_pool_is_refused_at_start(plugin, verifier, message):
    """Otherwise a composite with such a part would fail at its first item."""
    with pytest.raises(registry.PluginError, match=message):
        registry.load([plugin(VERIFIERS=[verifier])])


def test_a_missing_plugin_is_named():
    with pytest.raises(registry.PluginError, match="nowhere_at_all"):
        registry.load(["nowhere_at_all"])


def test_a_verifier_whose_extra_is_not_installed_is_named_with_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ServiceError, match="install vold with the extra 'reasoning-gym'") as caught:
        registry.look_up(registry.load(), registry.REASONING_GYM, "items[0].verifier")
    assert caught.value.code == status_pb2.NOT_FOUND


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ServiceError, match="did you mean 'numeric'") as caught:
        registry.look_up(registry.load(), "numerical", "items[3].verifier")
    assert caught.value.code == status_pb2.NOT_FOUND
    assert caught.value.field == "items[3].verifier"
