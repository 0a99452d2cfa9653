"""Which way to run a layer: the one pinned, or the cheapest for its sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

from btcompress.nn.costs import dense_seconds, reading_seconds, seconds
from btcompress.nn.ways import Method, Task, Way, check_method, possible_ways


@lru_cache(maxsize=4096)
def choose_way(task: Task, method: Method) -> Way:
    """The cheapest way by :func:`btcompress.nn.costs.seconds`; a GPU has torch's kernel."""
    ways = list(possible_ways(task, method))
    if not task.cpu:
        ways = [way for way in ways if way.steps == "kernel"] or ways
    if task.trains and task.steps == 1:
        # A loop saves what autograd would note from step to step: in one step, nothing.
        ways = [way for way in ways if way.steps != "loop"] or ways
    return min(ways, key=lambda way: seconds(way, task))


#: Tasks that a module remembers at most.
_MOST_FOUND = 4096


class Place(NamedTuple):
    """What a way is pinned for.

    Attributes:
        layer: name of the layer in its module.
        steps: ``T``.
        batch: ``B``.
        trains: whether gradients are asked for.
    """

    layer: str
    steps: int
    batch: int
    trains: bool


class Choice:
    """Chooses a way for each task of a module's layers, and knows those that were pinned.

    Pins are copied and pickled with their module, and go with :meth:`unpin` alone.

    Args:
        method: how to multiply.

    Attributes:
        changes: how often what had been chosen was forgotten.
        tasks: the last task met at each place.

    Raises:
        BTCompressError: there is no such method.
    """

    def __init__(self, method: Method) -> None:
        self._method = check_method(method)
        self._pinned: dict[Place | None, Way] = {}
        self._found: dict[Hashable, Way] = {}
        self.changes = 0
        self.tasks: dict[Place, Task] = {}

    @property
    def method(self) -> Method:
        """How to multiply where nothing is pinned."""
        return self._method

    @method.setter
    def method(self, method: Method) -> None:
        self._method = check_method(method)
        self.forget()

    def way(self, place: Place, rest: Hashable, task: Callable[[], Task]) -> Way:
        """The way to do a task: the one pinned, if it is possible, or the cheapest.

        Args:
            place: where pins are looked up.
            rest: what else tells tasks apart.
            task: describes it, where it was not met before.
        """
        found = self._found.get((place, rest))
        if found is None:
            if len(self._found) >= _MOST_FOUND:
                self._found.clear()
                self.tasks.clear()
            found = self._found[place, rest] = self._choose(place, task())
        return found

    def _choose(self, place: Place, task: Task) -> Way:
        self.tasks[place] = task
        pinned = self._pinned.get(place) or self._pinned.get(None)
        if pinned is not None and pinned in possible_ways(task, "auto"):
            return pinned
        return choose_way(task, self.method)

    @property
    def pinned(self) -> dict[Place | None, Way]:
        """The ways that were pinned."""
        return dict(self._pinned)

    def pin(self, way: Way, place: Place | None = None) -> None:
        """Take this way from now on wherever it is possible, at one place or at all that have none of their own."""
        self._pinned[place] = way
        self.forget()

    def forget(self) -> None:
        """Choose anew for tasks met before."""
        self._found.clear()
        self.changes += 1

    def unpin(self) -> None:
        """Choose by the cost model again."""
        self._pinned.clear()
        self.forget()


def speed_over_dense(tasks: Sequence[Task], *, cell: bool = False) -> float:
    """How many times as fast layers are to be as dense ones on the faster of torch's kernels, by the cost model.

    Args:
        tasks: what each layer has to do; in prediction on a CPU.
        cell: compare with :class:`torch.nn.LSTMCell`, or that of another kind, instead.
    """
    own = sum(_own_seconds(task) for task in tasks)
    kernels = (sum(dense_seconds(task, onednn=onednn, cell=cell) for task in tasks) for onednn in (True, False))
    return min(kernels) / own


def _own_seconds(task: Task) -> float:
    way = choose_way(task, "auto")
    own = max(seconds(way, task), reading_seconds(task) if way.inputs == "dense" else 0)
    # Torch's kernel is no slower on matrices that are kept.
    return min(own, dense_seconds(task, onednn=task.onednn)) if way == Way("kernel", "dense", "dense") else own
