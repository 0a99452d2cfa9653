import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btcompress.contraction import (
    MOVE_COST,
    apply_chain,
    contract,
    layout,
    letters,
    operand_letters,
    plan_chain,
    prepare_chain,
    prepared,
)
from btcompress.contraction.running import follow
from btcompress.errors import ShapeError

#: N, in modes, out modes, ranks; all sizes of a case differ, some modes are 1.
FORMS = {
    "order 1": (2, (5,), (4,), (1,)),
    "order 2": (3, (5, 7), (6, 4), (2, 3)),
    "order 3": (3, (2, 3, 5), (7, 4, 6), (3, 2, 4)),
    "order 4": (2, (3, 5, 4, 7), (8, 2, 3, 6), (2, 4, 3, 5)),
    "order 5": (2, (2, 3, 1, 4, 5), (3, 1, 2, 5, 4), (2, 1, 3, 4, 2)),
    "gates last": (2, (7, 5, 3), (2, 4, 9), (2, 3, 4)),
    "one block": (1, (4, 3, 5), (2, 5, 3), (3, 4, 2)),
    "low rank": (1, (9, 1), (1, 8), (3, 3)),
    "low rank, transposed": (1, (1, 9), (8, 1), (3, 3)),
}

#: Numbers of a piece of rows: all rows at once, several pieces, the last one smaller, and pieces of one row.
PIECES = {"at once": 2**30, "in pieces": 3_000, "row by row": 1}


def draw(*size, generator):
    return torch.randn(size, generator=generator, dtype=torch.float64)


def draw_form(form, generator):
    n_blocks, in_modes, out_modes, ranks = form
    sizes = zip(in_modes, out_modes, ranks, strict=True)
    return [
        draw(n_blocks, *ranks, generator=generator),
        *(draw(n_blocks, *size, generator=generator) for size in sizes),
    ]


def by_einsum(rows, operands):
    batch, _, i, j, _ = letters(rows.dim() - 1)
    return torch.einsum(f"{batch + i},{','.join(operand_letters(rows.dim() - 1))}->{batch + j}", rows, *operands)


def gradients(product, leaves, generator):
    direction = draw(*product.shape, generator=generator.manual_seed(1))
    return torch.autograd.grad(product, leaves, direction)


@pytest.fixture(params=PIECES)
def pieces(request, monkeypatch):
    monkeypatch.setattr(layout, "PIECE_NUMBERS", PIECES[request.param])


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [
        ("ab,bc,cd->ad", [(2, 3), (3, 5), (5, 4)]),
        ("zab,zbc,zcd->da", [(6, 2, 3), (6, 3, 5), (6, 5, 4)]),
        ("abc,xa,yb,wc->wxy", [(2, 3, 4), (5, 2), (7, 3), (6, 4)]),
        ("a->a", [(3,)]),
    ],
)
def test_pairwise_contraction_equals_einsum_in_value_and_gradient(equation, sizes, generator):
    operands = [draw(*size, generator=generator).requires_grad_() for size in sizes]
    fast, plain = contract(equation, *operands), torch.einsum(equation, *operands)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(gradients(fast, operands, generator), gradients(plain, operands, generator))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.usefixtures("pieces")
