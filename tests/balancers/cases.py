"""One row per registered balancer: how to build it and what it claims. The tests of this folder run over the rows."""

import dataclasses
from collections.abc import Callable
from typing import Any

from counterpoint.balancers import BALANCERS, Balancer

Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is claimed of a balancer.

    Attributes:
        key: Key in the registry.
        options: Constructor arguments, from the number of tasks.
        variants: Further options that must keep the contract too.
        kind: What it reads: "losses", "gram", "cross_gram" or "jacobian".
        claims: Properties, by the name of their test: simplex (weights at least 0, sum 1), sum_k (sum K), permutation
            (tasks reordered, weights reordered), degree (exponent d: v(c G) = c^d v(G)), agree (the plain sum if no two
            gradients conflict), descent (<v, g_i> >= 0 for independent gradients), row_scale (what stays if gradients
            are scaled, each by its own factor: "vector" or "direction"), zero_row (a zero gradient is "left out", with
            weight 0, or "counted" in a mean over the tasks), uniform_at_zero (1 / K if all gradients are zero).
        oracle: Name of the method in the file of oracle values, "" if it is not there.
        in_expectation: Random, so claims about single results do not apply.
    """

    key: str
    kind: str
    options: Callable[[int], Options] = lambda _: {}
    variants: tuple[Options, ...] = ()
    claims: dict[str, Any] = dataclasses.field(default_factory=dict)
    oracle: str = ""
    in_expectation: bool = False

    def build(self, num_tasks: int, **options: Any) -> Balancer:
        return BALANCERS.create(self.key, num_tasks, **{**self.options(num_tasks), **options})


_ZERO = {"zero_row": "left out", "uniform_at_zero": True}
_COUNTED = {"zero_row": "counted", "uniform_at_zero": True}

CASES = (
    Case("equal", "losses", claims={"agree": "sum"}, oracle="equal_weighting_sum"),
    Case("fixed", "losses", options=lambda k: {"task_weights": [1.0 + i for i in range(k)]}),
    Case(
        "rlw",
        "losses",
        variants=({"distribution": "uniform"}, {"distribution": "dirichlet"}, {"distribution": "bernoulli"}),
        claims={"simplex": True},
        oracle="rlw",
        in_expectation=True,
    ),
    Case(
        "uncertainty",
        "losses",
        variants=({"form": "laplace"}, {"form": "classification"}, {"regularizer": "log1p", "initial": -0.5}),
        claims={"permutation": True},
        oracle="uncertainty_weighting",
    ),
    Case(
        "imtl",
        "gram",
        variants=({"initial": -0.5}, {"sign_guard": False}, {"task_gradients": "weighted"}),
        claims={"permutation": True, "degree": 1, "descent": True, "row_scale": "direction", **_ZERO},
        oracle="imtl_hybrid",
    ),
    Case("imtl_l", "losses", variants=({"initial": -0.5},), claims={"permutation": True}, oracle="imtl_l"),
    Case(
        "uw_so",
        "losses",
        variants=({"temperature": 20.0}, {"form": "inverse"}),
        claims={"permutation": True},  # form="inverse" leaves the simplex
        oracle="uw_so",
    ),
    Case("gls", "losses", claims={"permutation": True}, oracle="gls"),
    Case("dwa", "losses", variants=({"period": 1},), claims={"permutation": True, "sum_k": True}, oracle="dwa"),
    Case(
        "scale_invariant",
        "losses",
        variants=({"form": "log1p"}, {"eps": 1e-3}),
        claims={"permutation": True},
    ),
    Case(
        "stch",
        "losses",
        options=lambda _: {"warmup_epochs": 1},
        variants=(
            {"warmup_epochs": 0, "mu": 0.1},
            {"warmup_epochs": 0, "period": 1, "mu": 1e-3},
            {"variant": "paper"},
            {"variant": "paper", "mu": 1e-3, "ideal_point": 0.05},
        ),
        claims={"permutation": True},
        oracle="stch",
    ),
    Case(
        "lsb",
        "losses",
        variants=({"period": 1}, {"period": 1, "gamma": 0.0}, {"period": 1, "normalization": "initial"}),
        claims={"permutation": True, "sum_k": True},
    ),
    Case(
        "dtp",
        "losses",
        options=lambda _: {"perfect": 100.0},
        variants=({"gamma": 2.0, "normalize": True}, {"worst": 200.0}),
        claims={"permutation": True},
        oracle="dtp",
    ),
    Case(
        "ldc_mtl",
        "losses",  # the penalty is along a chain, so there is no claim on the order of the tasks
        variants=(
            {"normalization": "initial", "lam": 0.05, "detach_sum": False},
            {"normalization": "log_ratio", "lam": 0.05},
            {"initial": -2.0, "lam": 0.0},
        ),
        oracle="ldc_mtl",
    ),
    Case(
        "famo",
        "losses",
        variants=({"update": "sgd"}, {"minimum": -1.0, "learning_rate": 0.5, "decay": 0.0}),
        claims={"simplex": True, "permutation": True},
        oracle="famo",
    ),
    Case(
        "auto_lambda",
        "losses",
        variants=({"parametrization": "softmax"}, {"primary": [0], "initial": 0.5, "learning_rate": 0.2}),
        claims={"permutation": True},
    ),
    Case(
        "spmtl",
        "losses",
        variants=({"threshold": 0.8, "group_penalty": 0.0}, {"threshold": 2.0, "growth": 1.5, "shrinkage": 2.0}),
        claims={"permutation": True},
        oracle="spmtl_weights",
    ),
    Case(
        "osmtl",
        "losses",  # the battery gives other losses against each label set, so there is no claim on the order of tasks
        variants=({"update": "batch", "temperature": 0.3}, {"include_self": False, "alpha": 0.2}, {"alpha": 1.0}),
        oracle="osmtl_relation",
    ),
    Case(
        "mgda",
        "gram",
        variants=(
            {"normalization": "l2"},
            {"normalization": "loss", "apply_to": "normalized"},
            {"normalization": "loss+"},
            {"task_gradients": "raw", "zero_row_is_stationary": True},
        ),
        claims={"simplex": True, "permutation": True, "degree": 1, "descent": True, **_ZERO},
        oracle="mgda",
    ),
    Case(
        "pcgrad",
        "gram",
        variants=({"reduction": "mean"},),
        claims={"degree": 1, "agree": "sum", **_ZERO},
        oracle="pcgrad",
    ),
    Case(
        "gradvac",
        "gram",
        variants=({"beta": 0.5}, {"reduction": "mean"}),
        claims={"degree": 1, "agree": "sum", **_ZERO},
        oracle="gradvac",
    ),
    Case(
        "cagrad",
        "gram",
        variants=({"c": 0.0}, {"c": 1.0, "rescale": 1}, {"c": 2.0, "rescale": 2}, {"on_stationary": "zero"}),
        claims={"permutation": True, "degree": 1, **_ZERO},
        oracle="cagrad",
    ),
    Case(
        "imtl_g",
        "gram",
        variants=({"sign_guard": False}, {"task_gradients": "weighted"}),
        claims={"permutation": True, "degree": 1, "descent": True, "row_scale": "direction", **_ZERO},
        oracle="imtl_g",
    ),
    Case(
        "nash_mtl",
        "gram",
        variants=({"max_norm": None}, {"update_every": 3}, {"task_gradients": "raw"}),
        claims={"permutation": True, "degree": 0, "descent": True, "row_scale": "vector", **_ZERO},
        oracle="nash_mtl",
    ),
    Case(
        "fairgrad",
        "gram",
        variants=({"alpha": 0.5}, {"alpha": 2.0, "max_norm": 1.0}, {"alpha": 5.0, "task_gradients": "weighted"}),
        claims={"permutation": True, "degree": 0, "descent": True, "row_scale": "vector", **_ZERO},
        oracle="fairgrad",
    ),
    Case(
        "aligned_mtl",
        "gram",
        variants=({"scale_mode": "median"}, {"scale_mode": "rmse", "task_gradients": "weighted"}, {"eps": 1e-7}),
        claims={"permutation": True, "degree": 1, **_COUNTED},
        oracle="aligned_mtl",
    ),
    Case(
        "upgrad",
        "gram",
        variants=({"torchjd_compat": True},),
        claims={"permutation": True, "degree": 1, "agree": "mean", "descent": True, **_COUNTED},
        oracle="upgrad",
    ),
    Case(
        "dual_proj",
        "gram",
        variants=({"torchjd_compat": True},),
        claims={"permutation": True, "degree": 1, "agree": "mean", "descent": True, **_COUNTED},
        oracle="dualproj",
    ),
    Case(
        "con_fig",
        "gram",
        variants=({"length": "min"}, {"length": "harmonic_mean"}, {"length": "task", "length_task": 0}),
        claims={"permutation": True, "degree": 1, "descent": True, "row_scale": "direction", **_ZERO},
        oracle="config",
    ),
    Case(
        "gradops",
        "gram",
        variants=({"alpha": -3.0}, {"alpha": 1.0}),
        claims={"permutation": True, "degree": 1, "agree": "sum", "descent": True, **_ZERO},
        oracle="gradops",
    ),
    Case(
        "pivrg",
        "gram",
        options=lambda k: {"references": [1.0] * k},
        variants=({"max_norm": 1.0}, {"bound": 5.0, "min_temperature": 1.0, "task_gradients": "weighted"}),
        claims={"permutation": True, "degree": -1 / 3, "descent": True, **_ZERO},
        oracle="pivrg",
    ),
    Case(
        "msi",
        "gram",
        variants=(
            {"static_target": 1.0},
            {"static_target": 0.8, "s_max": 3.0, "reduction": "mean"},
            {"rule": "vaccine", "beta": 0.5},
            {"rule": "learned", "learning_rate": 0.5},
            {"rule": "learned", "static_target": 1.0},
        ),
        claims={"permutation": True, "degree": 1, "agree": "sum", **_ZERO},
    ),
    Case(
        "pomsi",
        "gram",
        variants=({"static_target": 0.9}, {"rule": "vaccine", "beta": 0.5}, {"rule": "learned"}),
        claims={"degree": 1, "agree": "sum", **_ZERO},
    ),
    Case(
        "gradnorm",
        "gram",
        variants=(
            {"alpha": 0.0},
            {"update": "sgd", "measure": "shared"},
            {"initial_losses": 2.0, "learning_rate": 0.2},
        ),
        claims={"permutation": True, "degree": 1},
        oracle="gradnorm",
    ),
    Case(
        "sdmgrad",
        "cross_gram",
        variants=({"pull": 0.0}, {"pull": 2.0, "inner_steps": 3, "learning_rate": 0.5, "momentum": 0.0}),
        claims={"simplex": True, "permutation": True, **_ZERO},  # degree 1 but for rounding, which long steps amplify
        oracle="sdmgrad",
    ),
    Case(
        "modo",
        "cross_gram",
        variants=({"learning_rate": 0.1, "rho": 0.0},),
        claims={"simplex": True, "permutation": True, **_ZERO},
        oracle="modo",
    ),
    Case(
        "graddrop", "jacobian", variants=({"leak": 0.5},), claims={"degree": 1}, oracle="graddrop", in_expectation=True
    ),
    Case(
        "db_mtl",
        "jacobian",
        variants=({"beta": 0.0}, {"beta_sigma": 0.0}, {"eps": 1e-3}),
        claims={"degree": 1, "row_scale": "direction"},
        oracle="db_mtl",
    ),
    Case(
        "moco",
        "jacobian",
        variants=({"variant": "libmtl"}, {"beta_sigma": 0.0, "gamma_sigma": 0.0, "rho": 0.1}, {"gamma": 0.0}),
        oracle="moco",
    ),
    Case(
        "sam_gs",
        "jacobian",
        options=lambda _: {"gamma": 0.5},  # plain gradient steps diverge with 0.1, where the update is of degree 2
        variants=({"gamma": 0.1}, {"gamma": 1.0, "beta1": 0.0}),
        oracle="sam_gs",
    ),
    Case(
        "excess_mtl",
        "jacobian",
        options=lambda _: {"eps": 0.0},
        variants=({"eps": 1e-7}, {"eta": 0.5}),
        claims={"degree": 1},
        oracle="excess_mtl",
    ),
    Case(
        "gcond",
        "jacobian",
        variants=(
            {"surgery": "zones"},
            {"variant": "released", "dominant": "wins"},
            {"stability": 0.0, "momentum": 0.0},
            {"surgery": "zones", "window": 0, "thresholds": [-0.9, -0.3, 0.1], "norm_beta": 0.0},
        ),
        claims={"degree": 1, "agree": "sum"},
        oracle="gcond",
    ),
    Case(
        "rotograd",
        "jacobian",
        options=lambda _: {"learning_rate": 0.01},
        variants=(
            {"mode": "scale_only", "burn_in": 1},
            {"mode": "rotate_only", "size": 9},
            {"variant": "released", "burn_in": 2},
        ),
        claims={"degree": 1, "row_scale": "direction"},
        oracle="rotograd_scale",
    ),
)
BY_KEY = {case.key: case for case in CASES}
