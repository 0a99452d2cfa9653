"""Recurrent layers as projects of torch name them: each against its project's step, written out here."""

import re

import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import OtherRecurrent, find_linear, from_state_dict
from btcompress.dialects import convert

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
RNNT = {"weight_ih": "x2g.weight", "bias_ih": "x2g.bias", "weight_hh": "p2g.weight"}
SCRIPT = {part: part for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
HASTE = {"weight_ih": "kernel", "weight_hh": "recurrent_kernel", "bias_ih": "bias"}
BATCHNORM = {"weight_ih": "weight_ih", "weight_hh": "weight_hh", "bias_ih": "bias"}


def stacked_bidirectional(draw):
    steps = [
        [
            fused(draw, f"module.enc._module.{way}_layer_{layer}.", 2 * 3 if layer else 5, 3, ALLENNLP)
            for way in ("forward", "backward")
        ]
        for layer in range(2)
    ]
    return {"module.enc._module": (5, lambda x: both_ways(both_ways(x, *steps[0], 3), *steps[1], 3))}


def augmented_layers(draw):
    parts = ALLENNLP | {"bias_ih": "input_linearity.bias"}
    steps = [fused(draw, f"rnn.forward_layers.{layer}.cell.", (5, 3)[layer], 3, parts) for layer in range(2)]
    return {"rnn": (5, lambda x: lstm(lstm(x, steps[0], 3), steps[1], 3))}


def augmented(draw):
    step = fused(draw, "tagger.encoder.cell.", 5, 3, ALLENNLP)
    return {"tagger.encoder": (5, lambda x: lstm(x, step, 3))}


def alternating(draw):
    steps = [fused(draw, f"srl.layer_{layer}.", (5, 3)[layer], 3, ALLENNLP) for layer in range(2)]
    return {
        "srl.layer_0": (5, lambda x: lstm(x, steps[0], 3)),
        "srl.layer_1": (3, lambda x: lstm(x, steps[1], 3)),
    }


def elmo(draw):
    found = {}
    for layer in range(2):
        for way in ("forward", "backward"):
            name = f"_elmo_lstm._elmo_lstm.{way}_layer_{layer}"
            step = fused(draw, f"{name}.", 5 if layer == 0 else 2, 4, ALLENNLP, proj=2)
            step.projection = draw(f"{name}.state_projection.weight", 2, 4)
            found[name] = (5 if layer == 0 else 2, lambda x, step=step: lstm(x, step, 4, proj=2))
    return found


def rnnt(draw):
    steps = [fused(draw, f"predictor.lstm_layers.{layer}.", (5, 3)[layer], 3, RNNT) for layer in range(2)]
    alone = fused(draw, "decoder.", 3, 2, RNNT)
    return {
        "predictor.lstm_layers": (5, lambda x: lstm(lstm(x, steps[0], 3), steps[1], 3)),
        "decoder": (3, lambda x: lstm(x, alone, 2)),
    }


def script_in_one_direction(draw):
    steps = [fused(draw, f"rnn.layers.{layer}.cell.", (5, 3)[layer], 3, SCRIPT) for layer in range(2)]
    return {"rnn": (5, lambda x: lstm(lstm(x, steps[0], 3), steps[1], 3))}


def script_in_two_directions(draw):
    steps = [
        [fused(draw, f"layers.{layer}.directions.{way}.cell.", 6 if layer else 5, 3, SCRIPT) for way in range(2)]
        for layer in range(2)
    ]
    return {"": (5, lambda x: both_ways(both_ways(x, *steps[0], 3), *steps[1], 3))}


def haste(draw):
    step = fused(draw, "", 5, 3, HASTE, "igfo", turned=True)
    return {"": (5, lambda x: lstm(x, step, 3))}


def batch_normless(draw):
    steps = [fused(draw, f"rnn.cell_{layer}.", (5, 3)[layer], 3, BATCHNORM, "fiog", turned=True) for layer in range(2)]
    unbiased = fused(draw, "q.cell_0.", 3, 3, {"weight_ih": "weight_ih", "weight_hh": "weight_hh"}, "fiog", turned=True)
    return {
        "rnn": (5, lambda x: lstm(lstm(x, steps[0], 3), steps[1], 3)),
        "q": (3, lambda x: lstm(x, unbiased, 3)),
    }


LSTMS = {
    "AllenNLP, both directions": (stacked_bidirectional, "AllenNLP", ()),
    "AllenNLP, one direction": (augmented_layers, "AllenNLP", ()),
    "AllenNLP, one layer": (augmented, "AllenNLP", ()),
    "AllenNLP, directions by turns": (
        alternating,
        "AllenNLP",
        ("srl: its layers .* every other one, from layer_1 on, reads",),
    ),
    "ELMo": (
        elmo,
        "AllenNLP",
        ("_elmo_lstm: its layers .* clips their states .* adds what goes into a layer to what comes out",),
    ),
    "torchaudio": (rnnt, "torchaudio", ()),
    "TorchScript": (script_in_one_direction, "TorchScript's custom LSTM", ()),
    "TorchScript, both directions": (script_in_two_directions, "TorchScript's custom LSTM", ()),
    "haste": (
        haste,
        "haste",
        ("the top: its gates .* i, g, f, o, as haste has them. Zoneout, .* takes part at",),
    ),
    "batch norm without it": (
        batch_normless,
        "the recurrent batch-normalization LSTM",
        ("rnn: the gates .* f, i, o, g", "q: the gates"),
    ),
}

#: What else a file may hold, much of it much alike.
OTHERS = {
    "attention.W_q.weight": (4, 4),
    "attention.W_k.weight": (4, 4),
    "attention.W_o.weight": (4, 4),
    "ffn.wi.weight": (8, 4),
    "ffn.wo.weight": (4, 8),
    "dense.kernel": (4, 6),
    "dense.bias": (6,),
    "gate.forget_gate.weight": (4, 8),
    "gate.update_gate.weight": (4, 8),
    "fusion.input_gate.weight": (4, 4),
    "rnn_lm.layers.0.self_attn.bias": (3,),
    "head.weight": (2, 3),
    "head.total_ops": (1,),
}


def with_others(state):
    generator = torch.Generator().manual_seed(2)
    others = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in OTHERS.items()}
    keys = list(others)
    first = {key: others[key] for key in keys[:6]}
    return first | state | {key: others[key] for key in keys[6:]}


