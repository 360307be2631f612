"""Extract answers from completions, and refuse manipulated ones. Pure functions of text."""

from vold_verifier.reading.extraction import (
    ExtractedAnswer,
    Extraction,
    Place,
    final_part,
    find,
    reference_text,
)

__all__ = ["ExtractedAnswer", "Extraction", "Place", "final_part", "find", "reference_text"]
