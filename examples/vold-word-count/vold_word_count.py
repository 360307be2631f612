"""`word-count`: the answer has as many words as the reference says, and no word is repeated too often."""

from collections import Counter
from typing import ClassVar

from pydantic import Field
from vold_verifier.reading.extraction import Extraction, find
from vold_verifier.verifiers import BadReferenceError, Item, Verdict, Verifier


class WordCountParameters(Extraction):
    slack: int = Field(
        default=0, ge=0, description="the difference from the reference, in words, that still gets a partial reward"
    )
    max_share: float = Field(
        default=0.5, gt=0, le=1, description="the largest share of the words that may be the same word"
    )


class WordCountVerifier(Verifier[WordCountParameters]):
    name: ClassVar[str] = "word-count"
    summary: ClassVar[str] = "the answer has as many words as the reference says"
    parameters: ClassVar[type[WordCountParameters]] = WordCountParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: WordCountParameters, /) -> Verdict:
        try:
            expected = int(item.reference)
        except ValueError:
            raise BadReferenceError(f"the reference {item.reference[:40]!r} is no number of words") from None
        if expected < 1:
            raise BadReferenceError(f"the reference is {expected} words: give 1 or more")
        extracted = find(item.completion, parameters, item.prompt)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason)
        words = extracted.answer.casefold().split()
        word, count = Counter(words).most_common(1)[0]
        if count > 1 and count / len(words) > parameters.max_share:
            return Verdict.wrong(extracted.answer, f"{word[:40]!r} is {count} of {len(words)} words")
        difference = abs(len(words) - expected)
        if difference == 0:
            return Verdict.right(extracted.answer, f"{expected} words")
        reward = max(0.0, 1 - difference / (parameters.slack + 1))
        return Verdict(reward, False, extracted.answer, f"{len(words)} words, {expected} expected")
