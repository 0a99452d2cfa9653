"""Ways to run that are pinned on the layers of a model, and the small file that keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from torch import nn

from btcompress.checkpoint.atomic import replacing
from btcompress.checkpoint.wrappers import plain_name
from btcompress.errors import BTCompressError
from btcompress.files import open_regular
from btcompress.nn.choice import Place
from btcompress.nn.running import Running
from btcompress.nn.ways import Way
from btcompress.text import listed, printable, shortened

_VERSION = 1
#: Bytes of a file at most: those of some 100,000 pins.
_MOST_BYTES = 2**24
#: Characters of a name at most, where messages tell it.
_MOST_TOLD = 100
_ADVICE = "Give a file that btcompress.tune wrote, or write it again."

_Count = Annotated[int, Meta(ge=0, le=2**62)]


class Pin(Struct, frozen=True, forbid_unknown_fields=True):
    """A way that a layer is run in from now on.

    Attributes:
        module: name of the block-term layer in the model, without those of wrappers; empty for the model itself.
        layer: name of the layer in it: ``l0`` and so on, or ``cell``.
        steps: ``T`` of the calls that it is for.
        batch: ``B`` of these.
        trains: whether they ask for gradients.
        way: how they are run.
    """

    module: str
    layer: str
    steps: _Count
    batch: _Count
    trains: bool
    way: Way

    @property
    def place(self) -> Place:
        """Where in the module it is pinned."""
        return Place(self.layer, self.steps, self.batch, self.trains)

    @property
    def where(self) -> str:
        """What it is for, in words."""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        kind = "training" if self.trains else "prediction"
        return f"{told(self.module)} {told(self.layer)}, {steps}, batch {self.batch}, {kind}"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    pins: list[Pin]


class _Versioned(Struct):
    version: int


def pin(module: nn.Module, path: str | PathLike[str]) -> tuple[Pin, ...]:
    """Pin what :func:`btcompress.tune` wrote into a file: the layers run in these ways, with nothing measured.

    A pin is for calls with as many steps and sequences as were measured, and is passed over where inputs, dtype or
    device do not allow its way. It takes the place of an earlier one for the same calls; other pins stay.

    Args:
        module: the model that was tuned, or one like it.
        path: the file.

    Returns:
        What was pinned.

    Raises:
        BTCompressError: the file cannot be read, is no such file or damaged, or is for other modules, layers or forms
            of matrices than these; nothing is pinned then.
    """
    pins, modules = _read(Path(path)), tunable(module)
    met = set[tuple[str, Place]]()
    for each in pins:
        _check(each, modules, Path(path))
        if (each.module, each.place) in met:
            raise BTCompressError(f"{path} pins two ways on {each.where}. Leave one of them.")
        met.add((each.module, each.place))
    for each in pins:
        modules[each.module].choice.pin(each.way, each.place)
    return tuple(pins)


def write(pins: Sequence[Pin], path: Path) -> None:
    """Write a file for :func:`pin`, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(_File(_VERSION, list(pins))), indent=1)
    with replacing(path) as temporary:
        temporary.write_bytes(data + b"\n")


def tunable(module: nn.Module) -> dict[str, Running]:
    """The block-term recurrent layers and cells of a model, by their names without those of wrappers.

    Raises:
        BTCompressError: there are none.
    """
    if not isinstance(module, nn.Module):
        raise BTCompressError(f"a torch.nn.Module has ways to run, but {type(module).__name__} was given.")
    found = {plain_name(name): each for name, each in module.named_modules() if isinstance(each, Running)}
    if not found:
        raise BTCompressError(
            f"{type(module).__name__} has no BTLSTM or BTLSTMCell, BTGRU, BTRNN or cell of these, and only they can "
            "be run in several ways. Put some into it with btcompress.apply first."
        )
    return found


@contextmanager
def kept_on_failure(modules: Mapping[str, Running]) -> Iterator[None]:
    """Pin what was pinned before again, if the block fails."""
    before = [(each.choice, each.choice.pinned) for each in modules.values()]
    try:
        yield
    except BaseException:
        for choice, pinned in before:
            choice.unpin()
            for place, way in pinned.items():
                choice.pin(way, place)
        raise


def told(name: str) -> str:
    """A name from elsewhere, as messages tell it."""
    return shortened(printable(name), _MOST_TOLD) or "(top)"


def _read(path: Path) -> list[Pin]:
    with open_regular(path, _ADVICE) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise BTCompressError(f"{path} has more than {_MOST_BYTES:,} bytes, as no file of pins has. {_ADVICE}")
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != _VERSION:
            what = "Update btcompress, or tune again" if version > _VERSION else "Tune again"
            raise BTCompressError(
                f"{path} has version {version}, but this btcompress reads files of pins of version {_VERSION}. {what}."
            )
        pins = msgspec.json.decode(data, type=_File).pins
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = shortened(printable(str(error)), 2 * _MOST_TOLD)
        raise BTCompressError(f"{path} is no file of pins, or is damaged: {reason}. {_ADVICE}") from error
    return pins


def _check(each: Pin, modules: Mapping[str, Running], path: Path) -> None:
    """Refuse a pin for what the model does not have."""
    if each.module not in modules:
        raise BTCompressError(
            f"{path} pins a way on {told(each.module)}, which is no block-term layer of this model. Those that "
            f"there are: {listed([told(name) for name in modules])}. Give the model that was tuned, or tune this one."
        )
    module = modules[each.module]
    if each.layer not in (layers := module.layers()):
        raise BTCompressError(
            f"{path} pins a way on layer {told(each.layer)} of {told(each.module)}, whose layers are "
            f"{listed(list(layers))}. Give the model that was tuned, or tune this one."
        )
    if each.way not in (ways := module.ways(each.layer)):
        raise BTCompressError(
            f"{path} pins ({each.way}) on {told(each.module)} {each.layer}, whose matrices have not the form for it. "
            f"Possible are: {'; '.join(map(str, ways))}. Give the model that was tuned, or tune this one."
        )
