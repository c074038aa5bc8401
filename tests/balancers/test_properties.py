"""What the methods claim, on random gradients; which method claims what stands in the table of cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balancers.cases import CASES
from counterpoint.balancers import DWA, GLS, MGDA, MSI, CAGrad, GradDrop, JacobianBalancer
from counterpoint.balancers.graddrop import _Draws, graddrop_direction
from counterpoint.testing.balancers import call

seeds = st.integers(0, 10_000)


def problem(seed, *, independent=True):
    generator = torch.Generator().manual_seed(seed)
    num_tasks = int(torch.randint(2, 7, (), generator=generator))
    columns = num_tasks + 3 if independent else 3
    rows = torch.randn(num_tasks, columns, generator=generator, dtype=torch.float64)
    scales = torch.exp(6 * torch.rand(num_tasks, 1, generator=generator, dtype=torch.float64) - 3)
    return rows * scales, 0.1 + torch.rand(num_tasks, generator=generator, dtype=torch.float64)


def build(case, num_tasks, **options):
    balancer = case.build(num_tasks, **options)
    if balancer.generator is not None:
        balancer.generator.manual_seed(0)
    return balancer


def direction(balancer, rows, losses):
    found = call(balancer, rows, losses)
    return found if isinstance(balancer, JacobianBalancer) else found.to(rows) @ rows


def claiming(claim):
    chosen = [case for case in CASES if case.claims.get(claim)]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.key)


@claiming("simplex")
@given(seed=seeds)
def test_weights_on_the_simplex(case, seed):
    rows, losses = problem(seed, independent=False)
    for options in ({}, *case.variants):
        if options.get("apply_to") == "normalized":
            continue
        weights = call(build(case, len(rows), **options), rows, losses)
        assert bool((weights >= 0).all())
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)


@claiming("sum_k")
@given(seed=seeds)
def test_weights_sum_to_the_number_of_tasks(case, seed):
    rows, losses = problem(seed)
    balancer = build(case, len(rows), period=1)
    for step in range(4):
        weights = call(balancer, rows, losses * (1 + 0.3 * step * torch.arange(len(rows))))
        assert float(weights.sum()) == pytest.approx(len(rows), rel=1e-12)
        assert bool((weights > 0).all())


@claiming("permutation")
@given(seed=seeds)
def test_reordered_tasks_have_reordered_weights(case, seed):
    rows, losses = problem(seed)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    first, second = build(case, len(rows)), build(case, len(rows))
    for _ in range(2):
        weights = call(first, rows, losses)
        permuted = call(second, rows[order], losses[order])
        torch.testing.assert_close(permuted, weights[order], rtol=1e-7, atol=1e-9 * float(weights.abs().max()))


@claiming("degree")
@given(seed=seeds, exponent=st.floats(-10, 10))
def test_direction_is_homogeneous(case, seed, exponent):
    rows, losses = problem(seed)
    factor = 10.0**exponent
    plain, scaled = build(case, len(rows)), build(case, len(rows))
    for _ in range(2):
        expected = direction(plain, rows, losses) * factor ** case.claims["degree"]
        found = direction(scaled, rows * factor, losses)
        scale = float(rows.abs().max()) * factor ** case.claims["degree"]
        assert float((found - expected).abs().max()) <= 1e-9 * scale


@claiming("agree")
@given(seed=seeds)
def test_gradients_that_agree_are_added(case, seed):
    rows, losses = problem(seed)
    rows = rows.abs() * 0.01 + rows.abs().max(dim=1, keepdim=True).values  # all cosines near 1, one length each
    found = direction(build(case, len(rows)), rows, losses)
    expected = rows.mean(dim=0) if case.claims["agree"] == "mean" else rows.sum(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@claiming("descent")
@settings(max_examples=200)
@given(seed=seeds)
def test_every_task_descends(case, seed):
    rows, losses = problem(seed)
    found = direction(build(case, len(rows)), rows, losses)
    products = rows @ found / rows.norm(dim=1)
    assert float(products.min()) >= -1e-12 * float(rows.norm(dim=1).max())


@claiming("row_scale")
@given(seed=seeds)
def test_scaled_gradients(case, seed):
    rows, losses = problem(seed)
    factors = 10.0 ** (8 * torch.rand(len(rows), 1, generator=torch.Generator().manual_seed(seed)).double() - 4)
    plain = direction(build(case, len(rows)), rows, losses)
    scaled = direction(build(case, len(rows)), rows * factors, losses)
    if case.claims["row_scale"] == "direction":
        plain, scaled = plain / plain.norm(), scaled / scaled.norm()
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-7 * float(plain.norm()))


@claiming("zero_row")
@given(seed=seeds)
def test_a_zero_gradient(case, seed):
    """Left out: the others are as if it were not there. Counted: the same, times (K - 1) / K, as in a mean."""
    rows, losses = problem(seed)
    with_zero = torch.cat([rows, torch.zeros_like(rows[:1])])
    more = torch.cat([losses, losses[:1]])
    found = call(build(case, len(rows) + 1), with_zero, more)
    share = 1.0
    if case.claims["zero_row"] == "left out":
        assert float(found[-1]) == 0.0
    else:
        share = len(rows) / (len(rows) + 1)
    if not build(case, 2).generator:
        expected = call(build(case, len(rows)), rows, losses) * share
        torch.testing.assert_close(found[:-1], expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


@claiming("uniform_at_zero")
def test_all_gradients_zero(case):
    found = call(build(case, 4), torch.zeros(4, 6, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert found.tolist() == [0.25] * 4


# --- single methods ---------------------------------------------------------------------------------------------------


@given(seeds)
def test_mgda_projections_are_at_least_the_square_of_the_length(seed):
    rows, losses = problem(seed)
    v = direction(MGDA(len(rows)), rows, losses)
    lengths = rows.norm(dim=1)
    assert bool((rows @ v >= v @ v - 1e-12 * lengths * lengths.max()).all())


@given(seeds, st.floats(-6, 6))
def test_mgda_on_unit_rows_does_not_see_scales(seed, exponent):
    rows, losses = problem(seed)
    scales = torch.ones(len(rows), 1, dtype=torch.float64)
    scales[0] = 10.0**exponent
    options = {"normalization": "l2", "apply_to": "normalized"}
    first = direction(MGDA(len(rows), **options), rows, losses)
    second = direction(MGDA(len(rows), **options), rows * scales, losses)
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-9)


def test_mgda_without_normalization_does_see_scales():
    rows, ones = torch.eye(2, dtype=torch.float64), torch.ones(2)
    scaled = rows * torch.tensor([[3.0], [1.0]])
    torch.testing.assert_close(direction(MGDA(2), rows, ones), rows.new_tensor([0.5, 0.5]))
    torch.testing.assert_close(direction(MGDA(2), scaled, ones), rows.new_tensor([0.3, 0.9]))


@given(seeds, st.floats(0, 2))
def test_cagrad_stays_in_its_ball_and_raises_the_worst_task(seed, c):
    rows, losses = problem(seed)
    v, mean = direction(CAGrad(len(rows), c=c), rows, losses), rows.mean(dim=0)
    assert float((v - mean).norm()) <= c * float(mean.norm()) * (1 + 1e-9) + 1e-12
    tolerance = 1e-9 * float(rows.norm(dim=1).max() * mean.norm())
    assert float((rows @ v).min()) >= float((rows @ mean).min()) - tolerance
    if c < 1:  # the mean loss still falls
        assert float(mean @ v) > 0


@given(seeds, st.floats(0.05, 2))
def test_cagrad_is_optimal_in_its_ball(seed, c):
    rows, losses = problem(seed)
    v, mean = direction(CAGrad(len(rows), c=c), rows, losses), rows.mean(dim=0)
    generator = torch.Generator().manual_seed(seed)
    worst = float((rows @ v).min())
    tolerance = 1e-7 * float(rows.norm(dim=1).max() * mean.norm())
    for _ in range(50):  # points of the ball, near v and far from it
        away = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
        other = v + away * float(mean.norm()) * 10 ** (-4 * float(torch.rand((), generator=generator)))
        other = mean + (other - mean) * min(1.0, c * float(mean.norm()) / float((other - mean).norm()))
        assert float((rows @ other).min()) <= worst + tolerance


@given(seeds)
def test_cagrad_with_radius_zero_is_the_mean(seed):
    rows, losses = problem(seed)
    torch.testing.assert_close(direction(CAGrad(len(rows), c=0.0), rows, losses), rows.mean(dim=0), rtol=1e-12, atol=0)


@given(seeds, st.floats(0.1, 2))
def test_cagrad_rescaling(seed, c):
    rows, losses = problem(seed)
    plain, square, linear = (call(CAGrad(len(rows), c=c, rescale=kind), rows, losses) for kind in (0, 1, 2))
    torch.testing.assert_close(square * (1 + c * c), plain)
    torch.testing.assert_close(linear * (1 + c), plain)


@pytest.mark.parametrize(
    ("c", "on_stationary", "expected"),
    [(0.5, "auto", "mean"), (1.0, "auto", "zero"), (0.5, "zero", "zero"), (2.0, "mean", "mean")],
)
def test_cagrad_at_a_stationary_point(c, on_stationary, expected):
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)  # no point of the ball helps both
    v = direction(CAGrad(3, c=c, on_stationary=on_stationary), rows, torch.ones(3))
    torch.testing.assert_close(v, rows.mean(dim=0) * (expected == "mean"))


@pytest.mark.parametrize("length", [1e-2, 1e-5, 1e-8])
def test_cagrad_does_not_stop_at_small_gradients(length):
    rows = torch.tensor([[1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
    v = direction(CAGrad(2, c=0.5), rows * length, torch.ones(2))
    torch.testing.assert_close(v / length, direction(CAGrad(2, c=0.5), rows, torch.ones(2)))
    one_small = rows * torch.tensor([[1.0], [length]])
    assert float(direction(CAGrad(2, c=0.5), one_small, torch.ones(2)).norm()) > 0.1


@given(seeds)
def test_graddrop_keeps_one_sign_at_each_coordinate(seed):
    rows, losses = problem(seed)
    found = GradDrop(len(rows), generator=torch.Generator().manual_seed(seed)).combine(rows, losses)
    positive, negative = rows.clamp(min=0).sum(dim=0), rows.clamp(max=0).sum(dim=0)
    either = torch.isclose(found, positive, rtol=1e-12, atol=0) | torch.isclose(found, negative, rtol=1e-12, atol=0)
    assert bool(either.all())


def test_graddrop_has_the_plain_sum_as_expectation():
    rows = torch.tensor([[1.0, 0, 2, -1], [-2, 1, 0, 3], [0.5, -1, 1, 0]], dtype=torch.float64)
    balancer = GradDrop(3, generator=torch.Generator().manual_seed(0))
    draws = torch.stack([balancer.combine(rows) for _ in range(4000)])
    spread = draws.std(dim=0) / math.sqrt(len(draws))
    assert bool(((draws.mean(dim=0) - rows.sum(dim=0)).abs() <= 5 * spread + 1e-12).all())
    assert float(draws.std(dim=0).max()) > 1


@given(seeds)
def test_graddrop_leak(seed):
    rows, _ = problem(seed)
    draw = torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dropped = graddrop_direction(rows, draw, torch.zeros(len(rows)))
    torch.testing.assert_close(graddrop_direction(rows, draw, torch.ones(len(rows))), rows.sum(dim=0))
    half = graddrop_direction(rows, draw, torch.full((len(rows),), 0.5))
    torch.testing.assert_close(half, 0.5 * dropped + 0.5 * rows.sum(dim=0))
    first = torch.zeros(len(rows))
    first[0] = 1.0  # nothing of task 0 is dropped
    mixed = graddrop_direction(rows, draw, first)
    wins = torch.sign(dropped)
    rest = torch.where(wins > 0, rows[1:].clamp(min=0).sum(dim=0), rows[1:].clamp(max=0).sum(dim=0))
    torch.testing.assert_close(mixed, rows[0] + rest)


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_graddrop_by_blocks_is_graddrop(monkeypatch, leak):
    rows = torch.randn(3, 4_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = torch.rand(4_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[:, 5], rows[:, 2_000] = 0.0, torch.tensor([1e307, 9e307, -1e307], dtype=torch.float64)
    shares = torch.full((3,), leak, dtype=torch.float64)
    whole = graddrop_direction(rows, draw, shares)
    monkeypatch.setattr("counterpoint.balancers.graddrop._ENTRIES", 999 * 3)
    torch.testing.assert_close(graddrop_direction(rows, draw, shares), whole, rtol=1e-12, atol=1e-14)
    up, down = rows.clamp(min=0).sum(dim=0), rows.clamp(max=0).sum(dim=0)
    purity = (1 + rows.sum(dim=0) / rows.abs().sum(dim=0)) / 2
    purity[2_000] = 10 / 11  # whose sums overflow
    chosen = torch.where(purity > draw, up, down)
    chosen[5] = 0.0
    wanted = (1 - leak) * chosen + leak * rows.sum(dim=0)
    torch.testing.assert_close(whole, wanted, rtol=1e-12, atol=1e-14)


def test_graddrop_of_zeros_of_one_sign_and_at_the_ends_of_the_draws():
    zeros = graddrop_direction(torch.zeros(2, 3), torch.rand(3), torch.zeros(2))
    assert zeros.tolist() == [0.0, 0.0, 0.0]
    assert bool(torch.isfinite(graddrop_direction(torch.full((4, 2), 3e37), torch.rand(2), torch.zeros(4))).all())
    rows = torch.rand(5, 10_001, generator=torch.Generator().manual_seed(0)) + 0.01
    for sign in (1.0, -1.0):
        for draw in (0.0, 0.5, 1 - 2.0**-24):
            found = graddrop_direction(sign * rows, torch.full((10_001,), draw), torch.zeros(5))
            torch.testing.assert_close(found, sign * rows.sum(dim=0))


def test_draws_of_graddrop_are_uniform_and_repeat(monkeypatch):
    draw = _Draws(torch.Generator().manual_seed(3))
    draws = torch.cat([draw(0, 99_999), draw(99_999, 100_001)]).double()
    steps = draws * 2**24
    assert bool((steps == steps.round()).all())
    assert 0 <= float(draws.min()) < 1e-4
    assert 1 - 1e-4 < float(draws.max()) < 1
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert float(((counts - 10_000).square() / 10_000).sum()) < 43.8  # chi-square, 19 degrees: once in a thousand
    assert abs(float(torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1])) < 0.01
    rows = torch.randn(2, 1000)
    again = [GradDrop(2, generator=torch.Generator().manual_seed(3)).combine(rows) for _ in range(2)]
    assert torch.equal(*again)
    own = _Draws(torch.Generator().manual_seed(3))(0, 1000)
    assert torch.equal(again[0], graddrop_direction(rows, own, torch.zeros(2)))
    for entries in (2, 7, 500):  # the draws do not depend on how the columns are cut
        monkeypatch.setattr("counterpoint.balancers.graddrop._ENTRIES", entries)
        cut = GradDrop(2, generator=torch.Generator().manual_seed(3)).combine(rows)
        torch.testing.assert_close(cut, again[0])


@given(seeds, st.floats(0.01, 100))
def test_gls_does_not_see_the_scale_of_a_loss(seed, factor):
    _, losses = problem(seed)
    scaled = losses.clone()
    scaled[0] *= factor
    first, second = GLS(len(losses)).weights(None, losses), GLS(len(losses)).weights(None, scaled)
    second[0] *= factor  # the gradient of task 0 is longer by this
    torch.testing.assert_close(first / first.norm(), second / second.norm())


def test_gls_of_many_small_losses_and_of_zero():
    losses = torch.full((40,), 0.01)
    assert float(GLS(40).objective(losses)) == pytest.approx(0.01, rel=1e-5)
    weights = GLS(2).weights(None, torch.tensor([0.0, 1.0]))
    assert float(weights[1]) > 0
    assert bool(torch.isfinite(weights).all())


@given(seeds, st.floats(0.01, 100))
def test_dwa_weights_do_not_see_the_scale_of_a_loss(seed, factor):
    _, losses = problem(seed)
    scales = torch.ones_like(losses)
    scales[0] = factor
    first, second = DWA(len(losses), period=1), DWA(len(losses), period=1)
    for step in range(4):
        now = losses * (1 + 0.2 * step * torch.arange(len(losses)))
        torch.testing.assert_close(first.weights(None, now), second.weights(None, now * scales))


@given(seeds, st.sampled_from(["pair", "vaccine", "learned"]))
def test_msi_keeps_directions(seed, rule):
    rows, losses = problem(seed)
    balancer = MSI(len(rows), rule=rule, static_target=1.0 if rule == "learned" else 0.9)
    assert bool((call(balancer, rows, losses) > 0).all())
    if rule == "learned":
        scaled = call(balancer, rows, losses) * rows.norm(dim=1)
        torch.testing.assert_close(scaled, scaled.mean().expand_as(scaled))
