"""What a run is told: YAML files validated by pydantic, with dotted overrides on the command line.

    load(TrainConfig, Path("configs/pocket_vold.yaml"), ["objective.beta=0.01", "optim.lr=1e-4"])

One model per component, beside the others here because a reader wants them on one page. Every field has its
unit or meaning in its description; an unknown key is an error that names the nearest known one.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from vold_trainer.errors import UsageError
from vold_trainer.objectives import REGISTRY, AnyObjective, Vold

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class StudentConfig(Config):
    path: str = Field(description="folder or hub name of the student; pocket:NAME is one that ships with vold")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="what it computes in")
    freeze: list[str] = Field(default=["vision"], description="parts that do not learn: vision, projector, embeddings")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    checkpoint_activations: bool = Field(default=False, description="compute activations twice to save memory")


def _variable(name: str) -> str:
    """Refuse what is no name of a variable, without showing it: it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.startswith("vold_"):
        raise ValueError(
            "not the name of an environment variable: put the API key into a variable and give the variable's name, so "
            "that no config and no log holds the key"
        )
    return name


VariableName = Annotated[str, AfterValidator(_variable)]


class TlsConfig(Config):
    """For grpcs:// and https:// URLs."""

    ca: Path | None = Field(default=None, description="PEM file of the CA that signed the service's certificate")
    cert: Path | None = Field(default=None, description="PEM file of the trainer's certificate, where one is asked for")
    key: Path | None = Field(default=None, description="PEM file of that certificate's key, not encrypted")


class TeacherConfig(Config):
    url: str | list[str] = Field(default="local:pocket:teacher", description="where the teacher is; several: replicas")
    model: str = Field(default="", description="which teacher of the service; empty: its default")
    api_key_env: VariableName = Field(
        default="VOLD_TEACHER_API_KEY", description="environment variable that holds the key"
    )
    tls: TlsConfig = TlsConfig()
    timeout: float = Field(default=120.0, gt=0, description="seconds for one call, retries included")
    allow_identity_change: bool = Field(default=False, description="go on when another teacher answers in mid-run")
    min_shared: float = Field(default=0.9, ge=0, le=1, description="least share of student ids that mean the same")


class RoutedTeacherConfig(TeacherConfig):
    """One of several teachers. A row asks the one that its field `teacher` names; else the one that claims one of its
    `tags`, or its `category`; else the default one.
    """

    tags: list[str] = Field(default_factory=list, description="tags and categories of rows that it teaches")
    default: bool = Field(default=False, description="teaches the rows that no other teacher claims")


class VerifierConfig(Config):
    url: str | list[str] = Field(default="local:", description="where the verifier is; local: starts one")
    name: str = Field(default="math", description="which verifier judges, where the row names none")
    parameters: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    api_key_env: VariableName = Field(
        default="VOLD_VERIFIER_API_KEY", description="environment variable that holds the key"
    )
    tls: TlsConfig = TlsConfig()
    timeout: float = Field(default=120.0, gt=0, description="seconds for one call, retries included")


class DataConfig(Config):
    name: str = Field(default="", description="what results call it; else the modality, or the file's name")
    source: str = Field(default="pocket", description="pocket, or a JSONL file")
    split: Literal["train", "validation", "test"] = Field(default="train", description="of the pocket world")
    modality: Literal["text", "image"] = Field(default="text", description="of the pocket world")
    limit: int | None = Field(default=None, ge=1, description="rows to use; all of a file where absent")
    offset: int = Field(default=0, ge=0, description="rows to leave out at the start")
    seed: int = Field(default=0, description="which problems the pocket world draws")
    skip_broken: bool = Field(default=False, description="leave out broken rows instead of stopping")

    @property
    def label(self) -> str:
        return self.name or (self.modality if self.source == "pocket" else Path(self.source).stem)


class OptimConfig(Config):
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = Field(default=5, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    max_grad_norm: float = Field(default=1.0, gt=0)


class RolloutConfig(Config):
    prompts: int = Field(default=16, ge=1, description="prompts a step (P)")
    group: int = Field(default=8, ge=1, description="completions of each prompt (G)")
    max_tokens: int = Field(default=96, ge=1, description="completion tokens at most")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=0, ge=0, description="sequences generated together; 0: all of a step")


