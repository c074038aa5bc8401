"""Recon: search for the layers in which tasks conflict, and choose which of them to split."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from counterpoint._checks import check_integer, check_range
from counterpoint.bench.build import Built, build
from counterpoint.bench.monitored import monitored_run
from counterpoint.bench.run_config import RunConfig, SplitConfig
from counterpoint.diagnostics import ConflictMonitor, ConflictRecord
from counterpoint.errors import OptionError
from counterpoint.splitting import SplitPlan, sizes

MB = 2**20
BYTES = 4  # of a parameter in float32

OnEpoch = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which layers to take, by their scores; exactly one of the three.

    Attributes:
        layers: So many, highest score first.
        share: The fewest that hold at least this share of all conflict, in [0, 1].
        budget_mb: As many as the copies fit in, in MB of 2^20 bytes of float32, as the paper counts.
    """

    layers: int | None = None
    share: float | None = None
    budget_mb: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in dataclasses.asdict(self).items() if value is not None]
        if len(given) != 1:
            raise OptionError(
                "choose layers by exactly one of --layers, --share, --budget-mb, or give a --plan; got "
                + (" and ".join(given) or "none")
            )
        if self.layers is not None:
            check_integer("layers", self.layers, low=0)
        if self.share is not None:
            check_range("share", self.share, low=0.0, high=1.0)
        if self.budget_mb is not None:
            check_range("budget_mb", self.budget_mb, low=0.0, high_open=True)


def record_run(config: RunConfig, folder: Path, *, every: int = 1, on_epoch: OnEpoch | None = None) -> ConflictRecord:
    """Train one run while every cosine in every layer is kept; see :func:`counterpoint.bench.monitored.monitored_run`.

    Args:
        config: What to run.
        folder: Folder of the run; ``record.npz`` is written to it.
        every: Measure at every so-many-th step.
        on_epoch: Called with the record of each epoch.
    """

    def make_monitor(built: Built) -> ConflictMonitor:
        tasks = [task.name for task in built.tasks]
        return ConflictMonitor(built.model, tasks=tasks, every=every, keep_cosines=True)

    return monitored_run(config, folder, make_monitor, options={"every": every}, on_epoch=on_epoch)


def search_config(config: RunConfig, share: float) -> RunConfig:
    """Return the run of the search: the same, unsplit, for a share of the epochs, at least one.

    The schedule of the learning rate is that of the whole run, of which the search sees the beginning.
    """
    return dataclasses.replace(config.shortened(share), split=SplitConfig())


def choose(record: ConflictRecord, threshold: float, choice: Choice) -> SplitPlan:
    """Return the plan that a record of the search gives.

    Args:
        record: What was measured.
        threshold: S: cosines strictly below it count as conflict.
        choice: How many layers to take.
    """
    scores = record.scores(threshold)
    measured = {name: size for name, size in record.sizes.items() if name in scores}
    if choice.layers is not None:
        plan = SplitPlan.top_k(scores, measured, choice.layers)
    elif choice.share is not None:
        plan = SplitPlan.share(scores, measured, choice.share)
    else:
        assert choice.budget_mb is not None
        plan = SplitPlan.budget(scores, measured, int(choice.budget_mb * MB / BYTES), len(record.tasks))
    return dataclasses.replace(plan, rule=f"{plan.rule} of conflicts below {threshold:g}", sizes=dict(record.sizes))


def other_plan(plan: SplitPlan, name: str, *, seed: int) -> SplitPlan:
    """Return a choice of layers that looks at no conflict, to see whether the choice matters.

    The layers are taken from those that were measured in the search where the plan has scores, else from all.

    Args:
        plan: What to be compared with.
        name: ``"rsl"``: as many layers at random; ``"rsp"``: layers at random with together about, and at most, as many
            parameters; ``"first"``, ``"last"``: as many from the beginning or the end of the network.
        seed: Of the random choices.
    """
    shared = {layer: plan.sizes[layer] for layer in plan.scores or plan.sizes}
    makers = {
        "rsl": lambda: SplitPlan.random_layers(shared, len(plan.layers), seed=seed),
        "rsp": lambda: SplitPlan.random_parameters(shared, plan.num_parameters, seed=seed),
        "first": lambda: SplitPlan.first(shared, len(plan.layers)),
        "last": lambda: SplitPlan.last(shared, len(plan.layers)),
    }
    return dataclasses.replace(makers[name](), sizes=dict(plan.sizes))


def describe(plan: SplitPlan, config: RunConfig) -> str:
    """Return in words what a plan splits, what that costs and what it may remove."""
    if plan.scores and not any(plan.scores.values()):
        return "No conflict was found in any layer, so there is nothing to split; try a higher --threshold."
    if not plan.layers:
        return "The plan splits no layer."
    tasks = len(build(config).tasks)
    added = plan.added_parameters(tasks)
    total = sum(plan.sizes.values())
    lines = [
        f"Splitting {len(plan.layers)} of {len(plan.scores or plan.sizes)} layers adds {added:,} parameters "
        f"({added * BYTES / MB:.2f} MB, {added / total:.1%} of the network)."
    ]
    if plan.scores:
        lines.append(f"They hold {plan.removed:.0%} of the conflict found ({plan.rule}):")
    width = max(map(len, plan.layers))
    for layer in plan.layers:
        score = f"{plan.scores[layer]:8g}" if plan.scores else ""
        lines.append(f"  {layer:{width}} {score} {plan.sizes[layer]:10,} parameters")
    if plan.tied:
        lines.append(f"Left out with the score of the last one, so chosen by their order only: {', '.join(plan.tied)}")
    return "\n".join(lines)


def split_config(plan: SplitPlan, *, init: str = "same") -> SplitConfig:
    """Return the section of a run that splits by a plan."""
    return SplitConfig(layers=plan.layers, init=init, sizes=dict(plan.required), rule=plan.rule)


def network_sizes(config: RunConfig) -> dict[str, int]:
    """Return the number of parameters of each layer of a run's network, before it is split."""
    return dict(sizes(build(dataclasses.replace(config, split=SplitConfig())).model))
