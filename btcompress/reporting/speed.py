"""What a bench says, in words: how fast a file is beside the dense LSTMs, and whether the times are to be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from btcompress.timings import BenchCase

#: Ratios within this of 1, and what they are called.
_ALIKE, _NO_FASTER = 0.05, "no faster"
#: The medians of the two halves of a way's turns are alike on a machine that does nothing else, and half of all turns
#: lie close to their median.
_MOST_DRIFT, _MOST_SPREAD = 0.1, 0.3


def noise_warning(cases: Iterable[BenchCase]) -> Iterator[str]:
    """Where a machine did other things meanwhile, so that its times say less than they seem to.

    That is where the medians of the first and the second half of the turns differ by more than a tenth, or the middle
    half of the turns spreads over more than three tenths of the median, in one of the two ways that are compared: a
    kernel that nobody would take may be as unsteady as it likes.
    """
    compared = [way for case in cases for way in (case.dense, case.block_terms) if way is not None]
    noisy = [way for way in compared if way.drift > _MOST_DRIFT or way.spread > _MOST_SPREAD]
    if noisy:
        drift, spread = (max(getattr(way, name) for way in noisy) for name in ("drift", "spread"))
        yield (
            f"The machine is noisy: in {len(noisy)} of the {len(compared)} measurements compared the halves of "
            f"the turns differ (by up to {drift:.0%}), or their middle half spreads (over up to {spread:.0%} of the "
            "median). Ratios suffer less than times, as all ways took turns. Stop what else runs, or measure longer "
            "(--seconds)."
        )


def speed_advice(cases: Sequence[BenchCase]) -> Iterator[str]:
    """How fast each LSTM is beside the dense one, as the faster of its kernels runs it, and where it is slower."""
    measured = [(case, case.ratio) for case in cases if case.ratio is not None]
    alone = len({case.lstm for case in cases}) == 1
    for lstm, mode in dict.fromkeys((case.lstm, case.mode) for case, _ in measured):
        own = [(case, ratio) for case, ratio in measured if (case.lstm, case.mode) == (lstm, mode)]
        (where, words), *rest = _clauses(own)
        who = "this file" if alone else lstm or "the LSTM at the top"
        does = "trains" if mode == "training" else "runs"
        first = f"At {where} {who} {does} {words} {'than' if words == _NO_FASTER else 'as'} the dense LSTM"
        yield "; ".join([first, *(f"at {place} {told}" for place, told in rest)]) + "."
    if any(ratio < 1 - _ALIKE for _, ratio in measured):
        yield (
            "Where it is slower, use the dense weights, which btcompress.to_dense forms of the file, if it is the time "
            "that counts."
        )


def _clauses(cases: Sequence[tuple[BenchCase, float]]) -> Iterator[tuple[str, str]]:
    """For each batch size how fast, or where that differs for each number of steps."""
    for batch in dict.fromkeys(case.batch for case, _ in cases):
        words = {case.steps: _words(ratio) for case, ratio in cases if case.batch == batch}
        if len(set(words.values())) == 1:
            yield f"batch {batch:,}", next(iter(words.values()))
            continue
        for steps, told in words.items():
            yield f"batch {batch:,} and {_steps_text(steps)}", told


def _steps_text(n: int) -> str:
    """A number of steps, in words."""
    return f"{n:,} step{'s' * (n > 1)}"


def _words(ratio: float) -> str:
    if abs(ratio - 1) <= _ALIKE:
        return _NO_FASTER
    return f"{_times(ratio)} times as fast" if ratio > 1 else f"{_times(1 / ratio)} times as slow"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
