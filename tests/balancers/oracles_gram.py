"""Checks of the methods that solve a small problem on the Gram matrix against the file of oracle values."""

import numpy as np
import torch

from balancers.comparison import agree
from counterpoint.balancers import IMTL, PIVRG, AlignedMTL, ConFIG, DualProj, FairGrad, GradOPS, NashMTL, UPGrad
from counterpoint.balancers.fairgrad import fairgrad_weights
from counterpoint.balancers.gradops import deconflicted_rows
from counterpoint.balancers.imtl_g import imtl_g_weights
from counterpoint.balancers.nash_mtl import nash_mtl_weights
from counterpoint.balancers.pivrg import pivrg_demands
from counterpoint.linalg import gram


def agree_in_weights_and_vector(balancer, jacobian, case):
    weights = balancer.weights(gram(jacobian))
    agree(weights, case["expected"]["weights"], case["tolerance_rel"])
    agree(weights @ jacobian, case["expected"]["vector"], case["tolerance_rel"])


def check_imtl_g(case, jacobian):
    weights = imtl_g_weights(gram(jacobian))
    agree(weights, case["expected"]["weights"], case["tolerance_rel"])
    agree(weights @ jacobian, case["expected"]["vector"], case["tolerance_rel"])
    projections = jacobian @ (weights @ jacobian) / jacobian.norm(dim=1)
    agree(projections, np.full(len(jacobian), case["expected"]["common_projection"]), case["tolerance_rel"])


def check_imtl_g_negative_normaliser(case, jacobian):
    products = gram(torch.tensor(case["inputs"]["G"], dtype=torch.float64))
    for guard, name in ((True, "weights_sign_guard"), (False, "weights_paper")):
        agree(imtl_g_weights(products, sign_guard=guard), case["expected"][name], case["tolerance_rel"])


def check_imtl_hybrid(case, jacobian):
    losses = torch.tensor(case["inputs"]["losses"], dtype=torch.float64)
    balancer = IMTL(len(jacobian), initial=case["inputs"]["s"]).double()
    with torch.no_grad():  # float32 until here
        for scalar, value in zip(balancer.first.log_scale, case["inputs"]["s"], strict=True):
            scalar.fill_(value)
    weights = balancer.weights(gram(jacobian), losses)
    scales = torch.tensor(case["inputs"]["s"], dtype=torch.float64).exp()
    agree(weights / scales, case["expected"]["alpha"], case["tolerance_rel"])
    agree(weights @ jacobian, case["expected"]["vector"], case["tolerance_rel"])
    leaf = torch.zeros(jacobian.shape[1], dtype=torch.float64, requires_grad=True)
    balancer.backward(jacobian @ leaf + losses)
    own = torch.stack([scalar.grad for scalar in balancer.first.log_scale])
    agree(own, case["expected"]["s_gradient"], case["tolerance_rel"])
    agree(leaf.grad, case["expected"]["vector"], case["tolerance_rel"])


def check_config(case, jacobian):
    agree_in_weights_and_vector(ConFIG(len(jacobian)), jacobian, case)
    v = ConFIG(len(jacobian)).weights(gram(jacobian)) @ jacobian
    cosines = jacobian @ v / jacobian.norm(dim=1) / v.norm()
    agree(cosines, np.full(len(jacobian), case["expected"]["cosine_to_every_task"]), case["tolerance_rel"])
    parallel = imtl_g_weights(gram(jacobian)) @ jacobian
    assert abs(float(parallel @ v / parallel.norm() / v.norm()) - 1) < 1e-9


def check_nash_mtl(case, jacobian):
    agree_in_weights_and_vector(NashMTL(len(jacobian), max_norm=None), jacobian, case)
    clipped = NashMTL(len(jacobian)).weights(gram(jacobian)) @ jacobian
    agree(clipped, case["expected"]["vector_after_max_norm_1"], case["tolerance_rel"])
    assert nash_mtl_weights(gram(jacobian))[1] < 1e-12


def check_fairgrad(case, jacobian):
    alpha = case["hyperparameters"]["alpha"]
    agree_in_weights_and_vector(FairGrad(len(jacobian), alpha=alpha), jacobian, case)
    assert fairgrad_weights(gram(jacobian), alpha=alpha)[1] < 1e-12


def check_pivrg(case, jacobian):
    options, drops = case["hyperparameters"], case["inputs"]["scores_percent_drop"]
    bounds = {"bound": options["bound"], "min_temperature": options["min_temperature"]}
    demands = pivrg_demands(torch.tensor(drops, dtype=torch.float64), **bounds)
    agree(demands, case["expected"]["performance_weights"], case["tolerance_rel"])
    balancer = PIVRG(references=[50.0] * len(drops), **bounds)
    higher = [task % 2 == 0 for task in range(len(drops))]
    metrics = [50 - drop / 2 if up else 50 + drop / 2 for up, drop in zip(higher, drops, strict=True)]
    balancer.observe_metrics(metrics, higher_is_better=higher)
    agree_in_weights_and_vector(balancer, jacobian, case)


def check_aligned_mtl(case, jacobian):
    options = case["hyperparameters"]
    count = len(jacobian)
    preference = [1.0] * count if options["preference"] == "ones" else None
    balancer = AlignedMTL(count, scale_mode=options["scale_mode"], preference=preference)
    agree_in_weights_and_vector(balancer, jacobian, case)
    rows = [AlignedMTL(count, scale_mode=options["scale_mode"], preference=unit.tolist()) for unit in torch.eye(count)]
    matrix = torch.stack([one.weights(gram(jacobian)) for one in rows])
    agree(matrix, case["expected"]["balance_matrix"], case["tolerance_rel"])


def check_upgrad(case, jacobian):
    agree_in_weights_and_vector(
        UPGrad(len(jacobian), torchjd_compat=case["hyperparameters"]["reg_eps"] > 0), jacobian, case
    )


def check_dualproj(case, jacobian):
    agree_in_weights_and_vector(
        DualProj(len(jacobian), torchjd_compat=case["hyperparameters"]["reg_eps"] > 0), jacobian, case
    )


def check_gradops(case, jacobian):
    agree_in_weights_and_vector(GradOPS(len(jacobian)), jacobian, case)
    agree(deconflicted_rows(gram(jacobian)), case["expected"]["per_task_weight_rows"], case["tolerance_rel"])


def check_gradops_tradeoff(case, jacobian):
    weights = GradOPS(len(jacobian), alpha=case["hyperparameters"]["alpha"]).weights(gram(jacobian))
    expected = torch.tensor(case["expected"]["task_weights"], dtype=torch.float64) @ deconflicted_rows(gram(jacobian))
    agree(weights, expected, case["tolerance_rel"])
    agree(weights @ jacobian, case["expected"]["vector"], case["tolerance_rel"])


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
