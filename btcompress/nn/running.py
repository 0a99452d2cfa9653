"""What block-term modules share: they choose a way to run, and keep what they form for it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from btcompress.contraction import is_captured
from btcompress.nn.captured import captured_layer
from btcompress.nn.celltype import State
from btcompress.nn.choice import Choice, Place
from btcompress.nn.formed import Keeping, is_plain
from btcompress.nn.prediction import Prediction
from btcompress.nn.recurrence import Direction, Trained, loopable, task_sizes, uses_onednn
from btcompress.nn.ways import Method, Task, Way, possible_ways
from btcompress.nn.weight import BTWeight, Weight
from btcompress.shapes import MatrixShape

Layer = Prediction | Trained

#: Shapes of inputs of which runs are kept at the same time.
_MOST_RUNS = 512


class Running(Keeping):
    """A module whose layers are run in the way that a :class:`btcompress.nn.ways.Choice` says.

    Args:
        method: how to multiply.
        keeps_formed: whether to keep what is formed for prediction.

    Raises:
        BTCompressError: unknown method.
    """

    def __init__(self, method: Method, *, keeps_formed: bool) -> None:
        super().__init__(keeps_formed=keeps_formed)
        self.choice = Choice(method)

    @property
    def method(self) -> Method:
        """How to multiply."""
        return self.choice.method

    @method.setter
    def method(self, method: Method) -> None:
        self.choice.method = method

    def layers(self) -> Mapping[str, Sequence[Direction]]:
        """Matrices and biases of each layer, by its name."""
        raise NotImplementedError

    def ways(self, layer: str) -> list[Way]:
        """All ways to run a layer, where inputs, dtype and device allow them."""
        directions = self.layers()[layer]
        (w, u, p), cell = _forms(directions), directions[0].cell.name
        return list(possible_ways(Task(0, 0, 1, 1, 1, packed=False, trains=False, w=w, u=u, p=p, cell=cell), "auto"))

    def kept_run(self, inputs: Tensor, state: State | None) -> tuple[Layer, ...] | None:
        """The layers as they ran on inputs of this shape; None where something has changed.

        It is all that a short call has time for.
        """
        if is_captured():
            return None
        formed = self._formed
        if formed is None:
            return None
        runs: tuple[Layer, ...] | None = formed.runs.get(self._run_key(inputs))
        if runs is None or not formed.is_of_now() or not is_plain((inputs,) if state is None else (inputs, *state)):
            return None
        return runs

    def keep_run(self, inputs: Tensor, layers: Sequence[Layer]) -> None:
        """Keep the layers as they ran on inputs of this shape, for :meth:`kept_run`."""
        # What predicts would go on to do so where gradients are asked for later.
        predicts = not torch.is_grad_enabled()
        formed = self.formed()
        if formed is self._formed and all(isinstance(layer, Prediction) == predicts for layer in layers):
            if len(formed.runs) >= _MOST_RUNS:
                formed.runs.clear()
            formed.runs[self._run_key(inputs)] = tuple(layers)

    def _run_key(self, inputs: Tensor) -> Hashable:
        changes, onednn = self.choice.changes, torch._C._get_mkldnn_enabled()
        return inputs.shape, inputs.dtype, inputs.device, torch.is_grad_enabled(), changes, onednn

    def run(
        self,
        name: str,
        directions: Sequence[Direction],
        inputs: Tensor,
        state: State,
        batch_sizes: Tensor | None = None,
        *,
        batch_first: bool = False,
    ) -> tuple[Tensor, State, Layer | None]:
        """One layer, in the way that is chosen for it.

        Args:
            name: of the layer.
            directions: its matrices and biases.
            inputs: as :func:`btcompress.nn.recurrence.kernel_layer`'s.
            state: initial states, shapes ``(directions, B, H)``.
            batch_sizes: sequences at each step, for packed inputs.
            batch_first: the order of the first two axes of inputs and outputs.

        Returns:
            As :func:`btcompress.nn.recurrence.kernel_layer`, and the layer for :meth:`keep_run`, if it may be kept.
        """
        if is_captured():
            outputs, final = captured_layer(
                directions,
                inputs,
                state,
                batch_sizes,
                method=self.method,
                training=self.training,
                batch_first=batch_first,
            )
            return outputs, final, None
        tensors = [inputs, *state, *(tensor for own in directions for tensor in own.tensors)]
        plain = is_plain(tensors)
        loops = plain and loopable(tensors)
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        keeps = plain and self.keeps_formed
        cell = directions[0].cell
        onednn = uses_onednn(inputs, cell)
        steps, batch, rows = task_sizes(inputs, batch_sizes, batch_first=batch_first)
        packed = batch_sizes is not None
        w, u, p = _forms(directions)
        place = Place(name, steps, batch, trains)
        rest = (rows, packed, loops, keeps, onednn, inputs.device.type, w, u, p)

        def task() -> Task:
            return Task(
                inputs.shape[-1],
                state[-1].shape[-1],
                steps,
                batch,
                rows,
                packed=packed,
                trains=trains,
                w=w,
                u=u,
                p=p,
                outputs=state[0].shape[-1] if p else 0,
                loops=loops,
                keeps=keeps,
                onednn=onednn,
                cpu=inputs.device.type == "cpu",
                cell=cell.name,
            )

        way = self.choice.way(place, rest, task)
        if plain and not trains and not packed:
            prediction = Prediction(self.formed(), name, directions, way)
            return *prediction.run(inputs, state, batch_first=batch_first), prediction
        trained = Trained(way, directions)
        outputs, final = trained.run(inputs, state, batch_sizes, batch_first=batch_first)
        return outputs, final, trained if plain and not packed else None


def _forms(directions: Sequence[Direction]) -> tuple[tuple[MatrixShape | None, ...], ...]:
    """Of ``W``, ``U`` and ``P``, for each direction; none of ``P`` where there is no projection."""
    w, u, p = zip(*((own.w, own.u, own.p) for own in directions), strict=True)
    return _shapes(w), _shapes(u), () if p[0] is None else _shapes(p)


def _shapes(weights: Sequence[Weight]) -> tuple[MatrixShape | None, ...]:
    return tuple(weight.shape if isinstance(weight, BTWeight) else None for weight in weights)
