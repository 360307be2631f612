"""The accuracy of the verifiers, and of math-verify alone, on the same items.

python benchmarks/conformance.py [--cases cases.jsonl] [--gsm8k test.jsonl] [--show] [--no-math-verify]

The cases in tests/cases come with the repository. --cases: labelled cases from other graders' tests, JSON lines with
`id`, `kind`, `gold`, `prediction`, `expected` and `tier`; the kind reasoning_gym also has the task's `dataset` and
`entry`, and is left out if reasoning-gym is not installed. --gsm8k: GSM8K's questions; each reference is compared with
itself and with other numbers derived from it. --show prints every disagreement.

"paid": wrong items with a reward. "refused": right items without a reward. math-verify gets the reference in a box and
the unchanged completion; an exception or its own limit of 5 s counts as refused. It supports no choices, texts,
tolerances or tasks, so only the verifiers run on those kinds.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import show
from vold_proto.v1 import verifier_pb2
from vold_verifier import registry
from vold_verifier.engine import worker
from vold_verifier.sandbox.tripwire import Tripwire

CASES = Path(__file__).parents[1] / "tests" / "cases"
LOOSE = {"ignore_case": True, "ignore_punctuation": True, "ignore_articles": True}
VERIFIERS = registry.load()
TIMER_SECONDS = 5.0
KINDS = ("mathematics", "others", "reasoning-gym")


@dataclass(frozen=True)
class LabelledItem:
    """expected: whether the item deserves a reward."""

    name: str
    verifier: str
    parameters: dict[str, Any]
    completion: str
    reference: str
    expected: bool
    prompt: str = ""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return {"math": "mathematics", "reasoning-gym": "reasoning-gym"}.get(self.verifier, "others")


def to_item(case: dict[str, Any]) -> LabelledItem:
    """The item of a labelled case, with the verifier and the parameters that match the case's own grader."""
    kind, options, text = case["kind"], case.get("opts", {}), case["prediction"]
    parameters: dict[str, Any] = {}
    verifier = "math"
    if kind in ("choice", "choice_boxed"):
        verifier = "choice"
        if case.get("options"):
            parameters["options"] = {letter: option for choice in case["options"] for letter, option in choice.items()}
        if kind == "choice_boxed":
            parameters["accept"] = ["boxed"]
    elif kind == "string":
        verifier, parameters = "exact", {**LOOSE, "accept": ["answer_tag", "final_part"]}
    elif kind == "answer_tag":
        parameters = {"accept": ["answer_tag"]}
        if case["gold"].isalnum() and not case["gold"].isdigit():
            verifier, parameters = "exact", {**LOOSE, **parameters}
    elif kind in ("float", "cascade"):
        verifier = "numeric" if re.fullmatch(r"-?[\d.]+", case["gold"]) or kind == "float" else "exact"
        parameters = {"relative_tolerance": options.get("rel_tol", 0), "absolute_tolerance": options.get("abs_tol", 0)}
        if verifier == "exact":
            parameters = {"ignore_case": True}
    elif kind in ("boxed", "reasoning_boxed"):
        parameters = {"accept": ["boxed"]}
    elif kind == "geo3k_bracket" and (matches := re.findall(r"\[([^\]]*)\]", text)):
        text = rf"\boxed{{{matches[-1]}}}"
    elif kind == "reasoning_gym":
        # As JSON text, because a Struct turns integers into floats.
        verifier, parameters = "reasoning-gym", {"task": case["dataset"], "entry": json.dumps(case["entry"])}
        text = f"<answer>{text}</answer>"
    return LabelledItem(case["id"], verifier, parameters, text, case["gold"], case["expected"])


def labelled_items(path: Path, tier: str) -> Iterator[LabelledItem]:
    for line in path.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if case["tier"] == tier and (case["kind"] != "reasoning_gym" or find_spec("reasoning_gym")):
            yield to_item(case)


