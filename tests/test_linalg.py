"""The Gram matrix against float64, at every scale, and the small functions around it."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from counterpoint.linalg import cosine, gram, gram_of_list, nonzero_rows, norms, projected_rows, random_orders


def dense_gram(rows):
    rows = rows.double()
    return torch.stack([torch.stack([(a * b).sum() for b in rows]) for a in rows])


def error(rows):
    """Largest error relative to the product of the two norms, the only scale that makes sense for an inner product."""
    exact = dense_gram(rows)
    lengths = exact.diagonal().sqrt()
    return float(((gram(rows) - exact).abs() / (lengths[:, None] * lengths[None, :])).max())


@pytest.mark.parametrize("columns", [1, 7, 2047, 2048, 2049, 1_200_003])
def test_gram_float32_is_accurate_for_long_rows_of_very_different_norms(columns):
    rows = torch.randn(4, columns) * torch.tensor([1.0, 1e6, 1e-6, 3.0])[:, None]
    assert error(rows) <= 1e-6


@pytest.mark.parametrize("num_rows", [3, 8, 16, 40])
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_gram_of_constant_rows_where_every_rounding_error_has_one_sign(value, num_rows):
    assert error(torch.full((num_rows, 100_001), value)) <= 1e-6


@pytest.mark.parametrize(
    "scales",
    [(1e-30, 1.0, 1e30), (1e-30, 1e-30, 1e-30), (1e30, 1e30, 1e30), (1e-38, 1e-20, 1e38 / 8), (1e13, 1e-13, 1.0)],
)
def test_gram_of_extreme_scales(scales):
    assert error(torch.randn(3, 5000) * torch.tensor(scales)[:, None]) <= 1e-6


def test_gram_of_subnormal_rows_is_not_zero():
    rows = torch.full((2, 3), 2.0**-149)
    assert torch.equal(gram(rows), torch.full((2, 2), 3 * 2.0**-298, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gram_of_half_precision_rows(dtype):
    assert error(torch.randn(3, 9000).to(dtype)) <= 1e-6


def test_gram_of_float64_rows_is_exact_to_float64():
    rows = torch.randn(3, 9001, dtype=torch.float64)
    torch.testing.assert_close(gram(rows), dense_gram(rows), rtol=1e-13, atol=1e-11)


def test_gram_without_columns_and_without_rows():
    assert torch.equal(gram(torch.zeros(3, 0)), torch.zeros(3, 3, dtype=torch.float64))
    assert gram(torch.zeros(0, 4)).shape == (0, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_gram_shows_a_bad_row_on_its_own_diagonal_only(bad, scale):
    rows = torch.randn(3, 5000) * scale
    rows[1, 4999] = bad
    assert torch.isfinite(gram(rows).diagonal()).tolist() == [True, False, True]
    others = gram(rows)[[0, 2]][:, [0, 2]]
    torch.testing.assert_close(others, dense_gram(rows[[0, 2]]), rtol=1e-5, atol=1e-6 * scale**2)


@given(st.integers(1, 6), st.integers(0, 30), st.integers(0, 10_000))
def test_gram_is_symmetric_and_positive(num_rows, columns, seed):
    rows = torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(seed))
    found = gram(rows)
    assert torch.equal(found, found.T)
    assert float(torch.linalg.eigvalsh(found).min()) >= -1e-6 * (1 + float(found.diagonal().max()))


def test_gram_leaves_its_argument_alone():
    rows = torch.randn(2, 10) * 1e20
    before = rows.clone()
    gram(rows)
    assert torch.equal(rows, before)


@given(st.integers(0, 10_000))
def test_cosine_against_torch(seed):
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.stack([torch.nn.functional.cosine_similarity(row[None], rows) for row in rows])
    torch.testing.assert_close(cosine(gram(rows)), expected, rtol=0, atol=1e-12)


def test_cosine_of_zero_parallel_and_opposed_rows():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.3, 0.4], [-6.0, -8.0]], dtype=torch.float64)
    found = cosine(gram(rows))
    assert torch.equal(found[0], torch.zeros(4, dtype=torch.float64))
    assert found.abs().max() <= 1.0
    torch.testing.assert_close(found[1], torch.tensor([0.0, 1.0, 1.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_and_nonzero_rows_do_not_depend_on_the_scale(scale):
    rows = torch.tensor([[1.0, 2.0], [2.0, -1.5], [0.0, 0.0]])
    torch.testing.assert_close(cosine(gram(rows * scale)), cosine(gram(rows)), rtol=0, atol=1e-6)
    assert nonzero_rows(gram(rows * scale)).tolist() == [True, True, False]


def test_norms():
    torch.testing.assert_close(norms(torch.tensor([[25.0, 0.0], [0.0, 0.0]])), torch.tensor([5.0, 0.0]))


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_random_orders_list_the_other_tasks(num_tasks):
    orders = random_orders(num_tasks, torch.Generator().manual_seed(3))
    assert orders.shape == (num_tasks, num_tasks - 1)
    for task, order in enumerate(orders.tolist()):
        assert sorted([*order, task]) == list(range(num_tasks))
    assert torch.equal(orders, random_orders(num_tasks, torch.Generator().manual_seed(3)))


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_projected_rows_against_the_loop_over_gradients(num_tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tasks, 3, generator=generator, dtype=torch.float64)
    orders = random_orders(num_tasks, generator)
    expected = rows.clone()
    for task in range(num_tasks):
        for other in orders[task].tolist():
            product = expected[task] @ rows[other]
            if product < 0:
                expected[task] -= product / (rows[other] @ rows[other]) * rows[other]
    torch.testing.assert_close(projected_rows(gram(rows), orders) @ rows, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("num_rows", "columns"), [(1, 1), (3, 16_384), (9, 40_001), (40, 20_000)])
def test_rows_that_lie_apart_have_the_gram_matrix_of_the_matrix(num_rows, columns):
    rows = torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(0)) + 0.5
    exact = rows.double() @ rows.double().T
    scale = exact.diagonal().sqrt()[:, None] * exact.diagonal().sqrt()
    assert float(((gram_of_list(list(rows)) - exact).abs() / scale).max()) < 1e-6
    assert float(((gram(rows) - exact).abs() / scale).max()) < 1e-6
