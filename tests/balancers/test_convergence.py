"""On quadratics whose Pareto set is known, methods end where theory says."""

import math

import pytest
import torch

from counterpoint.balancers import (
    DBMTL,
    DTP,
    DWA,
    FAMO,
    GLS,
    IMTLG,
    LDCMTL,
    LSB,
    MGDA,
    MSI,
    OSMTL,
    PIVRG,
    POMSI,
    RLW,
    SAMGS,
    SPMTL,
    STCH,
    AlignedMTL,
    AutoLambda,
    CAGrad,
    ConFIG,
    DualProj,
    ExcessMTL,
    FairGrad,
    Fixed,
    GCond,
    GradDrop,
    GradNorm,
    GradOPS,
    GradVac,
    LookAhead,
    MoCo,
    MoDo,
    NashMTL,
    PCGrad,
    RotoGrad,
    ScaleInvariant,
    SDMGrad,
    Uncertainty,
    UPGrad,
)

CENTERS = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
SCALES = torch.tensor([1.0, 10.0], dtype=torch.float64)


def descend(balancer, *, steps=400, rate=0.05, start=(0.3, 2.0), scales=SCALES, offset=0.1, decay=True, own_rate=0.05):
    """Minimize L_i = s_i |x - c_i|^2 / 2 + offset; the Pareto set is the segment between the centers.

    Returns the last point, or, without decay of the step size, the mean of the second half of the points.
    """
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [x]}, {"params": list(balancer.parameters()), "weight_decay": 0.0, "lr": own_rate}]
    optimizer = torch.optim.SGD([group for group in groups if group["params"]], lr=rate)
    visited = []

    features = x[None, :]

    def losses():
        read = torch.cat([balancer.transform(features, task) for task in range(2)])
        return scales * ((read - CENTERS) ** 2).sum(dim=1) / 2 + offset

    ahead = LookAhead(losses, losses, [x], optimizer)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps if decay else 1)
        features = x[None, :]
        cut = {"features": features, "level": "features"} if "transform" in balancer.needs else {}
        balancer.look_ahead(ahead)
        optimizer.zero_grad()
        first, *more = (losses() for _ in range(balancer.num_batches))
        balancer.backward(first, more=more, **cut)
        optimizer.step()
        balancer.after_step(losses().detach())
        visited.append(x.detach().clone())
        if step % 20 == 19:
            balancer.end_epoch()
    return visited[-1] if decay else torch.stack(visited[steps // 2 :]).mean(dim=0)


def weighted_optimum(weights):
    product = torch.as_tensor(weights, dtype=torch.float64) * SCALES
    return product @ CENTERS / product.sum()


PARETO = [
    MGDA(2),
    MGDA(2, normalization="l2"),
    PCGrad(2),
    GradVac(2),
    CAGrad(2, c=0.4),
    CAGrad(2, c=1.5),
    IMTLG(2),
    NashMTL(2),
    NashMTL(2, update_every=5),
    AlignedMTL(2),
    FairGrad(2),
    FairGrad(2, alpha=2.0, max_norm=1.0),
    UPGrad(2),
    DualProj(2),
    ConFIG(2),
    GradOPS(2),
    GradNorm(2),
    GradNorm(2, alpha=0.0, update="sgd"),
    SDMGrad(2),
    SDMGrad(2, pull=0.0),
    MoDo(2, learning_rate=0.02, rho=0.0),
    MSI(2, static_target=1.0),
    POMSI(2),
    PIVRG(references=[1.0, 1.0], max_norm=1.0),
    GLS(2),
    Uncertainty(2),
    DWA(2),
    ScaleInvariant(2),
    ScaleInvariant(2, form="log1p"),
    STCH(2, warmup_epochs=1),
    STCH(2, variant="paper"),
    LSB(2),
    DTP(2, perfect=1.0),
    LDCMTL(2),
    LDCMTL(2, normalization="initial", detach_sum=False),
    LDCMTL(2, normalization="log_ratio", lam=0.05),
    DBMTL(2),
    DBMTL(2, beta=0.0),
    MoCo(2),
    MoCo(2, variant="libmtl"),
    RotoGrad(2, mode="scale_only"),
    SAMGS(2, gamma=1.0),
    ExcessMTL(2),
    GCond(2),
    GCond(2, surgery="zones"),
    FAMO(2),
    AutoLambda(2, learning_rate=1e-3, initial=0.5),
    AutoLambda(2, parametrization="softmax"),
    FAMO(2, update="sgd", minimum=-1.0),
]


@pytest.mark.parametrize("balancer", PARETO, ids=repr)
def test_ends_on_the_pareto_set(balancer):
    x = descend(balancer)
    assert abs(float(x[1])) < 1e-3
    assert -1 - 1e-3 <= float(x[0]) <= 1 + 1e-3


@pytest.mark.parametrize("balancer", [CAGrad(2, c=0.4), Fixed(task_weights=[1.0, 1.0])], ids=repr)
def test_ends_at_the_minimum_of_the_mean_loss(balancer):
    torch.testing.assert_close(descend(balancer), weighted_optimum([1, 1]), rtol=0, atol=2e-3)


def test_fixed_weights_choose_the_point():
    for weights in ([1.0, 0.1], [3.0, 0.01]):
        found = descend(Fixed(task_weights=weights))
        torch.testing.assert_close(found, weighted_optimum(weights), rtol=0, atol=1e-4)


def test_pcgrad_stops_where_two_gradients_oppose():
    """On the segment the projections are zero: it ends on the Pareto set, away from the minimum of the sum."""
    found = descend(PCGrad(2))
    assert abs(float(found[0] - weighted_optimum([1, 1])[0])) > 0.1


@pytest.mark.parametrize(
    "balancer", [Uncertainty(2), GLS(2), ScaleInvariant(2)], ids=["Uncertainty", "GLS", "ScaleInvariant"]
)
def test_ends_where_the_product_of_the_losses_is_stationary(balancer):
    """At the fixed point of the noise levels the weights are 1 / L, so sum_i grad L_i / L_i = 0, as for GLS."""
    found = descend(balancer, steps=800)
    difference = found - CENTERS
    losses = SCALES * (difference**2).sum(dim=1) / 2 + 0.1
    terms = SCALES[:, None] * difference / losses[:, None]
    assert float(terms.sum(dim=0).norm()) < 0.02 * float(terms.norm(dim=1).max())


def test_stch_of_the_paper_ends_where_its_weights_cancel_the_gradients():
    """On the segment w_1 s_1 d_1 = w_2 s_2 d_2 with w the softmax of L / mu: mu ln (s_2 d_2 / s_1 d_1) = L_1 - L_2."""
    mu = 0.5
    x = descend(STCH(2, variant="paper", mu=mu, preference=[1.0, 1.0]))
    distance = (x - CENTERS).norm(dim=1)
    losses, slopes = SCALES * distance**2 / 2, SCALES * distance
    assert float(losses[0] - losses[1]) == pytest.approx(mu * math.log(float(slopes[1] / slopes[0])), abs=1e-3)


def test_rotations_bring_both_tasks_to_their_minimum():
    """The heads read R_k x, and both centers are 1 from the origin: turned against each other they are one point."""
    balancer = RotoGrad(2, learning_rate=0.02)
    x = descend(balancer, steps=800)
    read = torch.cat([balancer.transform(x[None, :], task) for task in range(2)])
    # Adam with a constant step keeps turning by a little; without rotations one of them is 1 away or more
    torch.testing.assert_close(read, CENTERS, rtol=0, atol=0.1)


def test_equal_lengths_make_the_middle_stationary():
    """Gradients of equal length cancel on the segment; from the axis x_0 = 0, by symmetry, the end is 0."""
    found = descend(MSI(2, static_target=1.0), start=(0.0, 2.0), scales=torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "balancer",
    [RLW(2, generator=torch.Generator().manual_seed(0)), GradDrop(2, generator=torch.Generator().manual_seed(0))],
    ids=["RLW", "GradDrop"],
)
def test_random_methods_end_near_the_minimum_of_the_mean_loss(balancer):
    # the expectation of the update is a multiple of the sum; what is left is the noise of a constant step size
    found = descend(balancer, steps=600, rate=0.01, decay=False)
    torch.testing.assert_close(found, weighted_optimum([1, 1]), rtol=0, atol=0.15)


@pytest.mark.parametrize(("threshold", "height"), [(10.0, 0.0), (1e9, 6.0)])
def test_spmtl_ends_at_the_mean_of_the_instances_that_it_admits(threshold, height):
    """Four instances of each task lie around its center and one is 30 up, which only the high threshold admits."""
    around = 0.1 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    outlier = torch.tensor([[0.0, 30.0]], dtype=torch.float64)
    x = torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer, balancer = torch.optim.SGD([x], lr=0.1), SPMTL(2, threshold=threshold, group_penalty=0.0)
    for _ in range(200):
        optimizer.zero_grad()
        balancer.backward([((x - torch.cat([center + around, outlier])) ** 2).sum(dim=1) / 2 for center in CENTERS])
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([0.0, height], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("alpha", "reach"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_osmtl_ends_at_the_mean_of_the_centers_under_its_relation(alpha, reach):
    """At a high temperature eta stays 1 / 2: model k ends at alpha c_k + (1 - alpha) (c_1 + c_2) / 2 = alpha c_k."""
    models = torch.tensor([[0.3, 2.0], [0.4, -1.0]], dtype=torch.float64, requires_grad=True)
    optimizer, balancer = torch.optim.SGD([models], lr=0.1), OSMTL(2, alpha=alpha, temperature=1e9)
    for _ in range(200):
        optimizer.zero_grad()
        balancer.backward([((model - CENTERS) ** 2).sum(dim=1) / 2 for model in models], shared=[models])
        optimizer.step()
    torch.testing.assert_close(models.detach(), reach * CENTERS, rtol=0, atol=1e-6)
