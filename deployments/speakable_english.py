"""English as it is said: addresses, abbreviations, dates, times, money, units and numbers in words.

The rules of `in_english` run in order, and the order matters: a rule sees what the ones before it left, so the special
("10:30 pm", "$3.5M", "5 km/h") come before the general ("10"). What is not certain is left to the engine: a digit that
is glued to letters ("B2B", "GPT-4", "COVID-19") and a capitalised abbreviation it may know ("NASA").
"""

import re

from .mapped_text import MappedText, Replacement
from .number_words import MOST_DIGITS, english_digits, in_words

_FIGURE = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_BEFORE = r"(?<![\w.,/:$€£¥₹])"
"""A number begins here: it is not the rest of a longer one."""
_MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905 - reads best as words
)
_MONTH = r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?|" + "|".join(_MONTHS)
_MONTH_OF = {name[:3]: name for name in _MONTHS}

_ABBREVIATIONS = {
    "mr.": "mister",
    "mrs.": "missus",
    "dr.": "doctor",
    "prof.": "professor",
    "gen.": "general",
    "capt.": "captain",
    "sgt.": "sergeant",
    "lt.": "lieutenant",
    "rev.": "reverend",
    "e.g.": "for example",
    "i.e.": "that is",
    "etc.": "et cetera",
    "vs.": "versus",
    "vs": "versus",
    "approx.": "approximately",
    "dept.": "department",
    "fig.": "figure",
    "vol.": "volume",
    "inc.": "incorporated",
    "ltd.": "limited",
    "corp.": "corporation",
    "jr.": "junior",
    "sr.": "senior",
    "ave.": "avenue",
    "blvd.": "boulevard",
    "mt.": "mount",
    "a.k.a.": "also known as",
    "w/o": "without",
    "w/": "with",
    "n/a": "not applicable",
}
_MAY_END_A_SENTENCE = {"etc.", "inc.", "ltd.", "corp.", "jr.", "sr.", "ave.", "blvd."}
_ABBREVIATION = re.compile(
    rf"(?<![\w.])({'|'.join(re.escape(name) for name in sorted(_ABBREVIATIONS, key=len, reverse=True))})(?![\w/])",
    re.IGNORECASE,
)
_SAINT = re.compile(r"(?<!\w)St\.(?=\s+[A-Z])")
_STREET = re.compile(r"(?<=\w\s)St\.(?!\s+[A-Z])")
_BEFORE_NUMBER = re.compile(r"(?<!\w)(No|Nos|p|pp|Ch|Sec)\.\s?(?=\d)", re.IGNORECASE)
_NAMES_BEFORE_NUMBER = {
    "no": "number ",
    "nos": "numbers ",
    "p": "page ",
    "pp": "pages ",
    "ch": "chapter ",
    "sec": "section ",
}

_URL = re.compile(
    r"(?:(?:https?://|www\.)[^\s<>\"]+"
    r"|(?<![\w@.])(?:[a-zA-Z0-9-]+\.)+(?:com|org|net|io|ai|dev|edu|gov|co|app|info|uk|de|eu|fr|ch|me|tv)\b(?:/[^\s<>\"]*)?)"
)
_EMAIL = re.compile(r"(?:mailto:)?(?<![\w.+-])([\w.+-]+)@((?:[a-zA-Z0-9-]+\.)+[a-zA-Z]{2,})")
_FILE = re.compile(
    r"(?<=\w)\.(?=(?:py|js|ts|json|ya?ml|toml|txt|md|csv|html?|css|pdf|png|jpe?g|gif|mp3|mp4|wav|exe|zip|sh|docx?|xlsx?)\b)"
)
_LONGEST_PATH = 40
"""Characters of an address after its host; a longer path is for the eye."""

