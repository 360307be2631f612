"""Units: conversions that are exact by definition, and the sizes of the table beside SymPy's."""

from fractions import Fraction

import pytest
import sympy.physics.units as sympy_units
from hypothesis import given
from hypothesis import strategies as st
from sympy.physics.units.systems import SI
from vold_verifier.mathematics import unit_table, units

EXACT = [
    ("km", "m", 1000),
    ("in", "cm", "2.54"),
    ("ft", "in", 12),
    ("yd", "ft", 3),
    ("mile", "ft", 5280),
    ("acre", "ft^2", 43560),
    ("ha", "m^2", 10000),
    ("L", "cm^3", 1000),
    ("gallon", "in^3", 231),
    ("gallon", "quarts", 4),
    ("pint", "cups", 2),
    ("lb", "oz", 16),
    ("lb", "g", "453.59237"),
    ("day", "h", 24),
    ("km/h", "m/s", "5/18"),
    ("mph", "ft/s", "22/15"),
    ("N", "kg m/s^2", 1),
    ("J", "N m", 1),
    ("kWh", "MJ", "3.6"),
    ("W", "J/s", 1),
    ("Ω", "V/A", 1),
    ("T", "G", 10000),
    ("atm", "Pa", 101325),
    ("rpm", "degrees/s", 6),
    ("$", "cents", 100),
    ("years", "months", 12),
    ("byte", "bits", 8),
    ("µm", "nm", 1000),
    ("g/cm^3", "kg/m^3", 1000),
    ("J/(kg K)", "J/kg/K", 1),
    ("小时", "分钟", 60),
]
DIFFERENT = [
    "m",
    "m^2",
    "L",
    "kg",
    "s",
    "months",
    "A",
    "K",
    "mol",
    "N",
    "J",
    "W",
    "Pa",
    "C",
    "V",
    "Ω",
    "T",
    "$",
    "€",
    "°",
]


@pytest.mark.parametrize(("source", "target", "factor"), EXACT)
def test_conversions_are_exact(source, target, factor):
    assert units.convert(source, target) == units.Conversion(Fraction(factor))
    assert units.convert(target, source) == units.Conversion(1 / Fraction(factor))


def test_units_of_different_things_are_not_converted():
    for source in DIFFERENT:
        for target in DIFFERENT:
            assert (units.convert(source, target) is None) == (source != target), (source, target)


@given(st.integers(-300, 600))
def test_temperatures_are_converted_with_their_zeros(celsius):
    def convert(value: Fraction, source: str, target: str) -> Fraction:
        conversion = units.convert(source, target)
        assert conversion is not None
        return value * conversion.factor + conversion.shift

    fahrenheit = convert(Fraction(celsius), "^{\\circ}C", "degrees Fahrenheit")
    assert fahrenheit == Fraction(9 * celsius, 5) + 32
    assert convert(fahrenheit, "°F", "K") == celsius + Fraction("273.15")


def test_upper_and_lower_case_are_prefixes_of_their_own():
    assert units.convert("MW", "mW") == units.Conversion(Fraction(10**9))
    assert units.parse("mw") is None
    assert units.convert("KG", "g") == units.Conversion(Fraction(1000))


IN_SYMPY = """
meter inch foot yard mile hour day newton joule watt pascal volt ohm farad tesla weber henry siemens coulomb bar hertz
"""


@pytest.mark.parametrize("name", IN_SYMPY.split())
def test_sizes_are_those_of_sympy(name):
    unit = units.parse(name)
    size = SI.get_quantity_scale_factor(getattr(sympy_units, name))  # in meters, grams, seconds, amperes
    assert unit is not None
    assert unit.size == Fraction(str(size))


def test_the_names_of_the_table_are_found():
    for row in unit_table.ROWS.strip().splitlines():
        symbols, names, *_ = (cell.strip().split() for cell in row.split("|"))
        assert all(units.parse(name) is not None for name in (*symbols, *names)), row


@given(st.text(max_size=70))
def test_any_text_is_parsed_without_failing(text):
    units.parse(text)
