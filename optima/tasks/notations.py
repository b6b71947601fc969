r"""Ways to write a number that differ by country, trade or habit, turned into plain digits.

"1 080", "1'080", "1_080" and "1,08,000" group digits otherwise than English does; "1.234.567" and
"1.080,50" are German; "1.8e3" and "1.8 \times 10^3" are scientific; "70k" is short. A lone
"1.080" stays 1.08 and "18,5" stays two numbers, as nothing tells which was meant.
"""

import re
from decimal import Decimal

_GROUPS = (
    re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u2009\u202f'\u2019_]\d{3})+(?!\d|\s*/)"),
    re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])"),
    re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,])"),
)
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d.,])")
_SCIENTIFIC = re.compile(
    r"(?<![\w.,])(\d+(?:\.\d+)?)(?:[eE]([-+]?\d{1,2})|"
    r"\s*(?:[x*\u00d7\u00b7]|\\times|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?\d{1,2})\s*\}?)(?![\w.^!])"
)
_SUPERSCRIPTS = dict(zip("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b",
                         "0123456789-", strict=True))  # fmt: skip
_POWER_OF_TEN = re.compile(rf"(?<=10)[{''.join(_SUPERSCRIPTS)}]+")
_SHORT_UNIT = re.compile(r"(?<=\d)(?:[kK]|([ghlmsL]))(?![\w^])")


def plain_digits(text: str) -> str:
    """Return ``text`` with its grouped, scientific and abbreviated numbers in plain digits.

    One letter of a unit right behind a number ("18h") is set apart from it.
    """
    text = _DECIMAL_COMMA.sub(lambda match: match[1].replace(".", "") + "." + match[2], text)
    for groups in _GROUPS:
        text = groups.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    superscripts = str.maketrans(_SUPERSCRIPTS)
    text = _POWER_OF_TEN.sub(lambda match: "^" + match[0].translate(superscripts), text)
    text = _SCIENTIFIC.sub(lambda m: f"{Decimal(f'{m[1]}e{m[2] or m[3]}'):f}", text)
    return _SHORT_UNIT.sub(lambda match: f" {match[1] or 'thousand'}", text)
