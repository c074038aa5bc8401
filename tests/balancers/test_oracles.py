"""Oracle values: the printed ones always, the whole file if COUNTERPOINT_ORACLES names its folder."""

import copy
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from balancers import oracles_batches, oracles_columns, oracles_gram, oracles_losses
from balancers.cases import BY_KEY, CASES
from balancers.comparison import agree
from counterpoint.balancers import (
    DWA,
    FAMO,
    GLS,
    IMTLG,
    IMTLL,
    MGDA,
    RLW,
    UWSO,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    Equal,
    FairGrad,
    GradOPS,
    GradVac,
    NashMTL,
    RotoGrad,
    Uncertainty,
    UPGrad,
)
from counterpoint.balancers.dwa import dwa_weights
from counterpoint.balancers.famo import famo_gradient
from counterpoint.balancers.graddrop import graddrop_direction
from counterpoint.balancers.gradvac import gradvac_weights
from counterpoint.balancers.mgda import mgda_weights
from counterpoint.balancers.pcgrad import pcgrad_weights
from counterpoint.balancers.rlw import rlw_weights
from counterpoint.balancers.rotograd import rotograd_weights
from counterpoint.linalg import gram, projected_rows
from counterpoint.solvers.self_paced import self_paced_weights

G = torch.tensor([[1.0, 0, 2, -1], [-2, 1, 0, 3], [0.5, -1, 1, 0]], dtype=torch.float64)
A = G @ G.T
L = torch.tensor([0.7, 2.5, 0.04], dtype=torch.float64)
ASCENDING = torch.tensor([[1, 2], [0, 2], [0, 1]])
PRINTED = 5e-6  # printed to about six digits; the last one is off in two places (3.434400 for 3.4344044)


def close(found, expected, tolerance=PRINTED):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert torch.allclose(torch.as_tensor(found).double(), expected, rtol=0, atol=tolerance), (found, expected)


# --- the examples printed in the specification, always ------------------------------------------------------------


def test_printed_loss_weighting():
    balancer = Uncertainty(3, initial=-0.5).double()
    leaf = L.clone().requires_grad_()
    total = balancer.objective(leaf)
    gradients = torch.autograd.grad(total, [leaf, *balancer.parameters()])
    close(total.detach(), 1.920928)
    close(gradients[0], [0.824361] * 3)
    close(torch.stack(gradients[1:]), [-0.077052, -1.560901, 0.467026])
    close(GLS(3).objective(L), 0.412129)
    close(GLS(3).weights(None, L), [0.196252, 0.0549505, 3.434400])
    last, previous = torch.tensor([[0.56, 2.5, 0.048], [0.7, 2.5, 0.04]], dtype=torch.float64)
    close(dwa_weights(last, previous), [0.901829, 0.996675, 1.101496])
    close(Equal(3).weights(None, L) @ G, [-0.5, 0, 3, 2], 0)


def test_printed_min_norm():
    weights = MGDA(3).weights(A)
    close(weights, [0.158371, 0.235294, 0.606335])
    close(weights @ G, [-0.009050, -0.371041, 0.923077, 0.547511])
    close((weights @ G).norm(), 1.135601)
    close(mgda_weights(A, normalization="l2")[0], [0.401942, 0.480680, 0.117378])


def test_printed_surgery():
    descending = ASCENDING.flip(1)
    close(pcgrad_weights(A, ASCENDING), [1.833333, 1.5, 1])
    close(pcgrad_weights(A, descending), [1.462963, 1.5, 1.888889])
    first, rho = gradvac_weights(A, torch.zeros(3, 3, dtype=torch.float64), ASCENDING, beta=0.5)
    second, _ = gradvac_weights(A, rho, ASCENDING, beta=0.5)
    close(first, pcgrad_weights(A, ASCENDING), 1e-12)
    close(second, [1.470368, 1.276619, 1.385231])
    close(second @ G, [-0.390254, -0.108612, 4.325968, 2.359487])


def test_printed_graddrop():
    draw = torch.tensor([0.3, 0.6, 0.9, 0.1], dtype=torch.float64)
    close(graddrop_direction(G, draw, torch.zeros(3)), [1.5, -1, 3, 3], 1e-12)
    close(graddrop_direction(G, draw, torch.full((3,), 0.5)), [0.5, -0.5, 3, 2.5], 1e-12)


def test_printed_cagrad():
    weights = CAGrad(3, c=0.5).weights(A)
    close(weights, [0.333333, 0.356774, 0.754913])
    close(weights @ G, [-0.002758, -0.398139, 1.421580, 0.736988])


