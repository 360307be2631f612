"""Write answers in other languages as LaTeX: 5厘米 is 5 cm, 3或4 is 3 or 4, 无解 is no solution.

Only what stands between or after mathematics is translated. A text whose meaning is unclear is not changed.
"""

import re

_PHRASES = {
    **dict.fromkeys(("无解", "無解", "方程无解", "해가 없다", "해 없음", "解なし", "нет решений"), "no solution"),
    **dict.fromkeys(("空集", "空集合", "공집합"), r"\emptyset"),
    **dict.fromkeys(("不存在", "存在しない"), "does not exist"),
    **dict.fromkeys(("全体实数", "所有实数", "任意实数", "一切实数", "모든 실수", "すべての実数"), "all real numbers"),
}
_UNITS = {
    "毫米": "mm",
    "厘米": "cm",
    "公分": "cm",
    "分米": "dm",
    "千米": "km",
    "公里": "km",
    "米": "m",
    "毫克": "mg",
    "千克": "kg",
    "公斤": "kg",
    "吨": "tonne",
    "克": "g",
    "毫升": "ml",
    "升": "l",
    "分钟": "min",
    "小时": "h",
    "秒钟": "s",
    "秒": "s",
    "小時": "h",
    "天": "day",
    "周": "week",
    "个月": "month",
    "年": "year",
    "度": "degree",
    "元": "yuan",
    "人民币": "yuan",
    "美元": "dollar",
    "欧元": "euro",
    "円": "yen",
    "日元": "yen",
    "ミリメートル": "mm",
    "センチメートル": "cm",
    "キロメートル": "km",
    "メートル": "m",
    "時間": "h",
    "秒間": "s",
    "キログラム": "kg",
    "グラム": "g",
    "リットル": "l",
    "미터": "m",
    "센티미터": "cm",
    "킬로미터": "km",
    "시간": "h",
    "그램": "g",
    "킬로그램": "kg",
    "리터": "l",
    "분": "min",
    "초": "s",
    "도": "degree",
    "원": "won",
    "мм": "mm",
    "см": "cm",
    "дм": "dm",
    "км": "km",
    "мг": "mg",
    "кг": "kg",
    "мл": "ml",
    "мин": "min",
    "м": "m",
    "г": "g",
    "л": "l",
    "ч": "h",
    "с": "s",
    "час": "h",
    "часа": "h",
    "часов": "h",
    "минут": "min",
    "руб": "rouble",
    "рублей": "rouble",
    "рубля": "rouble",
}
_UNITS_OF_LANGUAGES = {
    "km": "километр километра километров किलोमीटर किमी كم كيلومتر กิโลเมตร กม",
    "m": "метр метра метров मीटर متر أمتار เมตร mét",
    "cm": "сантиметр сантиметра сантиметров सेंटीमीटर सेमी سم سنتيمتر เซนติเมตร ซม",
    "kg": "килограмм килограмма килограммов किलोग्राम किलो كجم كيلوغرام กิโลกรัม กก",
    "g": "грамм грамма граммов ग्राम غرام جرام กรัม",
    "l": "литр литра литров लीटर لتر ลิตร lít",
    "h": "घंटे घंटा घंटों ساعة ساعات ชั่วโมง giờ",
    "min": "минута минуты मिनट دقيقة دقائق นาที phút",
    "s": "секунда секунды секунд सेकंड ثانية ثواني ثوان วินาที giây",
    "day": "день дня дней दिन يوم أيام วัน ngày 일",
    "year": "год года лет वर्ष साल سنة سنوات ปี năm",
    "degree": "градус градуса градусов डिग्री درجة องศา độ",
    "rupee": "रुपये रुपया रुपए",
    "baht": "บาท",
}
_UNITS |= {name: unit for unit, names in _UNITS_OF_LANGUAGES.items() for name in names.split()}
_COUNTERS = "つ本回个個只名人位张張本条條颗顆件次棵头頭辆輛盒袋块塊支朵杯页頁道题種种开개명마리権枚匹台"
_PERS = "/每"
_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_QUANTITY = re.compile(
    rf"(?<=[\d)}}\]])(?P<space>\s*)(?P<power>平方|立方)?(?P<unit>{_UNIT})(?:(?P<caret>\^\s*\{{?[23]\}}?|[²³])|"
    rf"\s*[/每]\s*(?P<per>{_UNIT}))?\.?(?=[\s$,;。.)}}\]]*(?:$|[,;]))"
)
_IN_TEXT = re.compile(rf"\\(?:text|textrm|mathrm|mbox)\s*\{{\s*((?:平方|立方)?(?:{_UNIT}|[{_COUNTERS}]))\.?\s*\}}")
_COUNTED = re.compile(rf"(?<=\d)\s*[{_COUNTERS}](?=[\s$。.)}}]*$)")
_OPERAND_BEFORE, _OPERAND_AFTER = r"(?<=[\dA-Za-z})\]$%])", r"(?=[\dA-Za-z({\[$\\+-])"
_OR = re.compile(rf"{_OPERAND_BEFORE}\s*[,，]?\s*(?:或者?|または|あるいは|또는|혹은|или|أو)\s*{_OPERAND_AFTER}")
_AND = re.compile(rf"{_OPERAND_BEFORE}\s*(?:[、和与與及]|以及|และ|と|와|과|그리고|및|и|و)\s*{_OPERAND_AFTER}")
_COMPARISONS = {
    **dict.fromkeys(("大于或等于", "大于等于", "不小于"), r" \ge "),
    **dict.fromkeys(("小于或等于", "小于等于", "不大于"), r" \le "),
    "大于": " > ",
    "小于": " < ",
    "不等于": r" \ne ",
    "等于": " = ",
}
_COMPARED = re.compile(rf"{_OPERAND_BEFORE}\s*(?P<words>{'|'.join(_COMPARISONS)})\s*{_OPERAND_AFTER}")
_HAS_LATIN_WORD = re.compile(r"[\s{](?:ou|oder|et|und)[\s}]|\d\s+(?:[yeo]|ve|veya|và|hoặc)\s+-?\d")
_LATIN_OR = re.compile(rf"{_OPERAND_BEFORE}\s+(?:ou|oder|\\text\s*\{{\s*(?:ou|oder)\s*\}})\s+{_OPERAND_AFTER}")
_LATIN_AND = re.compile(rf"{_OPERAND_BEFORE}\s+(?:et|und|\\text\s*\{{\s*(?:et|und)\s*\}})\s+{_OPERAND_AFTER}")
_AND_OF_NUMBERS = re.compile(r"(?<=\d)\s+(?:[ye]|ve|và)\s+(?=-?\d)")
_OR_OF_NUMBERS = re.compile(r"(?<=\d)\s+(?:o|veya|hoặc)\s+(?=-?\d)")
"""Single letters are names elsewhere: 2x y 3."""


def to_latex(text: str) -> str:
    """`text` with the units, counters and conjunctions of other languages in LaTeX."""
    if _HAS_LATIN_WORD.search(text):
        text = _LATIN_AND.sub(", ", _LATIN_OR.sub(r" \\text{ or } ", text))
        text = _AND_OF_NUMBERS.sub(", ", _OR_OF_NUMBERS.sub(r" \\text{ or } ", text))
    if text.isascii():
        return text
    if phrase := _PHRASES.get(" ".join(text.strip(" $。.").split())):
        return phrase
    text = _AND.sub(", ", _OR.sub(r" \\text{ or } ", text))
    text = _COMPARED.sub(lambda m: _COMPARISONS[m["words"]], text)
    return _COUNTED.sub("", _QUANTITY.sub(_to_unit, _IN_TEXT.sub(r"\1", text)))


def _to_unit(match: re.Match[str]) -> str:
    unit = _UNITS[match["unit"]]
    power = {"平方": "^2", "立方": "^3", None: ""}[match["power"]]
    if match["caret"]:
        power = "^2" if re.search("[2²]", match["caret"]) else "^3"
    per = f"/{_UNITS[match['per']]}" if match["per"] else ""
    return rf"\text{{ {unit}{per}}}{power}"
