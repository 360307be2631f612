"""Texts are read once in a comparison, and what was read for one is not there for the next."""

import string

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from vold_verifier.mathematics import equality, parsing


def test_a_comparison_reads_no_text_twice():
    assert equality.compare("[3, 8)", r"3 \le x < 8").equal
    read = parsing.parse.cache_info()
    assert read.misses == read.currsize
    assert read.hits > 0


def test_what_one_comparison_read_is_not_kept_for_the_next():
    equality.compare(r"\frac{x}{2}+7", r"7+\frac{x}{2}")
    first = parsing.parse.cache_info()
    equality.compare(r"\frac{x}{2}+7", r"7+\frac{x}{2}")
    assert parsing.parse.cache_info() == first


@given(st.text("0123456789", min_size=1, max_size=18))
def test_digits_alone_are_the_number_that_the_parser_reads(digits):
    read = parsing.parse(digits)
    assert isinstance(read, sympy.Integer)
    assert read == latex2sympy(digits, is_real=True, normalization_config=None)


@pytest.mark.parametrize("text", [*string.ascii_letters, "0", "-0", "007", "-7", "123456789012345678"])
def test_what_is_read_without_the_parser_is_what_the_parser_reads(text):
    latex = latex2sympy(
        text, is_real=True, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
    )
    own = parsing.parse(text)
    if text in "iI":
        assert own == sympy.I
    else:
        assert own == latex
        assert type(own) is type(latex)
