"""What the tables and figures of docs/paper.md are made with: settings that a folder keeps, and the tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from paper_records import wait_for

from btcompress.checkpoint import replacing
from btcompress.demo import FULL, SMALL, Noise, Task
from btcompress.demo.noise import NoiseKind
from btcompress.errors import BTCompressError

SizeName = Literal["small", "full"]
Tasks = Mapping[SizeName, Mapping[str, Task[Any]]]

#: All tasks at all sizes.
TASKS: Tasks = {"small": SMALL, "full": FULL}


@dataclass(frozen=True, slots=True)
class Search:
    """What trainings at one size choose from, by the metric on the examples held back.

    Attributes:
        dense: learning rates of the dense model and of the one with fewer hidden units, as multiples of the task's.
        decays: weight decays of the dense model: rates are tried with the task's, and the best of them with these.
        others: learning rates of all other models, as multiples of the task's.
    """

    dense: tuple[float, ...]
    decays: tuple[float, ...]
    others: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OrderForm:
    """Block terms of one order, of the matrix with 57,600 inputs and 1,024 rows, in the modes of the authors' code.

    https://github.com/chendi1995/Block-term-Tensor-Neural-Networks

    Attributes:
        in_modes: ``(I_1..I_d)``.
        out_modes: ``(J_1..J_d)``.
        n_params: what they come to with the ranks of :attr:`Settings.order_ranks`.
        rate: learning rate, as a multiple of that of the task's block terms.
    """

    in_modes: tuple[int, ...]
    out_modes: tuple[int, ...]
    n_params: int
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is trained, and how; what a folder was begun with it is gone on with.

    Attributes:
        small: learning rates and weight decays of the small tasks.
        full: of those at full size.
        rounded_epochs: for which a rounded model is trained on, by size; 0 for not at all.
        rounded_rates: learning rates of that to choose from, as multiples of the dense model's.
        gaussian: strengths of noise, as :class:`btcompress.demo.Noise` has them.
        occlusion: shares covered.
        ranks: pairs of ``N`` and ``R``.
        ranks_of: tasks and sizes, ``task-size``, whose ranks are tried.
        orders: block terms of several orders.
        order_ranks: their ``N`` and ``R``.
        orders_of: the task and size whose matrix they are of.
        quick: everything is tiny: models come out untrained, and figures mean nothing.
    """

    small: Search = Search((0.25, 0.5, 1.0, 2.0), (0.0, 1.0), (0.1, 0.3, 1.0, 2.0))
    full: Search = Search((0.5, 1.0), (0.0,), (0.3, 1.0))
    rounded_epochs: tuple[tuple[SizeName, int], ...] = (("small", 4), ("full", 0))
    rounded_rates: tuple[float, ...] = (0.03, 0.3)
    gaussian: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    occlusion: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    ranks: tuple[tuple[int, int], ...] = tuple((n, r) for n in (1, 2, 4) for r in (1, 2, 4))
    ranks_of: tuple[str, ...] = ("video-small",)
    orders: tuple[OrderForm, ...] = (
        OrderForm((320, 180), (64, 16), 186_912, rate=0.1),  # at the whole rate it does not learn
        OrderForm((36, 40, 40), (32, 4, 8), 13_184),
        OrderForm((8, 20, 20, 18), (16, 4, 4, 4), 3_392),
        OrderForm((8, 10, 10, 9, 8), (16, 2, 2, 4, 4), 3_936),
    )
    order_ranks: tuple[int, int] = (2, 4)
    orders_of: str = "video-full"
    quick: bool = False

    def search(self, size: SizeName) -> Search:
        """What the trainings at a size choose from."""
        return self.small if size == "small" else self.full

    @property
    def noises(self) -> tuple[Noise, ...]:
        """All noise that is tested with."""
        kinds: dict[NoiseKind, tuple[float, ...]] = {"gaussian": self.gaussian, "occlusion": self.occlusion}
        return tuple(Noise(kind, strength) for kind, strengths in kinds.items() for strength in strengths)


#: Nothing to choose from: everything is trained as the task says.
_NO_CHOICE = Search((1.0,), (), (1.0,))


def unsearched() -> Settings:
    """Settings with which every model is trained at the task's own learning rate and weight decay."""
    return Settings(_NO_CHOICE, _NO_CHOICE)


def quick() -> Settings:
    """Settings that try one of each thing."""
    return Settings(
        replace(_NO_CHOICE, dense=(0.5, 1.0)),
        _NO_CHOICE,
        rounded_epochs=(("small", 2), ("full", 0)),
        rounded_rates=(0.3,),
        gaussian=(0.1,),
        occlusion=(0.2,),
        ranks=((1, 1), (2, 4)),
        quick=True,
    )


def tiny(task: Task[Any]) -> Task[Any]:
    """A task with few examples and two epochs of each training; its models are as large as before."""
    size = task.size
    trainings = {name: replace(getattr(size, name), epochs=2) for name in ("dense", "tuning", "scratch", "calibration")}
    made: Task[Any] = replace(task, size=replace(size, n_train=40, n_test=16, **trainings))
    return made


def keep_settings(folder: Path, settings: Settings, tasks: Mapping[str, Task[Any]]) -> None:
    """Keep the settings, and the sizes of tasks, with the first run that has them; refuse other ones.

    Args:
        folder: of all runs.
        settings: of this one.
        tasks: that it is about, by ``task-size``.

    Raises:
        BTCompressError: the folder was begun with other ones.
    """
    path = folder / "settings.json"
    now = json.loads(json.dumps({**asdict(settings), **{name: repr(task) for name, task in tasks.items()}}))
    with wait_for(path):
        before = json.loads(path.read_text()) if path.exists() else {}
        for name, value in now.items():
            if before.get(name, value) != value:
                raise BTCompressError(
                    f"{folder} was begun with {name} {before[name]}, and now it is {value}. Give another folder, or "
                    "the settings that it was begun with."
                )
        if now.keys() - before.keys():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(before | now, indent=1) + "\n")
