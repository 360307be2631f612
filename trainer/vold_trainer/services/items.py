"""Items for the verifier, made of examples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vold_client import Item, Verdict

from vold_trainer.data import Example
from vold_trainer.services.verifiers import Trial

MAX_TRIALS = 256


def verifier_item(
    example: Example,
    completion: str,
    name: str,
    parameters: Mapping[str, Any],
    identifier: str = "",
    *,
    zero_on_limit: bool = False,
) -> Item:
    """The item that verifies `completion` as an answer to the example's prompt.

    name, parameters: the verifier and its parameters for an example that names none. identifier: the id of the item.
    zero_on_limit: reward 0 if the completion exceeds a limit of the verifier or crashes it; see `settle`.
    """
    return Item(
        verifier=verifier_name(example, name),
        completion=completion,
        reference=example.reference,
        prompt=example.prompt_text,
        parameters=_parameters(example, parameters),
        id=identifier,
        zero_on_failure=zero_on_limit,
    )


def settle(verdict: Verdict) -> Verdict:
    """`verdict`, as a wrong answer if it has reward 0 beside its error, as an item with `zero_on_limit` may have."""
    if verdict.error is None or verdict.reward is None:
        return verdict
    return replace(verdict, error=None, correct=False, reason=str(verdict.error))


def verifier_name(example: Example, default: str) -> str:
    """The verifier that the example names, or else `default`."""
    return str(example.meta.get("verifier", default))


def _parameters(example: Example, default: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that the example names, or else `default`, with the example's options."""
    own = dict(example.meta.get("parameters", default))
    return {"options": example.meta["options"], **own} if example.meta.get("options") else own


def verifier_trials(examples: Sequence[Example], name: str, parameters: Mapping[str, Any]) -> list[Trial]:
    """Trials of what the examples ask of the verifier, at most MAX_TRIALS: of each verifier, and then of each verifier
    with each set of parameters by their names. name, parameters: as for `verifier_item`.
    """
    first: dict[object, Example] = {}
    others: dict[object, Example] = {}
    for example in examples:
        verifier = verifier_name(example, name)
        if verifier not in first:
            first[verifier] = others[verifier, frozenset(_parameters(example, parameters))] = example
        else:
            others.setdefault((verifier, frozenset(_parameters(example, parameters))), example)
    chosen = {id(example): example for example in (*first.values(), *others.values())}
    trials = [_trial(example, name, parameters) for example in list(chosen.values())[:MAX_TRIALS]]
    return trials or [Trial(Item(verifier=name, completion="", reference="", parameters=dict(parameters)))]


def _trial(example: Example, name: str, parameters: Mapping[str, Any]) -> Trial:
    item = replace(verifier_item(example, "", name, parameters), prompt="")
    own_name, own_parameters = "verifier" in example.meta, bool(example.meta.keys() & {"parameters", "options"})
    row = example.label if own_name or own_parameters else ""
    named = f"{row}, field 'verifier'" if own_name else "verifier.name"
    return Trial(item, named, row, parameters_in_row=own_parameters)