def test_chain_equals_one_einsum_in_value_and_gradient(form, generator):
    operands = [operand.requires_grad_() for operand in draw_form(form, generator)]
    rows = draw(11, *form[1], generator=generator).requires_grad_()
    fast, plain = apply_chain(rows, operands), by_einsum(rows, operands)
    torch.testing.assert_close(fast, plain)
    leaves = [rows, *operands]
    torch.testing.assert_close(gradients(fast, leaves, generator), gradients(plain, leaves, generator))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_chain_equals_one_einsum_for_any_sizes(data):
    order = data.draw(st.integers(1, 4))
    modes = [tuple(data.draw(st.lists(st.integers(1, 5), min_size=order, max_size=order))) for _ in range(3)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    operands = draw_form((data.draw(st.integers(1, 3)), *modes), generator)
    rows = draw(3, *modes[0], generator=generator)
    torch.testing.assert_close(apply_chain(rows, operands), by_einsum(rows, operands))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_rows_give_no_rows(form, generator):
    product = apply_chain(draw(0, *form[1], generator=generator), draw_form(form, generator))
    assert product.shape == (0, *form[2])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.usefixtures("pieces")
def test_chain_without_gradients_gives_the_same(form, generator):
    operands, rows = draw_form(form, generator), draw(11, *form[1], generator=generator)
    torch.testing.assert_close(apply_chain(rows, operands), by_einsum(rows, operands))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.usefixtures("pieces")
def test_bias_is_added_with_and_without_gradients(form, generator):
    operands, rows = draw_form(form, generator), draw(11, *form[1], generator=generator)
    bias = draw(math.prod(form[2]), generator=generator).requires_grad_()
    expected = by_einsum(rows, operands).flatten(1) + bias
    product = prepare_chain(operands).matmul(rows.flatten(1), bias)
    torch.testing.assert_close(product, expected)
    torch.testing.assert_close(gradients(product, [bias], generator), gradients(expected, [bias], generator))
    with torch.no_grad():
        torch.testing.assert_close(prepare_chain(operands).matmul(rows.flatten(1), bias), expected)


@pytest.mark.parametrize("numbers", [0, 2**19], ids=["buffers anew", "buffers of the call before"])
def test_later_calls_of_one_product_leave_earlier_results_alone(numbers, generator, monkeypatch):
    monkeypatch.setattr(prepared, "_SPARE_NUMBERS", numbers)
    form = FORMS["order 4"]
    operands = draw_form(form, generator)
    own = prepare_chain(operands)
    batches = [draw(n, *form[1], generator=generator) for n in (3, 3, 5, 1, 3)]
    found = [own.matmul(rows.flatten(1)) for rows in batches]
    for rows, product in zip(batches, found, strict=True):
        torch.testing.assert_close(product, by_einsum(rows, operands).flatten(1))


@pytest.mark.parametrize("first", [True, False], ids=["inference mode first", "inference mode last"])
def test_one_product_serves_in_and_outside_of_inference_mode(first, generator):
    form = FORMS["order 3"]
    operands, rows = draw_form(form, generator), draw(4, *form[1], generator=generator)
    with torch.inference_mode(mode=first):
        own = prepare_chain(operands)
    for mode in (first, not first, first):
        with torch.inference_mode(mode=mode):
            torch.testing.assert_close(own.matmul(rows.flatten(1).clone()), by_einsum(rows, operands).flatten(1))


def test_threads_that_share_a_product_do_not_share_buffers(generator):
    form = FORMS["order 4"]
    operands = draw_form(form, generator)
    own = prepare_chain(operands)
    batches = [draw(2, *form[1], generator=generator) for _ in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rows: own.matmul(rows.flatten(1)), batches))
    for rows, product in zip(batches, found, strict=True):
        torch.testing.assert_close(product, by_einsum(rows, operands).flatten(1))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_operations_that_a_compiler_sees_are_those_that_run_into_buffers(form, generator):
    operands, rows = draw_form(form, generator), draw(5, *form[1], generator=generator)
    own = prepare_chain(operands)
    torch.testing.assert_close(follow(own.layout, rows.flatten(1), own.met), own.matmul(rows.flatten(1)))


@pytest.mark.usefixtures("pieces")
def test_second_gradients_are_right(generator):
    form = (2, (2, 3), (3, 2), (2, 1))
    operands = [operand.requires_grad_() for operand in draw_form(form, generator)]
    rows = draw(5, *form[1], generator=generator).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda rows, *operands: apply_chain(rows, operands), (rows, *operands))


