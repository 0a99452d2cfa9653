import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btcompress.blockterm import BlockTerm, init_scale, slab_entries
from btcompress.errors import ShapeError
from btcompress.shapes import BlockTermShape
from forms import UNEVEN, random_form

PADDED = BlockTermShape((2, 3, 2), (8, 2, 3), (3, 2, 4), 3, in_size=11, out_size=40, n_gates=4)
SHAPES = [
    UNEVEN,
    PADDED,
    BlockTermShape((4,), (6,), (1,), 2),
    BlockTermShape.low_rank(6, 7, 3),
    BlockTermShape((2, 5), (12, 3), (4, 4), in_size=9, out_size=28, n_gates=4, core="identity"),
    BlockTermShape((5, 2, 1, 3), (2, 1, 3, 2), (2, 1, 3, 2), 2),
    BlockTermShape((2, 5), (12, 3), (4, 3), 2, in_size=9, out_size=28, n_gates=4, row_order=True, column_order=True),
    BlockTermShape((2, 5), (4, 3), (3, 3), core="identity", row_order=True),
    BlockTermShape((3, 4), (4, 2), (3, 2), 3, in_size=11, n_gates=4, column_order=True),
]
ORDERED = SHAPES[-3:]


def dense_by_loops(form):
    """The definition in docs/math.md, index by index."""
    shape = form.shape
    dense = torch.zeros(shape.padded_out, shape.padded_in, dtype=torch.float64)
    outs = list(itertools.product(*map(range, shape.out_modes)))
    ins = list(itertools.product(*map(range, shape.in_modes)))
    for (row, j), (column, i) in itertools.product(enumerate(outs), enumerate(ins)):
        for n in range(shape.n_blocks):
            for r in itertools.product(*map(range, shape.ranks)):
                product = form.cores[(n, *r)]
                for k in range(shape.order):
                    product = product * form.factors[k][n, i[k], j[k], r[k]]
                dense[row, column] += product
    per_gate = shape.padded_out // shape.n_gates
    kept = [row for row in range(shape.padded_out) if row % per_gate < shape.out_size // shape.n_gates]
    return dense[kept][:, : shape.in_size]


@pytest.mark.parametrize("shape", [BlockTermShape((2, 1, 3), (2, 3, 1), (3, 2, 2), 2), PADDED, *SHAPES[4:6]], ids=str)
def test_dense_matrix_is_the_definition(shape, generator):
    form = random_form(shape, generator)
    torch.testing.assert_close(form.to_dense(), dense_by_loops(form))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("most", [1, 25, 100, 2**19])
def test_slabs_of_rows_are_the_dense_matrix(shape, most, generator, monkeypatch):
    monkeypatch.setattr("btcompress.blockterm.form.SLAB_ENTRIES", most)
    form = random_form(shape, generator)
    rebuilt = torch.full((shape.out_size, shape.in_size), torch.nan, dtype=torch.float64)
    assert slab_entries(shape) <= max(most, shape.padded_in)
    for rows, slab in form.dense_slabs():
        assert torch.isnan(rebuilt[rows]).all()
        assert len(slab) * shape.padded_in <= slab_entries(shape)
        rebuilt[rows] = slab
    torch.testing.assert_close(rebuilt, form.to_dense())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [(), (6,), (2, 3), (0,)], ids=str)
def test_product_equals_the_dense_product_in_value_and_gradient(shape, batch, generator):
    form = random_form(shape, generator)
    inputs = torch.randn(*batch, shape.in_size, dtype=torch.float64, generator=generator)
    direction = torch.randn(*batch, shape.out_size, dtype=torch.float64, generator=generator)
    leaves = [tensor.requires_grad_() for tensor in (inputs, *form.tensors)]
    form = BlockTerm.of(shape, leaves[1:], form.orders)

    def gradients(product):
        return torch.autograd.grad((product * direction).sum(), leaves)

    fast, plain = form.matmul(inputs), inputs @ form.to_dense().T
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(gradients(fast), gradients(plain))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kept_product_gives_the_same_at_each_call_with_and_without_a_bias(shape, generator):
    form = random_form(shape, generator)
    product, dense = form.prepare(), form.to_dense()
    bias = torch.randn(shape.out_size, dtype=torch.float64, generator=generator)
    for batch in ((), (4,), (4,), (2, 3), (0,)):
        inputs = torch.randn(*batch, shape.in_size, dtype=torch.float64, generator=generator)
        torch.testing.assert_close(product.matmul(inputs), inputs @ dense.T)
        torch.testing.assert_close(product.matmul(inputs, bias), inputs @ dense.T + bias)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_go_through_a_kept_product(shape, generator):
    form = random_form(shape, generator)
    form = BlockTerm.of(shape, [tensor.requires_grad_() for tensor in form.tensors], form.orders)
    leaves = [torch.randn(n, dtype=torch.float64, generator=generator) for n in (2 * shape.in_size, shape.out_size)]
    inputs, bias = leaves[0].reshape(2, -1).requires_grad_(), leaves[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: form.prepare().matmul(inputs, bias), (inputs, bias, *form.tensors))


