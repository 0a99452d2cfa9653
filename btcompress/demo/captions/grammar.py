"""Sentences about scenes: several right wordings of each, and back from a sentence to the objects that it names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from btcompress.demo.captions.scenes import COLOURS, N_OBJECTS, PLACES, SHAPES, SIZES

# The first wording is the most common: the k-th is taken 1 / k^2 times as often.
_NOUNS = {
    "disc": ("disc", "circle", "dot", "coin"),
    "ring": ("ring", "hoop", "loop", "wheel"),
    "square": ("square", "box", "block", "tile"),
    "triangle": ("triangle", "wedge", "pyramid", "arrowhead"),
    "cross": ("cross", "plus", "crosshair"),
    "digit": ("digit", "number", "numeral", "figure"),
}
_COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet", "ruby"),
    "green": ("green", "emerald", "jade"),
    "blue": ("blue", "azure", "sapphire"),
    "yellow": ("yellow", "golden", "lemon"),
    "purple": ("purple", "violet", "magenta"),
    "white": ("white", "pale", "ivory"),
}
_SIZE_WORDS = {"large": ("large", "big", "huge", "great"), "small": ("small", "little", "tiny", "minute")}
_PLACE_PHRASES = {
    "top left": ("at top left", "in upper left"),
    "top right": ("at top right", "in upper right"),
    "bottom left": ("at bottom left", "in lower left"),
    "bottom right": ("at bottom right", "in lower right"),
}
# What phrases without a verb stand in, and what those with one stand in. Where an object is, is said before what it is.
_FRAMES = (
    "{}",
    "there is {}",
    "the picture shows {}",
    "this image contains {}",
    "we see {}",
    "here is {}",
    "a scene with {}",
    "you can find {}",
    "an illustration of {}",
    "it depicts {}",
    "somebody drew {}",
    "my drawing includes {}",
    "one photo with {}",
    "clearly visible are {}",
)
_FRAMES_OF_CLAUSES = ("{}", "in this picture {}", "look : {}", "as you notice {}", "on closer inspection {}")
_VERBS = ("is", "lies", "sits", "appears")
_BETWEEN = ("and", "together with", "and also", ", then")
#: How often phrases have a verb, and how often a sentence goes by places from the last to the first.
_VERB_SHARE, _BACKWARDS_SHARE = 0.5, 0.3

#: What fills up, begins and ends a sentence, as words of the vocabulary.
PAD, BEGIN, END = 0, 1, 2
_SPECIAL = ("<pad>", "<begin>", "<end>")


@dataclass(frozen=True, slots=True)
class Thing:
    """An object as it is named: one each of ``SHAPES``, ``COLOURS``, ``SIZES`` and ``PLACES``."""

    shape: str
    colour: str
    size: str
    place: str


def things(objects: npt.NDArray[np.int8]) -> tuple[Thing, ...]:
    """The objects of one scene, from a row of ``Scenes.objects``."""
    kinds = (SHAPES, COLOURS, SIZES, PLACES)
    return tuple(Thing(*(of[int(number)] for of, number in zip(kinds, each, strict=True))) for each in objects)


def wordings(shown: Sequence[Thing], count: int, generator: np.random.Generator) -> tuple[str, ...]:
    """So many sentences about a scene, no two alike."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[_wording(shown, generator)] = None
    return tuple(found)


def _wording(shown: Sequence[Thing], generator: np.random.Generator) -> str:
    ordered = shown[::-1] if generator.random() < _BACKWARDS_SHARE else shown
    has_verbs = generator.random() < _VERB_SHARE
    phrases = [_phrase(thing, has_verbs, generator) for thing in ordered]
    text = phrases[0]
    for phrase in phrases[1:]:
        text = f"{text} {_one_of(_BETWEEN, generator)} {phrase}"
    return _one_of(_FRAMES_OF_CLAUSES if has_verbs else _FRAMES, generator).format(text)


def _phrase(thing: Thing, has_verb: bool, generator: np.random.Generator) -> str:
    size, colour = _one_of(_SIZE_WORDS[thing.size], generator), _one_of(_COLOUR_WORDS[thing.colour], generator)
    noun, place = _one_of(_NOUNS[thing.shape], generator), _one_of(_PLACE_PHRASES[thing.place], generator)
    verb = [_one_of(_VERBS, generator)] if has_verb else []
    return " ".join([place, *verb, "a", size, colour, noun])


