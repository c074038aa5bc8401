"""The methods that are measured: the library's own, and torchjd's where it is installed."""

import importlib.util
import warnings
from collections.abc import Iterator

import torch
from cases import Case, Run
from torch import Tensor

from counterpoint import balancers

FEW = ("equal", "uncertainty", "famo", "mgda", "pcgrad", "cagrad", "nash_mtl", "upgrad", "graddrop")
SERVED = {"epochs", "metrics", "losses_after_step"}
FEATURES, LOW = "level=features", "engine=low_memory"

# torchjd's aggregator and its options, of the methods that both libraries have; the most tasks it is measured with
TORCHJD = {
    "UPGrad": (lambda k: {}, 40),
    "PCGrad": (lambda k: {}, 40),
    "CAGrad": (lambda k: {"c": 0.4}, 40),
    "NashMTL": (lambda k: {"n_tasks": k}, 8),  # half a second a step at K = 16 and two at 40, in its solver
}


def chosen(names: list[str] | None, *, everything: bool) -> list[str]:
    """Return the methods to measure: those named, all, or a few."""
    usable = [name for name in balancers.names() if _usable(name)]
    if names:
        return [balancers.BALANCERS.get(name).key for name in names]
    return usable if everything else [name for name in FEW if name in usable]


def _usable(name: str) -> bool:
    """Whether a step of it can be made of the scalar losses of one batch, without an option that has no default."""
    cls = balancers.BALANCERS.get(name)
    if any(option.required for option in balancers.describe(name).options):
        return False
    return cls.loss_form == "task" and cls.num_batches == 1 and set(cls.needs) <= SERVED


def kind_of(name: str) -> str:
    """Return what a method reads; ``"losses again"`` if it wants a second forward pass."""
    balancer = balancers.create(name, 2)
    return f"{balancer.reads} again" if "losses_after_step" in balancer.needs else balancer.reads


def ours(name: str, mode: str, case: Case) -> Run:
    """Return the step of a balancer."""
    torch.manual_seed(0)
    balancer = balancers.create(name, case.num_tasks)
    if mode == LOW:
        balancer.engine = "low_memory"

    def run(z: Tensor, losses: list[Tensor], leaves: list[Tensor]) -> int:
        how = {"features": z, "level": "features"} if mode == FEATURES else {}
        report = balancer.backward(losses, **how)
        if "losses_after_step" in balancer.needs:
            with torch.no_grad():
                balancer.after_step(case.forward()[1])
        return report.num_backward

    return run


def torchjd_step(name: str, case: Case) -> Run:
    """Return a step as torchjd's guide does it: Jacobians of the trunk in ``.jac``, then aggregated into ``.grad``."""
    from torchjd import aggregation, autojac  # noqa: PLC0415 - optional

    warnings.filterwarnings("ignore", module="torchjd")  # its solver's advice on how to state its problem
    warnings.filterwarnings("ignore", message="There is a performance drop")  # its vmap, on attention
    options, _ = TORCHJD[name]
    aggregator = getattr(aggregation, name)(**options(case.num_tasks))

    def run(z: Tensor, losses: list[Tensor], leaves: list[Tensor]) -> int:
        autojac.mtl_backward(losses, features=z)
        autojac.jac_to_grad(case.parameters, aggregator)
        return len(losses)

    return run


def variants(case: Case, names: list[str], *, everything: bool, others: bool) -> Iterator[tuple[str, str, object]]:
    """Yield name, kind and maker of each step to measure."""
    first = next((name for name in names if kind_of(name) == "gram"), None)
    for name in names:
        kind = kind_of(name)
        yield name, kind, lambda name=name: ours(name, "default", case)
        if kind == "gram" and (everything or name == first):
            yield f"{name} {FEATURES}", "features", lambda name=name: ours(name, FEATURES, case)
            yield f"{name} {LOW}", "low memory", lambda name=name: ours(name, LOW, case)
    if not others or importlib.util.find_spec("torchjd") is None:
        return
    for name, (_, most) in TORCHJD.items():
        if case.num_tasks <= most:
            yield f"torchjd {name}", "torchjd", lambda name=name: torchjd_step(name, case)
