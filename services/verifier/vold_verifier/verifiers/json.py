"""`json`: the answer is a JSON value that fits a schema and has the reference's fields, each with its weight."""

import json
import re
from typing import Any, ClassVar

from pydantic import Field, field_validator

from vold_verifier.reading import hacking
from vold_verifier.reading.extraction import Extraction, Place, find
from vold_verifier.reading.text import shorten
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import BadParameterError, Item, Verdict, Verifier

MAX_JSON_CHARS = 200_000
_FENCE = re.compile(r"```(?:json)?[^\S\n]*\n(?P<inside>.*?)```", re.DOTALL | re.IGNORECASE)
_MISSING = object()


class JsonParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("answer_tag", "final_part"),
        min_length=1,
        description="where the value may stand; of what is found there, the last ```json block if there is one",
    )
    schema_: dict[str, Any] = Field(
        default_factory=dict,
        alias="schema",
        description="a JSON schema (draft 2020-12, no references to elsewhere) that the value has to fit, or no reward",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description=(
            'the fields that count, by dotted path, and how much: {"name": 1, "address.city": 2, "tags.0": 1}; the '
            "reward is the share of weight that is right. Without them the whole value has to be the reference"
        ),
    )
    relative_tolerance: float = Field(default=0.0, ge=0, lt=1, description="for numbers, of the reference's value")
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
    summary: ClassVar[str] = "a JSON value: it fits a schema, and its fields are the reference's, by weight"
    parameters: ClassVar[type[JsonParameters]] = JsonParameters
    cost: ClassVar[int] = 8

    def warm_up(self) -> None:
        import jsonschema  # noqa: F401

    def check(self, item: Item, parameters: JsonParameters, /) -> Verdict:
        gold = _gold(item.reference, parameters)
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        text = found.answer
        for block in _FENCE.finditer(text):
            text = block["inside"]
        if len(text) > MAX_JSON_CHARS:
            return Verdict.wrong(text, f"{len(text):,} characters, over {MAX_JSON_CHARS:,}", hacking.UNSAFE)
        try:
            value = loads(text)
        except RecursionError:
            return Verdict.wrong(text, "nested too deep to be read", hacking.UNSAFE)
        except ValueError as error:
            return Verdict.wrong(text, f"no JSON: {error}")
        if parameters.schema_ and (fault := _misfit(value, parameters.schema_)) is not None:
            return Verdict.wrong(text, f"does not fit the schema: {fault}")
        if gold is _MISSING:
            return Verdict.right(text, "fits the schema")
        if not parameters.weights:
            same = _same(gold, value, parameters)
            return Verdict.right(text, "the same value") if same else Verdict.wrong(text, "another value")
        wrong = [path for path in parameters.weights if not _same(at(gold, path), at(value, path), parameters)]
        total = sum(parameters.weights.values())
        share = 1 - sum(parameters.weights[path] for path in wrong) / total
        if not wrong:
            return Verdict.right(text, "every field is right")
        return Verdict(share, False, text, f"wrong or missing: {shorten(', '.join(wrong), 200)}")


def loads(text: str) -> Any:
    """`text` as JSON, strictly: no NaN, no key twice. Raises ValueError, and RecursionError for deep nesting."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)


def at(value: Any, path: str) -> Any:
    """What stands at a dotted path, a private mark where nothing does; a part of digits is an index of an array."""
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _gold(reference: str, parameters: JsonParameters) -> Any:
    if not reference.strip():
        if parameters.schema_ and not parameters.weights:
            return _MISSING
        raise BadReferenceError("the reference is empty: give a JSON value, or a schema and no weights")
    try:
        gold = loads(reference)
    except (ValueError, RecursionError) as error:
        raise BadReferenceError(f"the reference is no JSON: {error}: {shorten(reference)}") from None
    for path in parameters.weights:
        if at(gold, path) is _MISSING:
            raise BadParameterError("weights", f"weights: the reference has no field {path!r}")
    return gold


def _misfit(value: Any, schema: dict[str, Any]) -> str | None:
    """The first way in which `value` does not fit, or None. Raises BadParameterError for a $ref that leads nowhere."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:  # an empty registry: nothing is ever fetched
        error = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(value))
    except Unresolvable as unresolved:
        raise BadParameterError("schema", f"schema: {shorten(str(unresolved))} leads out of the schema") from None
    return f"{shorten(error.message, 200)} at {error.json_path}" if error is not None else None


def _same(gold: Any, value: Any, parameters: JsonParameters) -> bool:
    if isinstance(gold, bool) or isinstance(value, bool) or gold is None or value is None:
        return gold is value
    if isinstance(gold, int | float) and isinstance(value, int | float):
        return gold == value or abs(value - gold) <= parameters.relative_tolerance * abs(gold)
    if isinstance(gold, str) and isinstance(value, str):
        return gold.casefold() == value.casefold() if parameters.ignore_case else gold == value
    if isinstance(gold, dict) and isinstance(value, dict):
        return gold.keys() == value.keys() and all(_same(gold[key], value[key], parameters) for key in gold)
    if isinstance(gold, list) and isinstance(value, list):
        return len(gold) == len(value) and all(_same(*pair, parameters) for pair in zip(gold, value, strict=True))
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return read


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
