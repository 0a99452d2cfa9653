"""Orders of rows and columns: found where they pay, kept through files, models and training."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import btcompress
from btcompress.blockterm import BlockTerm
from btcompress.cli import app
from btcompress.errors import ShapeError
from btcompress.fit import FitOptions, fit_matrix, weight_error
from btcompress.fit.arranged import in_orders
from btcompress.nn import BTLinear, BTWeight
from btcompress.orders import fit_ordered, search
from btcompress.orders.search import Piece, best_places, by_similarity, moved, neighbours
from btcompress.shapes import BlockTermShape, MatrixShape
from forms import random_form
from tuning import Classifier, draw, saved_pair, tune

#: 4 gates of 24 rows, 20 columns, and one such gate; two Kronecker products.
PLAIN = BlockTermShape((4, 5), (24, 4), (2, 2), n_gates=4, core="identity")
GATE = BlockTermShape((4, 5), (6, 4), (2, 2), core="identity")
SIDES = [("row_order",), ("column_order",), ("row_order", "column_order")]


def shuffled(shape, names, generator, noise=0.0):
    """A matrix whose rows, columns or both were smooth, so that neighbours were alike, and then shuffled."""
    form = random_form(shape.ordered(names), generator)
    smooth = [factor.cumsum(dim=1).cumsum(dim=2) for factor in form.factors]
    dense = BlockTerm(form.shape, form.cores, smooth, form.orders).to_dense()
    return dense + noise * dense.std() * torch.randn(dense.shape, generator=generator, dtype=dense.dtype)


def moved_from(matrix, shape, start, options):
    ties = [((0, name),) for name in start]
    return moved([Piece(matrix, shape)], ties, list(start.values()), options)


def test_rows_are_ordered_alike_in_all_gates_and_columns_as_named():
    matrix = torch.arange(24.0).reshape(6, 4)
    ordered = in_orders(matrix, {"row_order": torch.tensor([2, 0, 1]), "column_order": torch.tensor([3, 1, 0, 2])}, 2)
    assert torch.equal(ordered, matrix[[2, 0, 1, 5, 3, 4]][:, [3, 1, 0, 2]])


def test_like_vectors_become_neighbours(generator):
    kinds = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    kind = torch.arange(18) % 3
    scales = torch.rand(18, 1, generator=generator, dtype=torch.float64) + 0.5
    vectors = scales * kinds[kind] + 0.1 * torch.randn(18, 40, generator=generator, dtype=torch.float64)
    in_order = kind[neighbours(vectors)].tolist()
    assert len(list(itertools.groupby(in_order))) == 3


def test_vectors_without_any_correlation_are_ordered_too():
    order = neighbours(torch.zeros(5, 3, dtype=torch.float64))
    assert sorted(order.tolist()) == list(range(5))


def test_best_places_are_those_of_the_least_sum_of_squares(generator):
    vectors, places = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    cost = {order: float((vectors[list(order)] - places).square().sum()) for order in itertools.permutations(range(5))}
    assert tuple(best_places(vectors, places).tolist()) == min(cost, key=cost.get)


@pytest.mark.parametrize("seed", range(6))
def test_moving_rows_and_columns_never_raises_the_error(seed):
    shape, options = BlockTermShape((2, 2, 5), (4, 3, 2), (2, 2, 2), 2), FitOptions(max_sweeps=2)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(24, 20, generator=generator, dtype=torch.float64)
    sizes = shape.ordered(SIDES[2]).order_sizes
    start = {name: torch.randperm(size, generator=generator).int() for name, size in sizes.items()}
    moved = dict(zip(start, moved_from(matrix, shape, start, options), strict=True))
    before, after = (fit_matrix(in_orders(matrix, each, 1), MatrixShape(shape), options) for each in (start, moved))
    assert after.weight_error <= before.weight_error


def test_a_move_that_raises_the_error_is_taken_back(monkeypatch, generator):
    monkeypatch.setattr(search, "best_places", lambda vectors, _: torch.arange(len(vectors)).flip(0).roll(3).int())
    start = {name: torch.arange(size).int() for name, size in GATE.ordered(SIDES[2]).order_sizes.items()}
    moved = moved_from(random_form(GATE, generator).to_dense(), GATE, start, FitOptions())
    assert all(torch.equal(new, old) for new, old in zip(moved, start.values(), strict=True))


@pytest.mark.parametrize("names", SIDES, ids=" and ".join)
def test_a_shuffled_matrix_is_fitted_better_in_the_order_found(names, generator):
    matrix = shuffled(PLAIN, names, generator, noise=0.01)
    shape = MatrixShape(PLAIN)
    plain, ordered = fit_matrix(matrix, shape), fit_ordered(matrix, shape)
    part = ordered.parts[0]
    assert part.shape.order_sizes
    assert ordered.weight_error < plain.weight_error - 0.01
    assert weight_error(matrix, ordered.parts) == pytest.approx(ordered.weight_error, abs=1e-9)
    assert (1 - ordered.weight_error**2) / part.n_params > (1 - plain.weight_error**2) / PLAIN.n_params


def test_separate_gates_have_orders_of_their_own(generator):
    matrix = torch.cat([shuffled(GATE, SIDES[2], generator) for _ in range(4)])
    fitted = fit_ordered(matrix, MatrixShape(GATE, "separate"))
    names = set(fitted.parts[0].shape.order_sizes)
    assert names
    assert all(set(each.shape.order_sizes) == names for each in fitted.parts)
    assert not torch.equal(fitted.parts[0].orders[0], fitted.parts[1].orders[0])
    assert weight_error(matrix, fitted.parts) == pytest.approx(fitted.weight_error, abs=1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        BlockTermShape.low_rank(96, 20, 2, n_gates=4),
        BlockTermShape((20,), (96,), (3,), n_gates=4),
        BlockTermShape((4, 5), (24, 4), (90, 90), n_gates=4, core="identity"),
    ],
    ids=["low rank", "order 1", "so near the matrix that an order has no room"],
)
def test_forms_that_an_order_cannot_serve_keep_the_matrix_as_it_is(shape, generator):
    matrix = torch.randn(96, 20, generator=generator, dtype=torch.float64)
    fitted = fit_ordered(matrix, MatrixShape(shape))
    assert not fitted.parts[0].shape.order_sizes
    assert fitted.weight_error == fit_matrix(matrix, MatrixShape(shape)).weight_error


def test_an_order_that_costs_more_than_it_gains_is_not_kept(generator):
    """A matrix that is the form, but for a little, as it stands."""
    matrix = random_form(PLAIN, generator).to_dense()
    matrix = matrix + 0.05 * matrix.std() * torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
    assert not fit_ordered(matrix, MatrixShape(PLAIN)).parts[0].shape.order_sizes


def test_an_order_that_gains_less_than_as_many_parameters_do_is_not_kept():
    generator = torch.Generator().manual_seed(0)
    part = replace(GATE, ranks=(1, 1))
    matrix = torch.cat([shuffled(part, SIDES[2], generator, noise=0.01) for _ in range(4)])
    shape = MatrixShape(replace(GATE, core="full"), "separate")
    plain = fit_matrix(matrix, shape)
    assert fit_ordered(matrix, shape.ordered(SIDES[2])).weight_error < plain.weight_error - 0.05
    assert not fit_ordered(matrix, shape).parts[0].shape.order_sizes


def test_an_order_that_makes_a_form_as_large_as_its_matrix_is_not_kept():
    shape = BlockTermShape((2, 2), (8, 2), (3, 3), n_gates=4, core="identity")
    exact = random_form(shape.ordered(("row_order",)), torch.Generator().manual_seed(1))
    assert exact.n_params == shape.dense_params
    plain, fitted = (fit_one(exact.to_dense(), MatrixShape(shape)) for fit_one in (fit_matrix, fit_ordered))
    assert plain.weight_error > 0.3
    assert not fitted.parts[0].shape.order_sizes


def test_zero_matrix_is_fitted():
    fitted = fit_ordered(torch.zeros(96, 20), MatrixShape(PLAIN))
    assert fitted.weight_error == 0
    assert not fitted.parts[0].shape.order_sizes


def test_orders_cannot_be_asked_of_a_plain_fit(generator):
    with pytest.raises(ShapeError, match="fit_ordered"):
        fit_matrix(torch.ones(96, 20), MatrixShape(PLAIN.ordered(SIDES[0])))


@pytest.mark.parametrize("names", SIDES, ids=" and ".join)
def test_orders_asked_for_are_found_of_just_these_sides_and_as_good_as_those_by_similarity(names, generator):
    matrix = shuffled(PLAIN, SIDES[2], generator, noise=0.3)
    fitted = fit_ordered(matrix, MatrixShape(PLAIN.ordered(names)))
    part = fitted.parts[0]
    assert tuple(part.shape.order_sizes) == names
    assert weight_error(matrix, fitted.parts) == pytest.approx(fitted.weight_error, abs=1e-9)
    similar = {name: by_similarity([Piece(matrix, PLAIN)], ((0, name),)) for name in names}
    assert fitted.weight_error <= fit_matrix(in_orders(matrix, similar, 4), MatrixShape(PLAIN)).weight_error


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            BlockTermShape.low_rank(96, 20, 2, n_gates=4).ordered(SIDES[1]),
            "column_order was asked for, but a plain low",
        ),
        (BlockTermShape((20,), (96,), (3,), n_gates=4).ordered(SIDES[0]), "order 1"),
        (BlockTermShape((3, 1), (8, 4), (1, 1), n_gates=4).ordered(SIDES[2]), "there are 3 columns"),
        (BlockTermShape((2, 2), (8, 400), (1, 1)).ordered(SIDES[0]), "there are 3,200 rows"),
        (BlockTermShape((32, 32), (32, 33), (1, 1)).ordered(SIDES[0]), "1,081,344 entries"),
    ],
    ids=["low rank", "order 1", "few columns", "many rows", "many entries"],
)
def test_orders_that_are_not_looked_for_are_refused_where_asked_for(shape, words):
    with pytest.raises(ShapeError, match=words):
        fit_ordered(torch.ones(shape.out_size, shape.in_size), MatrixShape(shape))


def test_orders_asked_for_need_a_matrix_of_the_shapes_size():
    with pytest.raises(ShapeError, match="the matrix is 20 x 96"):
        fit_ordered(torch.ones(20, 96), MatrixShape(PLAIN.ordered(SIDES[0])))


@pytest.mark.parametrize("names", SIDES, ids=" and ".join)
def test_rows_of_gates_that_do_not_divide_have_no_order(names):
    with_rows = "row_order" in names
    shape = BlockTermShape((2, 3), (5, 3), (2, 2), n_gates=4)
    if with_rows:
        with pytest.raises(ShapeError, match="15 rows of 4 gates"):
            shape.ordered(names)
    else:
        assert shape.ordered(names).order_sizes == {"column_order": 6}


# The module


@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("method", ["factored", "dense"])
def test_module_with_orders_computes_what_its_dense_one_does_in_value_and_gradient(gates, method, generator):
    part = BlockTermShape((2, 5), (4, 3), (3, 2), 2, in_size=9, row_order=True, column_order=True)
    shape = MatrixShape(part, gates)
    layer = BTLinear(9, shape.out_size, shape=shape, method=method, dtype=torch.float64)
    forms = tuple(random_form(part, generator) for _ in range(shape.n_parts))
    layer.weight.load(forms)
    assert all(
        torch.equal(one, other) for one, other in zip(layer.weight.parts[-1].orders, forms[-1].orders, strict=True)
    )
    dense = layer.to_dense()
    torch.testing.assert_close(dense.weight, torch.cat([form.to_dense() for form in layer.weight.parts]))
    x = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(layer(ours), dense(theirs))
    layer(ours).square().sum().backward()
    dense(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    wanted = torch.autograd.grad((layer.weight.to_dense() * dense.weight.grad).sum(), list(layer.weight.parameters()))
    for parameter, gradient in zip(layer.weight.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_orders_are_kept_but_neither_trained_nor_converted(generator):
    weight = BTWeight(MatrixShape(PLAIN.ordered(SIDES[2])))
    weight.reset_parameters(1.0, generator)
    assert torch.equal(weight.row_order, torch.arange(24)), "a new matrix has the order of its rows"
    assert {"row_order", "column_order"} == set(weight.state_dict()) - {name for name, _ in weight.named_parameters()}
    assert weight.half().row_order.dtype == torch.int32
    assert "row_order, column_order" in repr(weight)


# From the checkpoint to the model


def ordered_model(gates="fused"):
    """A model whose matrix is shuffled from one in which neighbours were alike, so that orders pay."""
    model = Classifier(inputs=20, hidden=24).double()
    generator = torch.Generator().manual_seed(1)
    shapes = [PLAIN] if gates == "fused" else [GATE] * 4
    with torch.no_grad():
        matrix = torch.cat([shuffled(shape, SIDES[2], generator, noise=0.01) for shape in shapes])
        model.lstm.weight_ih_l0.copy_(matrix)
        model.lstm.weight_ih_l0.mul_(0.3 / model.lstm.weight_ih_l0.std())
    return model


@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_ordered_checkpoint_is_written_read_applied_and_reported(gates, tmp_path):
    model = ordered_model(gates)
    shape = PLAIN if gates == "fused" else GATE
    arguments = {"in_modes": shape.in_modes, "out_modes": shape.out_modes, "tucker_rank": 2, "gates": gates}
    plain = btcompress.factorize(model, **arguments)
    ordered = btcompress.factorize(model, order_units=True, **arguments)
    path = tmp_path / "model.bt.safetensors"
    btcompress.save(ordered, path)
    assert any(name.endswith("_order") for name in load_file(path)), "this model is made for orders to pay"
    dense = copy.deepcopy(model)
    dense.load_state_dict(btcompress.to_dense(path))
    applied = btcompress.apply(copy.deepcopy(model), path)
    x = torch.from_numpy(draw(3, 7, 20)).double()
    torch.testing.assert_close(applied(x), dense(x))
    before, after = btcompress.report(plain).matrices[0], btcompress.report(btcompress.load(path)).matrices[0]
    sizes = ordered.matrices["lstm.weight_ih_l0"].shape.part.order_sizes
    n_integers = sum(sizes.values()) * (1 if gates == "fused" else 4)
    assert after.params_after == before.params_after + n_integers
    assert after.weight_error < before.weight_error
    wanted, given = model.lstm.weight_ih_l0.detach(), dense.lstm.weight_ih_l0.detach()
    assert after.weight_error == pytest.approx(float((given - wanted).norm() / wanted.norm()), abs=1e-9)
    assert any(f"{n_integers} integers" in notice for notice in ordered.notices)
    assert not any("worse than foreseen" in notice for notice in ordered.notices)


def test_matrices_whose_order_stays_are_named():
    model = nn.LSTM(20, 24)
    with torch.no_grad():
        model.weight_ih_l0.copy_(random_form(PLAIN, torch.Generator().manual_seed(0)).to_dense())
    modes = {"in_modes": (4, 5), "out_modes": (24, 4), "tucker_rank": 16}
    compressed = btcompress.factorize(model, order_units=True, allow_growth=True, **modes)
    assert "weight_ih_l0: its rows and columns stay in their order, as no other pays." in compressed.notices


def test_finetuning_leaves_orders_as_they_are_and_trains_the_rest(tmp_path):
    arguments = {"order": 2, "tucker_rank": 2, "cp_rank": 1, "order_units": True, "max_sweeps": 100}
    dense, compressed = saved_pair(tmp_path, ordered_model(), **arguments)
    data = tmp_path / "x.npy"
    np.save(data, draw(24, 5, 20))
    tune(tmp_path, compressed, data, dense)
    before, after = load_file(compressed), load_file(tmp_path / "tuned.safetensors")
    orders = {name for name in before if name.endswith("_order")}
    assert orders
    assert all(torch.equal(before[name], after[name]) for name in orders)
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - orders)


def test_same_seed_finds_the_same_orders():
    model = ordered_model()
    first, second = (btcompress.factorize(model, order=2, order_units=True) for _ in range(2))
    assert any(name.endswith("_order") for name in first.tensors)
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def test_command_line_finds_orders_when_asked(tmp_path, capsys):
    torch.save(ordered_model().state_dict(), tmp_path / "model.pt")
    for options in (("--order-units",), ()):
        target = tmp_path / f"{len(options)}.safetensors"
        command = ["factorize", str(tmp_path / "model.pt"), "--order", "2", "-o", str(target), *options]
        with pytest.raises(SystemExit) as end:
            app(command)
        assert end.value.code == 0
        capsys.readouterr()
        assert any("row_order" in name for name in load_file(target)) == bool(options)
