"""What a step costs with each balancer, for a model of your own or for a run, on one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.balancers._losses import Losses
from counterpoint.bench.build import build, check_run
from counterpoint.bench.compare import parse_method
from counterpoint.bench.profile_result import Profile
from counterpoint.bench.profile_rounds import OWNER, run_profile
from counterpoint.bench.run_config import RunConfig
from counterpoint.errors import GraphError, OptionError
from counterpoint.training.step import forward as forward_step

DEFAULT = ("uncertainty", "mgda", "pcgrad", "cagrad", "graddrop")  # each kind, and Gram methods with different solvers
ROUNDS = 15


def profile_balancers(
    compute_losses: Callable[[], Losses],
    *,
    features: nn.Module | None = None,
    balancers: Sequence[str] = DEFAULT,
    level: str = "both",
    rounds: int = ROUNDS,
    on_round: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measure what a step of your own model costs with each balancer.

    All variants take turns in each round, each with a forward pass of its own, so that a busy moment of the machine
    falls on all; what counts are ratios within rounds. No optimizer takes a step. Parameters and what was in their
    ``.grad`` are left as they were; what a forward pass in training mode moves, such as statistics of batch
    normalization, moves.

    Args:
        compute_losses: Does the forward pass of one batch and returns the losses, as ``balancer.backward`` takes them.
        features: The module whose output the heads read, for the modes that need it; ``None`` leaves them out.
        balancers: Names, with options as in ``"cagrad(c=0.2)"``.
        level: ``"parameters"`` for the gradients of the parameters (with and without ``features=``), ``"features"``
            for ``level="features"``, ``"both"`` for what is possible of them.
        rounds: Rounds that are counted; from 5 on they support advice.
        on_round: Called with the number of rounds done and of all rounds.

    Returns:
        The costs; printing it shows a table and says which mode to take.

    Raises:
        OptionError: If a balancer does not exist, there are fewer than two tasks, or a mode is asked for that the
            model does not allow.
        GraphError: If a loss has no graph, or ``features`` was not called.

    Example:
        >>> trunk, heads = nn.Linear(4, 8), [nn.Linear(8, 1), nn.Linear(8, 1)]
        >>> x = torch.randn(16, 4)
        >>> profile = profile_balancers(
        ...     lambda: [head(trunk(x).relu()).square().mean() for head in heads],
        ...     balancers=["mgda"],
        ...     rounds=1,
        ... )
        >>> [(cost.method, cost.mode, cost.num_backward) for cost in profile.costs]
        [('summed', 'default', 1.0), ('seqK', 'default', 2.0), ('mgda', 'default', 2.0)]
    """
    seen: list[Tensor] = []

    def forward() -> tuple[Losses, tuple[Tensor, ...]]:
        seen.clear()
        losses = compute_losses()
        if features is not None and not seen:
            raise GraphError(
                f"{OWNER}: features = {type(features).__name__} gave no tensor with a graph while compute_losses ran; "
                "pass the module whose output the heads read"
            )
        return losses, tuple(seen)

    if features is None and level == "features":
        raise OptionError(f"{OWNER}: level='features' needs features=, the module whose output the heads read")
    remark = "without features= only the default mode was measured; pass the module whose output the heads read"
    with _watch(features, seen):
        return run_profile(forward, balancers, level, rounds, on_round, "" if features is not None else remark)


def profile_recipe(
    config: RunConfig,
    *,
    balancers: Sequence[str] = DEFAULT,
    level: str = "both",
    rounds: int = ROUNDS,
    on_round: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measure what a step of a run costs with each balancer, on a batch from the beginning of its training split.

    Args:
        config: The run; its balancer is replaced by each of ``balancers``.
        balancers: As in :func:`profile_balancers`.
        level: The same.
        rounds: The same.
        on_round: The same.

    Raises:
        OptionError: As :func:`profile_balancers` does.
    """
    for text in balancers:
        parse_method(text)
    check_run(config)
    built = build(config)
    split = built.data.split("train")
    loader = torch.utils.data.DataLoader(split, config.training.batch_size, collate_fn=getattr(split, "collate", None))
    batch = built.fabric.to_device(next(iter(loader)))
    model, _ = built.fabric.setup(built.model, built.optimizer)
    model.train()

    def forward() -> tuple[Losses, tuple[Tensor, ...]]:
        losses, output = forward_step(model, built.tasks, batch)
        return losses, tuple(output.features)

    network = config.model.name
    if not forward()[1]:
        if level == "features":
            raise OptionError(
                f"counterpoint profile: the network {network!r} returns no features (MTLOutput.features is empty), so "
                "there is no level='features'; set them in its forward, or take --level parameters"
            )
        remark = f"the network {network!r} returns no features, so only the default mode was measured"
    else:
        remark = ""
    return run_profile(forward, balancers, level, rounds, on_round, remark)


@contextmanager
def _watch(module: nn.Module | None, seen: list[Tensor]) -> Iterator[None]:
    """Collect the tensors with a graph that a module returns."""
    if module is None:
        yield
        return
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.extend(_with_graph(output)))
    try:
        yield
    finally:
        hook.remove()


def _with_graph(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.grad_fn is not None:
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _with_graph(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _with_graph(value)
