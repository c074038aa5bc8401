"""What is peculiar to methods that solve a small problem on the Gram matrix: identities, options, degenerate input."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balancers.test_properties import problem
from counterpoint.balancers import (
    IMTLG,
    MGDA,
    AlignedMTL,
    ConFIG,
    DualProj,
    FairGrad,
    GradOPS,
    NashMTL,
    PCGrad,
    UPGrad,
    dual_proj,
    fairgrad,
    nash_mtl,
    upgrad,
)
from counterpoint.balancers.gradops import deconflicted_rows
from solvers.problems import rows as problem_rows

seeds = st.integers(0, 10_000)
ONES = torch.ones(2, dtype=torch.float64)


def two(seed):
    """Two gradients whose lengths differ by up to e^6."""
    rows, _ = problem(seed)
    return rows[:2]


def vector(balancer, rows):
    return balancer.weights(rows @ rows.T) @ rows


def cosines_with(v, rows):
    return rows @ v / rows.norm(dim=1) / v.norm()


# --- identities ---------------------------------------------------------------------------------------------------


@given(seeds)
def test_nash_products_and_length(seed):
    rows, _ = problem(seed)
    weights = NashMTL(len(rows), max_norm=None).weights(rows @ rows.T)
    v = weights @ rows
    torch.testing.assert_close(rows @ v * weights, torch.ones_like(weights), rtol=0, atol=1e-9)
    assert float(v.norm()) == pytest.approx(math.sqrt(len(rows)), rel=1e-9)
    clipped = vector(NashMTL(len(rows)), rows)
    torch.testing.assert_close(clipped, v / v.norm(), rtol=1e-9, atol=1e-12)


@given(seeds, st.sampled_from([0.5, 2.0, 5.0]))
def test_fairgrad_equation_and_degree(seed, alpha):
    rows, _ = problem(seed)
    weights = FairGrad(len(rows), alpha=alpha).weights(rows @ rows.T)
    torch.testing.assert_close(
        (rows @ (weights @ rows)) ** alpha * weights, torch.ones_like(weights), rtol=0, atol=1e-7
    )
    scaled = vector(FairGrad(len(rows), alpha=alpha), 1e-4 * rows)
    expected = weights @ rows * 1e-4 ** ((1 - alpha) / (1 + alpha))
    torch.testing.assert_close(scaled, expected, rtol=1e-7, atol=1e-9 * float(expected.norm()))


@given(seeds, st.sampled_from([0.5, 1.0, 2.0]))
def test_fairgrad_clipped(seed, alpha):
    rows, _ = problem(seed)
    plain, clipped = (vector(FairGrad(len(rows), alpha=alpha, max_norm=norm), rows) for norm in (None, 0.7))
    torch.testing.assert_close(clipped, plain * min(1.0, 0.7 / float(plain.norm())), rtol=1e-9, atol=1e-12)


@given(seeds)
def test_fairgrad_with_alpha_one_is_nash_without_clipping(seed):
    rows, _ = problem(seed)
    gram = rows @ rows.T
    fair, nash = FairGrad(len(rows)).weights(gram), NashMTL(len(rows), max_norm=None).weights(gram)
    torch.testing.assert_close(fair, nash, rtol=0, atol=0)


@given(seeds)
def test_fairgrad_at_its_limits(seed):
    """Towards 0 it is the projection of the sum; towards infinity, the shortest combination v as v / |v|^2."""
    rows, _ = problem(seed)
    count = len(rows)
    rows = rows / rows.norm(dim=1, keepdim=True)
    projected = vector(DualProj(count, preference=[1.0] * count), rows)
    torch.testing.assert_close(vector(FairGrad(count, alpha=1e-4), rows), projected, rtol=0, atol=2e-2)
    shortest = vector(MGDA(count), rows)
    found = vector(FairGrad(count, alpha=1e3), rows)
    torch.testing.assert_close(found, shortest / (shortest @ shortest), rtol=0, atol=2e-2 * float(found.norm()))


@given(seeds)
def test_upgrad_of_two_tasks_is_half_of_pcgrad(seed):
    rows = two(seed)
    torch.testing.assert_close(2 * vector(UPGrad(2), rows), vector(PCGrad(2), rows), rtol=1e-9, atol=1e-12)


@given(seeds)
def test_gradops_of_two_tasks_is_pcgrad(seed):
    rows = two(seed)
    torch.testing.assert_close(vector(GradOPS(2), rows), vector(PCGrad(2), rows), rtol=1e-9, atol=1e-12)


@given(seeds)
def test_imtl_g_projections_and_con_fig(seed):
    rows, _ = problem(seed)
    weights = IMTLG(len(rows)).weights(rows @ rows.T)
    assert abs(float(weights.sum())) == pytest.approx(1.0, abs=1e-9 * float(weights.abs().sum()))
    v = weights @ rows
    cosines = cosines_with(v, rows)
    torch.testing.assert_close(cosines, cosines.mean().expand_as(cosines), rtol=0, atol=1e-9)
    assert float(cosines.mean()) > 0
    other = vector(ConFIG(len(rows)), rows)
    torch.testing.assert_close(other / other.norm(), v / v.norm(), rtol=0, atol=1e-9)


def test_imtl_g_without_guard_turns_around_where_the_sum_is_negative():
    turned = 0
    for seed in range(300):
        rows, _ = problem(seed)
        guarded = IMTLG(len(rows)).weights(rows @ rows.T)
        plain = IMTLG(len(rows), sign_guard=False).weights(rows @ rows.T)
        assert float(plain.sum()) == pytest.approx(1.0, abs=1e-9 * float(plain.abs().sum()))
        torch.testing.assert_close(plain.abs(), guarded.abs())
        turned += float(guarded.sum()) < 0
    assert turned > 5


@given(seeds)
def test_con_fig_lengths_and_preference(seed):
    rows, _ = problem(seed)
    lengths = rows.norm(dim=1)
    count = len(rows)
    v = vector(ConFIG(count), rows)
    assert float(v.norm()) == pytest.approx(float((rows @ v).sum() / v.norm()), rel=1e-9)
    expected = {
        "min": lengths.min(),
        "max": lengths.max(),
        "arithmetic_mean": lengths.mean(),
        "geometric_mean": lengths.prod() ** (1 / count),
        "harmonic_mean": count / (1 / lengths).sum(),
    }
    for name, length in expected.items():
        assert float(vector(ConFIG(count, length=name), rows).norm()) == pytest.approx(float(length), rel=1e-9)
    last = ConFIG(tasks=[str(task) for task in range(count)], length="task", length_task=str(count - 1))
    assert float(vector(last, rows).norm()) == pytest.approx(float(lengths[-1]), rel=1e-9)
    preference = torch.arange(1.0, count + 1, dtype=torch.float64)
    found = cosines_with(vector(ConFIG(count, preference=preference.tolist()), rows), rows)
    torch.testing.assert_close(found / found[0], preference, rtol=1e-7, atol=0)


def test_con_fig_lengths_of_the_tasks_that_are_there():
    gram = torch.diag(torch.tensor([1.0, 4.0, 16.0, 0.0], dtype=torch.float64))
    weights = ConFIG(4, length="min").weights(gram)
    assert float(weights @ gram @ weights) == pytest.approx(1.0)  # a zero gradient is no shortest one
    third = ConFIG(4, length="task", length_task=2)
    weights = third.weights(gram[1:3, 1:3], present=[1, 2])
    assert float(weights @ gram[1:3, 1:3] @ weights) == pytest.approx(16.0)
    weights = third.weights(gram[:2, :2], present=[0, 1])
    assert weights.tolist() == pytest.approx(ConFIG(2).weights(gram[:2, :2]).tolist())


def test_con_fig_of_two_tasks_is_the_sum_of_the_unit_complements():
    for seed in range(50):
        first, second = two(seed)
        parts = [a - a @ b / (b @ b) * b for a, b in ((first, second), (second, first))]
        expected = sum(part / part.norm() for part in parts)
        v = vector(ConFIG(2), two(seed))
        torch.testing.assert_close(v / v.norm(), expected / expected.norm(), rtol=0, atol=1e-9)


@given(seeds, st.sampled_from(["min", "median", "rmse"]))
def test_aligned_rows_are_orthogonal_and_equally_long(seed, mode):
    rows, _ = problem(seed)
    gram, count = rows @ rows.T, len(rows)
    units = torch.eye(count)
    matrix = torch.stack([AlignedMTL(count, scale_mode=mode, preference=u.tolist()).weights(gram) for u in units])
    values = torch.linalg.eigvalsh(gram)
    square = {"min": values[0], "median": values[(count - 1) // 2], "rmse": values.mean()}[mode]
    expected = square * torch.eye(count, dtype=torch.float64)
    torch.testing.assert_close(matrix @ gram @ matrix, expected, rtol=0, atol=1e-6 * float(square))
    length = float(vector(AlignedMTL(count, scale_mode=mode), rows).norm())
    assert length == pytest.approx(math.sqrt(float(square) / count), rel=1e-6)


def test_aligned_of_dependent_rows_is_a_projector():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    gram = rows @ rows.T
    matrix = torch.stack([AlignedMTL(3, preference=u.tolist()).weights(gram) for u in torch.eye(3)])
    square = torch.linalg.eigvalsh(gram)[1]
    projector = rows @ torch.linalg.pinv(rows)
    torch.testing.assert_close(matrix @ gram @ matrix, square * projector)
    kept_noise = gram + 1e-9 * torch.eye(3)  # as from rows in float32
    assert float(vector(AlignedMTL(3, eps=1e-7), rows).norm()) > 0.1
    assert float((AlignedMTL(3, eps=1e-7).weights(kept_noise) - AlignedMTL(3).weights(gram)).abs().max()) < 1e-6


@given(seeds)
def test_dual_proj_leaves_the_mean_where_it_conflicts_with_nobody(seed):
    rows, _ = problem(seed)
    weights = DualProj(len(rows)).weights(rows @ rows.T)
    mean = rows.mean(dim=0)
    conflict = bool((rows @ mean < 0).any())
    assert conflict == bool((weights > 1 / len(rows)).any())
    v = weights @ rows
    assert float((rows @ v / rows.norm(dim=1)).min()) >= -1e-12 * float(v.norm() + mean.norm())
    # nearest: the way from the mean to v is orthogonal to v
    assert float((v - mean) @ v) == pytest.approx(0.0, abs=1e-10 * float(v.norm() * (v.norm() + mean.norm())))


def test_preferences_add_up():
    rows, _ = problem(3)
    count = len(rows)
    shares = torch.arange(1.0, count + 1).double()
    parts = [UPGrad(count, preference=unit.tolist()).weights(rows @ rows.T) for unit in torch.eye(count)]
    whole = UPGrad(count, preference=shares.tolist()).weights(rows @ rows.T)
    torch.testing.assert_close(shares @ torch.stack(parts), whole)
    torch.testing.assert_close(torch.stack(parts).mean(dim=0), UPGrad(count).weights(rows @ rows.T))
    for method in (UPGrad, DualProj, AlignedMTL):
        named = method(tasks=["a", "b"], preference={"b": 3.0, "a": 1.0})
        given = method(2, preference=[1.0, 3.0])
        assert torch.equal(named.weights(rows[:2] @ rows[:2].T), given.weights(rows[:2] @ rows[:2].T))
        alone = named.weights(rows[:1] @ rows[:1].T, present=[1])
        assert alone.tolist() == pytest.approx([3.0])


def gradops_vectors(rows, alpha):
    """On the gradients themselves, with orthogonal bases from the singular value decomposition."""
    parts = []
    for i, row in enumerate(rows):
        others = np.delete(rows, i, axis=0)
        part = row
        if (others @ row < 0).any():
            _, values, basis = np.linalg.svd(others, full_matrices=False)
            basis = basis[values > 1e-9 * values[0]]
            part = row - basis.T @ (basis @ row)
        parts.append(part)
    total = np.sum(parts, axis=0)
    rates = np.array([total @ row / (row @ row) for row in rows])
    weights = len(rows) * rates**alpha / (rates**alpha).sum()
    return weights @ np.array(parts)


@given(seeds, st.sampled_from([0.0, -1.0, 2.0]))
def test_gradops_on_vectors(seed, alpha):
    rows, _ = problem(seed)
    found = vector(GradOPS(len(rows), alpha=alpha), rows)
    expected = torch.from_numpy(gradops_vectors(rows.numpy(), alpha))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * float(rows.norm(dim=1).max()))


def test_gradops_of_dependent_gradients():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.5, 0.5]], dtype=torch.float64)  # three in a plane
    made = deconflicted_rows(rows @ rows.T)
    assert made.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    nearly = rows[[0, 0, 1]] + 1e-8 * torch.eye(3, 2, dtype=torch.float64)
    assert float(GradOPS(3).weights(nearly @ nearly.T).abs().max()) < 10
    opposed = torch.cat([rows[:1], -rows[:1]])
    for alpha in (-3.0, 0.0, 2.0):
        assert GradOPS(2, alpha=alpha).weights(opposed @ opposed.T).tolist() == [0.0, 0.0]
    twin = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)  # the twins silence each other
    torch.testing.assert_close(vector(GradOPS(3), twin), torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        vector(GradOPS(3, alpha=-3.0), twin), torch.tensor([0.0, 1.0], dtype=torch.float64) * 1e-9
    )


def test_gradops_takes_rounding_for_no_conflict():
    gram = torch.tensor([[1.0, -1e-17, 0.9], [-1e-17, 1.0, 0.3], [0.9, 0.3, 1.0]], dtype=torch.float64)
    assert GradOPS(3).weights(gram).tolist() == [1.0, 1.0, 1.0]


# --- compatibility with TorchJD's regularization ------------------------------------------------------------------


def imbalanced(seed=0):
    """Ten gradients in 50 dimensions whose lengths range from 0.03 to 30, more than half of the pairs conflicting."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(10, 50)) - 0.35 * rng.normal(size=(1, 50)) * rng.choice([-1, 1], size=(10, 1))
    rows *= np.logspace(-1.5, 1.5, 10)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows)


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_the_regularized_projection_keeps_conflicts_and_ours_does_not(method):
    for rows in (imbalanced(seed) for seed in range(5)):
        assert float(cosines_with(vector(method(10), rows), rows).min()) > -1e-12
        assert float(cosines_with(vector(method(10, torchjd_compat=True), rows), rows).min()) < -0.02


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_the_regularized_projection_becomes_the_mean_at_small_gradients(method):
    rows = torch.tensor([[1.0, 0.0], [-0.8, 0.6]], dtype=torch.float64) * 1e-3
    torch.testing.assert_close(vector(method(2, torchjd_compat=True), rows), rows.mean(dim=0))
    assert bool((rows @ vector(method(2), rows) >= -1e-20).all())