def equality_items() -> Iterator[LabelledItem]:
    for line in (CASES / "math_equality.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for expected, answers in ((True, row["equal"]), (False, row["different"])):
            for answer in answers:
                name = f"{row['reference']} <- {answer}"
                yield LabelledItem(name, "math", {}, rf"The result: \boxed{{{answer}}}", row["reference"], expected)


def adversarial_items() -> Iterator[LabelledItem]:
    for line in (CASES / "verifier_adversarial.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row["completion"]
        if row.get("heavy") or row["correct"] is None:
            continue
        text = text if isinstance(text, str) else "".join(part * times for part, times in text)
        yield LabelledItem(
            f"{row['id']} {row['why']}",
            row["verifier"],
            row.get("parameters", {}),
            text,
            row["reference"],
            row["correct"],
            row.get("prompt", ""),
        )


def gsm8k_items(path: Path) -> Iterator[LabelledItem]:
    """Each reference in several spellings, and other numbers."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        answer = json.loads(line)["answer"]
        gold = answer.rpartition("####")[2].strip()
        plain = gold.replace(",", "")
        value = int(plain) if re.fullmatch(r"-?\d+", plain) else float(plain)
        same = [plain, f"{value:,}", f"\\${value:,}", f"{plain}.00" if isinstance(value, int) else plain]
        others = [
            value + 1,
            value - 1,
            10 * value + 1,
            -value if value else 7,
            f"{value}1",
            value + 0.5,
            f"1/{abs(value) + 1}",
        ]
        for position, text in enumerate([*same, *others]):
            yield LabelledItem(f"{number} {text}", "math", {}, rf"So \boxed{{{text}}}.", answer, position < len(same))


def vold_accepts(item: LabelledItem, timer: Any) -> bool:
    message = verifier_pb2.VerifyItem(
        verifier=item.verifier, completion=item.completion, reference=item.reference, prompt=item.prompt
    )
    if item.parameters:
        message.parameters.update(item.parameters)
    result, _ = worker.verify_within_limits(message, VERIFIERS, timer, Tripwire())
    return bool(result.correct)


def math_verify_accepts(item: LabelledItem) -> bool:
    from math_verify import parse, verify

    reference = item.reference.rpartition("####")[2].strip()
    try:
        return bool(verify(parse(rf"\boxed{{{reference}}}"), parse(item.completion)))
    except Exception:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--no-math-verify", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    sets: list[tuple[str, list[LabelledItem]]] = [
        ("tests/cases/math_equality.jsonl", list(equality_items())),
        ("tests/cases/verifier_adversarial.jsonl", list(adversarial_items())),
    ]
    if options.cases:
        sets += [
            (f"labelled cases, {tier}", list(labelled_items(options.cases, tier)))
            for tier in ("core", "lenient", "policy")
        ]
    if options.gsm8k:
        sets.append(("GSM8K, itself and other numbers", list(gsm8k_items(options.gsm8k))))
    timer = worker.Timer(TIMER_SECONDS)
    rows = []
    for label, items in sets:
        for kind in KINDS:
            items_of_kind = [item for item in items if item.kind == kind]
            if not items_of_kind:
                continue
            verdicts = {"vold": [vold_accepts(item, timer) for item in items_of_kind]}
            if kind == "mathematics" and not options.no_math_verify:
                verdicts["math-verify"] = [math_verify_accepts(item) for item in items_of_kind]
            for grader, accepted in verdicts.items():
                wrong = [
                    (item, paid) for item, paid in zip(items_of_kind, accepted, strict=True) if paid != item.expected
                ]
                right = len(items_of_kind) - len(wrong)
                paid = sum(paid for _, paid in wrong)
                rows.append(
                    [
                        label,
                        kind,
                        grader,
                        f"{right} of {len(items_of_kind)}",
                        f"{right / len(items_of_kind):.1%}",
                        paid,
                        len(wrong) - paid,
                    ]
                )
                for item, paid in wrong if options.show and grader == "vold" else ():
                    print("paid   " if paid else "refused", item.name, repr(item.completion[-80:]), file=sys.stderr)
    columns = ["items", "kind", "grader", "right", "", "wrongly paid", "wrongly refused"]
    show("Right verdicts", columns, [[str(cell) for cell in row] for row in rows])


if __name__ == "__main__":
    main()
