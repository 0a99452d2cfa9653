"""Small made things in the place of what pages speak of: models, sample inputs, results, code of a reader's own.

They are drawn from seeds, made once for all pages, and copied into the folder of each page that names them.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import btcompress

Maker = Callable[[Path], None]

#: Inputs, hidden units: of the usual model, of one with more than 400 kB of input weights, and of one that takes frames
#: of 120 x 160 x 3.
_SMALL, _LARGE, _FRAMES = (24, 16), (208, 128), (57_600, 20)
_CLASSES = 5


class Tagger(nn.Module):
    """A layer whose matrices are of low rank, and a head."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(inputs, hidden, batch_first=True)})
        self.head = nn.Linear(hidden, _CLASSES)
        with torch.no_grad():
            for matrix in (self.encoder["rnn"].weight_ih_l0, self.encoder["rnn"].weight_hh_l0):
                rows, columns = matrix.shape
                matrix.copy_(torch.randn(rows, 4) @ torch.randn(4, columns) / columns**0.5 / 8)

    def forward(self, x):
        return self.head(self.encoder["rnn"](x)[0])


class Streaming(nn.Module):
    """Two layers between linear ones, which take states and give them back."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(272, 150)
        self.lstm = nn.LSTM(150, 150, 2, batch_first=True)
        self.head = nn.Linear(150, 3)

    def forward(self, x, h, c):
        y, (hn, cn) = self.lstm(self.first(x), (h, c))
        return self.head(y), hn, cn


def _beats() -> nn.Module:
    return nn.ModuleDict({"lstm": nn.LSTM(150, 150, 2), "linear": nn.Linear(150, 3)})


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return make().eval()


def _tagger(sizes: tuple[int, int]) -> nn.Module:
    return _seeded(lambda: Tagger(*sizes))


def _evaluate(sizes: tuple[int, int]) -> Callable[[nn.Module], None]:
    def evaluate(model: nn.Module) -> None:
        for _ in range(3):
            model(_draw(4, 6, sizes[0]))

    return evaluate


def _checkpoint(model: Callable[[], nn.Module]) -> Maker:
    return lambda path: torch.save(_seeded(model).state_dict(), path)


def _sequences(inputs: int, *, labels: bool = False) -> Maker:
    def write(path: Path) -> None:
        y = {"y": np.arange(20) % _CLASSES} if labels else {}
        np.savez(path, x=_draw(20, 5, inputs).numpy(), **y)

    return write


def _result(model: Callable[[], nn.Module]) -> Maker:
    def write(path: Path) -> None:
        step = btcompress.FactorizeStep(cp_rank=1, tucker_rank=4, matrices=("input", "recurrent"))
        btcompress.save(btcompress.compress(_seeded(model).state_dict(), step), path)

    return write


def _state() -> torch.Tensor:
    return torch.zeros(1, 3, _SMALL[1])


def _plan_of_frames(path: Path) -> None:
    path.write_text(
        "version: 1\n"
        "matrices:\n"
        "  encoder.rnn.weight_ih_l0: {in_modes: [5, 24, 20, 24], out_modes: [5, 4, 2, 2], cp_rank: 2, "
        "tucker_ranks: [2, 2, 2, 2]}\n"
        "  encoder.rnn.weight_hh_l0: {in_modes: [4, 5], out_modes: [10, 8], cp_rank: 2, tucker_ranks: [2, 2]}\n",
        encoding="utf-8",
    )


@dataclass(frozen=True)
class StandIns:
    """What lies in the folder of a page, by name, and what its Python code may name without having made it."""

    files: Mapping[str, Maker] = field(default_factory=dict)
    names: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


def _files_of(sizes: tuple[int, int]) -> dict[str, Maker]:
    return {
        "model.pt": _checkpoint(lambda: Tagger(*sizes)),
        "model.bt.safetensors": _result(lambda: Tagger(*sizes)),
        "inputs.npz": _sequences(sizes[0]),
        "labelled.npz": _sequences(sizes[0], labels=True),
        "train.npz": _sequences(sizes[0], labels=True),
    }


def _names_of(sizes: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    return {
        "btcompress": lambda: btcompress,
        "model": lambda: _tagger(sizes),
        "evaluate": lambda: _evaluate(sizes),
        "example": lambda: _draw(2, 4, sizes[0]),
    }


def _of(sizes: tuple[int, int], files: str = "", names: str = "", more: StandIns | None = None) -> StandIns:
    """Those of a model of the sizes, by their names, and more."""
    files_of, names_of, more = _files_of(sizes), _names_of(sizes), more or StandIns()
    return StandIns(
        {name: files_of[name] for name in files.split()} | more.files,
        {name: names_of[name] for name in names.split()} | more.names,
    )


#: Of each page; one that is not here has none. ``<!-- afresh: NAME -->`` puts those of "PAGE: NAME" in their place.
PAGES = {
    "README.md": _of(_LARGE, "model.pt inputs.npz labelled.npz", "btcompress model evaluate example"),
    "README.md: beats": StandIns({"model_1_weights.pt": _checkpoint(_beats), "inputs.npz": _sequences(150)}),
    "bench.md": _of(
        _SMALL,
        "model.bt.safetensors",
        "btcompress example",
        StandIns(names={"model": lambda: _seeded(lambda: btcompress.BTLSTM(*_SMALL, batch_first=True))}),
    ),
    "calibration.md": _of(_SMALL, "model.pt inputs.npz", "btcompress model evaluate"),
    "choosing.md": _of(_SMALL, "model.pt inputs.npz train.npz"),
    "choosing.md: frames": _of(_FRAMES, "model.pt train.npz", "", StandIns({"whole.yaml": _plan_of_frames})),
    "commandline.md": _of(_SMALL, "model.pt"),
    "deploying.md": _of(
        _SMALL,
        "model.bt.safetensors",
        "",
        StandIns(
            {"compressed.safetensors": _result(Streaming)},
            {"Network": lambda: Streaming, "x": lambda: _draw(7, 3, _SMALL[0]), "h0": _state, "c0": _state},
        ),
    ),
    "finetune.md": _of(_SMALL, "model.pt inputs.npz"),
    "report.md": _of(_SMALL, "model.pt inputs.npz"),
    "start.md": _of(_LARGE, "model.pt inputs.npz"),
}


class Shelf:
    """Stand-ins that were made, each once, to be copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, str], Path] = {}

    def fill(self, folder: Path, of: str) -> dict[str, Any]:
        """Put the files of a page, or of one of its sets, into a folder; returns the names."""
        stand_ins = PAGES.get(of, StandIns())
        for name, make in stand_ins.files.items():
            if (of, name) not in self._made:
                path = self._made[of, name] = self._folder / f"{len(self._made)}-{name}"
                make(path)
            shutil.copyfile(self._made[of, name], folder / name)
        return {name: make() for name, make in stand_ins.names.items()}