def _objective_tag(value: Any) -> str:
    name = value.get("name", Vold.name) if isinstance(value, dict) else getattr(value, "name", "")
    return str(name)


if TYPE_CHECKING:
    ObjectiveConfig = AnyObjective
else:  # an objective's options are the fields of its class, and `name` says which class that is
    ObjectiveConfig = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in REGISTRY.items())],  # noqa: UP007
        Discriminator(_objective_tag),
    ]


class BatchConfig(Config):
    size: int = Field(default=0, ge=0, description="sequences in one optimiser step; 0: all of a step's rollouts")
    micro: int = Field(default=64, ge=1, description="sequences in one forward and backward pass")


class MissingConfig(Config):
    max_share: float = Field(default=0.2, ge=0, le=1, description="of a step's rollouts that may miss a score")
    patience: int = Field(default=3, ge=1, description="steps in a row above max_share before the run stops")


class RunConfig(Config):
    """What sft and train share."""

    out: Path = Field(description="the run's folder")
    seed: int = 0
    student: StudentConfig
    threads: int = Field(default=0, ge=0, description="CPU threads of this process; 0: torch's choice")
    trackers: list[str] = Field(
        default_factory=list, description="accelerate trackers: tensorboard, wandb, trackio, ..."
    )
    save_every: int = Field(default=0, ge=0, description="steps between checkpoints to resume from; 0: only at SIGTERM")


class SftConfig(RunConfig):
    """`vold sft`: completion-only loss on traces, vision tower frozen."""

    traces: Path = Field(description="JSONL of `vold traces`: messages and completion")
    steps: int = Field(default=250, ge=1)
    batch: int = Field(default=48, ge=1, description="sequences a step")
    micro: int = Field(default=64, ge=1, description="sequences in one forward and backward pass")
    optim: OptimConfig = OptimConfig(lr=1e-3, warmup_steps=20, schedule="cosine")


