"""Checks of the methods with a state per coordinate against the file of oracle values."""

import torch

from balancers.comparison import agree
from counterpoint.balancers import DBMTL, SAMGS, ExcessMTL, GCond, MoCo
from counterpoint.balancers.db_mtl import longest_length_weights
from counterpoint.balancers.excess_mtl import excess_risks
from counterpoint.balancers.moco import moco_weights, scaled_by_loss
from counterpoint.balancers.sam_gs import mean_magnitude_similarity
from counterpoint.linalg import gram

ADDED = 1e-8  # to lengths by the released codes and not by the classes
UNADDED = 2e-5  # the shortest gradient is 8e-4 long: relative change of its length by what is added


def check_db_mtl(case, jacobian):
    options, expected = case["hyperparameters"], case["expected"]
    losses = torch.tensor(case["inputs"]["losses"], dtype=torch.float64)
    rows, mean = jacobian / (losses[:, None] + 1e-8), torch.zeros_like(jacobian)
    balancer = DBMTL(len(jacobian), beta=options["beta"], beta_sigma=options["beta_sigma"])
    for step in (1, 2):
        beta = options["beta"] / step ** options["beta_sigma"]
        mean = beta * mean + (1 - beta) * rows
        alpha = longest_length_weights(gram(mean), eps=ADDED)
        agree(alpha, expected[f"step{step}"]["alpha"], case["tolerance_rel"])
        agree(alpha @ mean, expected[f"step{step}"]["vector"], case["tolerance_rel"])
        agree(balancer.combine(jacobian, losses), expected[f"step{step}"]["vector"], UNADDED)
        agree(balancer.mean, mean, 1e-14)


def check_moco(case, jacobian):
    options, expected = case["hyperparameters"], case["expected"]
    count, libmtl = len(jacobian), options["variant"].startswith("LibMTL")
    losses = torch.tensor(case.get("inputs", {"losses": [1.0] * count})["losses"], dtype=torch.float64)
    names = ("beta", "beta_sigma", "gamma", "gamma_sigma", "rho")
    variant = "libmtl" if libmtl else "paper"
    balancer = MoCo(count, variant=variant, **{name: options[name] for name in names})
    rows = scaled_by_loss(jacobian, losses, eps=ADDED) if libmtl else jacobian
    weights, tracked = torch.full((count,), 1 / count, dtype=torch.float64), torch.zeros_like(rows)
    for step in (1, 2):
        tracked = tracked - options["beta"] / step ** options["beta_sigma"] * (tracked - rows)
        rate = options["gamma"] / step ** options["gamma_sigma"]
        weights = moco_weights(gram(tracked), weights, rate=rate, rho=options["rho"], variant=variant)
        agree(weights, expected[f"step{step}"]["lam"], case["tolerance_rel"])
        agree(weights @ tracked, expected[f"step{step}"]["vector"], case["tolerance_rel"])
        tolerance = UNADDED if libmtl else case["tolerance_rel"]
        agree(balancer.combine(jacobian, losses), expected[f"step{step}"]["vector"], tolerance)
        agree(balancer.task_weights, expected[f"step{step}"]["lam"], tolerance)


def check_sam_gs(case, jacobian):
    options, expected = case["hyperparameters"], case["expected"]
    balancer = SAMGS(len(jacobian), beta1=options["beta1"], beta2=options["beta2"], gamma=options["gamma"])
    for step, factor in (("step1", 1.0), ("step2", 1.5)):
        agree(mean_magnitude_similarity(gram(jacobian * factor)), expected[step]["mean_gms"], case["tolerance_rel"])
        agree(balancer.combine(jacobian * factor), expected[step]["vector"], case["tolerance_rel"])


def check_excess_mtl(case, jacobian):
    options, expected = case["hyperparameters"], case["expected"]
    balancer = ExcessMTL(len(jacobian), eta=options["eta"], eps=options["eps"])
    for number, scales in enumerate(case["inputs"]["row_scale_per_call"], 1):
        rows = jacobian * torch.tensor(scales, dtype=torch.float64)[:, None]
        direction, weights = balancer.aggregate(rows, None, tuple(range(len(rows))))
        agree(weights, expected[f"step{number}"]["weights"], case["tolerance_rel"])
        agree(direction, weights @ rows, 1e-14)
        found = excess_risks(rows, balancer.squares, eps=options["eps"])
        agree(found, expected[f"step{number}"]["excess"], case["tolerance_rel"])


def check_gcond(case, jacobian):
    options, expected = case["hyperparameters"], case["expected"]
    balancer = GCond(
        len(jacobian),
        surgery="zones" if "zones" in options["mode"] else options["mode"],
        thresholds=options["thresholds"],
        power=options["remap_power"],
    )
    agree(balancer.combine(jacobian), expected["vector"], case["tolerance_rel"])
    assert int(balancer.winner) == expected["resolved_pairs_cos_i_j_winner"][-1][-1]
    assert int(balancer.streak) == len(expected["resolved_pairs_cos_i_j_winner"])
    bare = GCond(len(jacobian), surgery=balancer.surgery, momentum=0.0)
    weights = bare.aggregate(jacobian, None, tuple(range(len(jacobian))))[1]
    agree(weights, expected["weights"], case["tolerance_rel"])


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