# --- degenerate input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e3])
def test_exactly_opposed_gradients(factor):
    rows = torch.tensor([[1.0, 2.0, 0.3], [-1.0, -2.0, -0.3]], dtype=torch.float64)
    rows[1] *= factor
    for method in (NashMTL, FairGrad, IMTLG, ConFIG, UPGrad, DualProj, GradOPS, MGDA, PCGrad):
        assert float(vector(method(2), rows).norm()) <= 1e-14 * float(rows.norm()), method
    aligned = vector(AlignedMTL(2), rows)  # one dimension is left
    assert float(cosines_with(aligned, rows).abs().min()) == pytest.approx(1.0) or factor == 1.0


def test_no_direction_has_equal_angles_in_a_triangle():
    """Three unit vectors with sum zero: (1, 1, 1) is orthogonal to the range of their cosines, up to rounding."""
    for seed in range(20):
        plane = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 2)))[0]
        angles = 2 * np.pi * np.arange(3) / 3 + seed
        rows = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T)
        rows *= torch.tensor([[1.0], [3.0], [0.2]])
        for method in (IMTLG, ConFIG):
            assert method(3).weights(rows @ rows.T).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", [NashMTL, FairGrad, IMTLG, ConFIG, UPGrad, DualProj, GradOPS, AlignedMTL, MGDA])
