"""The arguments of a template, and the templates for numbers, measures and dates."""

from __future__ import annotations

import re

_PIPE = re.compile(r"\[\[[^\[\]]*\]\]|\|")
_NAME = re.compile(r"[\w .-]{1,30}")
UNIT_NAMES = {
    "km": "kilometre", "m": "metre", "cm": "centimetre", "mm": "millimetre", "mi": "mile", "nmi": "nautical mile",
    "yd": "yard", "ft": "foot", "in": "inch", "kg": "kilogram", "g": "gram", "t": "tonne", "lb": "pound", "oz": "ounce",
    "LT": "long ton", "ST": "short ton", "long ton": "long ton", "short ton": "short ton", "ton": "ton",
    "tonne": "tonne", "ha": "hectare", "acre": "acre", "acres": "acre", "sqmi": "square mile",
    "sqkm": "square kilometre", "km2": "square kilometre", "mi2": "square mile", "m2": "square metre",
    "sqm": "square metre", "sqft": "square foot", "ft2": "square foot", "m3": "cubic metre", "cuft": "cubic foot",
    "l": "litre", "L": "litre", "ml": "millilitre", "gal": "gallon", "km/h": "kilometre per hour",
    "kph": "kilometre per hour", "mph": "mile per hour", "kn": "knot", "hp": "horsepower", "kW": "kilowatt",
    "MW": "megawatt", "chain": "chain", "fathom": "fathom", "furlong": "furlong", "stone": "stone", "feet": "foot",
    "foot": "foot", "metre": "metre", "meter": "metre", "mile": "mile", "miles": "mile", "pound": "pound",
    "inch": "inch",
}  # fmt: skip
UNIT_SYMBOLS = {
    "km2": "km²", "m2": "m²", "mi2": "sq mi", "sqmi": "sq mi", "sqkm": "km²", "sqm": "m²", "ft2": "sq ft",
    "sqft": "sq ft", "m3": "m³", "km3": "km³", "cuft": "cu ft", "cumi": "cu mi", "C": "°C", "F": "°F", "K": "K",
    "C-change": "°C", "F-change": "°F", "m/s": "m/s",
    "oilbbl": "barrels of oil", "oilbbl/d": "barrels of oil per day",
    "/km2": "/km²", "PD/km2": "/km²", "PD/sqmi": "/sq mi",
    "acres": "acres", "acre": "acres", "st": "st", "long ton": "long tons", "short ton": "short tons", "cc": "cc",
    "lbf": "lbf", "kph": "km/h", "foot": "ft", "feet": "ft", "inch": "in", "metre": "m", "meter": "m", "mile": "mi",
}  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SEPARATORS = {
    "-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "x": " by ", "×": " × ", "by": " by ", "&": " and ",
}  # fmt: skip


class TemplateArguments:
    """The arguments of a template. `at(1)` is the first positional one; pipes within links are no separators."""

    def __init__(self, text: str) -> None:
        pieces, position = [], 0
        for match in _PIPE.finditer(text):
            if match[0] == "|":
                pieces.append(text[position : match.start()])
                position = match.end()
        pieces.append(text[position:])
        self.named: dict[str, str] = {}
        self.positional: list[str] = []
        for piece in pieces[1:]:
            name, equals, value = piece.partition("=")
            if equals and _NAME.fullmatch(name.strip() or " " * (" " in name)):
                self.named[name.strip().lower()] = value.strip()
            else:
                self.positional.append(piece.strip())

    def at(self, number: int) -> str:
        """Return argument `number`, counted from 1, or an empty string."""
        if str(number) in self.named:
            return self.named[str(number)]
        return self.positional[number - 1] if number <= len(self.positional) else ""

    def last(self) -> str:
        """Return the last positional argument, or an empty string."""
        return self.positional[-1] if self.positional else ""