def test_printed_solutions():
    for balancer, weights, vector in (
        (IMTLG(3), [0.442522, 0.346449, 0.211029], [-0.144861, 0.135420, 1.096072, 0.596824]),
        (NashMTL(3, max_norm=None), [0.461318, 0.420471, 0.600859], [-0.079194, -0.180388, 1.523495, 0.800095]),
        (AlignedMTL(3), [0.138929, 0.139323, 0.213082], [-0.033176, -0.073759, 0.490941, 0.279041]),
        (FairGrad(3, alpha=2.0), [0.336233, 0.321150, 0.525168], [-0.043483, -0.204018, 1.197634, 0.627217]),
        (UPGrad(3), [0.611111, 0.5, 0.333333], [-0.222222, 0.166667, 1.555556, 0.888889]),
        (UPGrad(3, torchjd_compat=True), [0.611008, 0.499974, 0.333333], None),
        (DualProj(3), [1 / 3] * 3, None),
        (ConFIG(3), [1.262058, 0.988060, 0.601846], [-0.413139, 0.386214, 3.125964, 1.702120]),
        (GradOPS(3), [1.438340, 1.218798, 0.0219436], [-0.988284, 1.196855, 2.898624, 2.218054]),
    ):
        found = balancer.weights(A)
        close(found, weights)
        if vector is not None:
            close(found @ G, vector)
    assert float((NashMTL(3, max_norm=None).weights(A) @ G).norm()) == pytest.approx(3**0.5, rel=1e-12)


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document():
    root = os.environ.get("COUNTERPOINT_ORACLES")
    path = Path(root or "") / "balancing_oracles.json"
    if not root or not path.is_file():
        pytest.skip("COUNTERPOINT_ORACLES does not name a folder with balancing_oracles.json")
    return json.loads(path.read_text())


def check_equal_weighting_sum(case, jacobian):
    weights = Equal(len(jacobian)).weights(None, torch.ones(len(jacobian)))
    agree(weights, case["expected"]["weights"], case["tolerance_rel"])
    agree(weights.double() @ jacobian, case["expected"]["vector"], case["tolerance_rel"])


def check_uncertainty_weighting(case, jacobian):
    inputs, expected = case["inputs"], case["expected"]
    balancer = Uncertainty(len(jacobian), initial=inputs["s"]).double()
    losses = torch.tensor(inputs["losses"], dtype=torch.float64)
    leaf = losses.clone().requires_grad_()
    total = balancer.objective(leaf)
    by_loss, *by_own = torch.autograd.grad(total, [leaf, *balancer.parameters()])
    for found, name in ((total.detach(), "total"), (by_loss, "effective_weights"), (torch.stack(by_own), "s_gradient")):
        agree(found, expected[name], case["tolerance_rel"])
    at_optimum = Uncertainty(len(jacobian), initial=expected["s_optimum"]).double()
    at_optimum.backward(torch.ones(1, dtype=torch.float64, requires_grad=True) * losses)
    assert all(abs(float(s.grad)) < 1e-7 for s in at_optimum.parameters())  # s was rounded to float32 on the way in


def check_imtl_l(case, jacobian):
    losses, expected = torch.tensor(case["inputs"]["losses"], dtype=torch.float64), case["expected"]
    balancer = IMTLL(len(jacobian)).double()
    total = balancer.objective(losses)
    by_own = torch.stack(torch.autograd.grad(total, list(balancer.parameters())))
    agree(total.detach(), expected["total_at_0"], case["tolerance_rel"])
    agree(by_own, expected["s_gradient_at_0"], case["tolerance_rel"])
    weights = IMTLL(len(jacobian), initial=expected["s_optimum"]).double().weights(None, losses)
    close(weights * losses, [1.0] * len(jacobian), 1e-6)  # s was rounded to float32 on the way in


def check_uw_so(case, jacobian):
    losses, expected = torch.tensor(case["inputs"]["losses"], dtype=torch.float64), case["expected"]
    found = UWSO(len(jacobian), temperature=case["hyperparameters"]["T"]).weights(None, losses)
    agree(found, expected["weights"], case["tolerance_rel"])
    agree(UWSO(len(jacobian), form="inverse").weights(None, losses), expected["uw_o_weights"], case["tolerance_rel"])


def check_dwa(case, jacobian):
    inputs, balancer = case["inputs"], DWA(len(jacobian), temperature=case["hyperparameters"]["T"])
    for name in ("mean_loss_epoch_t_minus_2", "mean_loss_epoch_t_minus_1"):
        losses = torch.tensor(inputs[name], dtype=torch.float64)
        agree(balancer.weights(None, losses * 0.5), np.ones(len(jacobian)), 1e-15)
        balancer.weights(None, losses * 1.5)
        balancer.end_epoch()
    found = balancer.weights(None, torch.ones(len(jacobian), dtype=torch.float64))
    agree(found, case["expected"]["weights"], case["tolerance_rel"])


