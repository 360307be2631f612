"""Fuzz the code of the verifier that parses untrusted text: extraction, numbers, choice, and algebra with its bounds.

A finding is a crash (an exception that verifiers are not documented to raise), a hang (an input over the limit of CPU
time), or a false positive: an answer that differs from the reference by construction, and gets a reward.

    python tests/fuzz/verifier_parsers.py --seconds 600 [--seed 1]
    python tests/fuzz/verifier_parsers.py --atheris --seconds 600      (coverage-guided; pip install atheris)

Prints the number of inputs of each kind; the exit status is 1 if there are findings.
tests/unit/verifier/reading/test_verifier_fuzz.py is the short form, in `make test`.
"""

import argparse
import random
import signal
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from verifier_neighbours import KINDS

LIMIT_SECONDS = 5.0

PIECES = (
    *("\\boxed{", "\\fbox{", "}", "{", "(", ")", "[", "]", "<think>", "</think>", "<answer>", "</answer>", "####"),
    *("Answer:", "The answer is ", "**", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\n", " ", "\t", ",", ";", ".", ":"),
    *("\\frac{1}{2}", "\\sqrt{2}", "\\sqrt[3]{x}", "\\pi", "\\infty", "\\cup", "\\cap", "\\in", "\\text{ or }"),
    *("\\text{cm}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\pm", "\\le", "\\ge", "<", ">", "=", "\\ne", "!"),
    *("^", "_", "^{2}", "_{10}", "+", "-", "*", "/", "\\cdot", "\\times", "%", "\\%", "|", "e", "i", "x", "y", "n"),
    *("0", "1", "2", "7", "10", "3.14", "1,000", "1e3", "0.333333", "9" * 30, "1/3", "-5", "A", "B", "(C)", "a dog"),
    *("\\int_0^1 x dx", "\\sum_{n=1}^{9} n", "\\lim_{x\\to0}", "\\binom{5}{2}", "\\log_2 8", "\\sin", "90^\\circ"),
    *("\x00", "\u200b", "\u202e", "\u0410", "\uff11", "\u00bd", "\u00b2", "\u221a", "\u00d7", "\u2212", "\u0661"),
    *("Paris", "Rome", "None of the above", "not B", "B or C", "it is", "because", "is correct", "10 km", "ten"),
)


class HangError(BaseException):
    """Not an Exception, so that no library catches it."""


def _raise_hang(signal_number: int, frame: FrameType | None) -> None:
    raise HangError


def random_text(rng: random.Random) -> str:
    """A random sequence of pieces; one text in ten repeats a few pieces often, to find slow regular expressions."""
    if rng.random() < 0.1:
        repeated = [rng.choice(PIECES) for _ in range(rng.randrange(1, 3))]
        return "".join(repeated * rng.choice([50, 400, 2000])) + rng.choice(PIECES)
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 25)))


def random_number(rng: random.Random) -> Fraction:
    kind = rng.randrange(4)
    if kind == 0:
        return Fraction(rng.randrange(-(10**4), 10**4))
    if kind == 1:
        return Fraction(rng.randrange(-(10**6), 10**6), 10 ** rng.randrange(1, 4))
    if kind == 2:
        return Fraction(rng.randrange(-200, 200), rng.randrange(1, 60))
    return Fraction(rng.randrange(1, 10**9))


def spelling(value: Fraction, rng: random.Random) -> str:
    """`value` in a random exact spelling."""
    top, bottom = value.numerator, value.denominator
    spellings = [f"\\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", f"\\frac{{{3 * top}}}{{{3 * bottom}}}"]
    if bottom == 1:
        spellings += [str(top), f"{top:,}", f"{top}.0", f"{top - 7} + 7", f"{top} \\cdot 1", f"x = {top}"]
        spellings += [f"{top + 3} - 3", f"2^{{3}} + {top - 8}", f"\\sqrt{{{top * top}}}"] if top >= 8 else []
    places = next((n for n in range(8) if 10**n % bottom == 0), None)
    if places:
        spellings += [f"{float(value):.{places}f}", f"{float(value):.{places}f}0"]
    return rng.choice(spellings)


def different_pair(rng: random.Random) -> tuple[str, str]:
    """(reference, answer) that differ by more than a rounding."""
    value = random_number(rng)
    other = rng.choice([-value, value + 1, value * 10, value + Fraction(1, 100), value * 2, random_number(rng)])
    if abs(value - other) <= abs(value) / 1000:
        other = value + abs(value) + 1
    return spelling(value, rng), spelling(other, rng)


