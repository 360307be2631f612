"""Items for the verifier, made of examples."""

from collections.abc import Mapping
from typing import Any

from vold_client import Item

from vold_trainer.data import Example


def verifier_item(
    example: Example, completion: str, name: str, parameters: Mapping[str, Any], identifier: str = ""
) -> Item:
    """The item that verifies `completion` as an answer to the example's prompt.

    name, parameters: the verifier and its parameters for an example that names none. identifier: the id of the item.
    """
    return Item(
        verifier=verifier_name(example, name),
        completion=completion,
        reference=example.reference,
        prompt=example.prompt_text,
        parameters=dict(example.meta.get("parameters", parameters)),
        id=identifier,
    )


def verifier_name(example: Example, default: str) -> str:
    """The verifier that the example names, or else `default`."""
    return str(example.meta.get("verifier", default))