def check_gls(case, jacobian):
    losses = torch.tensor(case["inputs"]["losses"], dtype=torch.float64)
    balancer = GLS(len(jacobian))
    weights = balancer.weights(None, losses)
    agree(balancer.objective(losses), case["expected"]["total"], case["tolerance_rel"])
    agree(weights, case["expected"]["effective_weights"], case["tolerance_rel"])
    agree(weights @ jacobian, case["expected"]["vector"], case["tolerance_rel"])


def check_famo(case, jacobian):
    options, inputs = case["hyperparameters"], case["inputs"]
    balancer = FAMO(len(jacobian), minimum=options["min_losses"], learning_rate=0.025, decay=options["gamma"])
    series = [torch.tensor(inputs[f"losses_t{t}"], dtype=torch.float64) for t in range(options["calls"] + 1)]
    for step, (losses, after) in enumerate(itertools.pairwise(series), 1):
        expected, tolerance = case["expected"][f"step{step}"], case["tolerance_rel"]
        logits = balancer.logits.clone()
        state = copy.deepcopy(balancer.state_dict())
        agree(balancer.objective(losses), expected["surrogate_loss"], tolerance)
        balancer.load_state_dict(state)
        agree(balancer.weights(None, losses), expected["effective_loss_weights"], tolerance)
        gradient = famo_gradient(losses + 1e-8, after + 1e-8, logits)
        agree(gradient, expected["logit_gradient"], tolerance)
        balancer.after_step(after)
        agree(balancer.logits, expected["logits_after"], tolerance)


def check_spmtl_weights(case, jacobian):
    options, tolerance = case["hyperparameters"], case["tolerance_rel"]
    losses = torch.tensor(case["inputs"]["instance_losses_of_one_task"], dtype=torch.float64)
    found = self_paced_weights(losses, threshold=options["lambda"], group_penalty=options["gamma"])
    agree(found, case["expected"]["v"], tolerance)


def check_rlw(case, jacobian):
    draws = torch.tensor(case["inputs"]["z"], dtype=torch.float64)
    agree(rlw_weights(draws), case["expected"]["weights"], case["tolerance_rel"])


def check_mgda(case, jacobian):
    kind, expected, tolerance = case["hyperparameters"]["normalization"], case["expected"], case["tolerance_rel"]
    losses = torch.tensor(case["inputs"]["losses"], dtype=torch.float64) if "inputs" in case else None
    normalized = MGDA(len(jacobian), normalization=kind, apply_to="normalized").weights(gram(jacobian), losses)
    original = MGDA(len(jacobian), normalization=kind).weights(gram(jacobian), losses)
    agree(normalized @ jacobian, expected["vector"], tolerance)
    if kind == "none":
        agree(normalized, expected["weights"], tolerance)
        agree((normalized @ jacobian).norm(), expected["min_norm"], tolerance)
    else:
        agree(original, expected["weights_on_normalized_rows"], tolerance)
        agree(normalized, expected["weights_on_original_rows"], tolerance)


def check_mgda_two_tasks(case, jacobian):
    products = torch.tensor(case["inputs"]["gram"], dtype=torch.float64)
    weights, residual = mgda_weights(products)
    agree(weights, case["expected"]["weights"], case["tolerance_rel"])
    assert abs(float(weights @ products @ weights) - case["expected"]["min_norm_squared"]) < 1e-12
    assert residual < 1e-12


def check_pcgrad(case, jacobian):
    orders = torch.tensor([[j for j in range(len(jacobian)) if j != i] for i in range(len(jacobian))])
    if case["hyperparameters"]["order"] == "descending":
        orders = orders.flip(1)
    weights = pcgrad_weights(gram(jacobian), orders, reduction=case["hyperparameters"]["reduction"])
    agree(weights, case["expected"]["weights"], case["tolerance_rel"])
    agree(weights @ jacobian, case["expected"]["vector"], case["tolerance_rel"])
    rows = projected_rows(gram(jacobian), orders)
    agree(rows, case["expected"]["per_task_weight_rows"], case["tolerance_rel"])


def check_pcgrad_two_tasks_equals_twice_upgrad(case, jacobian):
    weights = pcgrad_weights(A[:2, :2], torch.tensor([[1], [0]]))
    agree(weights, case["expected"]["pcgrad_weights"], case["tolerance_rel"])
    agree(
        UPGrad(2, preference=[0.5, 0.5]).weights(A[:2, :2]), case["expected"]["upgrad_weights"], case["tolerance_rel"]
    )


