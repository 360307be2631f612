"""What a completion says its answer is, within bounds, and what is refused however well it matches. Pure."""

from vold_verifier.reading.extraction import Extraction, Found, Place, final_part, find, reference_text

__all__ = ["Extraction", "Found", "Place", "final_part", "find", "reference_text"]