@pytest.mark.parametrize("case", LSTMS)
def test_hidden_states_are_those_of_the_projects_own_step(case):
    build, dialect, notices = LSTMS[case]
    draw = Draw()
    layers = build(draw)
    checkpoint = from_state_dict(with_others(draw.state))
    assert {entry.name for entry in checkpoint.recurrent()} == set(layers)
    assert all(not entry.siblings for entry in checkpoint.recurrent() if entry.name)
    assert not checkpoint.refused
    assert set(OTHERS) <= set(checkpoint.tensors)
    assert not set(draw.state) & set(checkpoint.tensors)
    names = [name or "the top" for name in layers]
    assert any(f"converted from {dialect}, into" in each and names[0] in each for each in checkpoint.notices)
    for text in notices:
        assert any(re.search(text, each) for each in checkpoint.notices), text
    for name, (n_inputs, states) in layers.items():
        x = inputs(n_inputs)
        torch.testing.assert_close(torchs(checkpoint.tensors, name)(x)[0], states(x), rtol=0, atol=1e-12)


#: Forms of the names, biases, how matrices lie, and the letter of the cell gate.
GATEWISE = {
    "torch's symbols": ("W_i{}", "W_h{}", ("b_i{}", "b_h{}"), "rows", "g"),
    "torch's symbols, columns": ("W_i{}", "W_h{}", ("b_{}",), "columns", "g"),
    "torch's symbols, small letters, biases as columns": ("w_i{}", "w_h{}", ("b_i{}:", "b_h{}:"), "rows", "c"),
    "linear layers of torch's symbols": ("W_i{}.weight", "W_h{}.weight", ("W_i{}.bias",), "linear", "g"),
    "weights by torch's symbols": ("weight_i{}", "weight_h{}", ("bias_i{}", "bias_h{}"), "columns", "g"),
    "x and h": ("W_x{}", "W_h{}", ("b_{}",), "columns", "c"),
    "x and h, without biases": ("Wx{}", "Wh{}", (), "rows", "g"),
    "linear layers of x and h": ("Wx{}.weight", "Wh{}.weight", ("Wx{}.bias", "Wh{}.bias"), "linear", "c"),
    "three biases": ("W_x{}.weight", "W_h{}.weight", ("W_x{}.bias", "W_h{}.bias", "b_{}"), "linear", "c"),
    "gate first": ("W_{}x", "W_{}h", ("bias_{}:",), "rows", "g"),
    "gate first, a bias among the weights": ("W_{}x", "W_{}h", ("W_{}b",), "columns", "c"),
    "gate first, i for inputs": ("w_{}i", "w_{}h", ("b_{}",), "rows", "c"),
    "linear layers, gate first": ("linear_{}x.weight", "linear_{}h.weight", ("linear_{}h.bias",), "linear", "g"),
    "W and U": ("W_{}", "U_{}", ("b_{}",), "columns", "c"),
    "linear layers W and U": ("W_{}.weight", "U_{}.weight", ("U_{}.bias",), "linear", "g"),
    "U and W, the state's last": ("U_{}", "W_{}", ("b_{}",), "rows", "c"),
    "U and V": ("U_{}", "V_{}", ("b_{}",), "columns", "c"),
    "i2h and h2h": ("i2h_{}.weight", "h2h_{}.weight", ("b_{}",), "linear", "c"),
    "linear layers by two letters": ("i{}.weight", "h{}.weight", ("h{}.bias",), "linear", "g"),
    "gates of two letters": ("i{}_gate.weight", "h{}_gate.weight", ("i{}_gate.bias",), "linear", "g"),
}


