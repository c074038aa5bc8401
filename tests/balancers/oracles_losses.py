"""Checks of further loss balancers against the file of oracle values."""

import torch

from balancers.comparison import agree
from counterpoint.balancers import DTP, LDCMTL, OSMTL, STCH
from counterpoint.balancers.dtp import dtp_weights
from counterpoint.balancers.ldc_mtl import ldc_mtl_objective, normalized_losses
from counterpoint.balancers.osmtl import osmtl_relation
from counterpoint.balancers.stch import stch_log_objective


def check_stch(case, jacobian):
    inputs, expected, tolerance = case["inputs"], case["expected"], case["tolerance_rel"]
    losses, mu = torch.tensor(inputs["losses"], dtype=torch.float64), case["hyperparameters"]["mu"]
    count = len(losses)
    if "nadir" not in inputs:
        for preference in (inputs["lambda"], None):  # the default is 1 / K, as in the file
            balancer = STCH(count, variant="paper", mu=mu, preference=preference, ideal_point=inputs["ideal_point"])
            agree(balancer.objective(losses), expected["total"], tolerance)
            agree(balancer.weights(None, losses), expected["effective_weights"], tolerance)
        return
    nadir = torch.tensor(inputs["nadir"], dtype=torch.float64)
    balancer = STCH(count, mu=mu, warmup_epochs=0)
    balancer.weights(None, nadir * 0.5)
    balancer.weights(None, nadir * 1.5)
    balancer.end_epoch()  # the mean of the first epoch is the nadir
    weights = balancer.weights(None, losses)
    agree(weights, expected["effective_weights"], tolerance)
    agree(weights @ jacobian, expected["vector"], tolerance)
    subtracted = count * (losses / nadir).log().max()  # the released code takes it off and does not add it again
    agree(stch_log_objective(losses, nadir, mu=mu) - subtracted, expected["total"], 10 * tolerance)


def check_dtp(case, jacobian):
    inputs, expected, tolerance = case["inputs"], case["expected"], case["tolerance_rel"]
    gamma = case["hyperparameters"]["gamma"]
    balancer = DTP(len(jacobian), perfect=100.0, gamma=gamma, ema_new_weight=1 - case["hyperparameters"]["alpha_ema"])
    losses = torch.ones(len(jacobian), dtype=torch.float64)
    for name in ("kappa_ema", "kappa_new"):
        balancer.observe_metrics([100 * kpi for kpi in inputs[name]], higher_is_better=[True] * len(jacobian))
        if name == "kappa_ema":  # the first metric starts the running mean
            agree(balancer.weights(None, losses), expected["weights"], tolerance)
    agree(balancer.kpi, expected["kappa_ema_next"], tolerance)
    kpi = torch.tensor(inputs["kappa_ema"], dtype=torch.float64)
    agree(dtp_weights(kpi, torch.full_like(kpi, gamma)), expected["weights"], tolerance)


def check_ldc_mtl(case, jacobian):
    inputs, expected, tolerance = case["inputs"], case["expected"], case["tolerance_rel"]
    losses, first, router = (
        torch.tensor(inputs[name], dtype=torch.float64) for name in ("losses", "initial_losses", "router_output")
    )
    lam = case["hyperparameters"]["lambda"]
    y = normalized_losses(losses, first, "initial", smallest=float(first.min()))
    agree(ldc_mtl_objective(y, router, lam=0.0), expected["weighted"], tolerance)
    penalty = ldc_mtl_objective(y, router, lam=1.0) - ldc_mtl_objective(y, router, lam=0.0)
    agree(penalty, expected["discrepancy"], tolerance)
    balancer = LDCMTL(len(losses), normalization="initial", lam=lam, initial=torch.logit(router).tolist()).double()
    agree(
        balancer.objective(losses).detach(), expected["total"], 1e-6
    )  # the router was rounded to float32 on the way in


def check_osmtl_relation(case, jacobian):
    options, inputs = case["hyperparameters"], case["inputs"]
    cross = torch.tensor(inputs["loss_of_model_k_on_task_m"], dtype=torch.float64)
    eta = torch.tensor(inputs["eta"], dtype=torch.float64)
    after = osmtl_relation(eta.log(), cross, temperature=options["lambda"]).exp()
    agree(after, case["expected"]["eta_next"], case["tolerance_rel"])
    settings = {"temperature": options["lambda"], "alpha": options["alpha"]}
    online, batch = OSMTL(len(cross), **settings), OSMTL(len(cross), update="batch", **settings)
    online.scalars(list(cross))
    agree(online.log_eta.exp(), case["expected"]["eta_next"], case["tolerance_rel"])
    for balancer in (online, batch):  # the weights of the next step, and, in closed form, of this one
        leaf = cross.clone().requires_grad_()
        found = torch.autograd.grad(sum(balancer.scalars(list(leaf))), leaf)[0]
        agree(found, case["expected"]["mu_next"], case["tolerance_rel"])


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