class TrainConfig(RunConfig):
    """`vold train`: GRPO, distillation, or both, on text-only prompts."""

    teacher: TeacherConfig | None = TeacherConfig()
    teachers: dict[str, RoutedTeacherConfig] = Field(
        default_factory=dict, description="several teachers by name, in place of `teacher`"
    )
    verifier: VerifierConfig | None = VerifierConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = Vold()
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig()
    missing: MissingConfig = MissingConfig()
    steps: int = Field(default=60, ge=1)
    samples_every: int = Field(default=10, ge=1, description="steps between rollouts kept for the report")

    @model_validator(mode="before")
    @classmethod
    def _several_stand_in_for_one(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("teachers") and "teacher" not in values:
            return {**values, "teacher": None}
        return values

    @model_validator(mode="after")
    def _has_its_services(self) -> "TrainConfig":
        name, needs = self.objective.name, self.objective.needs
        if self.teacher is not None and self.teachers:
            raise ValueError(
                f"teacher and teachers ({', '.join(self.teachers)}) are both set: set teacher=null, or drop teachers"
            )
        if needs.teacher and self.teacher is None and not self.teachers:
            raise ValueError(f"objective.name {name!r} needs a teacher: set teacher.url")
        if needs.reward and self.verifier is None:
            raise ValueError(f"objective.name {name!r} needs a verifier: set verifier.url")
        if needs.reward and self.rollout.group < 2:
            raise ValueError("rollout.group is 1: a group advantage needs at least 2 completions of each prompt")
        if needs.traces and getattr(self.objective, "traces", None) is None:
            raise ValueError(
                f"objective.traces is not set, and objective {name!r} learns from given completions too: set it to a "
                "file of `vold traces`, or objective.student_share=1"
            )
        self._check_routes()
        return self

    def _check_routes(self) -> None:
        if len(defaults := [name for name, teacher in self.teachers.items() if teacher.default]) > 1:
            raise ValueError(f"teachers {' and '.join(defaults)} are both the default: set default=true for one only")
        claimed: dict[str, str] = {}
        for name, teacher in self.teachers.items():
            for tag in teacher.tags:
                if tag in claimed:
                    raise ValueError(
                        f"teachers.{claimed[tag]} and teachers.{name} both claim the tag {tag!r}: choose one"
                    )
                claimed[tag] = name


class TracesConfig(Config):
    """`vold traces`: cold-start completions sampled from the teacher."""

    out: Path = Field(description="JSONL to write")
    seed: int = 0
    teacher: TeacherConfig = TeacherConfig()
    verifier: VerifierConfig | None = VerifierConfig()
    data: DataConfig = DataConfig(limit=3000)
    samples: int = Field(default=1, ge=1, description="completions of each prompt")
    max_tokens: int = Field(default=96, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    keep: Literal["all", "correct"] = Field(default="correct", description="correct: only what the verifier accepts")
    request: int = Field(default=256, ge=1, description="prompts in one call")


class EvalConfig(Config):
    """`vold eval`: greedy accuracy on one or more sets."""

    out: Path = Field(description="folder for eval.json and eval_samples.jsonl")
    student: StudentConfig
    verifier: VerifierConfig = VerifierConfig()
    data: list[DataConfig] = [
        DataConfig(split="test", modality="text", limit=500),
        DataConfig(split="test", modality="image", limit=500),
    ]
    max_tokens: int = Field(default=96, ge=1)
    batch: int = Field(default=128, ge=1, description="sequences generated together")
    samples: int = Field(default=12, ge=0, description="answers of each set kept for the report")
    threads: int = Field(default=0, ge=0, description="CPU threads of this process; 0: torch's choice")


def load(kind: type[ConfigT], path: Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """A config from a YAML file and `a.b=value` overrides, later ones winning.

    path: None for an empty one; pocket:NAME for one that ships with vold. Values are read as YAML.
    Raises UsageError that names the file, the key, the value and the remedy.
    """
    raw: dict[str, Any] = {}
    where = "command line"
    if path is not None:
        where = str(path)
        path = _shipped(where) if where.startswith("pocket:") else path
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
        _set(raw, override)
    try:
        return kind.model_validate(_numbers(raw))
    except ValidationError as error:
        raise UsageError(_explain(kind, error, where)) from error


def _shipped(name: str) -> Path:
    """The file of a config that ships with vold, pocket:NAME."""
    folder = Path(__file__).parent / "pocket" / "configs"
    path = folder / f"{name.removeprefix('pocket:')}.yaml"
    if not path.is_file():
        known = ", ".join(f"pocket:{file.stem}" for file in sorted(folder.glob("*.yaml")))
        raise UsageError(f"there is no config {name!r}; shipped with vold: {known}")
    return path


def dump(config: Config) -> str:
    """The config as YAML, every default written out, so that a run's folder says all that was chosen."""
    values = config.model_dump(mode="json")
    if "objective" in values:
        values["objective"] = {"name": values["objective"].pop("name"), **values["objective"]}
    return yaml.safe_dump(values, sort_keys=False)


def _set(raw: dict[str, Any], override: str) -> None:
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
    parsed = _value(value, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = parsed
    elif not isinstance(node, dict):
        raise UsageError(f"override {override!r}: {parts[-2]!r} is a plain value, nothing lies below it")
    elif parts == ["objective", "name"] and parsed != node.get("name", Vold.name):
        raw["objective"] = {"name": parsed}  # the options that stood there were another objective's
    else:
        node[last] = parsed


def _value(text: str, override: str) -> Any:
    """What a value on the command line means: YAML, but `local:` and `a: b` are text, for they hold no {."""
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


def _numbers(node: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a string; people mean the number."""
    if isinstance(node, dict):
        return {key: _numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_numbers(value) for value in node]
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
        if objective is not None:  # the name of its class is no key
            path = (path[0], *path[2:])
        key = ".".join(str(part) for part in path)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = [field.name for field in fields(objective)] if objective else _keys(kind, path[:-1])
            near = difflib.get_close_matches(str(path[-1]), known, n=1)
            here = f"of objective {objective.name!r}" if objective else "here"
            hint = f"did you mean {near[0]!r}?" if near else f"known keys {here}: {', '.join(known)}"
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


def _keys(kind: type[Config], path: Sequence[int | str]) -> list[str]:
    """The fields of the model that `path` leads to, through optional fields, lists and mappings."""
    model: type[BaseModel] | None = kind
    mapping = False
    for part in path:
        if model is None:
            return []
        if isinstance(part, int) or mapping:
            mapping = False
            continue
        found = model.model_fields.get(part)
        mapping = found is not None and get_origin(found.annotation) is dict
        model = _model_in(found.annotation) if found else None
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if model := _model_in(argument):
            return model
    return None
