"""One order of hidden units for several matrices: found where it pays, stored and counted once."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import btcompress
from btcompress.blockterm import params_of
from btcompress.checkpoint import find_recurrent
from btcompress.fit import FitOptions, fit_matrix, weight_error
from btcompress.fit.arranged import in_orders
from btcompress.orders import fit_ordered, share_orders
from btcompress.orders.search import Piece, by_similarity, moved, moved_to_better_places, quick_fits
from btcompress.shapes import BlockTermShape, MatrixShape
from forms import random_form, shuffled
from tuning import draw, saved_pair, tune

ROWS, COLUMNS = "row_order", "column_order"
#: 4 gates of 24 rows; 20 columns, and as many as rows.
INPUT = BlockTermShape((4, 5), (24, 4), (2, 2), n_gates=4, core="identity")
SQUARE = BlockTermShape((4, 6), (24, 4), (2, 2), n_gates=4, core="identity")
ALL_SIDES = [("w", ROWS), ("u", ROWS), ("u", COLUMNS), ("v", COLUMNS)]


def matrices_of_units(generator, scale=1.0):
    """W, U and the next layer's W whose units stand in one order that is not smooth."""
    units = torch.randperm(24, generator=generator)
    w = shuffled(INPUT, generator, units)
    u = shuffled(SQUARE, generator, units, units)
    v = shuffled(SQUARE, generator, None, units)
    return {"w": scale * w, "u": u, "v": v}


def shared(matrices, shape_of, sides=(ALL_SIDES,)):
    shapes = {key: MatrixShape(shape_of[key]) for key in matrices}
    own = {key: fit_ordered(matrices[key], shapes[key]) for key in matrices}
    return own, share_orders(matrices, shapes, sides, own)


SHAPES = {"w": INPUT, "u": SQUARE, "v": SQUARE}


def orders_of(fit):
    """Each order of a fit by its name; only for one part."""
    (part,) = fit.parts
    return dict(zip(part.shape.order_sizes, part.orders, strict=True))


def explained_per_parameter(fits):
    explained = sum(1 - fit.weight_error**2 for fit in fits.values())
    return explained / params_of([part for fit in fits.values() for part in fit.parts])


# The search


def test_units_that_all_sides_have_in_one_order_get_the_very_same_tensor(generator):
    matrices = matrices_of_units(generator)
    own, fits = shared(matrices, SHAPES)
    (order,) = {id(orders_of(fits[key])[side]): orders_of(fits[key])[side] for key, side in ALL_SIDES}.values()
    assert order.dtype == torch.int32
    assert explained_per_parameter(fits) > explained_per_parameter(own)
    for key, matrix in matrices.items():
        assert weight_error(matrix, fits[key].parts) == pytest.approx(fits[key].weight_error, abs=1e-9)
        assert fits[key].weight_error < fit_matrix(matrix, MatrixShape(SHAPES[key])).weight_error


def test_what_a_matrix_is_scaled_by_changes_nothing(generator):
    small, large = (
        shared(matrices_of_units(torch.Generator().manual_seed(0), scale), SHAPES)[1] for scale in (2.0**-9, 2.0**9)
    )
    for key in small:
        assert all(torch.equal(orders_of(small[key])[side], order) for side, order in orders_of(large[key]).items())


def test_an_order_that_makes_a_form_as_large_as_its_matrix_is_not_shared():
    shape = BlockTermShape((2, 2), (8, 2), (3, 3), n_gates=4, core="identity")
    generator = torch.Generator().manual_seed(4)
    units = torch.tensor([2, 0, 3, 1])
    exact = in_orders(random_form(shape, generator).to_dense(), {ROWS: units, COLUMNS: units}, 4)
    assert shape.n_params + 4 == exact.numel()
    own, fits = shared({"u": exact}, {"u": shape})
    assert fits == own


