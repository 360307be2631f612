"""What may change in a config between a checkpoint and the run that goes on from it.

Each key of a config has a rule. A change that is taken applies from the next step on and is printed. One that is
refused would make the run another one in the middle, or would have no effect. A key whose content counts may change if
it leads to the same rows or the same weights as before. A change that is irrelevant has no part in what the student
learns.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from vold_trainer.errors import ResumeRefusedError

Rule = Literal["taken", "refused", "content", "irrelevant"]

RULES: dict[str, tuple[Rule, str]] = {
    "out": ("irrelevant", "a run's folder may move"),
    "seed": ("refused", "it orders the rows and draws the completions"),
    "threads": ("irrelevant", ""),
    "trackers": ("irrelevant", ""),
    "steps": ("taken", "a schedule that decays is that of the new number"),
    "checkpoints.metric": ("refused", "the scores of the checkpoints so far are of the other metric"),
    "checkpoints.mode": ("refused", "the best checkpoints so far were kept by the other order"),
    "checkpoints.*": ("irrelevant", ""),
    "student.path": ("content", "the frozen weights, the vocabulary and the chat template"),
    "student.dtype": ("refused", "the weights and the moments have it"),
    "student.compute": ("taken", ""),
    "student.head_dtype": ("taken", ""),
    "student.add_tokens": ("refused", "the vocabulary has them, and the weights their rows"),
    "student.freeze": ("refused", "the checkpoint holds the weights that were trained"),
    "student.lora.dropout": ("taken", ""),
    "student.lora": ("refused", "the adapters have this shape and this scale"),
    "student.lora.*": ("refused", "the adapters have this shape and this scale"),
    "student.liger": ("taken", ""),
    "student.trust_remote_code": ("irrelevant", ""),
    "student.checkpoint_activations": ("irrelevant", ""),
    "student.chat_template_kwargs": ("refused", "they write the student's prompts"),
    "optim.*": ("taken", "the moments stay"),
    # vold sft
    "traces": ("content", "the traces"),
    "columns": ("content", "the traces"),
    "limit": ("content", "the traces"),
    "skip_broken": ("taken", ""),
    "max_tokens": ("content", "the traces"),
    "too_long": ("content", "the traces"),
    "traces_cache": ("irrelevant", ""),
    "validation.share": ("refused", "it decides which traces are learned"),
    "validation.*": ("irrelevant", ""),
    "batch": ("refused", "it decides which traces a step has"),
    "micro": ("taken", ""),
    # vold train
    "teacher": ("taken", "a teacher that differs needs allow_identity_change"),
    "teacher*.api_key_*": ("irrelevant", ""),
    "teacher*.tls.*": ("irrelevant", ""),
    "teacher*.timeout": ("irrelevant", ""),
    "teacher.*": ("taken", "a teacher that differs needs allow_identity_change"),
    "teachers": ("taken", "a teacher that differs needs allow_identity_change"),
    "teachers.*": ("taken", "a teacher that differs needs allow_identity_change"),
    "reference.api_key_*": ("irrelevant", ""),
    "reference.tls.*": ("irrelevant", ""),
    "reference.timeout": ("irrelevant", ""),
    "reference": ("taken", "null is the student at the start of the run, which has to be the same"),
    "reference.*": ("taken", "a reference that differs needs allow_identity_change"),
    "verifier.api_key_*": ("irrelevant", ""),
    "verifier.tls.*": ("irrelevant", ""),
    "verifier.timeout": ("irrelevant", ""),
    "verifier": ("taken", ""),
    "verifier.*": ("taken", ""),
    "data.name": ("irrelevant", ""),
    "data.check_images": ("irrelevant", ""),
    "data.skip_broken": ("taken", ""),
    "data.allow_change": ("irrelevant", ""),
    "data.*": ("content", "the rows, in their order; data.allow_change=true goes on with others"),
    "rollout.prompts": ("refused", "it decides which rows a step has"),
    "rollout.batch": ("irrelevant", ""),
    "rollout.max_mismatch": ("irrelevant", ""),
    "rollout.api_key_*": ("irrelevant", ""),
    "rollout.timeout": ("irrelevant", ""),
    "rollout.url": ("irrelevant", ""),
    "rollout.weights": ("irrelevant", ""),
    "rollout.weights_folder": ("irrelevant", ""),
    "rollout.nccl_address": ("irrelevant", ""),
    "rollout.image_backend": ("irrelevant", ""),
    "rollout.*": ("taken", "completions that were generated ahead with other sampling options are generated again"),
    "objective.name": ("refused", "it is another run"),
    "objective.rounds": ("refused", "it decides which rows a step has"),
    "objective.traces": ("content", "the traces"),
    "objective.*": ("taken", ""),
    "batch.*": ("taken", ""),
    "missing.*": ("taken", ""),
    "diagnostics.*": ("irrelevant", ""),
    "outage.*": ("irrelevant", ""),
    "samples_every": ("irrelevant", ""),
}
"""The rule of each key and its reason, by pattern: the first pattern that fits counts."""

TRACES_RULES: dict[str, tuple[Rule, str]] = {
    "out": ("irrelevant", "the file may move, with its `.partial`"),
    "seed": ("refused", "it draws the completions"),
    "teacher.url": ("irrelevant", "a teacher that differs needs allow_identity_change"),
    "teacher.model": ("refused", "it is another teacher"),
    "teacher.system": ("refused", "it is part of the prompts"),
    "teacher.chat_template_kwargs": ("refused", "they are part of the prompts"),
    "teacher.*": ("irrelevant", ""),
    "verifier": ("refused", "it decides which traces are kept"),
    "verifier.name": ("refused", "it decides which traces are kept"),
    "verifier.parameters": ("refused", "it decides which traces are kept"),
    "verifier.on_limit": ("refused", "it decides which traces are kept"),
    "verifier.*": ("irrelevant", ""),
    "data.name": ("irrelevant", ""),
    "data.check_images": ("irrelevant", ""),
    "data.allow_change": ("irrelevant", ""),
    "data.*": ("content", "the rows, in their order"),
    "samples": ("refused", "it decides which traces there are"),
    "max_tokens": ("refused", "the completions so far ended by it"),
    "max_trace_tokens": ("refused", "it decides which traces are kept"),
    "temperature": ("refused", "it draws the completions"),
    "top_p": ("refused", "it draws the completions"),
    "keep": ("refused", "it decides which traces are kept"),
    "in_flight": ("irrelevant", ""),
    "outage.*": ("irrelevant", ""),
    "openai_body": ("refused", "it draws the completions"),
}
"""As RULES, of a file of `vold traces` that is continued."""

SAMPLING = tuple(
    f"rollout.{name}" for name in ("group", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop")
)
"""Keys by which completions are drawn."""

MAPPINGS = ("data.columns", "columns", "verifier.parameters", "openai_body")
"""Settings that are mappings whose keys are no settings."""

REMEDY = (
    "Set it back, or begin a new run from the student so far: `vold export RUN FOLDER`, then student.path=FOLDER and "
    "another out"
)


@dataclass(frozen=True)
class Change:
    """A key with another value than at the checkpoint. before, now: JSON values."""

    key: str
    before: Any
    now: Any

    @property
    def rule(self) -> Rule:
        """Of a run; a file of traces has TRACES_RULES."""
        return rule_of(self.key)[0]

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"


def rule_of(key: str, rules: Mapping[str, tuple[Rule, str]] = RULES) -> tuple[Rule, str]:
    """(rule, reason) of a dotted key. Raises KeyError for a key without a rule."""
    for pattern, rule in rules.items():
        if fnmatchcase(key, pattern):
            return rule
    raise KeyError(key)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by dotted key. Lists, and mappings whose keys are no settings, are values."""
    return dict(_flat(values, ""))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, Mapping) and value and not (key in MAPPINGS or name == "chat_template_kwargs"):
            yield from _flat(value, key + ".")
        else:
            yield key, value