@pytest.mark.parametrize("which", range(5))
def test_only_what_needs_a_gradient_gets_one(which, generator):
    form = FORMS["order 3"]
    leaves = [draw(5, *form[1], generator=generator), *draw_form(form, generator)]
    leaves[which].requires_grad_()
    product = apply_chain(leaves[0], leaves[1:])
    (expected,) = gradients(by_einsum(leaves[0], leaves[1:]), [leaves[which]], generator)
    (found,) = gradients(product, [leaves[which]], generator)
    torch.testing.assert_close(found, expected)
    assert [leaf.requires_grad for leaf in leaves] == [n == which for n in range(5)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", ["forward gradients", "vmap"])
def test_who_looks_into_operations_sees_all_of_them(transform, generator):
    form = FORMS["order 3"]
    operands, rows = draw_form(form, generator), draw(4, 5, *form[1], generator=generator)
    if transform == "vmap":
        mapped = torch.vmap(lambda part: apply_chain(part, operands))(rows)
        torch.testing.assert_close(mapped.flatten(0, 1), by_einsum(rows.flatten(0, 1), operands))
        return
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(rows[0], rows[1])
        tangent = torch.autograd.forward_ad.unpack_dual(apply_chain(dual, operands)).tangent
    torch.testing.assert_close(tangent, by_einsum(rows[1], operands))


def test_rows_that_do_not_lie_side_by_side_are_taken_as_they_are(generator):
    form = FORMS["order 3"]
    operands, wide = draw_form(form, generator), draw(7, 40, generator=generator)
    rows, expected = wide[:, 5:35], by_einsum(wide[:, 5:35].reshape(7, 2, 3, 5), operands)
    torch.testing.assert_close(prepare_chain(operands).matmul(rows), expected.flatten(1))
    columns = draw(30, 7, generator=generator).T
    expected = by_einsum(columns.reshape(7, 2, 3, 5), operands)
    torch.testing.assert_close(prepare_chain(operands).matmul(columns), expected.flatten(1))


def test_only_rows_and_operands_are_kept_for_the_gradient_where_there_are_several_pieces(generator, monkeypatch):
    monkeypatch.setattr(layout, "PIECE_NUMBERS", PIECES["in pieces"])
    form = FORMS["order 4"]
    operands = [operand.requires_grad_() for operand in draw_form(form, generator)]
    rows, kept = draw(50, *form[1], generator=generator), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        product = apply_chain(rows, operands)
    assert product.requires_grad
    assert rows.data_ptr() in kept
    assert sum(kept.values()) < 2 * 8 * rows.numel() < 8 * len(rows) * plan_chain(*form).saved


def test_chain_of_the_published_case_is_far_cheaper_than_the_dense_product():
    chain = plan_chain(2, (8, 20, 20, 18), (16, 4, 4, 4), (4, 4, 4, 4))
    dense = 2 * 57_600 * 1_024 + MOVE_COST * (57_600 + 1_024)
    assert chain.cost < dense / 5
    assert chain.widest < 2 * 57_600


def test_mode_that_grows_most_is_met_last():
    small_last = plan_chain(2, (120, 160, 3), (8, 8, 16), (4, 4, 4)).steps
    small_first = plan_chain(2, (3, 160, 120), (16, 8, 8), (4, 4, 4)).steps
    assert 3 in small_last[-1].operands
    assert 1 in small_first[-1].operands


def test_matrix_of_one_mode_is_formed_once_and_multiplied():
    (step,) = plan_chain(3, (5,), (4,), (1,)).steps
    assert step.operands == (0, 1)
    assert (step.summed, step.kept, step.new) == ("c", "a", "d")


def test_compiler_sees_one_whole_graph(generator):
    form = FORMS["order 2"]
    rows, operands = draw(5, *form[1], generator=generator), draw_form(form, generator)
    with warnings.catch_warnings():
        # The compiler warns that it looks through caches.
        warnings.simplefilter("ignore")
        product = torch.compile(apply_chain, fullgraph=True, backend="eager")(rows, operands)
    torch.testing.assert_close(product, by_einsum(rows, operands))


def test_autocast_takes_the_products_to_its_dtype_and_gradients_back(generator):
    form = FORMS["order 3"]
    operands = [operand.float().requires_grad_() for operand in draw_form(form, generator)]
    rows = draw(6, *form[1], generator=generator).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = apply_chain(rows, operands)
        gradients_of = torch.autograd.grad(product.float().sum(), operands)
    assert product.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in gradients_of} == {torch.float32}
    plain = by_einsum(rows, operands)
    torch.testing.assert_close(product.float(), plain, atol=0.03 * plain.abs().max().item(), rtol=0)


def test_autocast_leaves_double_precision_alone(generator):
    form = FORMS["order 3"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = apply_chain(draw(6, *form[1], generator=generator), draw_form(form, generator))
    assert product.dtype == torch.float64


def test_order_beyond_the_letters_of_einsum_is_refused():
    with pytest.raises(ShapeError, match="order of at most 16"):
        letters(17)
