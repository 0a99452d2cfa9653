"""How fast a file is beside the dense layers, in words: as a bench measured it, or as the cost model expects it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from btcompress.results import ExpectedCase
from btcompress.text import listed
from btcompress.timings import BenchCase

#: What is compared, and how many times as fast it is.
_Compared = tuple[BenchCase | ExpectedCase, float]

#: Ratios within this of 1, and what they are called; likewise of estimates, which are often off by more.
_ALIKE, _NO_FASTER = 0.05, "no faster"
_ESTIMATED_ALIKE, _ABOUT_AS_FAST = 0.2, "about as fast"
#: The medians of the two halves of a way's turns are alike on a machine that does nothing else, and half of all turns
#: lie close to their median.
_MOST_DRIFT, _MOST_SPREAD = 0.1, 0.3

_WHERE_SLOWER = (
    "Where it is slower, use the dense weights, which btcompress.to_dense forms of the file, if it is the time that "
    "counts."
)


def noise_warning(cases: Iterable[BenchCase]) -> Iterator[str]:
    """Where a machine did other things meanwhile, so that its times say less than they seem to.

    That is where the medians of the first and the second half of the turns differ by more than a tenth, or the middle
    half of the turns spreads over more than three tenths of the median, in one of the ways that are compared: a kernel
    that nobody would take may be as unsteady as it likes.
    """
    compared = [way for case in cases for way in case.compared]
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
    """How fast each layer is beside the dense one of the same runtime, as the faster of its kernels runs it, and where
    it is slower.
    """
    by_torch = [(case, case.ratio) for case in cases if case.ratio is not None]
    by_onnx = [(case, case.onnx_ratio) for case in cases if case.onnx_ratio is not None]
    alone = len({case.lstm for case in cases}) == 1
    yield from _comparisons(by_torch, "At", alone=alone)
    yield from _comparisons(by_onnx, "In ONNX Runtime at", alone=alone)
    if any(ratio < 1 - _ALIKE for _, ratio in (*by_torch, *by_onnx)):
        yield _WHERE_SLOWER
    yield from _integers_advice(cases, alone=alone)


def _integers_advice(cases: Sequence[BenchCase], *, alone: bool) -> Iterator[str]:
    """Where nothing of the block terms is as fast in ONNX Runtime as the dense matrices in integers."""
    slower, kinds = list[tuple[str, float]](), set[str]()
    for case in cases:
        seconds = {way.way: way.seconds for way in case.ways if way.way.startswith("onnx")}
        own = [each for way, each in seconds.items() if way.startswith("onnx_block_terms")]
        dense = seconds.get("onnx_dense_int8")
        if own and dense is not None and dense < min(own) * (1 - _ALIKE):
            where = f"batch {case.batch:,} and {_steps_text(case.steps)}"
            slower.append((where if alone else f"{where} of {_named(case)}", min(own) / dense))
            kinds.add(case.kind)
    if slower:
        least, most = (_times(choose(ratio for _, ratio in slower)) for choose in (min, max))
        many = least if least == most else f"{least} to {most}"
        kind = kinds.pop() if len(kinds) == 1 else "layer"
        yield (
            f"In ONNX Runtime the dense {kind} in int8 is the fastest of all, {many} times as fast as block terms, at "
            f"{listed([where for where, _ in slower])}. Where only time counts, and your task bears its errors, "
            "quantize the dense model."
        )


def _comparisons(measured: Sequence[tuple[BenchCase, float]], begin: str, *, alone: bool) -> Iterator[str]:
    for lstm, mode in dict.fromkeys((case.lstm, case.mode) for case, _ in measured):
        own = [(case, ratio) for case, ratio in measured if (case.lstm, case.mode) == (lstm, mode)]
        (where, words), *rest = _clauses(own, _words)
        who, kind = "this file" if alone else _named(own[0][0]), own[0][0].kind
        does = "trains" if mode == "training" else "runs"
        first = f"{begin} {where} {who} {does} {words} {'than' if words == _NO_FASTER else 'as'} the dense {kind}"
        yield "; ".join([first, *(f"at {place} {told}" for place, told in rest)]) + "."


def expectation(cases: Sequence[ExpectedCase], *, alone: bool) -> Iterator[str]:
    """How fast layers are to be beside the dense ones, those in one sentence of which the same is to be said.

    Args:
        cases: of these layers.
        alone: whether they are the only layer of the file with block terms.
    """
    alike: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for lstm in dict.fromkeys(case.lstm for case in cases):
        own = [(case, case.ratio) for case in cases if case.lstm == lstm]
        clauses = _clauses(own, _estimated_words, {case.steps for case, _ in own})
        alike.setdefault((own[0][0].kind, tuple(clauses)), []).append(_named(own[0][0]))
    for (kind, ((where, words), *rest)), names in alike.items():
        who = "this file is" if alone else f"{listed(names)} {'is' if len(names) == 1 else 'are'}"
        first = f"At {where} {who} expected to run {words} as the dense {kind}{'s' * (len(names) > 1)}"
        yield "; ".join([first, *(f"at {place} {told}" for place, told in rest)]) + "."
    if any(case.ratio * (1 + _ESTIMATED_ALIKE) < 1 for case in cases):
        yield _WHERE_SLOWER
    yield "So says the cost model, of predictions on a CPU of two cores; btcompress bench measures it on this machine."


def _clauses(
    cases: Sequence[_Compared], words_of: Callable[[float], str], steps: Collection[int] = ()
) -> Iterator[tuple[str, str]]:
    """For each batch size how fast, or where that differs, or is not of all these steps, for each number of steps."""
    for batch in dict.fromkeys(case.batch for case, _ in cases):
        words = {case.steps: words_of(ratio) for case, ratio in cases if case.batch == batch}
        if len(set(words.values())) == 1 and words.keys() >= set(steps):
            yield f"batch {batch:,}", next(iter(words.values()))
            continue
        for n, told in words.items():
            yield f"batch {batch:,} and {_steps_text(n)}", told


def _named(case: BenchCase | ExpectedCase) -> str:
    return case.lstm or f"the {case.kind} at the top"


def _steps_text(n: int) -> str:
    """A number of steps, in words."""
    return f"{n:,} step{'s' * (n > 1)}"


def _words(ratio: float) -> str:
    if abs(ratio - 1) <= _ALIKE:
        return _NO_FASTER
    return _times_as(ratio)


def _estimated_words(ratio: float) -> str:
    return _ABOUT_AS_FAST if max(ratio, 1 / ratio) <= 1 + _ESTIMATED_ALIKE else _times_as(ratio)


def _times_as(ratio: float) -> str:
    return f"{_times(ratio)} times as fast" if ratio > 1 else f"{_times(1 / ratio)} times as slow"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
