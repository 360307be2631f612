"""All kinds of pairs, by name. See verifier_pairs.py."""

import verifier_pairs_forms
import verifier_pairs_numbers
import verifier_pairs_places
import verifier_pairs_quantities
import verifier_pairs_symbols
import verifier_pairs_verifiers
from verifier_pairs import Kind

KINDS: dict[str, Kind] = {
    **verifier_pairs_numbers.KINDS,
    **verifier_pairs_quantities.KINDS,
    **verifier_pairs_symbols.KINDS,
    **verifier_pairs_forms.KINDS,
    **verifier_pairs_places.KINDS,
    **verifier_pairs_verifiers.KINDS,
}