def _one_of(choices: Sequence[str], generator: np.random.Generator) -> str:
    shares = np.cumsum(1 / np.arange(1, len(choices) + 1) ** 2)
    return choices[int(np.searchsorted(shares, generator.random() * shares[-1], side="right"))]


def _words(texts: Iterable[str]) -> list[str]:
    """The words of these texts, each once, in the order in which they come first."""
    return list(dict.fromkeys(word for text in texts for word in text.replace("{}", "").split()))


def _all(*tables: Mapping[str, Sequence[str]]) -> list[str]:
    return [phrase for table in tables for phrases in table.values() for phrase in phrases]


#: Every word that a sentence may have, after those that fill up, begin and end it; the comma and the colon are words.
VOCABULARY = (
    *_SPECIAL,
    *_words(
        (
            "a",
            *_all(_SIZE_WORDS, _COLOUR_WORDS, _NOUNS, _PLACE_PHRASES),
            *_FRAMES,
            *_FRAMES_OF_CLAUSES,
            *_VERBS,
            *_BETWEEN,
        )
    ),
)
_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}


def _longest(texts: Iterable[str]) -> int:
    return max(len(text.replace("{}", "").split()) for text in texts)


def _longest_sentence() -> int:
    place = _longest(_all(_PLACE_PHRASES))
    what = 4 + place
    joined = N_OBJECTS * what + (N_OBJECTS - 1) * _longest(_BETWEEN)
    return joined + max(_longest(_FRAMES), _longest(_FRAMES_OF_CLAUSES) + N_OBJECTS)


#: Steps of a sentence: its words at most, and its end.
STEPS = _longest_sentence() + 1


def encode(sentences: Sequence[str]) -> npt.NDArray[np.uint8]:
    """The positions of their words in :data:`VOCABULARY`, then :data:`END`, then :data:`PAD`: ``(n, STEPS)``."""
    tokens = np.full((len(sentences), STEPS), PAD, np.uint8)
    for row, sentence in zip(tokens, sentences, strict=True):
        numbers = [*(_NUMBERS[word] for word in sentence.split()), END]
        row[: len(numbers)] = numbers
    return tokens


def decode(tokens: npt.NDArray[np.integer]) -> str:
    """The sentence of a row of tokens: its words up to the first :data:`END`."""
    numbers = tokens.tolist()
    stop = numbers.index(END) if END in numbers else len(numbers)
    return " ".join(VOCABULARY[number] for number in numbers[:stop])


def _meanings(table: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {phrase: meaning for meaning, phrases in table.items() for phrase in phrases}


def _either(phrases: Iterable[str]) -> str:
    # The longest first, as "cross" begins "crosshair".
    return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)))


_SIZE_OF, _COLOUR_OF = _meanings(_SIZE_WORDS), _meanings(_COLOUR_WORDS)
_SHAPE_OF, _PLACE_OF = _meanings(_NOUNS), _meanings(_PLACE_PHRASES)
_NAMED = re.compile(
    rf"(?<!\S)({_either(_PLACE_OF)}) (?:(?:{_either(_VERBS)}) )?a"
    rf" ({_either(_SIZE_OF)}) ({_either(_COLOUR_OF)}) ({_either(_SHAPE_OF)})(?!\S)"
)


def parse(sentence: str) -> tuple[Thing, ...]:
    """The objects that a sentence names, in its order; what names no object is passed over.

    An object is named by its place, size, colour and shape, by any words for these: "at top left a large red square",
    or "in upper left is a big crimson box".
    """
    return tuple(
        Thing(_SHAPE_OF[noun], _COLOUR_OF[colour], _SIZE_OF[size], _PLACE_OF[place])
        for place, size, colour, noun in _NAMED.findall(sentence)
    )


def share_right(named: Sequence[Thing], shown: Sequence[Thing]) -> float:
    """Objects named right in every respect, over those named or those shown, whichever are more."""
    right = sum((Counter(named) & Counter(shown)).values())
    return right / max(len(named), len(shown), 1)