def gatewise(draw, prefix, forms, n_inputs, size, letters="ifgo"):
    """A step with a matrix for each gate, by the forms of its names."""
    inputs_form, recurrent_form, biases, lie = forms[:4]
    own = []
    for letter in letters:
        sides = []
        for form, columns in ((inputs_form, n_inputs), (recurrent_form, size)):
            shape = (columns, size) if lie == "columns" else (size, columns)
            matrix = draw(prefix + form.format(letter), *shape)
            sides.append(matrix if lie == "columns" else matrix.T)
        total = sum(
            draw(prefix + form.format(letter).rstrip(":"), *((size, 1) if form.endswith(":") else (size,))).flatten()
            for form in biases
        )
        own.append((*sides, total))
    return lambda x, h: tuple(x @ w + h @ u + bias for w, u, bias in own)


@pytest.mark.parametrize("case", GATEWISE)
def test_hidden_states_of_a_matrix_for_each_gate_are_those_of_its_step(case):
    """The matrices of the second cell are all square, so that the first one of its class has to tell how they lie."""
    forms, draw = GATEWISE[case], Draw()
    sizes, names = ((5, 3), (4, 4)), ["net.cells.0", "net.cells.1"]
    steps = [
        gatewise(draw, f"{name}.", forms, *size, f"if{forms[4]}o") for name, size in zip(names, sizes, strict=True)
    ]
    checkpoint = from_state_dict(with_others(draw.state))
    assert not checkpoint.refused
    assert [entry.name for entry in checkpoint.recurrent()] == names
    assert "net.cells.0, net.cells.1: converted from a matrix for each gate" in " ".join(checkpoint.notices)
    for name, step, (n_inputs, size) in zip(names, steps, sizes, strict=True):
        layer, x = torchs(checkpoint.tensors, name), inputs(n_inputs)
        assert (layer.input_size, layer.hidden_size, layer.bias) == (n_inputs, size, bool(forms[2]))
        torch.testing.assert_close(layer(x)[0], lstm(x, step, size), rtol=0, atol=1e-12)


