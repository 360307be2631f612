"""Which items are accepted, and what they count of their tenant's tokens."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from vold_proto.v1 import verifier_pb2
from vold_service.errors import check_name, invalid

from vold_verifier import registry
from vold_verifier.engine.composite import part_field, part_items
from vold_verifier.engine.worker import first_error, read_parameters
from vold_verifier.reading.bounds import parameters_violation
from vold_verifier.settings import VerifierSettings
from vold_verifier.verifiers.base import Verifier
from vold_verifier.verifiers.composite import CompositeParameters

CHARACTERS_PER_TOKEN = 4


def check_count(count: int, limit: int) -> None:
    """Raise ServiceError if a request has more items than `limit`."""
    if count > limit:
        raise invalid("items", f"the request has {count} items, over the limit of {limit}: send fewer")


def check_item(
    item: verifier_pb2.VerifyItem, path: str, verifiers: Mapping[str, Verifier[Any]], settings: VerifierSettings
) -> Verifier[Any]:
    """Return the item's verifier. Raises ServiceError for an unknown verifier, a long text or bad parameters.

    path: prefix of the field that an error names. Parameters that take long to read are read by a worker alone,
    which refuses them in the same way.
    """
    check_name(path + "verifier", item.verifier)
    verifier = registry.look_up(verifiers, item.verifier, path + "verifier")
    for name, text, limit in (
        ("completion", item.completion, settings.max_completion_chars),
        ("prompt", item.prompt, settings.max_completion_chars),
        ("reference", item.reference, settings.max_reference_chars),
    ):
        if len(text) > limit:
            raise invalid(
                path + name, f"{path}{name} has {len(text):,} characters, over the limit of {limit:,}: shorten it"
            )
    if item.HasField("parameters") or verifier.name == "composite":
        if fault := parameters_violation(item.parameters, settings.max_parameters_bytes):
            raise invalid(path + "parameters", f"{path}parameters: {fault}")
        if getattr(verifier, "parameters_in_worker", False):  # a plugin may define the names of an older Verifier
            return verifier
        try:
            parameters = read_parameters(verifier, item.parameters)
        except ValidationError as error:
            field, message = first_error(error)
            raise invalid(path + field, f"{path}{message}") from None
        if isinstance(parameters, CompositeParameters):
            for number, part in enumerate(part_items(item, parameters)):
                check_item(part, f"{path}{part_field(parameters, number)}.", verifiers, settings)
    return verifier


def estimate_tokens(item: verifier_pb2.VerifyItem) -> int:
    """The item's share of its tenant's tokens a minute: a token is 4 characters, as the service has no tokenizer."""
    return -(-(len(item.completion) + len(item.prompt) + len(item.reference)) // CHARACTERS_PER_TOKEN)
