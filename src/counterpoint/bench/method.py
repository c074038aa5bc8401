"""The balancer of a run by its name: one, or a chain of two, and perhaps wrapped."""

from collections.abc import Sequence
from typing import get_args

from counterpoint import balancers
from counterpoint._checks import check_choice
from counterpoint.balancers import BALANCERS, Balancer, LossBalancer, Wrapped
from counterpoint.balancers._gradient import Engine, GradientBalancer
from counterpoint.bench.options import check_arguments, check_component
from counterpoint.bench.run_config import BalancerConfig
from counterpoint.errors import OptionError


def canonical_name(name: str) -> str:
    """Return a name with the keys as they are registered; a class of one's own stays as it is.

    Raises:
        UnknownNameError: If there is no such balancer.
    """
    parts = [part.strip() for part in name.split("+")]
    return "+".join(part if ":" in part else BALANCERS.get(part).key for part in parts)


def check_balancer(config: BalancerConfig, *, where: str) -> None:
    """Check names, options and their types without building anything.

    Args:
        config: What to check.
        where: How an option is given, with its name for ``{}``; for the message about one that is missing.

    Raises:
        OptionError: If a chain is not of a loss balancer and a gradient balancer, or an option does not exist, has the
            wrong type or is missing.
    """
    parts = list(balancers.stages(BALANCERS, config.name, config.options))
    for name, options in parts:
        place = where if len(parts) == 1 else where.replace("{}", f"{name}.{{}}")
        check_component(BALANCERS, name, dict(options), where=place)
    if len(parts) == 2:
        first, second = (BALANCERS.get(name) for name, _ in parts)
        if not issubclass(first, LossBalancer) or issubclass(second, LossBalancer):
            raise OptionError(
                f"balancer {config.name!r}: a chain is a loss balancer and then a gradient balancer; "
                f"{first.__name__} reads {first.reads} and {second.__name__} reads {second.reads}"
            )
    check_arguments(Wrapped, config.wrap, given=("balancer",))


def build_balancer(config: BalancerConfig, tasks: Sequence[str]) -> Balancer:
    """Build the balancer of a run."""
    return balancers.create(config.name, tasks=list(tasks), wrap=config.wrap, **config.options)


def set_engine(balancer: Balancer, engine: str | None) -> None:
    """Choose how a method, and what it is composed of, makes its Gram matrix.

    Raises:
        OptionError: If there is no such engine, or the method makes no Gram matrix.
    """
    if engine is None:
        return
    check_choice("training: engine", engine, get_args(Engine))
    makers = [part for part in balancer.modules() if isinstance(part, GradientBalancer) and part.reads == "gram"]
    if not makers:
        raise OptionError(
            f"training: engine {engine!r} says how the Gram matrix of the task gradients is made, and "
            f"{type(balancer).__name__} does not read one; leave out --training.engine"
        )
    for part in makers:
        part.engine = engine  # type: ignore[assignment] - checked


def what_it_reads(config: BalancerConfig) -> str:
    """Return what a balancer reads: of a chain, what its second part does."""
    return BALANCERS.get(config.name.split("+")[-1].strip()).reads
