"""Loading configs from YAML files with dotted overrides, and errors that name the key, the value and the remedy."""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from vold_trainer.config.base import Config
from vold_trainer.config.names import meant_key
from vold_trainer.config.runs import COMMANDS
from vold_trainer.errors import UsageError
from vold_trainer.objectives import REGISTRY, Vold

ConfigT = TypeVar("ConfigT", bound=Config)


def load(kind: type[ConfigT], path: Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Load a config from a YAML file and `a.b=value` overrides, which are applied in order.

    path: None for no file; pocket:NAME for a config that ships with vold. Values are parsed as YAML.
    Raises UsageError that names the file, the key, the value and the remedy.
    """
    raw: dict[str, Any] = {}
    where = "command line"
    if path is not None:
        where = str(path)
        path = _shipped_config(where) if where.startswith("pocket:") else path
        if not path.is_file():
            raise UsageError(f"config file {where!r} does not exist: give the path of a YAML file")
        try:
            loaded = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise UsageError(f"{where} is not valid YAML: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise UsageError(f"{where} holds a {type(loaded).__name__}: a config is a mapping of keys to values")
        raw = loaded or {}
    for override in overrides:
        _apply_override(raw, override)
    try:
        return kind.model_validate(_parse_numbers(raw))
    except ValidationError as error:
        if path is not None and (other := _other_command(kind, raw)):
            raise UsageError(f"{where} holds the settings of `vold {other}`: give it to that command") from error
        raise UsageError(_explain(kind, error, where)) from error


def _other_command(kind: type[Config], raw: dict[str, Any]) -> str | None:
    """The command whose config these settings are, though they may not be complete."""
    for command, other in COMMANDS.items():
        if other is not kind:
            try:
                other.model_validate(_parse_numbers(raw))
            except ValidationError as error:
                if any(item["type"] != "missing" for item in error.errors()):
                    continue
            return command
    return None


def _shipped_config(name: str) -> Path:
    """The file of the shipped config pocket:NAME."""
    folder = Path(__file__).parents[1] / "pocket" / "configs"
    path = folder / f"{name.removeprefix('pocket:')}.yaml"
    if not path.is_file():
        known = ", ".join(f"pocket:{file.stem}" for file in sorted(folder.glob("*.yaml")))
        raise UsageError(f"there is no config {name!r}; shipped with vold: {known}")
    return path


def dump(config: Config) -> str:
    """The config as YAML with all defaults, so that the run's folder holds every setting."""
    values = config.model_dump(mode="json")
    if "objective" in values:
        values["objective"] = {"name": values["objective"].pop("name"), **values["objective"]}
    return yaml.safe_dump(values, sort_keys=False)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(f"override {override!r} is not KEY=VALUE: write for example optim.lr=1e-4")
    node: Any = raw
    parts = key.strip().split(".")
    for part in parts[:-1]:
        child = _child(node, part, override)
        if child is None:
            child = {}
            node[part] = child
        node = child
    last = parts[-1]
    parsed = _parse_value(value, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = parsed
    elif not isinstance(node, dict):
        raise UsageError(f"override {override!r}: {parts[-2]!r} is a plain value, nothing lies below it")
    elif parts == ["objective", "name"] and parsed != node.get("name", Vold.name):
        raw["objective"] = {"name": parsed}  # the options so far belong to the previous objective
    else:
        node[last] = parsed


def _parse_value(text: str, override: str) -> Any:
    """Parse a value on the command line as YAML. Mappings need braces: `local:` and `a: b` are text."""
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"override {override!r}: {text!r} is not a YAML value: {error}") from error
    return text.strip() if isinstance(parsed, dict) and "{" not in text else parsed


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise UsageError(f"override {override!r}: nothing lies below {part!r}, for its parent is a plain value")
    return node.get(part)


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UsageError(f"override {override!r}: {part!r} is no index into a list of {len(node)}")
    return int(part)


def _parse_numbers(node: Any) -> Any:
    """Parse numbers like 1e-4, which YAML 1.1 reads as strings."""
    if isinstance(node, dict):
        return {key: _parse_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_parse_numbers(value) for value in node]
    if isinstance(node, str) and node[:1] in "+-.0123456789" and "e" in node.lower():
        try:
            return float(node)
        except ValueError:
            return node
    return node


def _explain(kind: type[Config], error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        path = item["loc"]
        objective = next((REGISTRY[str(part)] for part in path[1:2] if path[0] == "objective"), None)
        if objective is not None:  # pydantic adds the name of the class, which is no key
            path = (path[0], *path[2:])
        key = ".".join(str(part) for part in path)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = [field.name for field in fields(objective)] if objective else _known_keys(kind, path[:-1])
            meant = meant_key(kind, path, known)
            here = f"of objective {objective.name!r}" if objective else "here"
            hint = f"did you mean {meant!r}?" if meant else f"known keys {here}: {', '.join(known)}"
            lines.append(f"{where}: unknown key {key!r}; {hint}")
        elif item["type"] == "union_tag_invalid":
            tag = item["ctx"]["tag"]
            near = difflib.get_close_matches(tag, REGISTRY, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            if not isinstance(item["input"], dict):
                tag, hint, key = str(item["input"]), "write objective: {name: ...}; ", "objective"
            lines.append(f"{where}: {key}.name: {tag!r} is no objective; {hint}known: {', '.join(REGISTRY)}")
        elif item["type"] == "missing":
            lines.append(f"{where}: {key!r} is missing: set it in the file or as {key}=VALUE")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if item["type"] == "value_error" else f"; got {item['input']!r}"
            lines.append(f"{where}: {key + ': ' if key else ''}{message}{got}")
    return "\n".join(lines)


def _known_keys(kind: type[Config], path: Sequence[int | str]) -> list[str]:
    """The fields of the model at `path`, through optional fields, lists and mappings."""
    model: type[BaseModel] | None = kind
    mapping = False
    for part in path:
        if model is None:
            return []
        if isinstance(part, int) or mapping:
            mapping = False
            continue
        field = model.model_fields.get(part)
        mapping = field is not None and get_origin(field.annotation) is dict
        model = _find_model(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _find_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if model := _find_model(argument):
            return model
    return None
