"""Units as `{{convert}}` codes them: their names in words (singular, plural), and their symbols."""

NAMES = {
    "km": ("kilometre", "kilometres"), "m": ("metre", "metres"), "cm": ("centimetre", "centimetres"),
    "mm": ("millimetre", "millimetres"), "mi": ("mile", "miles"), "nmi": ("nautical mile", "nautical miles"),
    "yd": ("yard", "yards"), "ft": ("foot", "feet"), "in": ("inch", "inches"), "kg": ("kilogram", "kilograms"),
    "g": ("gram", "grams"), "t": ("tonne", "tonnes"), "lb": ("pound", "pounds"), "oz": ("ounce", "ounces"),
    "LT": ("long ton", "long tons"), "ST": ("short ton", "short tons"), "long ton": ("long ton", "long tons"),
    "short ton": ("short ton", "short tons"), "ton": ("ton", "tons"), "tonne": ("tonne", "tonnes"),
    "ha": ("hectare", "hectares"), "acre": ("acre", "acres"), "acres": ("acre", "acres"),
    "sqmi": ("square mile", "square miles"), "sqkm": ("square kilometre", "square kilometres"),
    "km2": ("square kilometre", "square kilometres"), "mi2": ("square mile", "square miles"),
    "m2": ("square metre", "square metres"), "sqm": ("square metre", "square metres"),
    "sqft": ("square foot", "square feet"), "ft2": ("square foot", "square feet"),
    "m3": ("cubic metre", "cubic metres"), "cuft": ("cubic foot", "cubic feet"), "l": ("litre", "litres"),
    "L": ("litre", "litres"), "ml": ("millilitre", "millilitres"), "gal": ("gallon", "gallons"),
    "km/h": ("kilometre per hour", "kilometres per hour"), "kph": ("kilometre per hour", "kilometres per hour"),
    "mph": ("mile per hour", "miles per hour"), "kn": ("knot", "knots"), "hp": ("horsepower", "horsepower"),
    "kW": ("kilowatt", "kilowatts"), "MW": ("megawatt", "megawatts"), "chain": ("chain", "chains"),
    "fathom": ("fathom", "fathoms"), "furlong": ("furlong", "furlongs"), "stone": ("stone", "stone"),
    "feet": ("foot", "feet"), "foot": ("foot", "feet"), "metre": ("metre", "metres"), "meter": ("metre", "metres"),
    "mile": ("mile", "miles"), "miles": ("mile", "miles"), "pound": ("pound", "pounds"), "inch": ("inch", "inches"),
}  # fmt: skip

SYMBOLS = {
    "km2": "km²", "m2": "m²", "mi2": "sq mi", "sqmi": "sq mi", "sqkm": "km²", "sqm": "m²", "ft2": "sq ft",
    "sqft": "sq ft", "m3": "m³", "km3": "km³", "cuft": "cu ft", "cumi": "cu mi", "C": "°C", "F": "°F", "K": "K",
    "C-change": "°C", "F-change": "°F", "m/s": "m/s",
    "oilbbl": "barrels of oil", "oilbbl/d": "barrels of oil per day",
    "/km2": "/km²", "PD/km2": "/km²", "PD/sqmi": "/sq mi",
    "acres": "acres", "acre": "acres", "st": "st", "long ton": "long tons", "short ton": "short tons", "cc": "cc",
    "lbf": "lbf", "kph": "km/h", "foot": "ft", "feet": "ft", "inch": "in", "metre": "m", "meter": "m", "mile": "mi",
}  # fmt: skip