@pytest.mark.parametrize("seed", range(4))
def test_sharing_never_explains_less_per_parameter(seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        "w": shuffled(INPUT, generator),
        "u": shuffled(SQUARE, generator),
        "v": torch.randn(96, 24, generator=generator, dtype=torch.float64),
    }
    own, fits = shared(matrices, SHAPES)
    assert explained_per_parameter(fits) >= explained_per_parameter(own)


def test_an_order_that_costs_more_than_it_gains_is_not_shared(generator):
    """Matrices that are their forms, but for a little, as they stand."""
    matrices = {key: random_form(shape, generator).to_dense() for key, shape in SHAPES.items()}
    for matrix in matrices.values():
        matrix += 0.05 * matrix.std() * torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
    own, fits = shared(matrices, SHAPES)
    assert fits == own
    assert not any(orders_of(fit) for fit in fits.values())


def test_rows_and_columns_of_one_matrix_share_an_order_where_no_other_matrix_does(generator):
    units = torch.randperm(24, generator=generator)
    matrices = {"w": shuffled(INPUT, generator), "u": shuffled(SQUARE, generator, units, units)}
    own, fits = shared(matrices, SHAPES)
    orders = orders_of(fits["u"])
    assert orders[ROWS] is orders[COLUMNS]
    assert params_of(fits["u"].parts) == SQUARE.n_params + 24
    assert fits["w"] is own["w"]


def test_an_order_settled_for_one_layer_stays_while_the_next_ones_is_found(generator):
    matrices = matrices_of_units(generator)
    next_units = torch.randperm(24, generator=generator)
    columns = in_orders(matrices["v"], {ROWS: torch.arange(24)}, 4)
    matrices["v"] = in_orders(columns, {ROWS: next_units}, 4)
    matrices["x"] = shuffled(SQUARE, generator, None, next_units)
    next_sides = [("v", ROWS), ("x", COLUMNS)]
    shapes = {**SHAPES, "x": SQUARE}
    _, first = shared(matrices, shapes)
    _, both = shared(matrices, shapes, (ALL_SIDES, next_sides))
    kept = orders_of(first["u"])[COLUMNS]
    assert torch.equal(orders_of(both["u"])[COLUMNS], kept)
    assert orders_of(both["v"])[COLUMNS] is orders_of(both["u"])[COLUMNS]
    for key, matrix in matrices.items():
        assert weight_error(matrix, both[key].parts) == pytest.approx(both[key].weight_error, abs=1e-9)


@pytest.mark.parametrize("sides", [[], [("w", ROWS)], [("absent", ROWS), ("w", ROWS)]], ids=["none", "one", "absent"])
def test_fewer_than_two_sides_share_nothing(sides, generator):
    matrices = {"w": shuffled(INPUT, generator)}
    own, fits = shared(matrices, SHAPES, (sides,))
    assert fits == own


def test_forms_that_have_no_order_share_none(generator):
    matrices = matrices_of_units(generator)
    low_rank = {key: BlockTermShape.low_rank(96, matrix.shape[1], 2, 4) for key, matrix in matrices.items()}
    own, fits = shared(matrices, low_rank)
    assert fits == own
    exact = {key: torch.zeros_like(matrix) for key, matrix in matrices.items()}
    own, fits = shared(exact, SHAPES)
    assert fits == own


@pytest.mark.parametrize("seed", range(4))
def test_moving_tied_rows_and_columns_never_raises_the_error_of_all_together(seed):
    generator = torch.Generator().manual_seed(seed)
    shape, options = BlockTermShape((2, 3, 4), (8, 3, 4), (1, 1, 1), 2, n_gates=4), FitOptions(max_sweeps=2)
    pieces = [Piece(shuffled(SQUARE, generator), shape) for _ in range(2)]
    ties = [((0, ROWS), (0, COLUMNS), (1, ROWS)), ((1, COLUMNS),)]
    start = [torch.randperm(24, generator=generator).int() for _ in ties]
    found = moved(pieces, ties, start, options)
    assert any(not torch.equal(new, old) for new, old in zip(found, start, strict=True))
    assert quick_fits(pieces, ties, found, options)[0] < quick_fits(pieces, ties, start, options)[0]


