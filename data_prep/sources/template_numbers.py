"""Templates that write a number, a measure or a date, as a reader sees them."""

from __future__ import annotations

from data_prep.sources.template_arguments import Arguments
from data_prep.sources.unit_names import NAMES, SYMBOLS

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SEPARATORS = {
    "-": "–",
    "–": "–",
    "to": " to ",
    "and": " and ",
    "or": " or ",
    "x": " by ",
    "×": " × ",
    "by": " by ",
    "&": " and ",
}


def quantity(arguments: Arguments) -> str:
    """`{{convert|5|km|mi}}` as `5 kilometres`; ranges and `5 ft 11 in` too; the converted value is left out."""
    parts = arguments.positional
    shown, index = "", 0
    while index < len(parts) and (_is_number(parts[index]) or parts[index] in _SEPARATORS):
        shown += _SEPARATORS.get(parts[index]) or _grouped(parts[index])
        index += 1
    unit = parts[index] if index < len(parts) else ""
    if not shown:
        return ""
    adjective = arguments.named.get("adj") in ("on", "mid", "pre")
    short = arguments.named.get("abbr") in ("on", "in") or unit not in NAMES
    if index + 2 < len(parts) and _is_number(parts[index + 1]) and unit in NAMES:
        return f"{shown} {SYMBOLS.get(unit, unit)} {parts[index + 1]} {SYMBOLS.get(parts[index + 2], parts[index + 2])}"
    if short:
        return f"{shown} {SYMBOLS.get(unit, unit)}".strip()
    singular, plural = NAMES[unit]
    if arguments.named.get("sp") == "us":
        singular, plural = (word.replace("metre", "meter").replace("litre", "liter") for word in (singular, plural))
    return f"{shown}-{singular}" if adjective else f"{shown} {singular if shown == '1' else plural}"


def _grouped(number: str) -> str:
    """`2381741` as `2,381,741`; what is grouped or broken already stays."""
    whole, point, decimals = number.partition(".")
    if whole.isdecimal() and 3 < len(whole) <= 30 and (not point or decimals.isdecimal()):
        return f"{int(whole):,}{point}{decimals}"
    return number


def _is_number(text: str) -> bool:
    return text[:1] in "0123456789.+-−" and any(character.isdigit() for character in text)


def fraction(arguments: Arguments) -> str:
    """`{{frac|1|2}}` as `1/2`, `{{frac|3|1|2}}` as `3 1/2`."""
    parts = [part for part in arguments.positional if part]
    if len(parts) == 3:
        return f"{parts[0]} {parts[1]}/{parts[2]}"
    return "/".join(parts) if len(parts) == 2 else f"1/{parts[0]}" if parts else ""


def date(arguments: Arguments) -> str:
    """Year, month and day in numbers as a reader sees them; other forms word by word."""
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


def value(arguments: Arguments) -> str:
    """`{{val|1.5|e=6|u=m}}` as `1.5×10^6 m`."""
    unit = arguments.named.get("u") or arguments.named.get("ul") or ""
    power = f"×10^{arguments.named['e']}" if arguments.named.get("e") else ""
    return f"{arguments.at(1)}{power} {unit}".strip()


def ordinal(arguments: Arguments) -> str:
    """`{{ordinal|22}}` as `22nd`."""
    number = arguments.at(1)
    if not number.isdecimal():
        return number
    ending = "th" if number[-2:] in ("11", "12", "13") else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")
    return number + ending


def number_and_unit(arguments: Arguments) -> str:
    """`{{unité|5|km}}` as `5 km`."""
    return " ".join(part for part in arguments.positional if part)


def height(arguments: Arguments) -> str:
    """`{{height|ft=5|in=11}}` as `5 ft 11 in`."""
    named = arguments.named
    if named.get("ft"):
        return f"{named['ft']} ft {named.get('in', '0')} in"
    return f"{named['m']} m" if named.get("m") else f"{named['cm']} cm" if named.get("cm") else ""
