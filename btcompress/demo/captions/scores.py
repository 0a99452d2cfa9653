"""What captions are worth: the objects they name, and how near they are to right wordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from btcompress.demo.captions.grammar import Thing, parse, share_right
from btcompress.demo.missing import missing

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


def content(captions: Sequence[str], shown: Sequence[Sequence[Thing]]) -> tuple[float, float]:
    """Share of the captions that name every object right and no other, and the mean share of objects right in one.

    Args:
        captions: one for each picture.
        shown: the objects of each picture.
    """
    shares = [share_right(parse(caption), things) for caption, things in zip(captions, shown, strict=True)]
    return sum(share == 1 for share in shares) / len(shares), sum(shares) / len(shares)


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of captions, by sacrebleu, from 0 to 1.

    Args:
        captions: one for each picture.
        references: as many right wordings for each picture.

    Raises:
        BTCompressError: sacrebleu is missing.
    """
    by_position = [list(each) for each in zip(*references, strict=True)]
    return float(scorer().corpus_score(list(captions), by_position).score) / 100


def scorer() -> BLEU:
    """What gives BLEU-4 of captions, in percent.

    Raises:
        BTCompressError: sacrebleu is missing.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise missing("scoring captions", "sacrebleu") from error
    # Words are those between spaces: the comma and the colon are words of their own already.
    return BLEU(tokenize="none", force=True)
