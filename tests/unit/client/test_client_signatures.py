"""The sync clients repeat the async clients' signatures: the same public methods with the same parameters."""

import inspect

import pytest
from vold_client import AsyncTeacherClient, AsyncVerifierClient, TeacherClient, VerifierClient

ASYNC_NAMES = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
"""The methods that an async client has under another name."""

CLIENTS = pytest.mark.parametrize(
    ("client", "async_client"), [(TeacherClient, AsyncTeacherClient), (VerifierClient, AsyncVerifierClient)]
)


def public_names(client):
    return {name for name in dir(client) if not name.startswith("_")}


def parameters(function):
    """Names, kinds and defaults; annotations may differ, because an async client also takes async iterators."""
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


@CLIENTS
def test_the_public_names_are_the_same(client, async_client):
    assert {ASYNC_NAMES.get(name, name) for name in public_names(client)} == public_names(async_client)


@CLIENTS
def test_the_parameters_are_the_same(client, async_client):
    for name in sorted(public_names(client) | {"__init__", *ASYNC_NAMES}):
        method, async_method = getattr(client, name), getattr(async_client, ASYNC_NAMES.get(name, name))
        if isinstance(method, property):
            assert isinstance(async_method, property), name
        else:
            assert parameters(method) == parameters(async_method), name