def test_search_from_similarity_finds_the_order_that_matrices_were_shuffled_from(generator):
    matrices = matrices_of_units(generator)
    pieces = [Piece(matrices[key] / matrices[key].norm(), SHAPES[key]) for key in ("w", "u")]
    ties = [((0, ROWS), (1, ROWS), (1, COLUMNS)), ((0, COLUMNS),)]
    start = [by_similarity(pieces, tie) for tie in ties]
    found = moved_to_better_places(pieces, ties, start, FitOptions())
    as_they_are = [torch.arange(24), torch.arange(20)]
    plain, ordered = (quick_fits(pieces, ties, orders, FitOptions())[0] for orders in (as_they_are, found))
    assert ordered < 0.7 * plain


# Which sides stand for the same units


def sides_of(**arguments):
    (entry,) = find_recurrent(nn.LSTM(5, 6, **arguments).state_dict())
    return entry.unit_sides


def test_units_of_a_layer_are_in_its_rows_its_columns_and_the_next_layers_columns():
    rows, columns = [[(f"weight_{part}_l{n}", ROWS) for part in ("ih", "hh")] for n in (0, 1)], COLUMNS
    first, last = sides_of(num_layers=2)
    assert first == (*rows[0], ("weight_hh_l0", columns), ("weight_ih_l1", columns))
    assert last == (*rows[1], ("weight_hh_l1", columns))


def test_units_of_a_direction_are_not_in_the_columns_that_hold_both():
    units = sides_of(num_layers=2, bidirectional=True)
    suffixes = ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
    assert units == tuple(
        ((f"weight_ih{s}", ROWS), (f"weight_hh{s}", ROWS), (f"weight_hh{s}", COLUMNS)) for s in suffixes
    )


def test_projected_units_are_not_the_layers():
    units = sides_of(num_layers=2, proj_size=3)
    assert units == tuple(((f"weight_ih_l{n}", ROWS), (f"weight_hh_l{n}", ROWS)) for n in (0, 1))


def test_units_of_a_cell_are_in_its_rows_and_columns():
    (entry,) = find_recurrent({f"cell.{key}": tensor for key, tensor in nn.LSTMCell(5, 6).state_dict().items()})
    assert entry.unit_sides == ((("cell.weight_ih", ROWS), ("cell.weight_hh", ROWS), ("cell.weight_hh", COLUMNS)),)


@pytest.mark.parametrize("arguments", [{}, {"bidirectional": True}, {"proj_size": 3}], ids=str)
def test_reordering_the_units_on_all_their_sides_is_the_same_lstm(arguments, generator):
    """But for the biases, the rows of a projection, and that outputs come in the new order."""
    model = nn.LSTM(5, 6, num_layers=2, bias=False, dtype=torch.float64, **arguments)
    other = copy.deepcopy(model)
    (entry,) = find_recurrent(model.state_dict())
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    orders = [torch.randperm(6, generator=generator) for _ in entry.unit_sides]
    for order, sides in zip(orders, entry.unit_sides, strict=True):
        for key, side in sides:
            state[key] = in_orders(state[key], {side: order}, 4)
    if arguments.get("bidirectional"):
        for key in ("weight_ih_l1", "weight_ih_l1_reverse"):
            state[key] = torch.cat([state[key][:, :6][:, orders[0]], state[key][:, 6:][:, orders[1]]], dim=1)
    if arguments.get("proj_size"):
        for n, order in enumerate(orders):
            state[f"weight_hr_l{n}"] = state[f"weight_hr_l{n}"][:, order]
    other.load_state_dict(state)
    x = torch.randn(7, 2, 5, generator=generator, dtype=torch.float64)
    wanted, given = model(x)[0], other(x)[0]
    if not arguments.get("proj_size"):
        last = orders[-2:] if arguments.get("bidirectional") else orders[-1:]
        wanted = torch.cat([half[..., order] for half, order in zip(wanted.split(6, -1), last, strict=True)], dim=-1)
    torch.testing.assert_close(given, wanted)


