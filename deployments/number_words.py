"""Numbers in words, by num2words: the one place that knows the library. Without its commas and hyphens, which a voice
would make a pause of."""

from functools import lru_cache
from typing import Literal

MOST_DIGITS = 15
"""A longer number is said digit by digit: nobody follows a quadrillion, and a float would lose its last digits."""

_ENGLISH_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@lru_cache(4096)
def in_words(number: str, *, language: str, form: Literal["cardinal", "ordinal", "year"] = "cardinal") -> str:
    """`number`: digits, with a point before its fraction if it has one."""
    from num2words import num2words  # type: ignore[import-untyped]  # 20 ms, and only replicas that speak need it

    value = float(number) if "." in number else int(number)
    words: str = num2words(value, lang=language, to=form)
    return words.replace(",", "").replace("-", " ") if language == "en" else words.replace(",", "")


def english_digits(digits: str) -> str:
    """Each digit by its name, one after the other."""
    return " ".join(_ENGLISH_DIGITS[int(digit)] for digit in digits)
