"""Read the words after a number: a unit (5 cm), a thing that is counted (5 apples), a scale (5 million), a power.

Any other words change what is said ("5 or more", "5 does not work", "5 less than x"): such a text is no number.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from vold_verifier.mathematics import units

MAX_WORDS = 4
SCALES = {
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "quadrillion": Fraction(10**15),
    "dozen": Fraction(12),
    "lakh": Fraction(10**5),
    "lac": Fraction(10**5),
    "crore": Fraction(10**7),
    "百": Fraction(100),
    "千": Fraction(1000),
    "万": Fraction(10**4),
    "亿": Fraction(10**8),
}
SCALES |= {f"{name}s": scale for name, scale in SCALES.items() if name.isascii()}
_SCALES_OF_LANGUAGES = {
    12: "douzaine docena dutzend dozijn dúzia dozzina düzine",
    100: "ciento cien hundert cem cento honderd yüz trăm seratus ratus",
    1000: "mille mil tausend mila duizend bin nghìn ngàn ribu tusen tysiąc tysiące tysięcy tisíc",
    10**6: "millón millones millionen milhão milhões milione milioni miljoen milyon triệu juta milion miliony milionów",
    10**9: "milliard milliarde milliarden milliards millardo miliardo miliardi miljard milyar tỷ miliar miliard bilhão "
    "bilhões",
}
SCALES |= {
    spelling: Fraction(scale)
    for scale, names in _SCALES_OF_LANGUAGES.items()
    for name in names.split()
    for spelling in (name, f"{name}s")
    if spelling not in ("bins", "mils")
}
"""The bins and mils of English are things and units, and so is a cent."""
_ORDINALS = """third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
sixteenth seventeenth eighteenth nineteenth"""
_PARTS = {name: value for value, name in enumerate(_ORDINALS.split(), start=3)}
_PARTS |= {"half": 2, "quarter": 4, "twentieth": 20, "hundredth": 100, "thousandth": 1000, "millionth": 10**6}
_PARTS |= {"billionth": 10**9, "ten-thousandth": 10**4, "hundred-thousandth": 10**5}
PARTS = _PARTS | {f"{name}s": value for name, value in _PARTS.items()} | {"halves": 2}
"""How many of a fraction word make one."""
_POWERS = {"squared": 2, "cubed": 3}
_FUNCTION_WORDS = """
and or nor not no but yet so because if unless until when while whereas although however otherwise instead except
without a an the this that these those another other others else to from up down upward upwards downward downwards
onward onwards below above under over beneath beyond between within at in on into onto by with for against before
after since than as until through is are was were be been being isn't aren't am do does did doesn't don't has have had
can cannot can't could may might must should will would shall won't it its he she they we you i who which what there
here least most more less fewer greater larger smaller bigger higher lower minimum maximum max min many few several
about around approximately approx roughly nearly almost exactly maybe perhaps possibly probably likely either neither
both all none some every nothing something anything
"""
_OPERATIONS = """
plus minus times divided multiplied multiplies multiple multiples squared cubed doubled tripled quadrupled halved
twice thrice fold root roots power powers factorial inverse reciprocal negative positive opposite mod modulo remainder
base percent percentage percents pct logarithm log exponent prime zero one two three four five six seven eight nine
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty
seventy eighty ninety ago early late short extra off wrong incorrect false invalid impossible undefined unknown true
correct right works work fails fail solution solutions infinity infinite infinitely divides over sqrt pi ish odd score
"""
_NO_NOUNS_OF_LANGUAGES = """
ou et ni pas ne non est sont faux fausse vrai plus moins fois demi demie demis tiers carré environ si sauf
entre sur sans avec dans mais soit donc incorrecte juste
o y ni no es son falso falsa más menos mas veces vez medio medios tercio tercios cuarto cuartos cuadrado cubo
aproximadamente incorrecta correcto correcta pero salvo excepto entre sin
oder und nicht kein keine keinen ist sind falsch richtig mehr weniger halbe halb halber drittel viertel achtel hoch
quadrat etwa mindestens höchstens aber außer zwischen durch ohne mit zum
ou e não é são mais vezes meio meios terço terços quarto quartos quadrado errado errada certo mas entre sem com
di è sono sbagliato più meno volte mezzo mezzi terzo terzi quarti quadrato ma tra senza
en niet geen is zijn fout meer minder keer halve kwart maar tussen zonder met
veya ve değil yanlış doğru fazla az daha kat kere buçuk yarım çeyrek en
hoặc và không là sai đúng hơn lần rưỡi nửa trở
máximo máxima mínimo mínima massimo minimo maximal minimal ceros nullen
atau dan bukan salah benar lebih kurang kali setengah
lub i nie jest błędne więcej mniej razy pół
"""
"""Words of negation, comparison, multiples and parts in other languages that use Latin letters."""
_NO_NOUNS = (
    frozenset((_FUNCTION_WORDS + _NO_NOUNS_OF_LANGUAGES + _OPERATIONS).split()) | frozenset(PARTS) | frozenset(SCALES)
)
_NOUN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ]{2,}(?:['-][A-Za-z]+)*\.?")
_COUNTED = frozenset("个人种只本名位次张条件辆棵台块页题分岁道组支颗头间座套双根瓶箱袋步班")
"""Chinese measure words."""
_WHOLE = re.compile(r"\bof (?:a|an|one)\s+(?=[A-Za-z])")


@dataclass(frozen=True, slots=True)
class Words:
    """The number before the words is multiplied by `scale`, raised to `power`, and measured in `unit` ("" for none).

    may_be_variables: letters such as the m of 5m, which may be a product as well.
    """

    scale: Fraction = Fraction(1)
    power: int = 1
    unit: str = ""
    may_be_variables: bool = False


def read(text: str, *, is_markup: bool, is_separate: bool) -> Words | None:
    """Read the words after a number; None if they are neither unit, thing, scale nor power.

    text: without LaTeX commands other than degree signs. is_markup: the words stand in a LaTeX command such as \\text.
    is_separate: there is a space between the number and the words.
    """
    text = " ".join(text.split()).strip(",").strip()
    scale = Fraction(1)
    while True:
        first, _, rest = text.partition(" ")
        if not first.isascii() and first[:1] in SCALES and first not in SCALES:
            first, rest = first[:1], first[1:]
        factor = SCALES.get(first.lower().rstrip("."))
        if factor is None:
            break
        scale, text = scale * factor, rest.strip().removeprefix("of ")
        if scale > 10**30:
            return None
        is_separate = True
    if not text:
        return Words(scale)
    first, _, rest = text.partition(" ")
    if scale == 1 and (number_of_parts := PARTS.get(first.lower())) is not None and is_separate:
        unit = _WHOLE.sub("", rest + " ").strip()
        return Words(1 / Fraction(number_of_parts), unit=unit) if not unit or units.parse(unit) is not None else None
    if scale == 1 and (power := _POWERS.get(text.lower())) is not None and is_separate:
        return Words(power=power)
    if units.parse(text) is not None:
        return _measured(text, scale, is_markup=is_markup, is_separate=is_separate)
    return Words(scale, unit=text) if _is_thing(text, is_markup=is_markup, is_separate=is_separate) else None


def _measured(text: str, scale: Fraction, *, is_markup: bool, is_separate: bool) -> Words | None:
    """A known unit; letters without a space before them are a unit only if they are a common one."""
    symbol = text.split("^")[0].split("/")[0].strip().rstrip(".²³")
    is_short = symbol.isalpha() and symbol.isascii() and len(symbol) < 4 and symbol not in units.COMMON
    if is_markup or not is_short or "/" in text:
        return Words(scale, unit=text)
    if not is_separate and len(symbol) == 1 and symbol not in units.LETTERS:
        return None  # 3x is a product
    return Words(scale, unit=text, may_be_variables=True)


def _is_thing(text: str, *, is_markup: bool, is_separate: bool) -> bool:
    """Whether `text` names things that are counted: apples, square units, students per class, cups of flour."""
    if units.is_generic(text) or text in _COUNTED:
        return True
    words = text.replace("/", " per ").split()
    if not words or len(words) > MAX_WORDS or any(_NOUN.fullmatch(word) is None for word in words):
        return False
    if not is_markup and len(words[0]) < (3 if is_separate else 4):
        return False  # 3x and 2ab are products
    if any(word.lower().strip(".") in _NO_NOUNS for word in words):
        return False
    joints = [position for position, word in enumerate(words) if word.lower() in ("of", "per")]
    return all(0 < position < len(words) - 1 for position in joints)
