"""Sentences of many languages: the translations in Django's wheel, unpacked, for other scripts here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

#: The languages of LanguageIdentifier 1.1.1 by the names of Django's folders; Norwegian is ``nb`` there.
LANGUAGES = ("ca", "cs", "da", "de", "en", "es", "et", "fi", "fr", "hr")
LANGUAGES += ("hu", "it", "lt", "nl", "nb", "pl", "pt", "ro", "sv", "tr")
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


def drawn(django: Path, count: int, generator: np.random.Generator) -> list[tuple[str, str]]:
    """Languages and sentences, each language as often as any other, no sentence twice."""
    left = {language: list(generator.permutation(sentences(django, language))) for language in LANGUAGES}
    every = [(language, str(text)) for language, texts in left.items() for text in texts[: -(-count // len(LANGUAGES))]]
    return [every[n] for n in generator.permutation(len(every))[:count]]
