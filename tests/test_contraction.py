import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btcompress import contraction
from btcompress.contraction import MOVE_COST, apply_chain, contract, letters, operand_letters, plan_chain
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

#: Limits that force rows apart, and intermediates to be computed again.
REGIMES = {"at once": (2**30, 2**30), "in pieces": (400, 2**30), "half": (400, 10**4), "computed again": (400, 0)}


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


@pytest.fixture(params=REGIMES)
def regime(request, monkeypatch):
    piece, kept = REGIMES[request.param]
    monkeypatch.setattr(contraction, "_PIECE_BYTES_CPU", piece)
    monkeypatch.setattr(contraction, "_KEPT_BYTES", kept)


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
@pytest.mark.usefixtures("regime")
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


@pytest.mark.parametrize("piece", [100, 2**22])
def test_second_gradients_are_right_where_all_is_kept(piece, generator, monkeypatch):
    monkeypatch.setattr(contraction, "_PIECE_BYTES_CPU", piece)
    form = (2, (2, 3), (3, 2), (2, 1))
    operands = [operand.requires_grad_() for operand in draw_form(form, generator)]
    rows = draw(5, *form[1], generator=generator).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda rows, *operands: apply_chain(rows, operands), (rows, *operands))


def test_second_gradients_are_refused_where_intermediates_are_computed_again(generator, monkeypatch):
    monkeypatch.setattr(contraction, "_KEPT_BYTES", 0)
    form = FORMS["order 2"]
    operands = [operand.requires_grad_() for operand in draw_form(form, generator)]
    product = apply_chain(draw(5, *form[1], generator=generator), operands)
    (first,) = torch.autograd.grad(product.square().sum(), operands[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_only_operands_that_need_gradients_get_them(generator, monkeypatch):
    form = FORMS["order 3"]
    for kept in (0, 2**30):
        monkeypatch.setattr(contraction, "_KEPT_BYTES", kept)
        operands = draw_form(form, generator)
        operands[2].requires_grad_()
        apply_chain(draw(5, *form[1], generator=generator), operands).sum().backward()
        assert [operand.grad is not None for operand in operands] == [False, False, True, False]


def test_only_rows_and_operands_are_kept_where_intermediates_are_too_large(generator, monkeypatch):
    form = FORMS["order 4"]
    operands = [operand.requires_grad_() for operand in draw_form(form, generator)]
    rows = draw(50, *form[1], generator=generator)

    def bytes_kept():
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            product = apply_chain(rows, operands)
        assert product.requires_grad
        return sum(kept.values())

    monkeypatch.setattr(contraction, "_PIECE_BYTES_CPU", 8 * plan_chain(*form).widest)
    kept_whole = bytes_kept()
    monkeypatch.setattr(contraction, "_KEPT_BYTES", 0)
    kept_again = bytes_kept()
    assert kept_whole >= 8 * len(rows) * plan_chain(*form).saved
    assert kept_again < 2 * 8 * rows.numel()


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
    assert step.summed == step.given[1]


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
