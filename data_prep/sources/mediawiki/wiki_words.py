"""Words that identify parts and kinds of Wikipedia articles in many languages: headings, templates, titles."""

from __future__ import annotations

import re

SECTIONS_WITHOUT_PROSE = frozenset({
    "references", "reference", "external links", "external link", "see also", "further reading", "bibliography",
    "notes", "footnotes", "sources", "citations", "notes and references", "references and notes", "works cited",
    "literature", "links", "related pages", "other websites", "discography", "filmography", "gallery",
    "image gallery", "selected bibliography", "selected works", "primary sources", "secondary sources",
    "general references", "cited sources", "cited works", "publications", "selected publications", "track listing",
    "weblinks", "einzelnachweise", "literatur", "siehe auch", "quellen", "anmerkungen", "werke", "belege", "fußnoten",
    "références", "notes et références", "liens externes", "lien externe", "voir aussi", "bibliographie",
    "articles connexes", "annexes", "referencias", "enlaces externos", "véase también", "bibliografía", "notas",
    "fuentes", "notas y referencias", "note", "collegamenti esterni", "bibliografia", "voci correlate",
    "altri progetti", "riferimenti", "fonti", "referências", "ligações externas", "ver também", "notas e referências",
    "leitura adicional", "примечания", "ссылки", "литература", "см. также", "источники", "примітки", "посилання",
    "література", "джерела", "див. також", "przypisy", "linki zewnętrzne", "zobacz też", "uwagi", "referenties",
    "externe links", "zie ook", "bronnen", "literatuur", "bronnen, noten en/of referenties", "referenser",
    "externa länkar", "se även", "källor", "noter", "litteratur", "referanser", "eksterne lenker", "se også",
    "kilder", "henvisninger", "eksterne henvisninger", "viitteet", "aiheesta muualla", "lähteet", "katso myös",
    "externí odkazy", "související články", "odkazy", "poznámky", "jegyzetek", "források", "további információk",
    "kapcsolódó szócikkek", "kaynakça", "dış bağlantılar", "ayrıca bakınız", "脚注", "注釈", "出典", "参考文献",
    "関連項目", "外部リンク", "参考资料", "參考資料", "外部链接", "外部連結", "参见", "參見", "注释", "각주",
    "같이 보기", "외부 링크", "참고 문헌", "مراجع", "المراجع", "وصلات خارجية", "انظر أيضا", "پانویس", "منابع",
    "پیوند به بیرون", "جستارهای وابسته", "הערות שוליים", "קישורים חיצוניים", "לקריאה נוספת", "ראו גם", "tham khảo",
    "liên kết ngoài", "xem thêm", "chú thích", "atsauces", "ārējās saites", "skatīt arī", "nuorodos", "šaltiniai",
    "παραπομπές", "εξωτερικοί σύνδεσμοι", "legături externe", "vezi și", "източници", "външни препратки", "бележки",
    "вижте също", "izvori", "vanjske poveznice", "referències", "enllaços externs", "vegeu també",
    "izmontuotuo literatura", "nūruodis", "viits", "välislingid", "vaata ka", "ūtruo puornūruode",
})  # fmt: skip
"""Headings, in lower case, of sections that are removed with their sub-sections."""

DISAMBIGUATION_TEMPLATES = frozenset({
    "disambig", "disamb", "dab", "disambiguation", "disambiguation page", "hndis", "geodis", "numberdis", "letterdis",
    "schooldis", "mathdab", "roaddis", "shipindex", "callsigndis", "hospitaldis", "begriffsklärung", "homonymie",
    "homonymes", "internationalisation", "desambiguación", "desambiguacion", "desambiguação", "disambigua",
    "disambiguazione", "неоднозначность", "многозначность", "багатозначність", "ujednoznacznienie",
    "doorverwijspagina", "dp", "aimai", "曖昧さ回避", "消歧义", "消歧義", "förgrening", "gren", "täsmennyssivu",
    "flertydig", "peker", "pekerside", "rozcestník", "rozlišovacia stránka", "egyért", "anlam ayrımı", "anlamayrımı",
    "توضيح", "ابهام‌زدایی", "ابهام زدایی", "פירושונים", "동음이의", "định hướng", "trang định hướng",
    "nuozīmju atdalīšana", "nuoruodinis", "αποσαφήνιση", "dezambiguizare", "пояснение", "razdvojba",
    "вишезначна одредница", "desambiguació", "argipen", "homónimos", "apartigilo", "täpsustuslehekülg", "razločitev",
    "բազմիմաստություն", "მრავალმნიშვნელოვანი",
})  # fmt: skip
"""Names, in lower case, of templates that are used only on disambiguation pages."""

DISAMBIGUATION_TITLE = re.compile(
    r"\((?:disambiguation|begriffsklärung|homonymie|desambiguación|desambiguação|disambigua|значения|значення|"
    r"ujednoznacznienie|doorverwijspagina|曖昧さ回避|消歧义|消歧義|olika betydelser|täsmennyssivu|flertydig|rozcestník|"
    r"egyértelműsítő lap|anlam ayrımı|동음이의|định hướng|desambiguació|nozīmju atdalīšana)\)$",
    re.IGNORECASE,
)

LIST_TITLE = re.compile(
    r"^(?:lists? of|index of|outline of|glossary of|table of|timeline of|liste (?:des?|der|von|du|d['’])|listes? des|"
    r"lista (?:de|dei|delle|degli|di|över|över|do|dos|das)|elenco|anexo:|список|списък|списак|lijst van|seznam|zoznam|"
    r"luettelo|danh sách)\b|(?:一覧|列表|목록)$",
    re.IGNORECASE,
)

LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "ga": "Irish",
    "gd": "Scottish Gaelic", "grc": "Ancient Greek", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "la": "Latin", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sa": "Sanskrit", "sv": "Swedish",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""English names of languages, which templates such as `{{lang-fr|…}}` write before the foreign word."""
