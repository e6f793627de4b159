"""Templates whose text belongs to the surrounding sentence: units, foreign words, dashes, dates, ship names.

All other templates (infoboxes, citations, navigation, maintenance marks) are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller

from data_prep.sources.mediawiki import template_numbers as numbers
from data_prep.sources.mediawiki.template_numbers import TemplateArguments
from data_prep.sources.mediawiki.wiki_words import DISAMBIGUATION_TEMPLATES, DISAMBIGUATION_TITLE, LANGUAGES

DROPPED = frozenset({
    "", "cite web", "cite book", "cite news", "cite journal", "citation needed", "citation", "cite", "sfn", "reflist",
    "main", "see also", "coord", "flagicon", "refn", "efn", "r", "rp", "harv", "harvnb", "isbn", "webarchive",
    "dead link", "who",
})  # fmt: skip
"""The most frequent templates that are removed, listed to save time."""

LONGEST_SOUND_CHARACTERS = 8
_SHIP_PREFIXES = "HMS USS SS RMS SMS MV MS HMAS HMCS USAT USCGC HNLMS HMNZS RFA PS TSS"


def name_of(head: str) -> str:
    """Return the name of a template from its first text: lower case, spaces for underscores."""
    name = head.split("|", 1)[0] if "|" in head else head
    if len(name) > 200:
        return ""
    name = name.split("\n", 1)[0] if "\n" in name.strip() else name
    return " ".join(name.replace("_", " ").split()).lower().removeprefix("template:")


def is_disambiguation(title: str = "", text: str = "", name: str = "") -> bool:
    """Return whether a title, a behaviour switch in the text, or a template name marks a disambiguation page."""
    if name:
        return name in DISAMBIGUATION_TEMPLATES or name.endswith(" disambiguation")
    return "__DISAMBIG__" in text or DISAMBIGUATION_TITLE.search(title) is not None


def expand(name: str, text: str, title: str) -> str:
    """Return the text of a template in its sentence; `text` is everything between its braces."""
    if (expansion := _EXPANSIONS.get(name)) is not None:
        return expansion if isinstance(expansion, str) else expansion(TemplateArguments(text))
    if name.startswith("lang-"):
        word = TemplateArguments(text).at(1)
        language = LANGUAGES.get(name[5:])
        return f"{language}: {word}" if language and word else word
    if name.startswith("formatnum:"):
        return text.partition(":")[2].partition("|")[0].strip()
    if name in ("pagename", "fullpagename", "basepagename"):
        return title
    return ""


def _joined(separator: str, most: int | None = None) -> Callable[[TemplateArguments], str]:
    return lambda arguments: separator.join(part for part in arguments.positional[:most] if part)


def _prefixed(prefix: str) -> Callable[[TemplateArguments], str]:
    return lambda arguments: prefix + arguments.at(1) if arguments.at(1) else ""


def _suffixed(suffix: str) -> Callable[[TemplateArguments], str]:
    return lambda arguments: arguments.at(1) + suffix if arguments.at(1) else ""


def _as_of(arguments: TemplateArguments) -> str:
    if "alt" in arguments.named:
        return arguments.named["alt"]
    start = "since" if arguments.named.get("since") in ("y", "yes") else "as of"
    if arguments.named.get("lc") not in ("y", "yes", "on"):
        start = start.capitalize()
    return f"{start} {numbers.date(arguments)}" if arguments.at(1) else ""


def _language(arguments: TemplateArguments) -> str:
    language, word = LANGUAGES.get(arguments.at(1)), arguments.at(2)
    return f"{language}: {word}" if language and word else word


def _nihongo(arguments: TemplateArguments) -> str:
    inner = ", ".join(part for part in arguments.positional[1:3] if part)
    return f"{arguments.at(1)} ({inner})" if arguments.at(1) and inner else arguments.at(1) or inner


def _chinese(arguments: TemplateArguments) -> str:
    word = next((arguments.named[key] for key in ("c", "s", "t", "zh") if arguments.named.get(key)), arguments.at(1))
    pinyin = arguments.named.get("p", "")
    return "; ".join(
        part for part in (f"Chinese: {word}" if word else "", f"pinyin: {pinyin}" if pinyin else "") if part
    )


def _quotation(arguments: TemplateArguments) -> str:
    text = arguments.named.get("text") or arguments.named.get("quote") or arguments.at(1)
    return f"\n{text}\n" if text else ""


def _sounds(arguments: TemplateArguments) -> str:
    """Return a short sound, which is part of the sentence; a longer transcription of a pronunciation is removed."""
    return arguments.at(1) if len(arguments.at(1)) <= LONGEST_SOUND_CHARACTERS else ""


def _authors_and_year(arguments: TemplateArguments) -> str:
    """Return `{{harvtxt|Artin|1970}}`, which is part of its sentence, as `Artin (1970)`."""
    if "last" in arguments.named and "txt" in arguments.positional:
        parts = [arguments.named["last"], arguments.named.get("last2", ""), arguments.named.get("year", "")]
    else:
        parts = arguments.positional
    parts = [part for part in parts if part]
    return f"{' and '.join(parts[:-1])} ({parts[-1]})" if len(parts) > 1 else ""


_EXPANSIONS: dict[str, str | Callable[[TemplateArguments], str]] = {}


def _add(names: str, expansion: str | Callable[[TemplateArguments], str]) -> None:
    _EXPANSIONS.update(dict.fromkeys(names.split(";"), expansion))


_add(
    "nowrap;nobr;nobold;noitalic;nobreak;nwr;small;smaller;big;larger;large;abbr;abbrlink;tooltip;unicode;script;sup;sub;sc;"
    "smallcaps;small caps;sc2;caps;allcaps;mvar;math;var;pi;em;strong;underline;u;strikethrough;code;kbd;samp;mono;tt;"
    "vanchor;visible anchor;sic;as written;typo;not a typo;proper name;noprint;ill;interlanguage link;"
    "interlanguage link multi;link-interwiki;illm;chem2;keypress;title;play;flag;flagcountry;flagu;country;nbsp;bdi;"
    "track gauge;railgauge;rail gauge;trackgauge;section link;slink;linktext;poem;asiantitle;angbr;gval;numero;"
    "no italic;italic title prefixed;zh-full;transl-text;avoid wrap;nsmdns;ipac;resize;dunno;"
    "citation bref;allmusic name;usd name;snamei;tld;cquotetext;bold;italics;nobots text",
    methodcaller("at", 1),
)
_add(
    "lang;langue;lang2;color;colour;font color;font colour;fontcolor;rtl-lang;wikt-lang;unité-lien;text color;"
    "citation étrangère", methodcaller("at", 2),
)  # fmt: skip
_add("transliteration;transl;translit;translation;literal translation;lit;linktext-last", TemplateArguments.last)
_add("langx", _language)
_add("nbsp;nbs;space;thin space;thinsp;hair space;hsp;sp;spaces;0;emsp;ensp;clear;-", " ")
_add("spaced ndash;snd;snds;spnd;sndash;spaced en dash;spaced endash;dash;–;spaced en dash space", " – ")
_add("ndash;endash;en dash", "–")
_add("mdash;mdashb;emdash;em dash;spaced mdash;—", "—")
_add("';apostrophe;okina", "'")
_add("'s", "'s")
_add('";\' ";" \'', '"')
_add("·;dot;middot;•;bull;bullet", " · ")
_add("=", "=")
_add("pb;paragraph;parabr;paragraph break;par", "\n\n")
_add("shy;wbr", "")
_add("zwj", "\u200d")
_add("zwnj", "\u200c")
_add("zwsp", "\u200b")
_add("convert;cvt;conv;convertir;umrechnen", numbers.quantity)
_add("frac;fraction;sfrac;tfrac;dfrac;frac2", numbers.fraction)
_add(
    "date;start date;end date;birth date;death date;birth date and age;death date and age;start date and age;dts;"
    "film date;bda;dob;birth-date;death-date;date-;date de naissance;date de décès;fecha",
    numbers.date,
)
_add("as of;as of?;asof", _as_of)
_add("circa;c.;ca.;ca;c", lambda given: "c. " + "–".join(given.positional[:2]) if given.at(1) else "c.")
_add("fl.;floruit;fl", _prefixed("fl. "))
_add("nihongo;nihongo2;nihongo3;nihongo foot;nihongo krt", _nihongo)
_add("zh;zh-cn;chinese;zh-tsp", _chinese)
_add("ship;ships", _joined(" ", 2))
_add(
    "sclass;sclass-;sclass2;sclass2-",
    lambda given: f"{given.at(1)}-class {given.at(2)}".strip() if given.at(1) else "",
)
for _prefix in _SHIP_PREFIXES.split():
    _add(_prefix.lower(), _prefixed(f"{_prefix} "))
_add("gs", _prefixed("German submarine "))
_add("val;value", numbers.value)
_add("ordinal;ord", numbers.ordinal)
_add("chem;chem/link;gaps;formula;auto chem", _joined(""))
_add("e;esp;x10^;10^", _prefixed("×10^"))
_add("us$;usd;us dollar;dollar", _prefixed("US$"))
_add("$", _prefixed("$"))
_add("a$;aud", _prefixed("A$"))
_add("c$;cad", _prefixed("C$"))
_add("£;gbp;pound sterling;pound", _prefixed("£"))
_add("€;eur;euro", _prefixed("€"))
_add("inr;indian rupee;₹;rs;rs.", _prefixed("₹"))
_add("¥;jpy;yen;cny;rmb", _prefixed("¥"))
_add("ad;a.d.", _prefixed("AD "))
_add("bce;b.c.e.", _suffixed(" BCE"))
_add("bc;b.c.", _suffixed(" BC"))
_add("ce;c.e.", _suffixed(" CE"))
_add("quote;blockquote;cquote;quotation;bquote;zitat;citation bloc;quoteblock;block quote;cita;cytat;citat", _quotation)
_add("block indent;indent;block", _quotation)
_add("height", numbers.height)
_add("ipa;ipa link;ipalink;angle bracket;angbr ipa;grapheme", _sounds)
_add("harvtxt;harvtxt2;harvcoltxt;harvs", _authors_and_year)
_add("bibleverse;bibleref;bibleref2;bibleverse-nb", lambda arguments: f"{arguments.at(1)} {arguments.at(2)}".strip())
_add("us patent;uspatent", _prefixed("U.S. Patent "))
_add("unité;unidad;unit;nombre;nb;num;formatnum;fmtn;formatnr;m;nau;heure;jh;datum", _joined(" "))
_add("s;siècle;s-;s mini;sp-;siecle", lambda given: f"{given.at(1)}{given.at(2) or 'e'} siècle" if given.at(1) else "")
_add("1er", "1er")
_add("ier", "Ier")
_add("ire", "Ire")
