"""The verifiers a server offers: its own, those of installed packages, and those of plugin modules."""

import importlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, get_args

from vold_proto.distribution import advice
from vold_service.errors import ServiceError, not_found

from vold_verifier.settings import VerifierSettings
from vold_verifier.verifiers.base import Pool, Verifier

ENTRY_POINTS = "vold.verifiers"
NAMES = (
    *("name", "summary", "parameters", "cost", "pool", "tripwire", "deterministic", "version"),
    *("check", "warm_up"),
)
"""What a verifier has; those of verifiers/base.py bring defaults."""
REASONING_GYM = "reasoning-gym"
"""The built-in verifier whose package comes with an extra of its own."""
OPTIONAL = ("code",)
"""Built-in verifiers that are off unless they are enabled."""


class PluginError(ValueError):
    """A plugin cannot be used; the message names it and says why."""


def load(plugins: Iterable[str] = (), enable: Iterable[str] = ()) -> dict[str, Verifier[Any]]:
    """All verifiers by name: built in, from the entry-point group `vold.verifiers`, and from the modules in `plugins`.

    enable: names of built-in verifiers that are off otherwise (`OPTIONAL`). reasoning-gym is there where its package
    is. An entry point is a Verifier or a class of one; a plugin module has a list `VERIFIERS` of them. Raises
    PluginError.
    """
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

    found: dict[str, Verifier[Any]] = {}
    built_in: tuple[type[Verifier[Any]], ...] = (
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
    )
    for one in built_in:
        _add(found, one, "vold")
    for name in enable:
        if name not in OPTIONAL:
            raise PluginError(f"--enable {name}: there is no such option; it may be one of {', '.join(OPTIONAL)}")
    if find_spec("reasoning_gym") is not None:
        _add(found, ReasoningGymVerifier, "vold")
    if "code" in enable:
        _add(found, CodeVerifier, "vold")
    _add(found, CompositeVerifier, "vold")
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        origin = f"entry point {point.name} = {point.value}"
        try:
            loaded = point.load()
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{origin}: {error}; fix or uninstall its package") from error
        _add(found, loaded, origin)
    for name in plugins:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise PluginError(
                f"plugin {name!r}: {error}; give the dotted name of a module on the import path"
            ) from error
        listed = getattr(module, "VERIFIERS", None)
        if not isinstance(listed, list | tuple):
            raise PluginError(f"plugin {name!r} has no list VERIFIERS of its verifiers")
        for verifier in listed:
            _add(found, verifier, f"plugin {name}")
    return found


def _add(found: dict[str, Verifier[Any]], candidate: Any, origin: str) -> None:
    verifier = candidate() if isinstance(candidate, type) else candidate
    missing = [name for name in NAMES if not hasattr(verifier, name)]
    if missing:
        raise PluginError(f"{origin}: {candidate!r} has no {', '.join(missing)}; inherit from vold_verifier's Verifier")
    if verifier.pool not in get_args(Pool):
        raise PluginError(f"{origin}: its pool is {verifier.pool!r}; it may be one of {', '.join(get_args(Pool))}")
    if verifier.name in found:
        raise PluginError(f"{origin}: the name {verifier.name!r} is taken by another verifier; rename one of them")
    found[verifier.name] = verifier


def configured(settings: VerifierSettings) -> dict[str, Verifier[Any]]:
    """All that a server with these settings offers. Raises PluginError."""
    from vold_verifier.verifiers.judge import JudgeVerifier

    found = load(settings.plugins, settings.enable)
    if settings.judge_url:
        _add(found, JudgeVerifier(settings), "vold")
    return found


def of_pool(verifiers: Mapping[str, Verifier[Any]], pool: str) -> dict[str, Verifier[Any]]:
    """Those that run in `pool`."""
    return {name: one for name, one in verifiers.items() if one.pool == pool}


def look_up(verifiers: Mapping[str, Verifier[Any]], name: str, field: str) -> Verifier[Any]:
    """The verifier called `name`. Raises NOT_FOUND for `field`, with a suggestion or the list."""
    verifier = verifiers.get(name)
    if verifier is not None:
        return verifier
    raise _unknown(verifiers, name, field)


def _unknown(verifiers: Mapping[str, Verifier[Any]], name: str, field: str) -> ServiceError:
    if name == REASONING_GYM:
        return not_found(field, advice(f"verifier {name!r}", "reasoning_gym", "reasoning-gym", "ask another server"))
    close = get_close_matches(name, verifiers, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"this server has {', '.join(sorted(verifiers))}"
    return not_found(field, f"no verifier is called {name[:80]!r}: {remedy}")
