"""`word-count`: the answer has as many words as the reference says, and does not repeat one to get there."""

from collections import Counter
from typing import ClassVar

from pydantic import Field
from vold_verifier.reading.extraction import Extraction, find
from vold_verifier.verifiers import BadReferenceError, Item, Verdict, Verifier


class WordCountParameters(Extraction):
    slack: int = Field(default=0, ge=0, description="how many words too many or too few still earn a part")
    max_share: float = Field(default=0.5, gt=0, le=1, description="the largest share one word may have")


class WordCountVerifier(Verifier[WordCountParameters]):
    name: ClassVar[str] = "word-count"
    summary: ClassVar[str] = "the answer has as many words as the reference says"
    parameters: ClassVar[type[WordCountParameters]] = WordCountParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: WordCountParameters, /) -> Verdict:
        try:
            wanted = int(item.reference)
        except ValueError:
            raise BadReferenceError(f"the reference {item.reference[:40]!r} is no number of words") from None
        if wanted < 1:
            raise BadReferenceError(f"{wanted} words cannot be asked for: give 1 or more")
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason)
        words = found.answer.casefold().split()
        most, times = Counter(words).most_common(1)[0]
        if times > 1 and times / len(words) > parameters.max_share:
            return Verdict.wrong(found.answer, f"{most[:40]!r} is {times} of {len(words)} words")
        off = abs(len(words) - wanted)
        if off == 0:
            return Verdict.right(found.answer, f"{wanted} words")
        reward = max(0.0, 1 - off / (parameters.slack + 1))
        return Verdict(reward, False, found.answer, f"{len(words)} words, {wanted} wanted")