def check_gradvac(case, jacobian):
    count = len(jacobian)
    orders = torch.tensor([[j for j in range(count) if j != i] for i in range(count)])
    rho = torch.full((count, count), case["hyperparameters"]["rho_init"], dtype=torch.float64)
    for step in ("step1", "step2"):
        expected = case["expected"][step]
        weights, rho = gradvac_weights(gram(jacobian), rho, orders, beta=case["hyperparameters"]["beta"])
        agree(weights, expected["weights"], case["tolerance_rel"])
        agree(weights @ jacobian, expected["vector"], case["tolerance_rel"])
        agree(rho, expected["rho"], case["tolerance_rel"])


def check_gradvac_single_update(case, jacobian):
    rho = torch.tensor([[0.0, case["hyperparameters"]["target"]], [-0.999, 0.0]], dtype=torch.float64)
    weights, _ = gradvac_weights(A[:2, :2], rho, torch.tensor([[1], [0]]), beta=0.0)
    agree(weights[1] - 1, case["expected"]["coefficient"], case["tolerance_rel"])
    agree(G[0] + (weights[1] - 1) * G[1], case["expected"]["modified"], case["tolerance_rel"])


def check_graddrop(case, jacobian):
    draw = torch.tensor(case["inputs"]["U"], dtype=torch.float64)
    leak = torch.full((len(jacobian),), case["hyperparameters"]["leak"])
    agree(graddrop_direction(jacobian, draw, leak), case["expected"]["vector"], case["tolerance_rel"])


def check_cagrad(case, jacobian):
    options = case["hyperparameters"]
    weights = CAGrad(len(jacobian), c=options["c"], rescale=options["rescale"]).weights(gram(jacobian))
    agree(weights @ jacobian, case["expected"]["vector"], case["tolerance_rel"])
    agree(weights, case["expected"]["weights"], case["tolerance_rel"])


def check_rotograd_scale(case, jacobian):
    expected, tolerance = case["expected"], case["tolerance_rel"]
    initial = torch.tensor(case["inputs"]["initial_norms"], dtype=torch.float64)
    weights = rotograd_weights(jacobian.norm(dim=1), initial)
    agree(weights, expected["weights"], tolerance)
    agree(weights @ jacobian, expected["vector"], tolerance)
    balancer = RotoGrad(len(jacobian))
    features = torch.zeros(1, jacobian.shape[1], dtype=torch.float64, requires_grad=True)
    for task in range(len(jacobian)):
        balancer.transform(features, task)
    balancer.combine(jacobian / jacobian.norm(dim=1, keepdim=True) * initial[:, None])
    agree(balancer.combine(jacobian), expected["vector"], tolerance)


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
CHECKS |= oracles_gram.CHECKS | oracles_losses.CHECKS | oracles_columns.CHECKS | oracles_batches.CHECKS


@pytest.mark.parametrize("method", sorted(CHECKS))
def test_file_of_oracles(document, method):
    cases = [case for case in document["cases"] if case["method"] == method]
    assert cases
    for case in cases:
        rows = document["matrices"].get(case["matrix"] or "", document["matrices"]["G3x4"])
        CHECKS[method](case, torch.tensor(rows, dtype=torch.float64))


def test_every_claimed_oracle_has_a_check():
    assert {case.oracle for case in CASES if case.oracle} <= set(CHECKS)


def test_float32_rows_give_the_float64_weights(document):
    # each product of float32 rows, summed in float64, is right to about 1e-7; the weights amplify that. Aligned-MTL
    # divides by the root of the least eigenvalue, 3e-7 of the largest one: 1e-7 becomes 0.1 there, in one direction
    methods = [CAGrad, GradVac, IMTLG, NashMTL, FairGrad, UPGrad, DualProj, ConFIG, GradOPS]
    for name, rows in document["matrices"].items():
        jacobian = torch.tensor(rows, dtype=torch.float64)
        for method in methods:
            balancer = method(len(jacobian))
            if balancer.generator is not None:
                balancer.generator.manual_seed(0)
            state = copy.deepcopy(balancer.state_dict())
            exact = balancer.weights(gram(jacobian))
            balancer.load_state_dict(state)
            rounded = balancer.weights(gram(jacobian.float()))
            assert float((exact - rounded).abs().max() / exact.abs().max()) < 1e-5, (name, method)


def test_printed_rlw_and_its_expectation():
    balancer = BY_KEY["rlw"].build(4, generator=torch.Generator().manual_seed(0))
    for distribution in ("normal", "uniform", "dirichlet", "bernoulli"):
        balancer = RLW(4, distribution=distribution, generator=torch.Generator().manual_seed(0))
        draws = torch.stack([balancer.weights(None, torch.ones(4, dtype=torch.float64)) for _ in range(4000)])
        spread = float(draws.std(dim=0).max()) / math.sqrt(len(draws))
        assert float((draws.mean(dim=0) - 0.25).abs().max()) < 5 * spread + 1e-12, distribution
        assert float(draws.std()) > 0.02, distribution