def test_gram_matrices_with_rounding_errors(method):
    """Singular ones from float32 rows have negative eigenvalues: the answer is finite, and harms no task by more."""
    for kind, seed in itertools.product(("few columns", "opposed", "hull holds zero", "scales, duplicate"), range(40)):
        rows = torch.from_numpy(problem_rows(kind, 2 + seed % 13, seed))
        exact = rows @ rows.T
        noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rounded = exact.float().double(), exact * (1 + 1e-7 * (noise + noise.T)), exact.bfloat16().double()
        for gram, accuracy in zip(rounded, (1e-4, 1e-4, 0.1), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                weights = method(len(rows)).weights(gram)
            assert bool(torch.isfinite(weights).all())
            if method in {NashMTL, FairGrad, UPGrad, DualProj}:
                products = gram @ weights / gram.diagonal().sqrt()
                assert float(products.min()) >= -accuracy * float(weights.abs() @ gram.diagonal().sqrt())


def test_two_equal_gradients_share_evenly():
    row = torch.tensor([[1.0, 2.0, 0.3]], dtype=torch.float64)
    rows = torch.cat([row, row, torch.tensor([[0.5, -1.0, 4.0]], dtype=torch.float64)])
    for method in (NashMTL, FairGrad, IMTLG, ConFIG, UPGrad, AlignedMTL, DualProj):
        weights = method(3).weights(rows @ rows.T)
        assert float(weights[0]) == pytest.approx(float(weights[1]), rel=1e-9), method
    nash = NashMTL(2, max_norm=None).weights(torch.ones(2, 2, dtype=torch.float64))
    assert nash.tolist() == pytest.approx([0.5**0.5] * 2)


def test_a_stationary_point_has_no_bargain():
    triangle = torch.tensor([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]], dtype=torch.float64)
    lengths = torch.tensor([[1.0], [1e-5], [1e5]], dtype=torch.float64)
    for rows, method in itertools.product((triangle, triangle * lengths), (NashMTL, FairGrad)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert method(3).weights(rows @ rows.T).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_one_task_keeps_the_formula(alpha):
    gram = torch.tensor([[16.0]], dtype=torch.float64)
    weight = 16.0 ** (-alpha / (1 + alpha))
    assert FairGrad(1, alpha=alpha).weights(gram).tolist() == pytest.approx([weight])
    assert NashMTL(1).weights(gram).tolist() == pytest.approx([0.25])
    for method in (IMTLG, AlignedMTL, UPGrad, DualProj, ConFIG, GradOPS):
        assert method(1).weights(gram).tolist() == pytest.approx([1.0]), method


@pytest.mark.parametrize("method", [IMTLG, NashMTL, FairGrad, DualProj, ConFIG, GradOPS, MGDA, UPGrad])
def test_a_thousand_tasks(method):
    count = 200 if method is UPGrad else 1000  # UPGrad's cost grows with K^4: 26 s for 1000
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 2 * count, generator=generator, dtype=torch.float64)
    rows *= torch.exp(6 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 3)
    assert float(cosines_with(vector(method(count), rows), rows).min()) > -1e-10


