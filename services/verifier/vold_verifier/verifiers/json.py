"""`json`: the answer is a JSON value that fits a schema and has the fields of the reference, each with a weight."""

import json
from typing import Any, ClassVar

from pydantic import Field, field_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Place, find
from vold_verifier.reading.fences import closed_blocks
from vold_verifier.reading.text import shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import BadParameterError, Item, Verdict, Verifier

MAX_JSON_CHARS = 200_000
_MISSING = object()


class JsonParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("answer_tag", "final_part"),
        min_length=1,
        description="where the value may stand; of several ```json blocks there the last counts",
    )
    schema_: dict[str, Any] = Field(
        default_factory=dict,
        alias="schema",
        description="a JSON schema (draft 2020-12, no external references); other values have reward 0",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description=(
            'weights of fields, by dotted path: {"name": 1, "address.city": 2, "tags.0": 1}; the reward is the weight '
            "of the fields that are right, as a share. By default the whole value must be the reference"
        ),
    )
    relative_tolerance: float = Field(
        default=0.0, ge=0, lt=1, description="for numbers, relative to the value in the reference"
    )
    absolute_tolerance: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="for numbers; the larger of the two tolerances applies"
    )
    ignore_case: bool = Field(default=False, description="treat upper and lower case in strings as equal")

    @field_validator("schema_")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"no JSON schema: {error.message[:200]} at {error.json_path}") from None
        return schema

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        for path, weight in weights.items():
            if not path or not 0 < weight < float("inf"):
                raise ValueError(f"{path!r}: {weight} is no weight; give a path and a number above 0")
        return weights


class JsonVerifier(Verifier[JsonParameters]):
    name: ClassVar[str] = "json"
    summary: ClassVar[str] = "a JSON value that fits a schema and has the fields of the reference, by weight"
    parameters: ClassVar[type[JsonParameters]] = JsonParameters
    cost: ClassVar[int] = 8
    parameters_in_worker: ClassVar[bool] = True

    def warm_up(self) -> None:
        import jsonschema  # noqa: F401

    def check(self, item: Item, parameters: JsonParameters, /) -> Verdict:
        reference = _parse_reference(item.reference, parameters)
        extracted = find(item.completion, parameters, item.prompt, verbatim=True)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        text = _last_value(extracted.answer)
        if len(text) > MAX_JSON_CHARS:
            return Verdict.wrong(text, f"{len(text):,} characters, over {MAX_JSON_CHARS:,}", hacking.UNSAFE)
        try:
            value = loads(text)
        except RecursionError:
            return Verdict.wrong(text, "nested too deep to be read", hacking.UNSAFE)
        except ValueError as error:
            return Verdict.wrong(text, f"no JSON: {error}")
        if parameters.schema_ and (violation := _schema_violation(value, parameters.schema_)) is not None:
            return Verdict.wrong(text, f"does not fit the schema: {violation}")
        if reference is _MISSING:
            return Verdict.right(text, "fits the schema")
        if not parameters.weights:
            equal = _equal(reference, value, parameters)
            return Verdict.right(text, "the same value") if equal else Verdict.wrong(text, "another value")
        wrong = [
            path
            for path in parameters.weights
            if not _equal(value_at(reference, path), value_at(value, path), parameters)
        ]
        total = sum(parameters.weights.values())
        share = 1 - sum(parameters.weights[path] for path in wrong) / total
        if not wrong:
            return Verdict.right(text, "every field is right")
        return Verdict(share, False, text, f"wrong or missing: {shorten(', '.join(wrong), 200)}")


def _last_value(text: str) -> str:
    """The last ```json block of `text`, else its last block without a language, else `text`."""
    blocks = closed_blocks(text)
    for language in ("json", ""):
        if of_language := [block.text for block in blocks if block.language == language]:
            return of_language[-1]
    return text


def loads(text: str) -> Any:
    """Parse strict JSON: no NaN, no duplicate keys. Raises ValueError, and RecursionError for deep nesting."""
    return json.loads(text, object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)


def value_at(value: Any, path: str) -> Any:
    """The value at a dotted path, or `_MISSING`. Digits in the path are an index if the value there is an array."""
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _parse_reference(reference: str, parameters: JsonParameters) -> Any:
    """The JSON value of `reference`, or `_MISSING` if there is only a schema to check."""
    if not reference.strip():
        if parameters.schema_ and not parameters.weights:
            return _MISSING
        raise BadReferenceError("the reference is empty: give a JSON value, or a schema and no weights")
    try:
        value = loads(reference)
    except (ValueError, RecursionError) as error:
        raise BadReferenceError(f"the reference is no JSON: {error}: {shorten(reference)}") from None
    for path in parameters.weights:
        if value_at(value, path) is _MISSING:
            raise BadParameterError("weights", f"weights: the reference has no field {path!r}")
    return value


def _schema_violation(value: Any, schema: dict[str, Any]) -> str | None:
    """Why `value` does not fit `schema`, or None. Raises BadParameterError for a $ref that does not resolve."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:  # with an empty registry nothing is fetched
        error = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(value))
    except Unresolvable as unresolved:
        raise BadParameterError("schema", f"schema: {shorten(str(unresolved))} leads out of the schema") from None
    return f"{shorten(error.message, 200)} at {error.json_path}" if error is not None else None


def _equal(reference: Any, value: Any, parameters: JsonParameters) -> bool:
    if isinstance(reference, bool) or isinstance(value, bool) or reference is None or value is None:
        return reference is value
    if isinstance(reference, int | float) and isinstance(value, int | float):
        tolerance = max(parameters.absolute_tolerance, parameters.relative_tolerance * abs(reference))
        return reference == value or abs(value - reference) <= tolerance
    if isinstance(reference, str) and isinstance(value, str):
        return reference.casefold() == value.casefold() if parameters.ignore_case else reference == value
    if isinstance(reference, dict) and isinstance(value, dict):
        return reference.keys() == value.keys() and all(
            _equal(reference[key], value[key], parameters) for key in reference
        )
    if isinstance(reference, list) and isinstance(value, list):
        return len(reference) == len(value) and all(
            _equal(*pair, parameters) for pair in zip(reference, value, strict=True)
        )
    return False


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("one object has the same key twice")
    return values


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