def changes(before: Mapping[str, Any], now: Mapping[str, Any], set_keys: Collection[str]) -> list[Change]:
    """The settings that differ, in the order of the config.

    before: a checkpoint's config, perhaps of an older version. now: the present one, with all defaults. set_keys: the
    keys of `now` whose value is not the default. A key that `before` lacks is newer than it, and had its default.
    """
    old, new = flat(before), flat(now)
    found = [
        Change(key, old.get(key), value)
        for key, value in new.items()
        if (old[key] != value if key in old else key in set_keys)
    ]
    # A mapping that is another kind of value now: the adapters of student.lora, a teacher that is not there any more.
    gone = [key for key in old if key not in new and any(key.startswith(f"{other}.") for other in new)]
    return found + [Change(key, old[key], None) for key in gone]


def require_resumable(found: Sequence[Change], other_content: Sequence[str], *, allow_data: bool) -> None:
    """Check the changes since a checkpoint. other_content: the keys that lead to other content than at the checkpoint.
    allow_data: whether other rows are allowed, `data.allow_change`.

    Raises ResumeRefusedError with every key that may not change, its values, the reason and the remedy.
    """
    lines = [f"{change} ({rule_of(change.key)[1]})" for change in found if change.rule == "refused"]
    refused = {change.key.partition(".")[0] for change in found if change.rule == "refused"}
    for key in other_content:
        section = key.partition(".")[0]
        if section == "student" and section in refused:  # what is frozen differs with it
            continue
        if section == "data" and allow_data:
            continue
        said = [str(change) for change in found if change.rule == "content" and change.key.startswith(section)]
        lines.append(f"{'; '.join(said) or key}: leads to other content than before ({rule_of(key)[1]})")
    if lines:
        listed = "\n  ".join(lines)
        raise ResumeRefusedError(f"this cannot change in a run that is resumed:\n  {listed}\n{REMEDY}")


def require_same_traces(found: Sequence[Change], *, same_rows: bool) -> None:
    """Check the changes since a file of traces was begun. same_rows: whether the rows are those of then.

    Raises ResumeRefusedError with every key that may not change, its values and the reason.
    """
    lines = []
    for change in found:
        rule, reason = rule_of(change.key, TRACES_RULES)
        if rule == "refused" or (rule == "content" and not same_rows):
            lines.append(f"{change} ({reason})")
    if not same_rows and not any(line.startswith("data.") for line in lines):
        lines.append("data: leads to other rows than before")
    if lines:
        listed = "\n  ".join(lines)
        raise ResumeRefusedError(
            f"this cannot change in a file of traces that is continued:\n  {listed}\nSet it back, begin anew with "
            "--overwrite, or set another out"
        )


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
