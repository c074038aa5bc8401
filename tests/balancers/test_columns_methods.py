"""What DB-MTL, MoCo, SAM-GS and ExcessMTL claim: closed forms, slow transcriptions, limits, states, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.balancers import BALANCERS, DBMTL, MGDA, SAMGS, ExcessMTL, MoCo
from counterpoint.balancers.db_mtl import longest_length_weights
from counterpoint.balancers.excess_mtl import excess_risks, excess_weights
from counterpoint.balancers.moco import moco_weights, scaled_by_loss
from counterpoint.balancers.sam_gs import equalized_weights, mean_magnitude_similarity
from counterpoint.errors import OptionError, ShapeError
from counterpoint.linalg import gram

seeds = st.integers(0, 10_000)


def problem(seed, steps=1, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(2, 6, (), generator=generator))
    rows = torch.randn(steps, count, count + 3, generator=generator, dtype=torch.float64)
    scales = torch.exp(spread * (2 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 1))
    return rows * scales, 0.1 + torch.rand(steps, count, generator=generator, dtype=torch.float64)


def close(found, expected, rtol=1e-10):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=rtol * float(expected.abs().max()) + 1e-300)


def some_present(seed, count, steps):
    """Return for each step the tasks present: all at the first, at least one later."""
    draw = np.random.default_rng(seed)
    found = [tuple(range(count))]
    for _ in range(steps - 1):
        chosen = np.flatnonzero(draw.random(count) < 0.6)
        found.append(tuple(int(task) for task in (chosen if len(chosen) else [0])))
    return found


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("db_mtl", {"beta": 1.0}, r"\[0, 1\)"),
        ("db_mtl", {"beta_sigma": -0.5}, "beta_sigma"),
        ("db_mtl", {"eps": 0.0}, "eps"),
        ("moco", {"variant": "code"}, "libmtl"),
        ("moco", {"beta": 0.0}, r"\(0, 1\]"),
        ("moco", {"beta_sigma": float("inf")}, "beta_sigma"),
        ("moco", {"gamma": -1.0}, "gamma"),
        ("moco", {"gamma_sigma": -1.0}, "gamma_sigma"),
        ("moco", {"rho": -0.1}, "rho"),
        ("sam_gs", {"beta1": 1.0}, "beta1"),
        ("sam_gs", {"beta2": -0.1}, "beta2"),
        ("sam_gs", {"gamma": 1.5}, "gamma"),
        ("excess_mtl", {"eta": -1.0}, "eta"),
        ("excess_mtl", {"eps": -1.0}, "eps"),
    ],
)
def test_bad_options_are_refused(key, options, message):
    with pytest.raises(OptionError, match=message) as found:
        BALANCERS.create(key, 2, **options)
    assert str(found.value).startswith(BALANCERS.get(key).__name__)


@pytest.mark.parametrize("balancer", [DBMTL(2), DBMTL(2, beta=0.0), MoCo(2, variant="libmtl")], ids=repr)
def test_losses_that_are_missing_or_make_no_sense(balancer):
    rows = torch.eye(2)
    with pytest.raises(OptionError, match=r"reads the losses; call combine\(jacobian, losses\)"):
        balancer.combine(rows)
    with pytest.raises(ShapeError, match=r"losses must be \(2,\), got \(3,\)"):
        balancer.combine(rows, torch.ones(3))
    with pytest.raises(OptionError, match="needs losses of at least 0"):
        balancer.combine(rows, torch.tensor([1.0, -1.0]))
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(OptionError, match="needs losses of at least 0"):
        balancer.backward([x.sum(), -x.sum()])


@pytest.mark.parametrize("balancer", [MoCo(2), SAMGS(2), ExcessMTL(2)], ids=repr)
def test_negative_losses_are_fine_where_they_are_not_read(balancer):
    x = torch.ones(2, requires_grad=True)
    balancer.backward([x.sum(), -2 * (x**2).sum()])
    assert bool(torch.isfinite(x.grad).all())


@given(seeds)
def test_reordered_tasks_give_the_same_update(seed):
    rows, losses = problem(seed, steps=3)
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))
    for make in (DBMTL, MoCo, SAMGS, ExcessMTL):
        first, second = make(rows.shape[1]), make(rows.shape[1])
        for now, values in zip(rows, losses, strict=True):
            close(second.combine(now[order], values[order]), first.combine(now, values), 1e-9)


# --- DB-MTL -----------------------------------------------------------------------------------------------------------


@given(seeds)
def test_db_mtl_with_tasks_absent_is_its_formula(seed):
    rows, losses = problem(seed, steps=5)
    count = rows.shape[1]
    balancer = DBMTL(count, beta=0.8, beta_sigma=0.3, eps=1e-3)
    mean, steps = np.zeros(rows.shape[1:]), np.zeros(count)
    for now, values, present in zip(rows.numpy(), losses.numpy(), some_present(seed, count, 5), strict=True):
        expected, lengths = np.zeros(rows.shape[2]), []
        for task in present:
            steps[task] += 1
            beta = 0.8 / steps[task] ** 0.3
            mean[task] = beta * mean[task] + (1 - beta) * now[task] / (values[task] + 1e-3)
            lengths.append(np.linalg.norm(mean[task]))
        for task, length in zip(present, lengths, strict=True):
            expected += max(lengths) / length * mean[task]
        index = list(present)
        close(balancer.combine(torch.tensor(now[index]), torch.tensor(values[index]), present=present), expected)


@given(seeds, st.floats(-6, 6))
def test_db_mtl_does_not_see_the_scale_of_a_loss(seed, exponent):
    rows, losses = problem(seed, steps=3)
    factor = torch.ones(rows.shape[1], dtype=torch.float64)
    factor[0] = 10.0**exponent
    for beta in (0.0, 0.7):
        plain, scaled = (DBMTL(len(factor), beta=beta, eps=1e-300) for _ in range(2))
        for now, values in zip(rows, losses, strict=True):
            close(scaled.combine(now * factor[:, None], values * factor), plain.combine(now, values), 1e-9)


def test_db_mtl_without_a_mean_needs_no_state_and_gives_weights():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    heads = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    balancer = DBMTL(2, beta=0.0)
    assert "mean" not in balancer.state_dict()
    losses = [heads[0] * x[0] * 3, heads[1] * (x[1] ** 2) * 0.5]
    report = balancer.backward(losses)
    # gradients of the logarithms of 3 x_0 and x_1^2 / 2: 1 / x_0 = 1 and 2 / x_1 = 1; of the heads: 1 / head = 1
    close(x.grad, [1.0, 1.0], 1e-7)
    close(torch.stack([head.grad for head in heads]), [1.0, 1.0], 1e-7)
    close(report.weights, [1 / 3, 1 / 2], 1e-7)


def test_db_mtl_without_a_mean_at_the_level_of_features():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    z = x * torch.tensor([2.0, 3.0])
    DBMTL(2, beta=0.0).backward([z[0] + 1, z[1] * 4], features=z, level="features")
    # gradients of the logarithms by z: 1/3 and 1/6, both made 1/3 long
    close(x.grad, [2 / 3, 1.0], 1e-7)


def test_db_mtl_first_step_is_short_and_the_heads_are_not():
    trunk = torch.ones(2, dtype=torch.float64, requires_grad=True)
    heads = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    DBMTL(2).backward([4 * trunk[0] * heads[0], trunk[1] * heads[1]])
    close(trunk.grad, [0.1, 0.1], 1e-7)
    close(torch.stack([head.grad for head in heads]), [1.0, 1.0], 1e-7)


def test_db_mtl_zero_rows():
    assert longest_length_weights(torch.diag(torch.tensor([4.0, 0.0, 1.0]))).tolist() == [1.0, 0.0, 2.0]
    assert longest_length_weights(torch.zeros(2, 2)).tolist() == [0.0, 0.0]
    assert bool(torch.isfinite(DBMTL(2).combine(torch.eye(2), torch.zeros(2))).all())


# --- MoCo -------------------------------------------------------------------------------------------------------------


@settings(max_examples=5)
@given(seeds)
def test_moco_with_constant_gradients_ends_at_the_min_norm_point(seed):
    rows, _ = problem(seed, spread=0.3)
    rows = rows[0] / rows[0].norm(dim=1).max()
    balancer = MoCo(len(rows), gamma=0.5, gamma_sigma=0.0)
    for _ in range(1000):
        found = balancer.combine(rows)
    exact = MGDA(len(rows)).weights(gram(rows)) @ rows
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-2 * float(rows.norm(dim=1).max()))
    assert float(found.norm()) <= float(exact.norm()) + 1e-2


def test_moco_step_is_a_descent_step_on_the_simplex():
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    w = torch.tensor([0.5, 0.5], dtype=torch.float64)
    # gradient A w = (1.25, 0.75); its part along (1, -1) is 0.25
    close(moco_weights(a, w, rate=0.2), [0.45, 0.55])
    close(moco_weights(a, w, rate=100.0), [0.0, 1.0])
    close(moco_weights(a, torch.tensor([1.0, 0.0]).double(), rate=0.1, rho=1.0), [0.875, 0.125])
    close(moco_weights(a, w, rate=0.0, variant="libmtl"), [0.5, 0.5])
    near = moco_weights(torch.zeros(2, 2).double(), torch.tensor([1.0, 0.0]).double(), rate=0.1, variant="libmtl")
    close(near, [0.731058578630005, 0.268941421369995])  # the softmax of (1, 0)


@given(seeds, st.sampled_from(["paper", "libmtl"]))
def test_moco_with_tasks_absent_is_its_formula(seed, variant):
    rows, losses = problem(seed, steps=6, spread=0.5)
    count = rows.shape[1]
    balancer = MoCo(count, variant=variant, gamma=0.3, rho=0.05)
    tracked, weights, steps = np.zeros(rows.shape[1:]), np.full(count, 1 / count), np.zeros(count)
    for number, present in enumerate(some_present(seed, count, 6), 1):
        index = list(present)
        now, values = rows[number - 1, index].numpy(), losses[number - 1, index].numpy()
        used = now / np.linalg.norm(now, axis=1, keepdims=True) * values[:, None] if variant == "libmtl" else now
        steps[index] += 1
        tracked[index] += (0.5 / np.sqrt(steps[index]))[:, None] * (used - tracked[index])
        y, share = tracked[index], weights[index].sum()
        inner = weights[index] / share if share > 0 else np.full(len(index), 1 / len(index))
        moved = inner - 0.3 / np.sqrt(number) * (y @ y.T @ inner + 0.05 * inner)
        if variant == "libmtl":
            inner = np.exp(moved - moved.max()) / np.exp(moved - moved.max()).sum()
        else:
            low, high = moved.min() - 1, moved.max()  # bisection for the threshold of the projection
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (middle, high) if np.maximum(moved - middle, 0).sum() > 1 else (low, middle)
            inner = np.maximum(moved - low, 0)
        weights[index] = share * inner
        found = balancer.combine(torch.tensor(now), torch.tensor(values), present=present)
        close(found, inner @ y, 1e-9)
        torch.testing.assert_close(balancer.task_weights, torch.tensor(weights), rtol=0, atol=1e-9)
        assert float(balancer.task_weights.sum()) == pytest.approx(1.0, abs=1e-12)


def test_moco_libmtl_weights_stay_near_even():
    rows, losses = torch.tensor([[9.0, 0.0], [0.0, 0.1]]), torch.ones(2)
    balancer = MoCo(2, variant="libmtl")
    for _ in range(100):
        balancer.combine(rows * torch.tensor([[5.0], [1.0]]), losses)
    assert float((balancer.task_weights - 0.5).abs().max()) < 0.05


def test_moco_task_alone_after_its_weight_fell_to_zero():
    rows = torch.tensor([[10.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    balancer = MoCo(2, gamma=10.0)
    balancer.combine(rows)
    assert balancer.task_weights.tolist() == [0.0, 1.0]
    found = balancer.combine(rows[:1], present=[0])
    assert float(found[0]) > 5
    assert balancer.task_weights.tolist() == [0.0, 1.0]


def test_moco_report_and_heads():
    trunk = torch.ones(2, dtype=torch.float64, requires_grad=True)
    heads = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    report = MoCo(2).backward([4 * trunk[0] * heads[0], trunk[1] * heads[1]])
    # tracked (2, 0), (0, 0.5): A w = (2, 0.125), a tenth of it, and the part along (1, -1)
    close(report.weights, [0.5 - 0.09375, 0.5 + 0.09375])
    close(trunk.grad, [2 * (0.5 - 0.09375), 0.5 * (0.5 + 0.09375)])
    assert [float(head.grad) for head in heads] == [4.0, 1.0]


def test_scaled_by_loss_of_a_zero_gradient():
    found = scaled_by_loss(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([3.0, 0.5]))
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.5]]


# --- SAM-GS -----------------------------------------------------------------------------------------------------------


def test_sam_gs_similarity():
    lengths = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    expected = (2 * 2 / 5 + 2 * 4 / 17 + 2 * 8 / 20) / 3
    for factor in (1e-100, 1.0, 1e100):
        assert mean_magnitude_similarity(torch.diag((factor * lengths) ** 2)) == pytest.approx(expected, rel=1e-12)
    assert mean_magnitude_similarity(torch.diag(torch.tensor([1.0, 0.0, 1.0]))) == 1.0
    assert mean_magnitude_similarity(torch.zeros(3, 3)) == 1.0
    assert mean_magnitude_similarity(torch.ones(1, 1)) == 1.0


@given(seeds)
def test_sam_gs_equalized_gradients_have_the_mean_length(seed):
    rows = problem(seed)[0][0]
    lengths = (equalized_weights(gram(rows))[:, None] * rows).norm(dim=1)
    torch.testing.assert_close(lengths, rows.norm(dim=1).mean().expand_as(lengths))


def test_sam_gs_zero_rows():
    assert equalized_weights(torch.diag(torch.tensor([9.0, 0.0, 1.0])).double()).tolist() == pytest.approx(
        [2 / 3, 0.0, 2.0]
    )
    assert equalized_weights(torch.zeros(2, 2)).tolist() == [0.0, 0.0]
    assert SAMGS(2, gamma=1.0).combine(torch.zeros(2, 3)).tolist() == [0.0, 0.0, 0.0]


@given(seeds)
def test_sam_gs_with_tasks_absent_is_its_formula(seed):
    rows, _ = problem(seed, steps=6, spread=1.5)
    count = rows.shape[1]
    balancer = SAMGS(count, gamma=0.6, beta1=0.8, beta2=0.95)
    moment, spread, steps = np.zeros(rows.shape[1:]), np.zeros(count), np.zeros(count)
    for number, present in enumerate(some_present(seed, count, 6)):
        index = list(present)
        now = rows[number, index].numpy()
        d = np.linalg.norm(now, axis=1)
        pairs = [2 * d[i] * d[j] / (d[i] ** 2 + d[j] ** 2) for i in range(len(d)) for j in range(i)]
        similarity = np.mean(pairs) if pairs else 1.0
        steps[index] += 1
        moment[index] = 0.8 * moment[index] + 0.2 * now
        spread[index] = 0.95 * spread[index] + 0.05 * (1 - similarity) ** 2 + 1e-8
        if similarity < 0.6:
            expected = sum(d.mean() * row / length for row, length in zip(now, d, strict=True))
        else:
            expected = np.zeros(now.shape[1])
            for row, task in zip(now, index, strict=True):
                mean = np.abs(moment[task]) / (1 - 0.8 ** steps[task])
                expected += row * mean / np.sqrt(spread[task] / (1 - 0.95 ** steps[task]))
        close(balancer.combine(torch.tensor(now), present=present), expected, 1e-9)


def test_sam_gs_branches_differ_in_their_degree():
    rows = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
    for gamma, degree in ((0.0, 2), (1.0, 1)):
        plain, scaled = SAMGS(2, gamma=gamma), SAMGS(2, gamma=gamma)
        for _ in range(3):
            close(scaled.combine(rows * 10), plain.combine(rows) * 10**degree)


# --- ExcessMTL --------------------------------------------------------------------------------------------------------


@given(seeds)
def test_excess_mtl_with_tasks_absent_is_its_formula(seed):
    rows, _ = problem(seed, steps=6)
    count = rows.shape[1]
    balancer = ExcessMTL(count, eta=0.3, eps=1e-3)
    squares, first, weights = np.zeros(rows.shape[1:]), np.full(count, np.nan), np.ones(count)
    for number, present in enumerate(some_present(seed, count, 6)):
        index = list(present)
        now = rows[number, index].numpy()
        squares[index] += now**2
        total = weights[index].sum()
        for row, task in zip(now, index, strict=True):
            excess = (row**2 / np.sqrt(squares[task] + 1e-3)).sum()
            if np.isnan(first[task]):
                first[task] = excess
            else:
                weights[task] *= np.exp(0.3 * excess / first[task])
        weights[index] *= total / weights[index].sum()
        used = len(index) * weights[index] / total
        close(balancer.combine(torch.tensor(now), present=present), used @ now, 1e-9)
        close(balancer.logits.exp(), weights, 1e-9)


@given(seeds, st.floats(-4, 4))
def test_excess_mtl_weights_do_not_see_the_scale_of_a_loss(seed, exponent):
    rows, _ = problem(seed, steps=4)
    factor = torch.ones(rows.shape[1], 1, dtype=torch.float64)
    factor[0] = 10.0**exponent
    plain, scaled = (ExcessMTL(len(factor), eta=0.2, eps=0.0) for _ in range(2))
    for now in rows:
        plain.combine(now)
        scaled.combine(now * factor)
        close(scaled.logits, plain.logits, 1e-9)


def test_excess_mtl_raises_the_task_that_keeps_its_excess():
    balancer = ExcessMTL(2, eta=0.5)
    rows = torch.eye(2, dtype=torch.float64)
    for step in range(5):
        direction = balancer.combine(rows * torch.tensor([[1.0], [0.3**step]]))
    assert float(balancer.logits[0]) > float(balancer.logits[1])
    assert float(direction[0]) > 1


def test_excess_mtl_first_gradient_of_zero_and_steps_that_overflow():
    balancer = ExcessMTL(2, eta=1.0)
    rows = torch.eye(2, dtype=torch.float64)
    zero = rows * torch.tensor([[0.0], [1.0]])
    balancer.combine(zero)
    balancer.combine(zero)
    assert bool(torch.isnan(balancer.first[0]))
    balancer.combine(rows)
    assert float(balancer.first[0]) > 0
    wild = ExcessMTL(2, eta=1.0)
    wild.combine(rows * 1e-5)
    assert bool(torch.isfinite(wild.combine(rows * torch.tensor([[1e5], [1e-5]]))).all())
    back = wild.combine(rows)
    assert bool(torch.isfinite(back).all())
    assert float(excess_weights(torch.zeros(3), torch.tensor([1e4, 0.0, 2.0]), eta=1.0).exp().sum()) == pytest.approx(3)


def test_excess_risk_of_a_first_step_is_the_sum_of_magnitudes():
    rows = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert excess_risks(rows, rows**2, eps=0.0).tolist() == [7.0, 0.0]
    assert float(excess_risks(rows, rows**2, eps=16.0)[0]) == pytest.approx(9 / 5 + 16 / 32**0.5)
