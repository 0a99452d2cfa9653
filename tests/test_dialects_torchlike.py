"""Recurrent layers as projects of torch name them: each against its project's step, written out here."""

import re

import torch
from torch import nn

N_STEPS, N_ROWS = 4, 3


class Draw:
    """Tensors of a state dict, drawn in the order of their keys."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.state = {}

    def __call__(self, key, *shape):
        self.state[key] = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.state[key]


def inputs(size):
    return torch.randn(N_STEPS, N_ROWS, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def lstm(x, step, size, proj=0):
    """The hidden states of a step that gives the sums of gates i, f, g, o for inputs and a state."""
    h, c, states = x.new_zeros(len(x[0]), proj or size), x.new_zeros(len(x[0]), size), []
    for row in x:
        i, f, g, o = step(row, h)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        if proj:
            h = h @ step.projection.T
        states.append(h)
    return torch.stack(states)


def both_ways(x, forward, reverse, size):
    return torch.cat([lstm(x, forward, size), lstm(x.flip(0), reverse, size).flip(0)], -1)


def fused(draw, prefix, n_inputs, size, names, order="ifgo", proj=0, turned=False):
    """A step with all gates in one matrix, and the tensors that it takes."""
    sides = {"ih": n_inputs, "hh": proj or size}
    own = {}
    for part, name in names.items():
        kind, side = part.split("_")
        shape = (4 * size, sides[side]) if kind == "weight" else (4 * size,)
        own[part] = draw(f"{prefix}{name}", *(shape[::-1] if turned else shape))

    def step(x, h):
        w_ih, w_hh = (own[f"weight_{side}"] if turned else own[f"weight_{side}"].T for side in sides)
        total = x @ w_ih + h @ w_hh + own.get("bias_ih", 0) + own.get("bias_hh", 0)
        gates = dict(zip(order, total.chunk(4, 1), strict=True))
        return tuple(gates[gate] for gate in "ifgo")

    return step


def torchs(state, name, kind=nn.LSTM, **arguments):
    """torch's layer with the tensors below a name."""
    prefix = f"{name}." if name else ""
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(f"{prefix}weight_")}
    own |= {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(f"{prefix}bias_")}
    first, recurrent = own["weight_ih_l0"], own["weight_hh_l0"]
    proj = own["weight_hr_l0"].shape if "weight_hr_l0" in own else None
    layer = kind(
        first.shape[1],
        proj[1] if proj else recurrent.shape[1],
        1 + max(int(re.search(r"_l(\d+)", key)[1]) for key in own),
        bias="bias_ih_l0" in own,
        bidirectional="weight_ih_l0_reverse" in own,
        **({"proj_size": proj[0]} if proj else {}),
        **arguments,
    ).double()
    layer.load_state_dict(own)
    return layer


ALLENNLP = {
    "weight_ih": "input_linearity.weight",
    "weight_hh": "state_linearity.weight",
    "bias_hh": "state_linearity.bias",
}
