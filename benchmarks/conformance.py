"""How often the verifiers are right, beside math-verify alone on the same items.

python benchmarks/conformance.py [--cases cases.jsonl] [--gsm8k test.jsonl] [--show] [--no-math-verify]

The lists of tests/cases come with the repository. --cases: labelled cases of other graders' own tests, lines of `id`,
`kind`, `gold`, `prediction`, `expected`, `tier`; those of kind reasoning_gym have the task's `dataset` and `entry` too,
and are left out where reasoning-gym is not installed. --gsm8k: GSM8K's questions, each reference held against itself
and against other numbers made from it. --show prints every disagreement.

"paid": items that earned a reward and should not. "refused": the other way round. math-verify gets the reference in a
box and the completion as it is; where it raises or runs into its own limit of 5 s, its answer counts as refused. It has
no choices, texts, tolerances or tasks, so those kinds are judged by the verifiers alone.
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
class Judged:
    """expected: whether the item is to be paid."""

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


def as_judged(case: dict[str, Any]) -> Judged:
    """A labelled case with the verifier and the parameters that ask what its own grader was asked."""
    kind, options, text = case["kind"], case.get("opts", {}), case["prediction"]
    parameters: dict[str, Any] = {}
    verifier = "math"
    if kind in ("choice", "choice_boxed"):
        verifier = "choice"
        if case.get("options"):
            parameters["options"] = {letter: option for one in case["options"] for letter, option in one.items()}
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
    elif kind == "geo3k_bracket" and (found := re.findall(r"\[([^\]]*)\]", text)):
        text = rf"\boxed{{{found[-1]}}}"
    elif kind == "reasoning_gym":
        # As JSON text: a Struct would make floats of its whole numbers.
        verifier, parameters = "reasoning-gym", {"task": case["dataset"], "entry": json.dumps(case["entry"])}
        text = f"<answer>{text}</answer>"
    return Judged(case["id"], verifier, parameters, text, case["gold"], case["expected"])


def labelled(path: Path, tier: str) -> Iterator[Judged]:
    for line in path.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if case["tier"] == tier and (case["kind"] != "reasoning_gym" or find_spec("reasoning_gym")):
            yield as_judged(case)


def equality() -> Iterator[Judged]:
    for line in (CASES / "math_equality.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for expected, answers in ((True, row["equal"]), (False, row["different"])):
            for answer in answers:
                name = f"{row['reference']} <- {answer}"
                yield Judged(name, "math", {}, rf"The result: \boxed{{{answer}}}", row["reference"], expected)


def adversarial() -> Iterator[Judged]:
    for line in (CASES / "verifier_adversarial.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row["completion"]
        if row.get("heavy") or row["correct"] is None:
            continue
        text = text if isinstance(text, str) else "".join(part * times for part, times in text)
        yield Judged(
            f"{row['id']} {row['why']}",
            row["verifier"],
            row.get("parameters", {}),
            text,
            row["reference"],
            row["correct"],
            row.get("prompt", ""),
        )


def gsm8k(path: Path) -> Iterator[Judged]:
    """Each reference in several spellings, and numbers that differ from it."""
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
            yield Judged(f"{number} {text}", "math", {}, rf"So \boxed{{{text}}}.", answer, position < len(same))


def ours(item: Judged, timer: Any) -> bool:
    message = verifier_pb2.VerifyItem(
        verifier=item.verifier, completion=item.completion, reference=item.reference, prompt=item.prompt
    )
    if item.parameters:
        message.parameters.update(item.parameters)
    result, _ = worker.check_within(message, VERIFIERS, timer, Tripwire())
    return bool(result.correct)


def theirs(item: Judged) -> bool:
    from math_verify import parse, verify

    reference = item.reference.rpartition("####")[2].strip()
    try:
        return bool(verify(parse(rf"\boxed{{{reference}}}"), parse(item.completion)))
    except Exception:
        return False


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=Path)
    arguments.add_argument("--gsm8k", type=Path)
    arguments.add_argument("--show", action="store_true")
    arguments.add_argument("--no-math-verify", action="store_true")
    options = arguments.parse_args()
    logging.disable(logging.WARNING)
    sets: list[tuple[str, list[Judged]]] = [
        ("tests/cases/math_equality.jsonl", list(equality())),
        ("tests/cases/verifier_adversarial.jsonl", list(adversarial())),
    ]
    if options.cases:
        sets += [
            (f"labelled cases, {tier}", list(labelled(options.cases, tier))) for tier in ("core", "lenient", "policy")
        ]
    if options.gsm8k:
        sets.append(("GSM8K, itself and other numbers", list(gsm8k(options.gsm8k))))
    timer = worker.Timer(TIMER_SECONDS)
    rows = []
    for label, items in sets:
        for kind in KINDS:
            some = [item for item in items if item.kind == kind]
            if not some:
                continue
            verdicts = {"vold": [ours(item, timer) for item in some]}
            if kind == "mathematics" and not options.no_math_verify:
                verdicts["math-verify"] = [theirs(item) for item in some]
            for grader, given in verdicts.items():
                wrong = [(item, paid) for item, paid in zip(some, given, strict=True) if paid != item.expected]
                right = len(some) - len(wrong)
                paid = sum(paid for _, paid in wrong)
                rows.append(
                    [
                        label,
                        kind,
                        grader,
                        f"{right} of {len(some)}",
                        f"{right / len(some):.1%}",
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
