"""Reports for pages, without any fit or training; and pages taken apart."""

from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import torch
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.results import (
    Agreement,
    CalibrationReport,
    FineTuneReport,
    InputsReport,
    LearningCurve,
    LeftDense,
    RoundedLSTM,
    YardstickReport,
)
from btcompress.timings import BenchCase, BenchReport, LeftOut, Machine, WayTiming
from lowrankresults import low_rank_result

#: Elements that have no end.
_VOID = {"meta", "br", "hr", "img", "link", "input"}

WAYS = (
    WayTiming("dense_native", 0.00145, (0.001, 0.002), 0.02, 31, 1, 300, None, 600),
    WayTiming("block_terms", 0.0005, (0.0004, 0.0006), 0.01, 31, 4, 90, 1234, 96),
)
BENCH = BenchReport(
    Machine("cpu", "A processor", 2, "2.0"),
    (BenchCase("rnn", "prediction", 1, 50, WAYS, (LeftOut("int8", "it predicts only"),)),),
    ("a note",),
    ("a warning",),
    ("advice on speed",),
)


def dense_state(prefix="rnn.", n_layers=2):
    """Tensors of an LSTM and a head, of unequal sizes."""
    torch.manual_seed(0)
    lstm = nn.LSTM(24, 16, num_layers=n_layers)
    state = {f"{prefix}{key}": tensor.detach() for key, tensor in lstm.state_dict().items()}
    return {**state, "head.weight": torch.randn(5, 16), "head.bias": torch.randn(5)}


def dense_and_report(prefix="rnn.", n_layers=2):
    """A dense checkpoint, and a report of a result in which there is something of everything."""
    state = dense_state(prefix, n_layers)
    compressed, dense = low_rank_result(state), from_state_dict(state)
    plain = btcompress.report(compressed, against=dense, bytes_after=compressed.n_bytes + 1234)
    others = (
        YardstickReport("low_rank", (3,), 100, 0.61, 0.21, 0.31),
        YardstickReport("tensor_train", (2, 3), 90, 0.62),
        YardstickReport("greedy", (), 0, None, skipped="it is this form already"),
    )
    rows = tuple(
        replace(row, activation_error=0.123 + n, weighted_activation_error=0.234 + n, yardsticks=others)
        for n, row in enumerate(plain.matrices)
    )
    name = prefix.removesuffix(".")
    before, after = Agreement(0.9, 0.875, 200, 40), Agreement(0.985, 0.95, 200, 40)
    curves = (LearningCurve((0.31, 0.22, 0.15), 0), LearningCurve((0.27, 0.13), None))
    calibrated = CalibrationReport(name, 0.4321, 0.1234, 1, 80, 20, 1.0, 0.2345, 2, before, after, 0.3456, curves)
    finetuned = FineTuneReport(
        "accuracy", True, 0.9, 0.7, 0.85, 2, 2, 80, 20, 1.0, before, after, (LearningCurve((0.7, 0.8, 0.85)),)
    )
    on_inputs = InputsReport(name, 30, 0.2222, after, (RoundedLSTM("int8", False, 0.0123),))
    report = replace(
        plain,
        matrices=rows,
        left_dense=(LeftDense(f"{name}.bias", "it is a vector"),),
        notices=("a notice",),
        advice=("an advice",),
        calibrated=(calibrated,),
        finetuned=(finetuned,),
        on_inputs=(on_inputs,),
        bench=BENCH,
    )
    return dense, report


@dataclass
class Taken(HTMLParser):
    """What a page is made of: tags, attributes, texts, and tables by their captions."""

    tags: list = field(default_factory=list)
    attributes: list = field(default_factory=list)
    texts: list = field(default_factory=list)
    tables: dict = field(default_factory=dict)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self._open, self._rows, self._cell, self._caption = [], None, None, None

    @classmethod
    def of(cls, page):
        taken = cls()
        taken.feed(page)
        taken.close()
        assert not taken._open, "tags that do not end"
        return taken

    @property
    def text(self):
        return "".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td", "caption"):
            self._cell = ""

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "caption":
            self._caption = self._cell
        elif tag in ("th", "td"):
            self._rows[-1].append(self._cell)
        elif tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell is not None:
            self._cell += data