# --- Nash-MTL: reuse of weights -----------------------------------------------------------------------------------


def test_nash_reuses_weights_and_clips_anew():
    first, second = (torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([1.0, 4.0], [100.0, 9.0]))
    balancer = NashMTL(2, update_every=2, max_norm=None)
    assert balancer.weights(first).tolist() == pytest.approx([1.0, 0.5])
    assert balancer.weights(second).tolist() == pytest.approx([1.0, 0.5])
    assert balancer.weights(second).tolist() == pytest.approx([0.1, 1 / 3])
    clipped = NashMTL(2, update_every=2)
    for gram in (first, second):
        weights = clipped.weights(gram)
        assert float(weights @ gram @ weights) == pytest.approx(1.0)
    assert weights.tolist() == pytest.approx((torch.tensor([1.0, 0.5]) / math.sqrt(102.25)).tolist())
    unclipped = NashMTL(2, update_every=2)
    unclipped.weights(first)
    assert unclipped.weights(first / 100).tolist() == pytest.approx([1.0, 0.5])  # what is kept is not clipped


def test_nash_solves_anew_where_the_tasks_change_or_had_no_solution():
    gram = torch.diag(torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64))
    balancer = NashMTL(3, update_every=100, max_norm=None)
    assert balancer.weights(gram[:2, :2], present=[0, 1]).tolist() == pytest.approx([1.0, 0.5])
    assert balancer.weights(gram).tolist() == pytest.approx([1.0, 0.5, 0.25])  # task 2 was not in the last one
    assert balancer.weights(4 * gram).tolist() == pytest.approx([1.0, 0.5, 0.25])
    balancer.reset()
    balancer.weights(gram[:2, :2], present=[0, 1])
    balancer.weights(gram[1:, 1:], present=[1, 2])
    mixed = balancer.weights(9 * gram[::2, ::2], present=[0, 2])  # from two solutions
    assert mixed.tolist() == pytest.approx([1 / 3, 1 / 12])
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    two_tasks = NashMTL(2, update_every=100, max_norm=None)
    assert two_tasks.weights(opposed).tolist() == [0.0, 0.0]
    assert two_tasks.weights(gram[:2, :2]).tolist() == pytest.approx([1.0, 0.5])
    with_zero = NashMTL(2, update_every=100, max_norm=None)
    assert with_zero.weights(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))).tolist() == [0.5, 0.0]
    assert with_zero.weights(gram[:2, :2]).tolist() == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(
    ("module", "name", "balancer"),
    [
        (nash_mtl, "bargain", NashMTL(2)),
        (fairgrad, "bargain", FairGrad(2)),
        (dual_proj, "project_to_dual_cone", DualProj(2)),
        (upgrad, "project_rows_to_dual_cone", UPGrad(2)),
    ],
    ids=lambda value: getattr(value, "key", None),
)
def test_a_solver_that_stops_early_warns_once(module, name, balancer, monkeypatch):
    exact = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **more: (exact(*given, **more)[0], 1e-3))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            assert bool(torch.isfinite(balancer.weights(torch.eye(2, dtype=torch.float64))).all())
    assert ["1.0e-03" in str(one.message) for one in found] == [True]


@pytest.mark.parametrize("method", [NashMTL, FairGrad, IMTLG, AlignedMTL])
@pytest.mark.parametrize("option", ["weighted", "raw"])
def test_task_gradients(method, option):
    trunk = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    heads = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    report = method(2, task_gradients=option).backward([trunk[0] + heads[0], 2 * trunk[1] + heads[1]])
    expected = report.weights.tolist() if option == "weighted" else [1.0, 1.0]
    assert [float(head.grad) for head in heads] == pytest.approx(expected)
    assert report.weights.tolist() != pytest.approx([1.0, 1.0])
