"""The models that are compared: how each is begun, read again and counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from paper_records import Sizes, kept, read, wait_for
from safetensors.torch import load_file
from torch import nn

from btcompress import load, save
from btcompress.checkpoint import CompressedCheckpoint
from btcompress.demo import Task, rivals
from btcompress.demo.rivals import Made, counted, large_lstm, target_shape
from btcompress.demo.tensortrain import input_matrix
from btcompress.demo.trainforms import applied
from btcompress.modes import ShapeRequest
from btcompress.shapes import BlockTermShape

#: What a training begins with; nothing that tells models apart for the dense one.
Start = Literal["", "dense model", "from scratch"]

DENSE = "dense"


class Place(Protocol):
    """Where models of one task and seed are made: what a run is to its models."""

    task: Task[Any]
    seed: int
    folder: Path

    def dense_path(self) -> Path:
        """The dense checkpoint that others start from."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of ``W`` at a number of parameters.

    Attributes:
        name: in tables.
        form: one that is compared with the dense one; None for that.
        target: shape of the block terms that say how many parameters it has.
    """

    name: str = DENSE
    form: rivals.Form | None = None
    target: BlockTermShape | None = None

    @classmethod
    def of(cls, form: rivals.Form, target: BlockTermShape) -> Form:
        """A form by its own name."""
        return cls(form.name, form, target)

    @property
    def file_name(self) -> str:
        """In the names of files, with all that tells it from others."""
        if self.form is None or self.target is None:
            return self.name
        modes = (".".join(map(str, sizes)) for sizes in (self.target.in_modes, self.target.out_modes))
        rank = "-".join(dict.fromkeys(map(str, self.target.ranks)))
        return f"{self.form.name.replace(' ', '-')}-n{self.target.n_blocks}-r{rank}-{'-'.join(modes)}"

    @property
    def starts(self) -> tuple[Start, ...]:
        """What a training of it can begin with."""
        return ("",) if self.form is None else self.form.starts

    @property
    def is_dense_lstm(self) -> bool:
        """Whether it is a dense LSTM, of as many hidden units or fewer."""
        return self.form in (None, rivals.FEWER_UNITS)

    def begun(self, place: Place, start: Start) -> Made:
        """A model of this form before training; a checkpoint is in :meth:`start_path` too."""
        path, sizes = self.start_path(place, start), self._sizes_path(place, start)
        with wait_for(path):  # two processes that begin at once do not fit the same twice
            if path.exists() and sizes.exists():
                known = read(sizes, Sizes)
                return Made(load(path), known.params, known.n_bytes, known.lstm_params)
            return self._made(place, start)

    def _made(self, place: Place, start: Start) -> Made:
        """A model of this form before training; its sizes are kept, and the checkpoint where it is one."""
        if self.form is None or self.target is None:
            model = new_model(place)
            layer = large_lstm(place.task, model)
            made = counted(model, layer, (input_matrix(layer),))
        else:
            dense = dense_model(place) if start == "dense model" else nn.Module()
            made = self.form.build(place.task, dense, self.target, start or "from scratch", place.seed)
        path, sizes = self.start_path(place, start), self._sizes_path(place, start)
        with wait_for(path):
            if isinstance(made.model, CompressedCheckpoint) and not path.exists():
                save(made.model, path)
        with wait_for(sizes):
            kept(sizes, Sizes, lambda: _sizes_of(place, made))
        return made

    def sizes(self, place: Place, start: Start) -> Sizes:
        """How large it is."""
        path = self._sizes_path(place, start)
        if not path.exists():
            self._made(place, start)
        return read(path, Sizes)

    def _sizes_path(self, place: Place, start: Start) -> Path:
        return place.folder / f"{self.file_name}-{start.replace(' ', '-')}.sizes.json"

    def start_path(self, place: Place, start: Start) -> Path:
        """The checkpoint that a training begins with, where it begins with one."""
        return place.folder / f"{self.file_name}-{start.replace(' ', '-')}-start.safetensors"

    def trained(self, place: Place, path: Path) -> nn.Module:
        """The model in a file."""
        if self.form in (None, rivals.TENSOR_TRAIN, rivals.FEWER_UNITS):
            model = self._made(place, "from scratch").model
            if isinstance(model, nn.Module):
                model.load_state_dict(load_file(path))
                return model
        return applied(place.task, load(path))


def _sizes_of(place: Place, made: Made) -> Sizes:
    module = applied(place.task, made.model)
    total = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return Sizes(made.n_params, made.n_bytes, made.n_lstm_params, total, 4 * (total - made.n_params) + made.n_bytes)


def block_terms(task: Task[Any]) -> Form:
    """The block terms of a task's size, in the modes that are chosen for it."""
    return of_request(task, rivals.BLOCK_TERMS.name, ShapeRequest(task.size.cp_rank, task.size.tucker_rank))


@cache
def of_request(task: Task[Any], name: str, request: ShapeRequest) -> Form:
    """Block terms of the shape that is asked for, by a name of their own."""
    with torch.random.fork_rng(devices=[]):
        return Form(name, rivals.BLOCK_TERMS, target_shape(task, task.model(), request))


def new_model(place: Place) -> nn.Module:
    """A dense model with the random weights of a seed."""
    torch.manual_seed(place.seed)
    return place.task.model()


def dense_model(place: Place) -> nn.Module:
    """The dense model that others start from."""
    model = new_model(place)
    model.load_state_dict(load_file(place.dense_path()))
    return model