def test_the_cell_of_ncps_is_a_cell_with_its_forget_bias():
    draw, names = Draw(), {"weight_ih": "input_map.weight", "weight_hh": "recurrent_map.weight"}
    step = fused(draw, "rnn.lstm.", 5, 3, names | {"bias_ih": "input_map.bias"}, "gifo")
    checkpoint = from_state_dict(with_others(draw.state))
    (entry,) = checkpoint.recurrent()
    assert (entry.kind, entry.name) == ("cell", "rnn.lstm")
    cell = nn.LSTMCell(5, 3).double()
    cell.load_state_dict({key.removeprefix("rnn.lstm."): checkpoint.tensors[key] for key in entry.keys})
    x, state, found = inputs(5), None, []
    for row in x:
        state = cell(row, state)
        found.append(state[0])
    more = x.new_tensor([0, 1, 0, 0])
    expected = lstm(x, lambda row, h: [gate + one for gate, one in zip(step(row, h), more, strict=True)], 3)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-12)


def gru(x, step, size):
    """The hidden states of a step that gives the sums of r and z, and both parts of n."""
    h, states = x.new_zeros(len(x[0]), size), []
    for row in x:
        r, z, n_inputs, n_state = step(row, h)
        n = (n_inputs + r.sigmoid() * n_state).tanh()
        h = z.sigmoid() * h + (1 - z.sigmoid()) * n
        states.append(h)
    return torch.stack(states)


def haste_gru(draw):
    kernel, recurrent = draw("enc.kernel", 5, 9), draw("enc.recurrent_kernel", 3, 9)
    bias, recurrent_bias = draw("enc.bias", 9), draw("enc.recurrent_bias", 9)

    def step(x, h):
        (z, r, n), (hz, hr, hn) = ((x @ kernel + bias).chunk(3, 1), (h @ recurrent + recurrent_bias).chunk(3, 1))
        return r + hr, z + hz, n, hn

    return step


def gru_of_torchs_symbols(draw):
    own = {}
    for gate in "rzn":
        own[gate] = draw(f"enc.W_i{gate}", 3, 5), draw(f"enc.W_h{gate}", 3, 3)
        own[gate] += draw(f"enc.b_i{gate}", 3), draw(f"enc.b_h{gate}", 3)

    def step(x, h):
        (r, hr), (z, hz), (n, hn) = ((x @ w.T + b, h @ u.T + c) for w, u, b, c in own.values())
        return r + hr, z + hz, n, hn

    return step