# From the model to the file and back


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(20, 24, num_layers=2, batch_first=True, dtype=torch.float64)

    def forward(self, x):
        return self.lstm(x)[0]


def model_of_units():
    """A model whose two layers each have an order of units in which neighbours are alike."""
    generator = torch.Generator().manual_seed(1)
    first, last = (torch.randperm(24, generator=generator) for _ in range(2))
    matrices = {
        "weight_ih_l0": shuffled(INPUT, generator, first),
        "weight_hh_l0": shuffled(SQUARE, generator, first, first),
        "weight_ih_l1": shuffled(SQUARE, generator, last, first),
        "weight_hh_l1": shuffled(SQUARE, generator, last, last),
    }
    model = Model()
    with torch.no_grad():
        for name, matrix in matrices.items():
            getattr(model.lstm, name).copy_(0.3 * matrix / matrix.std())
    return model


OPTIONS = {"order": 2, "tucker_rank": 2, "matrices": ("input", "recurrent"), "order_units": True}


@pytest.fixture(scope="module")
def of_units():
    """The model, and its result."""
    torch.manual_seed(0)
    model = model_of_units()
    return model, btcompress.factorize(model, **OPTIONS)


def about(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["btcompress"]), set(file.keys())


def test_shared_orders_are_stored_once_counted_once_and_used_alike(of_units, tmp_path):
    (model, compressed), path = of_units, tmp_path / "model.bt.safetensors"
    btcompress.save(compressed, path)
    description, stored = about(path)
    groups = [
        {f"lstm.weight_ih_l0.{ROWS}", f"lstm.weight_hh_l0.{ROWS}", f"lstm.weight_hh_l0.{COLUMNS}"}
        | {f"lstm.weight_ih_l1.{COLUMNS}"},
        {f"lstm.weight_ih_l1.{ROWS}", f"lstm.weight_hh_l1.{ROWS}", f"lstm.weight_hh_l1.{COLUMNS}"},
    ]
    for group in groups:
        assert len({id(compressed.tensors[name]) for name in group}) == 1
        (kept,) = group & stored
        assert {name for name, of in description["aliases"].items() if of == kept} == group - {kept}
    loaded = btcompress.load(path)
    assert loaded.n_params == compressed.n_params
    for opened in (compressed, loaded):
        rows = btcompress.report(opened).matrices
        n_params = [params_of(opened.parts(row.name)) for row in rows]
        assert [row.params_after for row in rows] == n_params
        # Each matrix counts the orders that it needs; the model counts each once.
        twice = 24 + 24 + 24
        biases = sum(value.numel() for name, value in model.state_dict().items() if "bias" in name)
        assert opened.n_params == sum(n_params) - twice + biases
    rows = {row.name: row for row in btcompress.report(loaded).matrices}
    both_sides = loaded.matrices["lstm.weight_hh_l0"].shape
    assert rows["lstm.weight_hh_l0"].params_after == both_sides.n_params - 24
    dense = copy.deepcopy(model)
    dense.load_state_dict(btcompress.to_dense(path))
    applied = btcompress.apply(copy.deepcopy(model), path)
    x = torch.from_numpy(draw(3, 7, 20)).double()
    torch.testing.assert_close(applied(x), dense(x))
    for name, row in rows.items():
        wanted, given = model.get_parameter(name).detach(), dense.get_parameter(name).detach()
        assert row.weight_error == pytest.approx(float((given - wanted).norm() / wanted.norm()), abs=1e-9)
    shared_in_words = [notice for notice in compressed.notices if "One order of units holds for" in notice]
    assert len(shared_in_words) == 2
    assert all("24 integers that count once" in notice for notice in shared_in_words)