def test_product_of_low_rank_is_two_factors_that_are_views_of_the_parameters(generator):
    form = random_form(BlockTermShape.low_rank(6, 7, 3), generator)
    left, right = form.prepare().low_rank
    assert (left.shape, right.shape) == ((6, 3), (3, 7))
    assert left.data_ptr() == form.factors[1].data_ptr()
    assert right.data_ptr() == form.factors[0].data_ptr()
    assert random_form(UNEVEN, generator).prepare().low_rank is None


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_product_equals_the_dense_product_for_any_modes(data):
    order = data.draw(st.integers(1, 5))
    sizes = st.lists(st.integers(1, 4), min_size=order, max_size=order)
    shape = BlockTermShape(*(tuple(data.draw(sizes)) for _ in range(3)), n_blocks=data.draw(st.integers(1, 3)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    form = random_form(shape, generator)
    inputs = torch.randn(3, shape.in_size, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(form.matmul(inputs), inputs @ form.to_dense().T)


@pytest.mark.parametrize("shape", ORDERED, ids=str)
def test_ordered_form_is_the_plain_form_with_rows_alike_in_all_gates_and_columns_put_back(shape, generator):
    form = random_form(shape, generator)
    plain = BlockTerm.of(shape.ordered(), form.tensors).to_dense()
    orders = dict(zip(shape.order_sizes, form.orders, strict=True))
    n_units = shape.out_size // shape.n_gates
    row_order = orders.get("row_order", torch.arange(n_units)).tolist()
    column_order = orders.get("column_order", torch.arange(shape.in_size)).tolist()
    expected = torch.full_like(plain, torch.nan)
    for gate in range(shape.n_gates):
        for row, unit in enumerate(row_order):
            for column, number in enumerate(column_order):
                expected[gate * n_units + unit, number] = plain[gate * n_units + row, column]
    assert torch.equal(form.to_dense(), expected)
    assert torch.equal(BlockTerm.of(shape.ordered(), form.tensors).ordered(orders).to_dense(), expected)


@pytest.mark.parametrize("shape", ORDERED, ids=str)
def test_orders_count_as_parameters_and_have_no_dtype_to_convert(shape, generator):
    form = random_form(shape, generator)
    n_integers = sum(len(order) for order in form.orders)
    assert form.n_params == shape.n_params == shape.ordered().n_params + n_integers > shape.ordered().n_params
    assert all(order.dtype == torch.int32 for order in form.to(torch.bfloat16).orders)


def test_parameters_are_counted_on_the_tensors(generator):
    form = random_form(UNEVEN, generator)
    assert form.n_params == UNEVEN.n_params == sum(tensor.numel() for tensor in form.tensors)


def test_low_rank_is_the_product_of_its_factors_and_costs_no_more(generator):
    shape = BlockTermShape.low_rank(6, 7, 3)
    inputs, outputs = (factor.reshape(-1, 3) for factor in random_form(shape, generator).tensors)
    form = BlockTerm.of(shape, [inputs.reshape(1, 7, 1, 3), outputs.reshape(1, 1, 6, 3)])
    torch.testing.assert_close(form.to_dense(), outputs @ inputs.T)
    assert form.n_params == shape.n_params == 3 * (6 + 7)
    assert shape.is_low_rank


def test_tensors_of_another_shape_are_refused(generator):
    form = random_form(UNEVEN, generator)
    with pytest.raises(ShapeError, match="were expected"):
        BlockTerm(UNEVEN, form.cores, form.factors[::-1])


def test_order_beyond_the_letters_of_einsum_is_refused():
    with pytest.raises(ShapeError, match="order of at most"):
        BlockTermShape((1,) * 20, (1,) * 20, (1,) * 20)


@pytest.mark.parametrize(
    "shape",
    [BlockTermShape((6, 7, 5), (4, 5, 6), (3, 2, 4), n_blocks=2), BlockTermShape.low_rank(60, 70, 5)],
    ids=["full core", "identity core"],
)
def test_initial_scale_gives_the_dense_matrix_the_variance_asked_for(shape, generator):
    core_std, factor_std = init_scale(shape, variance=0.25)
    squares = []
    for _ in range(40):
        form = random_form(shape, generator)
        stds = [core_std if tensor is form.cores else factor_std for tensor in form.tensors]
        scaled = BlockTerm.of(shape, [tensor * std for tensor, std in zip(form.tensors, stds, strict=True)])
        squares.append(scaled.to_dense().square().mean())
    assert torch.stack(squares).mean().item() == pytest.approx(0.25, rel=0.15)


@pytest.mark.parametrize("orders", [(), ("row_order",), ("row_order", "column_order")], ids=",".join)
def test_low_rank_factors_multiply_to_the_matrix(orders, generator):
    shape = BlockTermShape((8, 1), (1, 12), (3, 3), in_size=7, n_gates=4, core="identity")
    form = random_form(shape, generator)
    sizes = shape.ordered(orders).order_sizes
    form = form.ordered({name: torch.randperm(n, generator=generator).int() for name, n in sizes.items()})
    left, right = form.low_rank_factors()
    assert (left.shape, right.shape) == ((12, 3), (3, 7))
    torch.testing.assert_close(left @ right, form.to_dense())
    inputs, bias = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (7, 12))
    torch.testing.assert_close(form.matmul(inputs, bias), form.to_dense() @ inputs + bias)


def test_other_forms_have_no_low_rank_factors(generator):
    with pytest.raises(ShapeError, match="no plain low-rank matrix"):
        random_form(BlockTermShape((2, 3), (4, 5), (2, 2)), generator).low_rank_factors()
