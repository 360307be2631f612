"""The tables of gpu.md: which rows each has, of which a measurement fills the cells. No cell is ever estimated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

Key = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """name: in the results. part: that measures it. keys: headings of what identifies a row. columns: heading and
    format of each value, by its name. rows: of each size, in the order of the table.
    """

    name: str
    part: str
    title: str
    keys: tuple[str, ...]
    columns: Mapping[str, tuple[str, str]]
    rows: Mapping[str, Sequence[Key]]
    note: str = ""
    goals: str = field(default="")


def _product(*parts: Sequence[object]) -> list[Key]:
    return [tuple(map(str, key)) for key in product(*parts)]


ASKED = ("sampled token", "top-20", "candidates")
ATTENTIONS = ("auto", "varlen")
SETTINGS = (
    "weights",
    "weights, recomputed",
    "weights, micro-batches of 4",
    "LoRA",
    "LoRA, recomputed",
    "weights, recomputed, Liger",
)
"""Of a policy update. weights: all of the language model, float32, with products in bfloat16. recomputed: activations.
LoRA: rank 16 in all linear layers, base weights in bfloat16.
"""
SPEED = {"tokens_s": ("tokens/s", "{:,.0f}"), "peak_share": ("share of peak", "{:.0%}")}

TABLES = (
    Table(
        "scoring",
        "teacher",
        "Teacher: scoring, without the wire",
        ("attention", "tokens", "group", "asked for"),
        {"layout": ("layout", "{}"), **SPEED, "above_gib": ("GiB above the weights", "{:.1f}")},
        {
            "real": _product(ATTENTIONS, (512, 2048, 8192), (1, 8), ASKED),
            "tiny": _product(ATTENTIONS, (24,), (1, 3), ASKED),
        },
        note="Sequences of at most that many tokens, the shortest half as long; an eighth of them is the prompt, which "
        "a group shares. tokens/s: positions run through the model, padding not among them.",
        goals="at least 50 % of peak",
    ),
    Table(
        "service",
        "teacher",
        "Teacher: over gRPC, beside a bare forward pass",
        ("attention", "group"),
        {
            "bare_s": ("bare forward, s", "{:.3f}"),
            "backend_s": ("backend alone, s", "{:.3f}"),
            "service_s": ("service, s", "{:.3f}"),
            "ratio": ("bare / service", "{:.2f}x"),
        },
        {"real": _product(ATTENTIONS, (1, 8)), "tiny": _product(ATTENTIONS, (1, 3))},
        note="The same sequences, sampled tokens. Bare: padded passes, sorted by length, and the sampled tokens' "
        "log-probabilities; it shares no prompts.",
        goals="at least 0.95x",
    ),
    Table(
        "places",
        "teacher",
        "Teacher: where the time of a batch goes",
        ("attention", "part"),
        {"seconds": ("s", "{:.4f}"), "share": ("share", "{:.0%}")},
        dict.fromkeys(("real", "tiny"), _product(ATTENTIONS, ("layers", "head", "packing and copies", "wire"))),
        note="Groups of the largest size. The device is waited for between the parts.",
    ),
    Table(
        "head",
        "teacher",
        "Teacher: rows of logits held at once",
        ("MiB of float32 logits",),
        {"rows": ("rows", "{}"), "seconds": ("head, s", "{:.4f}"), "above_gib": ("GiB above the weights", "{:.2f}")},
        {"real": _product((64, 128, 256, 512, 1024)), "tiny": _product((1, 2))},
        note="The output head with top-20 over the positions of one batch.",
    ),
    Table(
        "update",
        "update",
        "Trainer: a policy update of 4 completions",
        ("setting", "tokens"),
        {
            "seconds": ("s", "{:.2f}"),
            **SPEED,
            "peak_gib": ("peak, GiB", "{:.1f}"),
            "check_gib": ("vold check, GiB", "{:.1f}"),
            "check_ratio": ("check / peak", "{:.2f}x"),
        },
        {"real": _product(SETTINGS, (1024, 2048, 4096, 8192)), "tiny": _product(SETTINGS, (24,))},
        note="VOLD's objective; micro-batches of 1 unless said otherwise. The share counts 3 forward passes, with LoRA "
        "2: not what is recomputed.",
        goals="vold check within 10 %",
    ),
    Table(
        "generation",
        "generation",
        "Trainer: generation by `hf`",
        ("prompt", "batch"),
        {"tokens_s": ("tokens/s", "{:,.0f}"), "step_ms": ("ms a token", "{:.1f}"), "peak_gib": ("peak, GiB", "{:.1f}")},
        {"real": _product((300, 4096), (1, 8, 40, 128)), "tiny": _product((12,), (1, 4))},
        note="Groups of up to 5 completions of a prompt; the prompts' own pass is not in the time of a token.",
    ),
    Table(
        "configs",
        "generation",
        "Trainer: generation in a step of the shipped config",
        ("config",),
        {
            "rollouts": ("completions", "{:,}"),
            "tokens": ("tokens each", "{:,}"),
            "hours": ("h, if all are that long", "{:.1f}"),
        },
        dict.fromkeys(("real", "tiny"), _product(("vold_qwen2.5vl_3b",))),
        note="Completions and tokens of the config, at the measured speed of the longer prompt in the config's batch.",
    ),
    Table(
        "step",
        "step",
        "A whole VOLD step, teacher and trainer on one device",
        ("span",),
        {"seconds": ("s", "{:.2f}"), "share": ("share of the step", "{:.0%}")},
        dict.fromkeys(
            ("real", "tiny"),
            _product(("step", "generate", "teacher", "verifier", "waiting", "optimise", "teacher beside generate")),
        ),
        note="The median of the steps after the first, from the run's timeline.jsonl.",
    ),
    Table(
        "step_setting",
        "step",
        "What that step was",
        ("of the run",),
        {"value": ("value", "{}")},
        dict.fromkeys(("real", "tiny"), _product(("student", "prompts x completions", "tokens", "peak, GiB"))),
    ),
)

PARTS = tuple(dict.fromkeys(table.part for table in TABLES))


def table_named(name: str) -> Table:
    return next(table for table in TABLES if table.name == name)