def quantity(arguments: TemplateArguments) -> str:
    """Return `{{convert|5|km|mi}}` as `5 kilometres`, also ranges and `5 ft 11 in`; the converted value is left out."""
    parts = arguments.positional
    shown, index = "", 0
    while index < len(parts) and (_is_number(parts[index]) or parts[index] in _SEPARATORS):
        shown += _SEPARATORS.get(parts[index]) or _grouped(parts[index])
        index += 1
    unit = parts[index] if index < len(parts) else ""
    if not shown:
        return ""
    adjective = arguments.named.get("adj") in ("on", "mid", "pre")
    short = arguments.named.get("abbr") in ("on", "in") or unit not in UNIT_NAMES
    if index + 2 < len(parts) and _is_number(parts[index + 1]) and unit in UNIT_NAMES:
        first, second = (UNIT_SYMBOLS.get(name, name) for name in (unit, parts[index + 2]))
        return f"{shown} {first} {parts[index + 1]} {second}"
    if short:
        return f"{shown} {UNIT_SYMBOLS.get(unit, unit)}".strip()
    name = UNIT_NAMES[unit]
    if not adjective and shown != "1":
        name = _plural(name)
    if arguments.named.get("sp") == "us":
        name = name.replace("metre", "meter").replace("litre", "liter")
    return f"{shown}-{name}" if adjective else f"{shown} {name}"


def _plural(name: str) -> str:
    measure, per, time = name.partition(" per ")
    if measure.endswith(("foot", "inch", "horsepower", "stone")):
        return measure.replace("foot", "feet").replace("inch", "inches")
    return f"{measure}s{per}{time}"


def _grouped(number: str) -> str:
    """Return `2381741` as `2,381,741`; numbers that are grouped already, and fractions, are not changed."""
    whole, point, decimals = number.partition(".")
    if whole.isdecimal() and 3 < len(whole) <= 30 and (not point or decimals.isdecimal()):
        return f"{int(whole):,}{point}{decimals}"
    return number


def _is_number(text: str) -> bool:
    return text[:1] in "0123456789.+-−" and any(character.isdigit() for character in text)


def fraction(arguments: TemplateArguments) -> str:
    """Return `{{frac|1|2}}` as `1/2`, `{{frac|3|1|2}}` as `3 1/2`."""
    parts = [part for part in arguments.positional if part]
    if len(parts) == 3:
        return f"{parts[0]} {parts[1]}/{parts[2]}"
    return "/".join(parts) if len(parts) == 2 else f"1/{parts[0]}" if parts else ""


def date(arguments: TemplateArguments) -> str:
    """Return a date given as numbers in words; other forms are joined with spaces."""
    numbers = arguments.positional[:3]
    if numbers and all(part.isdecimal() and len(part) <= 4 for part in numbers) and len(numbers[0]) > 2:
        if len(numbers) == 1 or not 1 <= int(numbers[1]) <= 12:
            return numbers[0]
        month = _MONTHS[int(numbers[1]) - 1]
        if len(numbers) == 2:
            return f"{month} {numbers[0]}"
        if arguments.named.get("df") in ("y", "yes"):
            return f"{int(numbers[2])} {month} {numbers[0]}"
        return f"{month} {int(numbers[2])}, {numbers[0]}"
    return " ".join(part for part in arguments.positional if part)


def value(arguments: TemplateArguments) -> str:
    """Return `{{val|1.5|e=6|u=m}}` as `1.5×10^6 m`."""
    unit = arguments.named.get("u") or arguments.named.get("ul") or ""
    power = f"×10^{arguments.named['e']}" if arguments.named.get("e") else ""
    return f"{arguments.at(1)}{power} {unit}".strip()


def ordinal(arguments: TemplateArguments) -> str:
    """Return `{{ordinal|22}}` as `22nd`."""
    number = arguments.at(1)
    if not number.isdecimal():
        return number
    ending = "th" if number[-2:] in ("11", "12", "13") else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")
    return number + ending


def height(arguments: TemplateArguments) -> str:
    """Return `{{height|ft=5|in=11}}` as `5 ft 11 in`."""
    named = arguments.named
    if named.get("ft"):
        return f"{named['ft']} ft {named.get('in', '0')} in"
    return f"{named['m']} m" if named.get("m") else f"{named['cm']} cm" if named.get("cm") else ""
