"""The verifiers of a server: the built-in verifiers, those of installed packages, and those of plugin modules."""

import importlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, get_args

from vold_proto.distribution import missing_extra_message
from vold_service.errors import ServiceError, not_found

from vold_verifier.settings import VerifierSettings
from vold_verifier.verifiers.base import Pool, Verifier

ENTRY_POINTS = "vold.verifiers"
NAMES = (
    *("name", "summary", "parameters", "cost", "pool", "tripwire", "deterministic", "version"),
    *("check", "warm_up"),
)
"""The attributes of a verifier; `verifiers.base.Verifier` has defaults for some."""
REASONING_GYM = "reasoning-gym"
"""The built-in verifier that needs the extra of the same name."""
OPTIONAL = ("code",)
"""Built-in verifiers that are off by default."""
OFF = {**{name: f"--enable {name}" for name in OPTIONAL}, "judge": "--judge-url and --judge-model"}
"""How to start a server that has a verifier that is off by default."""


class PluginError(ValueError):
    """A plugin cannot be used; the message names the plugin and the reason."""


def load(plugins: Iterable[str] = (), enable: Iterable[str] = ()) -> dict[str, Verifier[Any]]:
    """Return all verifiers by name: built-in, of the entry-point group `vold.verifiers`, and of the modules `plugins`.

    enable: built-in verifiers of `OPTIONAL` to turn on. reasoning-gym is included if its package is installed. An entry
    point is a Verifier or a subclass; a plugin module has a list `VERIFIERS` of them. Raises PluginError.
    """
    verifiers: dict[str, Verifier[Any]] = {}
    for name in enable:
        if name not in OPTIONAL:
            raise PluginError(f"--enable {name}: there is no such option; it may be one of {', '.join(OPTIONAL)}")
    for verifier_class in _built_in(enable):
        _add(verifiers, verifier_class, "vold")
    _add_entry_points(verifiers)
    for name in plugins:
        _add_plugin(verifiers, name)
    return verifiers


def _built_in(enable: Iterable[str]) -> tuple[type[Verifier[Any]], ...]:
    from vold_verifier.verifiers.boolean import BooleanVerifier
    from vold_verifier.verifiers.choice import ChoiceVerifier
    from vold_verifier.verifiers.code import CodeVerifier
    from vold_verifier.verifiers.composite import CompositeVerifier
    from vold_verifier.verifiers.exact import ExactVerifier
    from vold_verifier.verifiers.format import FormatVerifier
    from vold_verifier.verifiers.json import JsonVerifier
    from vold_verifier.verifiers.list import ListVerifier
    from vold_verifier.verifiers.math import MathVerifier
    from vold_verifier.verifiers.multi_choice import MultiChoiceVerifier
    from vold_verifier.verifiers.numeric import NumericVerifier
    from vold_verifier.verifiers.overlong import OverlongVerifier
    from vold_verifier.verifiers.reasoning_gym import ReasoningGymVerifier
    from vold_verifier.verifiers.regex import RegexVerifier
    from vold_verifier.verifiers.repetition import RepetitionVerifier

    reasoning_gym = (ReasoningGymVerifier,) if find_spec("reasoning_gym") is not None else ()
    code = (CodeVerifier,) if "code" in enable else ()
    return (
        MathVerifier,
        NumericVerifier,
        ChoiceVerifier,
        MultiChoiceVerifier,
        ExactVerifier,
        RegexVerifier,
        ListVerifier,
        BooleanVerifier,
        JsonVerifier,
        FormatVerifier,
        OverlongVerifier,
        RepetitionVerifier,
        *reasoning_gym,
        *code,
        CompositeVerifier,
    )


def _add_entry_points(verifiers: dict[str, Verifier[Any]]) -> None:
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        origin = f"entry point {point.name} = {point.value}"
        try:
            loaded = point.load()
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{origin}: {error}; fix or uninstall its package") from error
        _add(verifiers, loaded, origin)


def _add_plugin(verifiers: dict[str, Verifier[Any]], name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise PluginError(f"plugin {name!r}: {error}; give the dotted name of a module on the import path") from error
    listed = getattr(module, "VERIFIERS", None)
    if not isinstance(listed, list | tuple):
        raise PluginError(f"plugin {name!r} has no list VERIFIERS of its verifiers")
    for verifier in listed:
        _add(verifiers, verifier, f"plugin {name}")


def _add(verifiers: dict[str, Verifier[Any]], candidate: Any, origin: str) -> None:
    verifier = candidate() if isinstance(candidate, type) else candidate
    missing = [name for name in NAMES if not hasattr(verifier, name)]
    if missing:
        raise PluginError(f"{origin}: {candidate!r} has no {', '.join(missing)}; inherit from vold_verifier's Verifier")
    if verifier.pool not in get_args(Pool):
        raise PluginError(f"{origin}: its pool is {verifier.pool!r}; it may be one of {', '.join(get_args(Pool))}")
    if verifier.name in verifiers:
        raise PluginError(f"{origin}: the name {verifier.name!r} is taken by another verifier; rename one of them")
    verifiers[verifier.name] = verifier


def load_configured(settings: VerifierSettings) -> dict[str, Verifier[Any]]:
    """Return the verifiers of a server with these settings. Raises PluginError."""
    from vold_verifier.verifiers.judge import JudgeVerifier

    verifiers = load(settings.plugins, settings.enable)
    if settings.judge_url:
        _add(verifiers, JudgeVerifier(settings), "vold")
    return verifiers


def in_pool(verifiers: Mapping[str, Verifier[Any]], pool: str) -> dict[str, Verifier[Any]]:
    """Return the verifiers that run in `pool`."""
    return {name: verifier for name, verifier in verifiers.items() if verifier.pool == pool}


def look_up(verifiers: Mapping[str, Verifier[Any]], name: str, field: str) -> Verifier[Any]:
    """Return the verifier with that name. Raises NOT_FOUND for `field`, with a suggestion or the list of names."""
    verifier = verifiers.get(name)
    if verifier is not None:
        return verifier
    raise _unknown_verifier(verifiers, name, field)


def _unknown_verifier(verifiers: Mapping[str, Verifier[Any]], name: str, field: str) -> ServiceError:
    if name == REASONING_GYM:
        return not_found(
            field, missing_extra_message(f"verifier {name!r}", "reasoning_gym", "reasoning-gym", "ask another server")
        )
    if name in OFF:
        return not_found(field, f"verifier {name!r} is off on this server: start it with {OFF[name]}, or ask another")
    similar = get_close_matches(name, verifiers, n=1)
    remedy = f"did you mean {similar[0]!r}?" if similar else f"this server has {', '.join(sorted(verifiers))}"
    return not_found(field, f"no verifier is called {name[:80]!r}: {remedy}")