_IP_OR_VERSION = re.compile(r"(?<![\w.])v?(\d+(?:\.\d+){2,3})(?!\w|\.\d)")
_PHONE = re.compile(
    r"(?<![\w.,])(\+\d{1,3}[-. ])?(?:\((\d{3})\) ?|(\d{3})[-. ])(\d{3})[-. ](\d{4})(?!\w)|(?<![\w.,-])(\d{3})-(\d{4})(?![\w-])"
)
_ISO_DATE = re.compile(r"(?<![\w-])(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?![\w-])")
_SLASH_DATE = re.compile(r"(?<![\w/])(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})(?![\w/])")
_DAY_OF_MONTH = re.compile(
    rf"\b({_MONTH})(\s+)(\d{{1,2}})(?:st|nd|rd|th)?(?![\w:%]|[.,]\d)(?:(,?\s+)((?:1\d|20)\d\d)(?!\w|[.,]\d))?"
)
_MONTH_YEAR = re.compile(rf"\b({_MONTH})(\s+)((?:1\d|20)\d\d)(?!\w|[.,]\d)")
_DAY_MONTH = re.compile(rf"{_BEFORE}(\d{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?\s+({_MONTH})(?!\w)")
_BARE_MONTH = re.compile(
    r"\b(Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.(?=\s+(?:\d|the\s|\w+teen|twent|[a-z]+th\b|[a-z]+st\b))"
)
_CLOCK = re.compile(
    r"(?<![\w:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?:\s?([ap])\.?m\b\.?)?(?![\w:])", re.IGNORECASE
)
_HOUR = re.compile(r"(?<![\w:.,])(1[0-2]|[1-9])\s?([ap])(?:\.m\.|m\b\.?)", re.IGNORECASE)

_MONEY = re.compile(
    rf"([$€£¥₹])\s?({_FIGURE})(?:\s?(k|K|M|bn|B|T)\b|\s(thousand|million|billion|trillion)\b)?"
    rf"|{_BEFORE}(\d+,\d\d(?!\d)|{_FIGURE})\s?([€£])"
)
_MONEY_RANGE = re.compile(rf"([$€£])({_FIGURE})\s?[-–—]\s?[$€£]?({_FIGURE})(?:(k|K|M|bn|B)\b)?(?!\w)")
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
_SCALES = {"k": "thousand", "K": "thousand", "M": "million", "bn": "billion", "B": "billion", "T": "trillion"}

_UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "kph": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "m/s": ("meter per second", "meters per second"),
    "Mbps": ("megabit per second", "megabits per second"),
    "Gbps": ("gigabit per second", "gigabits per second"),
    "km²": ("square kilometer", "square kilometers"),
    "m²": ("square meter", "square meters"),
    "m³": ("cubic meter", "cubic meters"),
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "nm": ("nanometer", "nanometers"),
    "m": ("meter", "meters"),
    "mi": ("mile", "miles"),
    "ft": ("foot", "feet"),
    "yd": ("yard", "yards"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "g": ("gram", "grams"),
    "lbs": ("pound", "pounds"),
    "lb": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "ml": ("milliliter", "milliliters"),
    "mL": ("milliliter", "milliliters"),
    "L": ("liter", "liters"),
    "l": ("liter", "liters"),
    "°C": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "℃": ("degree Celsius", "degrees Celsius"),
    "℉": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"),
    "GHz": ("gigahertz", "gigahertz"),
    "MHz": ("megahertz", "megahertz"),
    "kHz": ("kilohertz", "kilohertz"),
    "Hz": ("hertz", "hertz"),
    "TB": ("terabyte", "terabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "MB": ("megabyte", "megabytes"),
    "KB": ("kilobyte", "kilobytes"),
    "kB": ("kilobyte", "kilobytes"),
    "kWh": ("kilowatt hour", "kilowatt hours"),
    "kW": ("kilowatt", "kilowatts"),
    "MW": ("megawatt", "megawatts"),
    "W": ("watt", "watts"),
    "dB": ("decibel", "decibels"),
    "ms": ("millisecond", "milliseconds"),
    "s": ("second", "seconds"),
    "sec": ("second", "seconds"),
    "min": ("minute", "minutes"),
    "mins": ("minute", "minutes"),
    "hrs": ("hour", "hours"),
    "hr": ("hour", "hours"),
    "h": ("hour", "hours"),
    "px": ("pixel", "pixels"),
    "fps": ("frame per second", "frames per second"),
    "%": ("percent", "percent"),
    "x": ("time", "times"),
}
_UNIT = re.compile(
    rf"({_FIGURE})\s?({'|'.join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))})(?![\w²³/])"
)
_FEET_AND_INCHES = re.compile(rf"{_BEFORE}(\d{{1,2}})['′](\d{{1,2}})[\"″](?!\w)")
_RANGE = re.compile(rf"{_BEFORE}({_FIGURE})(\s?[-–—]\s?)(?=[$€£]?\d)(?!\d+[-–—]\d)")
_YEARS = re.compile(rf"{_BEFORE}((?:1[1-9]|20)\d\d)(\s?[-–—]\s?)((?:1[1-9]|20)\d\d)(?![\w%]|[.,]\d|[-–]\d)")
_MINUS = re.compile(r"(?<![\w.,)\]])[-−](?=[$€£]?\d)")
_DECADE = re.compile(rf"{_BEFORE}['’]?((?:1[1-9]|20)?\d0)['’]?s\b")
_YEAR = re.compile(
    r"(?<=\b)((?:in|since|until|till|by|before|after|during|of|year|early|late|mid|circa|from|spring|summer|autumn|winter)\s+)"
    r"((?:1[1-9]|20)\d\d)(?![\w%]|[.,]\d|\s?[-–]\s?\d|/)",
    re.IGNORECASE,
)
_ORDINAL = re.compile(rf"{_BEFORE}(\d{{1,3}}(?:,\d{{3}})+|\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_ALWAYS = re.compile(r"(?<![\w/])24/7(?![\w/])")
_FRACTION = re.compile(r"(?<![\w/.,])(?:(\d+)\s)?(\d{1,2})/(\d{1,3})(?![\w/]|[.,]\d)")
_GLYPH = re.compile(r"(\d)?([½⅓⅔¼¾⅛])")
_GLYPHS = {
    "½": "a half",
    "⅓": "one third",
    "⅔": "two thirds",
    "¼": "a quarter",
    "¾": "three quarters",
    "⅛": "one eighth",
}
_BY = re.compile(r"(?<=\d)\s?[x×]\s?(?=\d)")
_PLAIN = re.compile(rf"(?<![\w.])({_FIGURE})(k|K)?(?!\w)")
_RATIO = re.compile(r"(?<=\d):(?=\d)")

_SIGNS: dict[str, str] = {
    "&": " and ",
    "@": " at ",
    "+": " plus ",
    "=": " equals ",
    "≈": " about ",
    "±": " plus or minus ",
    "×": " times ",
    "÷": " divided by ",
    "≤": " at most ",
    "≥": " at least ",
    "≠": " is not ",
    "→": " to ",
    "⇒": " so ",
    "§": " section ",
    "~": " about ",
}
_SIGN = re.compile(
    r"\s*(?:[&@±≈≤≥≠→⇒÷§]|->|=>|(?<=\s)[+=×~](?=\s)|(?<=\w)[+=×](?=\d)|(?<!\S)~(?=\d)|(?<=\d)\s?\*\s?(?=\d)|(?<=\s)[<>](?=\s?\d))\s*"
)
_HASH = re.compile(r"(?<!\w)#(?=\d)")
_HASHTAG = re.compile(r"(?<!\w)#(?=[A-Za-z])")
_SLASH = re.compile(r"(?<=[A-Za-z])/(?=[A-Za-z])")


def in_english(text: MappedText) -> MappedText:
    """`text` with the rules of this module applied."""
    for pattern, replacement in _RULES:
        text = text.replace(pattern, replacement)
    return text


def cardinal(figure: str) -> str:
    """ "1,234.50" as "one thousand two hundred and thirty four point five zero"."""
    whole, _, fraction = figure.replace(",", "").partition(".")
    words = _whole(whole)
    return f"{words} point {english_digits(fraction)}" if fraction else words


def _whole(digits: str) -> str:
    if len(digits) > MOST_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return english_digits(digits)
    return in_words(digits, language="en")


def _ordinal(digits: str) -> str:
    digits = digits.replace(",", "")
    return in_words(digits, language="en", form="ordinal") if len(digits) <= MOST_DIGITS else _whole(digits)


def _year(digits: str) -> str:
    return in_words(digits, language="en", form="year")


# --- addresses ------------------------------------------------------------------------------------------------------


def _url(match: re.Match[str]) -> str:
    address = match[0].rstrip(".,;:!?)]}'\"”’*_")
    tail = match[0][len(address) :]
    host, slash, path = re.sub(r"^(?:https?://)?(?:www\.)?", "", address).partition("/")
    path = re.split(r"[?#]", path)[0].strip("/")
    host = re.split(r"[?#]", host)[0]
    spoken = _dotted(host)
    if slash and path and len(path) <= _LONGEST_PATH:
        spoken += " slash " + " slash ".join(_dotted(part) for part in path.split("/"))
    return spoken + tail


def _email(match: re.Match[str]) -> str:
    return f"{_dotted(match[1])} at {_dotted(match[2])}"


def _dotted(name: str) -> str:
    words = (
        name.replace(".", " dot ").replace("-", " dash ").replace("_", " underscore ").replace(":", " colon ")
    )
    words = (
        words.replace("+", " plus ").replace("%", " ").replace("=", " ").replace("&", " ").replace("~", " ")
    )
    return " ".join(re.sub(r"\d+", lambda digits: f" {_whole(digits[0])} ", words).split())


def _version(match: re.Match[str]) -> str:
    parts = match[1].split(".")
    name = "version " if match[0][0] == "v" else ""
    between = " dot " if len(parts) == 4 else " point "
    return name + between.join(_whole(part) for part in parts)


def _phone(match: re.Match[str]) -> str:
    groups = [group for group in match.groups() if group]
    country = "plus " if groups[0].startswith("+") else ""
    return country + ", ".join(english_digits(re.sub(r"\D", "", group)) for group in groups)


# --- dates and times ------------------------------------------------------------------------------------------------


def _iso_date(match: re.Match[str]) -> str:
    return f"{_MONTHS[int(match[2]) - 1]} {_ordinal(str(int(match[3])))}, {_year(match[1])}"


def _slash_date(match: re.Match[str]) -> str | None:
    month, day = int(match[1]), int(match[2])
    if month > 12:  # written day first
        month, day = day, month
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    year = match[3] if len(match[3]) == 4 else f"20{match[3]}"
    return f"{_MONTHS[month - 1]} {_ordinal(str(day))}, {_year(year)}"


def _month(name: str) -> str:
    return _MONTH_OF[name[:3]]


def _day_of_month(match: re.Match[str]) -> str | None:
    month, gap, day, comma, year = match.groups()
    if not 1 <= int(day) <= 31:
        return None
    spoken = f"{_month(month)}{gap}{_ordinal(day)}"
    return f"{spoken}{comma}{_year(year)}" if year else spoken


def _month_year(match: re.Match[str]) -> str:
    return f"{_month(match[1])}{match[2]}{_year(match[3])}"


def _day_month(match: re.Match[str]) -> str | None:
    if not 1 <= int(match[1]) <= 31:
        return None
    return f"the {_ordinal(match[1])} of {_month(match[2])}"


def _clock(match: re.Match[str]) -> str | None:
    hour, minute, second, half = match.groups()
    if half is None and len(hour) == 1 and hour == "0":
        return None
    spoken = _whole(str(int(hour)))
    if minute != "00":
        spoken += f" oh {_whole(minute[1])}" if minute[0] == "0" else f" {_whole(minute)}"
    elif half is None and second is None:
        spoken += " o'clock" if int(hour) <= 12 else " hundred"
    if second is not None:
        spoken += f" and {cardinal(str(int(second)))} seconds"
    return f"{spoken} {half.lower()}.m." if half else spoken


def _hour(match: re.Match[str]) -> str:
    return f"{_whole(match[1])} {match[2].lower()}.m."


# --- quantities -----------------------------------------------------------------------------------------------------


def _money(match: re.Match[str]) -> str:
    symbol = match[1] or match[6]
    figure = re.sub(r",(\d\d)$", r".\1", match[2] or match[5]).replace(",", "")
    one, many, cent, cents = _CURRENCIES[symbol]
    scale = _SCALES.get(match[3] or "") or match[4]
    if scale:
        return f"{cardinal(figure)} {scale} {many}"
    whole, _, fraction = figure.partition(".")
    if not cent or len(fraction) > 2:
        return f"{cardinal(figure)} {many}"
    hundredths = int(fraction.ljust(2, "0")) if fraction else 0
    units = f"{_whole(str(int(whole)) if len(whole) <= MOST_DIGITS else whole)} {one if int(whole) == 1 else many}"
    if not hundredths:
        return units
    small = f"{_whole(str(hundredths))} {cent if hundredths == 1 else cents}"
    return f"{units} and {small}" if int(whole) else small


def _money_range(match: re.Match[str]) -> str:
    scale = f"{_SCALES[match[4]]} " if match[4] else ""
    return f"{cardinal(match[2])} to {cardinal(match[3])} {scale}{_CURRENCIES[match[1]][1]}"


def _unit(match: re.Match[str]) -> str:
    one, many = _UNITS[match[2]]
    return f"{cardinal(match[1])} {one if match[1] == '1' else many}"


def _range(match: re.Match[str]) -> str:
    return f"{match[1]} to "


def _decade(match: re.Match[str]) -> str:
    words = _year(match[1]) if len(match[1]) == 4 else _whole(match[1])
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _fraction(match: re.Match[str]) -> str:
    whole, above, below = match[1], int(match[2]), int(match[3])
    if not 0 < above < below:
        spoken = f"{_whole(match[2])} over {_whole(match[3])}"
    elif below in (2, 4):
        spoken = {2: "half", 4: "quarter"}[below] + ("s" if above > 1 else "")
        spoken = f"{_whole(str(above))} {spoken}"
    else:
        spoken = f"{_whole(str(above))} {_ordinal(str(below))}{'s' if above > 1 else ''}"
    return f"{_whole(whole)} and {spoken}" if whole else spoken


def _plain(match: re.Match[str]) -> str:
    return cardinal(match[1]) + (" thousand" if match[2] else "")


def _abbreviation(match: re.Match[str]) -> str | None:
    name = match[1].lower()
    if match[1].isupper() and name in ("vs", "fig.", "gen.", "vol.", "mt."):
        return None
    rest = match.string[match.end() :]
    ends = name in _MAY_END_A_SENTENCE and re.match(r"[\"'”’)]*(?:\s*$|\s+[A-Z])", rest)
    return _ABBREVIATIONS[name] + ("." if ends else "")


def _sign(match: re.Match[str]) -> str:
    sign = match[0].strip()
    if sign in ("->", "=>"):
        return " to "
    if sign in "<>":
        return " less than " if sign == "<" else " more than "
    return " times " if sign == "*" else _SIGNS[sign]


def _glyph(match: re.Match[str]) -> str:
    return f"{match[1]} and {_GLYPHS[match[2]]}" if match[1] else _GLYPHS[match[2]]


_RULES: tuple[tuple[re.Pattern[str], str | Replacement], ...] = (
    (_EMAIL, _email),
    (_URL, _url),
    (_FILE, " dot "),
    (_ABBREVIATION, _abbreviation),
    (_SAINT, "Saint"),
    (_STREET, "Street"),
    (_BEFORE_NUMBER, lambda match: _NAMES_BEFORE_NUMBER[match[1].lower()]),
    (_IP_OR_VERSION, _version),
    (_PHONE, _phone),
    (_ISO_DATE, _iso_date),
    (_SLASH_DATE, _slash_date),
    (_DAY_OF_MONTH, _day_of_month),
    (_MONTH_YEAR, _month_year),
    (_DAY_MONTH, _day_month),
    (_BARE_MONTH, lambda match: _month(match[1])),
    (_CLOCK, _clock),
    (_HOUR, _hour),
    (_MINUS, "minus "),
    (_YEARS, lambda match: f"{_year(match[1])} to {_year(match[3])}"),
    (_MONEY_RANGE, _money_range),
    (_RANGE, _range),
    (_MONEY, _money),
    (_FEET_AND_INCHES, lambda match: f"{_whole(match[1])} foot {_whole(match[2])}"),
    (_BY, " by "),
    (_DECADE, _decade),
    (_UNIT, _unit),
    (_YEAR, lambda match: f"{match[1]}{_year(match[2])}"),
    (_ORDINAL, lambda match: _ordinal(match[1])),
    (_ALWAYS, "twenty four seven"),
    (_FRACTION, _fraction),
    (_GLYPH, _glyph),
    (_SIGN, _sign),
    (_HASH, "number "),
    (_HASHTAG, ""),
    (_RATIO, " to "),
    (_PLAIN, _plain),
    (_SLASH, " "),
)
