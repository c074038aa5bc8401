"""Checks of GradNorm and of the methods that read three batches against the file of oracle values."""

import numpy as np
import torch

from balancers.comparison import agree
from counterpoint.balancers import GradNorm, MoDo, SDMGrad
from counterpoint.balancers.gradnorm import gradnorm_gradient, renormalized
from counterpoint.balancers.sdmgrad import sdmgrad_weights
from counterpoint.linalg import gram, inner_products


def check_gradnorm(case, jacobian):
    inputs = {
        name: torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("w", "losses", "initial_losses")
    }
    options, expected, tolerance = case["hyperparameters"], case["expected"], case["tolerance_rel"]
    lengths = jacobian.norm(dim=1)
    ratios = inputs["losses"] / inputs["initial_losses"]
    gradient, target = gradnorm_gradient(lengths, inputs["w"], ratios, alpha=options["alpha"])
    agree(gradient, expected["dL_dw"], tolerance)
    agree(target, expected["target"], tolerance)
    agree((inputs["w"] * lengths - target).abs().sum(), expected["L_grad"], tolerance)
    stepped = inputs["w"] - options["lr"] * gradient
    total = float(inputs["w"].sum())
    agree(renormalized(stepped, total, smallest=-torch.inf), expected["w_after_sgd_and_renorm"], tolerance)

    balancer = GradNorm(
        len(jacobian),
        alpha=options["alpha"],
        learning_rate=options["lr"],
        update="sgd",
        initial_losses=case["inputs"]["initial_losses"],
    )
    balancer.task_weights.copy_(inputs["w"])
    agree(balancer.weights(gram(jacobian), inputs["losses"]), case["inputs"]["w"], 0)  # the model uses those before
    bounded = np.maximum(stepped.numpy(), 1e-3)  # the file has no bound: one weight of it is negative
    agree(balancer.task_weights, bounded * total / bounded.sum(), tolerance)


def check_sdmgrad(case, jacobian):
    pull = case["hyperparameters"]["lambda"]
    expected, tolerance = case["expected"], case["tolerance_rel"]
    w = torch.tensor(expected["simplex_w"], dtype=torch.float64)
    agree((w + pull / len(w)) / (1 + pull) @ jacobian, expected["vector"], tolerance)
    if case["hyperparameters"]["solver"] == "exact":  # a step from the solution stays there
        stepped = sdmgrad_weights(gram(jacobian), w, pull=pull, inner_steps=1, learning_rate=0.01)
        agree(stepped, expected["simplex_w"], tolerance)
        return
    balancer = SDMGrad(len(jacobian), pull=pull)
    agree(balancer.weights(gram(jacobian)) @ jacobian, expected["vector"], tolerance)
    agree(balancer.task_weights, expected["simplex_w"], tolerance)


def check_modo(case, jacobian):
    options = case["hyperparameters"]
    balancer = MoDo(len(jacobian), learning_rate=options["gamma"], rho=options["rho"])
    weights = balancer.weights(inner_products(jacobian, jacobian.flip(1)))
    agree(weights, case["expected"]["lam"], case["tolerance_rel"])
    agree(weights @ (0.5 * jacobian), case["expected"]["vector"], case["tolerance_rel"])


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