def test_parameters_of_a_checkpoint_are_its_parts_with_each_order_once(of_units):
    _, compressed = of_units
    parts = [part for key in compressed.matrices for part in compressed.parts(key)]
    others = sum(compressed.tensors[key].numel() for key in compressed.keys if key not in compressed.matrices)
    assert compressed.n_params == params_of(parts) + others


def test_gates_apart_share_the_layers_order(generator):
    units = torch.randperm(24, generator=generator)
    gates = {"w": BlockTermShape((4, 5), (6, 4), (2, 2), core="identity")}
    gates["u"] = BlockTermShape((4, 6), (6, 4), (2, 2), core="identity")
    matrices = {
        "w": torch.cat([shuffled(gates["w"], generator, units) for _ in range(4)]),
        "u": torch.cat([shuffled(gates["u"], generator, units, units) for _ in range(4)]),
    }
    shapes = {key: MatrixShape(part, "separate") for key, part in gates.items()}
    own = {key: fit_ordered(matrices[key], shapes[key]) for key in matrices}
    fits = share_orders(matrices, shapes, [[("w", ROWS), ("u", ROWS), ("u", COLUMNS)]], own)
    tensors = [fits["w"].parts[n].orders[0] for n in range(4)] + [o for part in fits["u"].parts for o in part.orders]
    assert len({id(tensor) for tensor in tensors}) == 1
    assert explained_per_parameter(fits) > explained_per_parameter(own)
    for key, matrix in matrices.items():
        assert weight_error(matrix, fits[key].parts) == pytest.approx(fits[key].weight_error, abs=1e-9)


def test_training_keeps_shared_orders_shared(tmp_path):
    dense, compressed = saved_pair(tmp_path, model_of_units(), cp_rank=1, max_sweeps=100, **OPTIONS)
    data = tmp_path / "x.npy"
    np.save(data, draw(24, 5, 20))
    before = btcompress.load(compressed)
    tune(tmp_path, compressed, data, dense)
    after = btcompress.load(tmp_path / "tuned.safetensors")
    assert after.n_params == before.n_params
    assert about(tmp_path / "tuned.safetensors")[0]["aliases"] == about(compressed)[0]["aliases"] != {}
    assert any(
        not torch.equal(tensor, after.tensors[name])
        for name, tensor in before.tensors.items()
        if not name.endswith("_order")
    )


def test_the_same_seed_shares_the_same_orders_in_the_same_bytes(of_units, tmp_path):
    model, compressed = of_units
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, result in zip(paths, (compressed, btcompress.factorize(model, **OPTIONS)), strict=True):
        btcompress.save(result, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_other_forms_of_equal_size_are_those_of_a_matrix_whose_order_counts_once():
    generator = torch.Generator().manual_seed(0)
    units = torch.randperm(24, generator=generator)
    model = nn.LSTM(20, 24, dtype=torch.float64)
    part = BlockTermShape((2, 3, 4), (8, 3, 4), (2, 2, 2), n_gates=4)
    with torch.no_grad():
        model.weight_hh_l0.copy_(shuffled(part, generator, units, units))
    options = {**OPTIONS, "order": 3, "in_modes": part.in_modes, "out_modes": part.out_modes}
    compressed = btcompress.factorize(model, layers=["weight_hh_l0"], **options)
    assert len({id(order) for order in compressed.parts("weight_hh_l0")[0].orders}) == 1
    dense = btcompress.factorization.open_weights(model)
    (row,) = btcompress.report(compressed, against=dense, yardsticks=True).matrices
    assert row.params_after == part.n_params + 24
    train, greedy = row.yardsticks[1:]
    assert 0 < train.params <= row.params_after
    assert greedy.params == part.n_params