class Fuzz:
    def __init__(self) -> None:
        from vold_verifier.verifiers.choice import ChoiceParameters, ChoiceVerifier
        from vold_verifier.verifiers.exact import ExactVerifier
        from vold_verifier.verifiers.format import FormatVerifier
        from vold_verifier.verifiers.math import MathVerifier
        from vold_verifier.verifiers.numeric import NumericVerifier

        self.math = MathVerifier()
        self.math.warm_up()
        self.cheap = [NumericVerifier(), ChoiceVerifier(), ExactVerifier(), FormatVerifier()]
        self.options = ChoiceParameters(options={"A": "Paris", "B": "Rome", "C": "a dog", "D": "10 km"})
        self.tried: Counter[str] = Counter()
        self.findings: list[str] = []
        self.slowest: Counter[str] = Counter()
        signal.signal(signal.SIGPROF, _raise_hang)

    def check(self, verifier: object, completion: str, reference: str, parameters: object = None) -> bool | None:
        """The verdict, or None if the verifier refuses the item. Crashes and hangs go to `findings`."""
        from vold_verifier.types import BadReferenceError
        from vold_verifier.verifiers.base import BadParameterError, Item

        name = verifier.name
        self.tried[name] += 1
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
        try:
            verdict = verifier.check(Item(completion, reference), parameters or verifier.parameters())
            return bool(verdict.correct)
        except (BadReferenceError, BadParameterError):
            return None
        except HangError:
            self._report_finding(f"{name} ran past {LIMIT_SECONDS:g} s", completion, reference)
        except Exception as error:
            self._report_finding(f"{name} raised {type(error).__name__}", completion, reference)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.slowest[name] = max(self.slowest[name], time.process_time() - started)
        return None

    def _report_finding(self, problem: str, completion: str, reference: str) -> None:
        if len(self.findings) < 50:
            self.findings.append(f"{problem}: completion {completion[:300]!r}, reference {reference[:300]!r}")

    def try_input(self, rng: random.Random) -> None:
        text, reference = random_text(rng), rng.choice([random_text(rng), spelling(random_number(rng), rng), "B"])
        for verifier in self.cheap:
            self.check(verifier, text, reference)
        self.check(self.cheap[1], text, rng.choice("ABCD"), self.options)
        self.check(self.math, text, reference)
        self.check(self.math, rf"so \boxed{{{text}}}", reference)
        reference, answer = different_pair(rng)
        for verifier in (self.math, self.cheap[0]):
            if self.check(verifier, rf"so \boxed{{{answer}}}", reference):
                self._report_finding(f"{verifier.name} rewarded another number", answer, reference)
        self.tried["pairs of different numbers"] += 1
        kind = rng.choice(sorted(KINDS))
        neighbours = KINDS[kind](rng)
        for answer in neighbours.refused:
            if self.check(self.math, rf"so \boxed{{{answer}}}", neighbours.reference):
                self._report_finding(f"math rewarded another answer ({kind})", answer, neighbours.reference)
            self.tried["pairs of different units, dates, orders, ..."] += 1

    def report(self, seconds: float) -> int:
        for name, count in self.tried.items():
            slowest = f", slowest {self.slowest[name]:.2f} s of CPU" if name in self.slowest else ""
            print(f"{name}: {count:,} inputs{slowest}")
        print(f"{sum(self.tried.values()):,} inputs in {seconds:.0f} s, {len(self.findings)} findings")
        for finding in self.findings:
            print(f"  {finding}")
        return 1 if self.findings else 0


def fuzz_at_random(seconds: float, seed: int) -> int:
    fuzz, rng, started = Fuzz(), random.Random(seed), time.monotonic()
    while time.monotonic() - started < seconds:
        fuzz.try_input(rng)
    return fuzz.report(time.monotonic() - started)


def fuzz_by_coverage(seconds: float, seed: int) -> int:
    import atheris

    with atheris.instrument_imports(include=["vold_verifier"]):
        fuzz = Fuzz()
    started = time.monotonic()

    def try_bytes(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        chosen = [PIECES[provider.ConsumeIntInRange(0, len(PIECES) - 1)] for _ in range(len(data) // 4)]
        text = "".join(chosen) + provider.ConsumeUnicodeNoSurrogates(200)
        reference = "".join(chosen[: len(chosen) // 2])
        for verifier in fuzz.cheap:
            fuzz.check(verifier, text, reference)
        fuzz.check(fuzz.cheap[1], text, "B", fuzz.options)
        fuzz.check(fuzz.math, text, reference)
        if time.monotonic() - started > seconds or len(fuzz.findings) >= 20:
            sys.stdout.flush()
            import os

            status = fuzz.report(time.monotonic() - started)
            sys.stdout.flush()
            os._exit(status)  # libFuzzer cannot be stopped in another way

    atheris.Setup([sys.argv[0], f"-seed={seed}", "-rss_limit_mb=4096"], try_bytes)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="coverage-guided")
    arguments = parser.parse_args()
    sys.exit((fuzz_by_coverage if arguments.atheris else fuzz_at_random)(arguments.seconds, arguments.seed))