@pytest.mark.parametrize("build", [haste_gru, gru_of_torchs_symbols])
def test_hidden_states_of_grus_are_those_of_their_step(build):
    draw = Draw()
    step = build(draw)
    checkpoint = from_state_dict(with_others(draw.state))
    (entry,) = checkpoint.recurrent()
    assert (entry.kind, entry.name, checkpoint.refused) == ("gru", "enc", ())
    x = inputs(5)
    torch.testing.assert_close(torchs(checkpoint.tensors, "enc", nn.GRU)(x)[0], gru(x, step, 3), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("arguments", [{"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
def test_hidden_states_are_those_of_torchs_quantizable_lstm(split, arguments):
    torch.manual_seed(0)
    dense, way = nn.LSTM(5, 3, **arguments).eval(), torch.ao.quantization.get_default_qconfig("qnnpack")
    module = torch.ao.nn.quantizable.LSTM.from_float(dense, way, split_gates=split)
    x = inputs(5).float()
    expected = module(x)[0]
    state = {f"module.rnn.{key}": tensor for key, tensor in module.state_dict().items()}
    observers = sum("activation_post_process" in key for key in state)
    checkpoint = from_state_dict(with_others(state))
    (entry,) = checkpoint.recurrent()
    assert (entry.name, entry.siblings) == ("module.rnn", ())
    assert not set(state) & set(checkpoint.tensors)
    assert any(f"module.rnn: {observers} tensors of its observers are left out" in each for each in checkpoint.notices)
    layer = torchs(checkpoint.tensors, "module.rnn").float()
    torch.testing.assert_close(layer(x)[0], expected, rtol=0, atol=1e-6)


def of(**shapes):
    return {key.replace("__", "."): shape for key, shape in shapes.items()}


def gates(form, letters, *shape):
    return {form.format(letter): shape for letter in letters}


def cell(prefix, letters, inputs_form, recurrent_form, size=(5, 3)):
    n_inputs, hidden = size
    own = gates(f"{prefix}.{inputs_form}", letters, hidden, n_inputs)
    return own | gates(f"{prefix}.{recurrent_form}", letters, hidden, hidden)


LINEARS = ("W_x{}.weight", "W_h{}.weight")
REFUSED = {
    "highway": (
        of(a__layer_0__input_linearity__weight=(18, 5), a__layer_0__state_linearity__weight=(15, 3)),
        "a.layer_0",
        "highway connections .6 and 5 rows.*linear layers",
    ),
    "sizes that do not fit": (
        of(a__input_linearity__weight=(12, 5), a__state_linearity__weight=(12, 4)),
        "a",
        r"state_linearity.weight has shape \(12, 4\) where \(12, 3\) follows",
    ),
    "a projection that is none": (
        of(
            a__input_linearity__weight=(12, 5),
            a__state_linearity__weight=(12, 3),
            a__state_projection__weight=(3, 3),
        ),
        "a",
        "its projection to 3 of 3 hidden units",
    ),
    "placeholders": (of(a__x2g__weight=(0,), a__p2g__weight=(0,)), "a", "x2g.weight has shape .0,.: a placeholder"),
    "torchaudio with layer norm": (
        of(p__x2g__weight=(12, 5), p__p2g__weight=(12, 3), p__g_norm__weight=(12,), p__c_norm__weight=(3,)),
        "p",
        r"an LSTM of torchaudio with layer norm \(p.g_norm.weight\)",
    ),
    "haste with layer norm": (
        of(r__kernel=(5, 12), r__recurrent_kernel=(3, 12), r__bias=(12,), r__gamma=(2, 12)),
        "r",
        r"a layer of haste with layer norm \(r.gamma\)",
    ),
    "haste's IndRNN": (of(r__kernel=(5, 3), r__recurrent_scale=(3,), r__bias=(3,)), "r", "an IndRNN of haste"),
    "batch norm": (
        of(r__cell_0__weight_ih=(5, 12), r__cell_0__weight_hh=(3, 12), r__cell_0__bn_ih__weight=(12,)),
        "r.cell_0",
        r"an LSTM with batch norm \(r.cell_0.bn_ih.weight\)",
    ),
    "batch norm without weights": (
        of(r__cell_0__weight_ih=(5, 12), r__cell_0__weight_hh=(3, 12), r__cell_0__bn_c__running_mean_0=(3,)),
        "r.cell_0",
        "batch norm",
    ),
    "gates side by side under torch's names": (
        of(r__weight_ih=(5, 12), r__weight_hh=(3, 12), r__bias=(12,)),
        "r",
        "side by side in an order that no name tells",
    ),
    "gates side by side under torch's names at the top": (
        of(weight_ih=(5, 12), weight_hh=(3, 12), bias=(12,)),
        "",
        "side by side in an order that no name tells",
    ),
    "inputs and state side by side": (
        {f"c.{word}.weight": (3, 8) for word in ("input_gate", "forget_gate", "cell_gate", "output_gate")},
        "c",
        r"a hand-written LSTM whose gates' matrices \(3, 8\) take inputs and state side by side",
    ),
    "a GRU of inputs and state side by side": (
        {f"c.{word}.weight": (3, 8) for word in ("reset_gate", "update_gate", "candidate")},
        "c",
        "a hand-written GRU .* side by side",
    ),
    "g and c": (cell("c", "ifgco", *LINEARS), "c", "no name tells the cell gate .there are c.w_hg and c.w_hc"),
    "neither g nor c": (cell("c", "ifoh", *LINEARS), "c", "no name tells the cell gate .none is called so"),
    "peepholes": (
        cell("c", "ifgo", *LINEARS) | gates("c.W_c{}", "ifo", 3),
        "c",
        "more for its gates than torch's has .c.w_cf, c.w_ci, c.w_co",
    ),
    "norms of gates": (
        cell("c", "ifgo", *LINEARS) | gates("c.Layernorm_{}.weight", "ifgo", 3),
        "c",
        "more for its gates .*c.layernorm_f",
    ),
    "a third input": (cell("c", "ifgo", *LINEARS) | gates("c.W_z{}.weight", "ifgo", 3, 7), "c", "more for its gates"),
    "squares of rows or columns": (
        cell("c", "ifgo", "W_x{}", "W_h{}", (3, 3)),
        "c",
        r"all square \(c.W_xi: \(3, 3\)\), so that nothing tells which side stands for its units; stack its gates",
    ),
    "squares of inputs or state": (
        cell("c", "ifgo", "W_{}.weight", "U_{}.weight", (3, 3)),
        "c",
        "nothing tells which ones inputs meet; its matrices can be factorized as linear layers",
    ),
    "convolutions": (
        gates("c.Wx{}.weight", "ifco", 3, 5, 3, 3) | gates("c.Wh{}.weight", "ifco", 3, 3, 3, 3),
        "c",
        r"tensors of shape \(3, 5, 3, 3\), as convolutions have",
    ),
    "a GRU of linear layers": (
        cell("c", "rzn", "W_i{}.weight", "W_h{}.weight"),
        "c",
        "a hand-written GRU of which no name tells where its reset gate acts",
    ),
    "a GRU of one bias a gate": (cell("c", "rzh", "W_x{}", "W_h{}") | gates("c.b_{}", "rzh", 3), "c", "reset gate"),
    "x2h and h2h": (of(c__x2h__weight=(12, 5), c__h2h__weight=(12, 3)), "c", "all gates in one matrix.*linear layers"),
    "i2h and h2h": (of(c__i2h__weight=(9, 5), c__h2h__weight=(9, 3)), "c", "all gates in one matrix"),
    "W and U": (of(c__W=(5, 12), c__U=(3, 12), c__bias=(12,)), "c", "all gates in one matrix.*in your own code"),
    "Li-GRU": (of(rnn__0__w__weight=(6, 5), rnn__0__u__weight=(6, 3)), "rnn.0", "Li-GRU"),
    "pytorch-kaldi": (of(m__wfx__0__weight=(3, 5), m__ufh__0__weight=(3, 3)), "m", "an LSTM of pytorch-kaldi"),
    "SpikingJelly": (of(c__linear_ih__weight=(12, 5), c__linear_hh__weight=(12, 3)), "c", "all gates in one matrix"),
    "Keras with dots": (
        of(l__lstm_cell__kernel=(5, 12), l__lstm_cell__recurrent_kernel=(3, 12), l__lstm_cell__bias=(12,)),
        "l.lstm_cell",
        "names of a cell of Keras, with dots, and of haste",
    ),
    "one kernel for all gates": (
        of(m__cell_list__0__conv__weight=(12, 8, 3, 3), m__cell_list__0__conv__bias=(12,)),
        "m",
        r"a convolutional LSTM, its weights are kernels of shape \(12, 8, 3, 3\)",
    ),
    "a tree": (of(t__W_iou__weight=(9, 5), t__U_iou__weight=(9, 3)), "t", "an LSTM over trees"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_brought_over_is_refused_by_its_name_and_stays(case):
    shapes, name, words = REFUSED[case]
    state = with_others({key: torch.ones(shape, dtype=torch.float64) for key, shape in shapes.items()})
    checkpoint = from_state_dict(state)
    assert checkpoint.tensors.keys() == state.keys()
    others = [entry for entry in checkpoint.recurrent() if isinstance(entry, OtherRecurrent)]
    assert [other.name for other in others] == [name] == [entry.name for entry in checkpoint.recurrent()]
    assert re.search(words, others[0].reason), others[0].reason


def test_linear_layers_of_what_is_refused_can_be_factorized_as_such():
    shapes = REFUSED["torchaudio with layer norm"][0]
    checkpoint = from_state_dict({key: torch.ones(shape) for key, shape in shapes.items()})
    keys = [entry.key for entry in find_linear(checkpoint.tensors, checkpoint.recurrent())]
    assert keys == ["p.p2g.weight", "p.x2g.weight"]


def test_a_layer_under_two_names_is_formed_once():
    draw = Draw()
    fused(draw, "a.", 5, 3, RNNT)
    state = draw.state | {key.replace("a.", "b.", 1): tensor for key, tensor in draw.state.items()}
    tensors = from_state_dict(state).tensors
    names = [key.removeprefix("a.") for key in tensors if key.startswith("a.")]
    assert names == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert all(tensors[f"a.{name}"] is tensors[f"b.{name}"] for name in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_stay_what_they_are_however_they_lie_in_memory(dtype):
    draw = Draw()
    fused(draw, "enc.", 5, 3, HASTE, "igfo", turned=True)
    gatewise(draw, "dec.", GATEWISE["torch's symbols"], 5, 3)
    state = {key: tensor.to(dtype) for key, tensor in draw.state.items()}
    scattered = {key: tensor.t().contiguous().t() if tensor.dim() > 1 else tensor for key, tensor in state.items()}
    tensors, same = (from_state_dict(each).tensors for each in (state, scattered))
    assert all(torch.equal(tensors[key], same[key]) and tensors[key].is_contiguous() for key in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    i, g, f, o = state["enc.kernel"].t().chunk(4)
    assert torch.equal(tensors["enc.weight_ih_l0"], torch.cat([i, f, g, o]))
    assert torch.equal(tensors["dec.bias_hh_l0"], torch.cat([state[f"dec.b_h{gate}"] for gate in "ifgo"]))


def test_the_tensors_of_a_layer_stand_where_its_first_one_stood():
    draw = Draw()
    draw("embedding.weight", 7, 5)
    fused(draw, "enc.", 5, 3, ALLENNLP)
    draw("head.weight", 2, 3)
    keys = list(from_state_dict(draw.state).tensors)
    assert keys == ["embedding.weight", *(f"enc.{name}_l0" for name in SCRIPT), "head.weight"]


def test_layers_that_do_not_follow_each_other_are_layers_of_their_own():
    draw = Draw()
    for layer, (n_inputs, size) in enumerate(((5, 3), (5, 3))):
        fused(draw, f"predictor.lstm_layers.{layer}.", n_inputs, size, RNNT)
        fused(draw, f"rnn.cell_{layer}.", n_inputs, size, BATCHNORM, "fiog", turned=True)
        fused(draw, f"enc.backward_layer_{layer}.", n_inputs, size, ALLENNLP)
    checkpoint = from_state_dict(draw.state)
    parents = ("enc.backward_layer_", "predictor.lstm_layers.", "rnn.cell_")
    names = [f"{parent}{layer}" for parent in parents for layer in range(2)]
    assert [(entry.kind, entry.name) for entry in checkpoint.recurrent()] == [("lstm", name) for name in names]
    assert any("enc.backward_layer_0 reads its sequences from the end" in each for each in checkpoint.notices)


CELLS = {
    "layer norm": [(5, 3), (3, 3)],
    "sizes": [(5, 3), (5, 3)],
    "a gap": [(5, 3), None, (3, 3)],
}


@pytest.mark.parametrize("case", CELLS)
def test_cells_that_are_no_stack_of_torchscripts_stay_cells(case):
    draw = Draw()
    for layer, size in enumerate(CELLS[case]):
        if size is not None:
            fused(draw, f"rnn.layers.{layer}.cell.", *size, SCRIPT)
    if case == "layer norm":
        draw("rnn.layers.1.cell.layernorm_i.weight", 12)
    checkpoint = from_state_dict(draw.state)
    assert [entry.kind for entry in checkpoint.recurrent()] == ["cell", "cell"]
    assert checkpoint.tensors.keys() == draw.state.keys()
    assert not checkpoint.notices


def test_a_layer_whose_name_another_has_stays_as_it_is():
    draw = Draw()
    fused(draw, "rnn.", 5, 3, {name: f"{name}_l0" for name in SCRIPT})
    fused(draw, "rnn.", 5, 3, RNNT)
    checkpoint = from_state_dict(draw.state)
    assert checkpoint.tensors.keys() == draw.state.keys()


def test_the_first_of_two_layers_of_one_name_has_it():
    draw = Draw()
    fused(draw, "rnn.", 5, 3, RNNT)
    fused(draw, "rnn.", 5, 3, HASTE, "igfo", turned=True)
    checkpoint = from_state_dict(draw.state)
    assert [entry.name for entry in checkpoint.recurrent()] == ["rnn"]
    assert {"rnn.kernel", "rnn.recurrent_kernel", "rnn.bias", "rnn.weight_ih_l0"} <= checkpoint.tensors.keys()


ODD = (
    torch.tensor(1.0),
    torch.ones(13),
    torch.ones(2, 3, 4),
    torch.ones(0, 5),
    torch.ones(12, 5).int(),
    torch.ones(7, 11),
)


@pytest.mark.parametrize("case", [*LSTMS, *list(GATEWISE)[::3], "quantizable"])
def test_tensors_that_do_not_fit_stay_as_they_are(case):
    draw = Draw()
    if case in LSTMS:
        LSTMS[case][0](draw)
    elif case in GATEWISE:
        gatewise(draw, "cell.", GATEWISE[case], 5, 3)
    else:
        module = torch.ao.nn.quantizable.LSTM(5, 3, split_gates=True)
        draw.state = {f"rnn.{key}": tensor for key, tensor in module.state_dict().items()}
    for key in draw.state:
        for tensor in ODD:
            assert convert(draw.state | {key: tensor}, "state").tensors[key] is tensor


def test_a_layer_norm_of_the_whole_beside_gates_leaves_no_plain_lstm():
    draw = Draw()
    gatewise(draw, "cell.", GATEWISE["x and h"], 5, 3)
    draw("cell.layer_norm.weight", 3)
    (entry,) = from_state_dict(draw.state).recurrent()
    assert entry.siblings == ("layer_norm.weight",)


def test_weights_of_weight_norm_are_formed_first():
    draw = Draw()
    fused(draw, "enc.", 5, 3, RNNT)
    v = draw.state.pop("enc.p2g.weight")
    draw.state |= {"enc.p2g.weight_g": torch.full((12, 1), 2.0).double(), "enc.p2g.weight_v": v}
    tensors = from_state_dict(draw.state).tensors
    torch.testing.assert_close(tensors["enc.weight_hh_l0"], 2 * v / v.norm(dim=1, keepdim=True))


def test_every_command_says_what_a_layer_was_converted_from(tmp_path, run):
    draw = Draw()
    step = fused(draw, "enc.", 6, 4, HASTE, "igfo", turned=True)
    path, result = tmp_path / "model.pt", tmp_path / "out.safetensors"
    torch.save(draw.state, path)
    told = "enc: converted from haste, into the names and the order of gates and axes of torch."
    for command in (
        ("inspect", path),
        ("factorize", path, "-o", result, "--tucker-rank", "99", "--cp-rank", "1", "--allow-growth"),
        ("report", result),
    ):
        assert told in " ".join(run(*command)[0].split())
    model = btcompress.apply(nn.ModuleDict({"enc": nn.LSTM(6, 4).double()}), result)
    x = inputs(6)
    torch.testing.assert_close(model.enc(x)[0], lstm(x, step, 4), rtol=0, atol=1e-5)
