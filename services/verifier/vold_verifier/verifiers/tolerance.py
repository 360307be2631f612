"""The parameters of verifiers that compare numbers within a tolerance."""

from fractions import Fraction

from pydantic import Field

from vold_verifier.mathematics import constants, numbers
from vold_verifier.reading.extraction import Extraction


class ToleranceParameters(Extraction):
    relative_tolerance: float = Field(
        default=0.0, ge=0, lt=1, description="largest |answer - reference| / |reference|; 0 for equality"
    )
    absolute_tolerance: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="largest |answer - reference|"
    )

    @property
    def has_tolerance(self) -> bool:
        return self.relative_tolerance > 0 or self.absolute_tolerance > 0

    def admits(self, answer: numbers.Number, reference: numbers.Number) -> bool:
        """Whether `answer` is within the larger of the two tolerances of `reference`, in the unit of `reference`."""
        if not self.has_tolerance:
            return False
        value = numbers.converted_value(answer, reference)
        if value is None:
            return False
        pairs = (
            [(value, reference.value)]
            if answer.percent == reference.percent
            else [(x, y) for x in answer.possible_values() for y in reference.possible_values()]
        )
        relative, absolute = Fraction(str(self.relative_tolerance)), Fraction(str(self.absolute_tolerance))
        return any(abs(x - y) <= max(absolute, relative * abs(y)) for x, y in pairs)

    def admits_text(self, answer: str, reference: str) -> bool:
        """Whether two raw texts are numbers or closed forms, and `answer` is within the tolerances of `reference`."""
        if not self.has_tolerance:
            return False
        parsed_answer, parsed_reference = constants.parse(answer), constants.parse(reference)
        if parsed_answer is None or parsed_reference is None or constants.is_left_to_compute(answer, parsed_answer):
            return False
        return self.admits(parsed_answer, parsed_reference)
