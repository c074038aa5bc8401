"""What a profile found, the table that shows it, and what it advises."""

import dataclasses
import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from counterpoint._optional import require
from counterpoint.bench.numbers import MISSING, plain

if TYPE_CHECKING:
    from rich.console import Console

ENOUGH = 5  # rounds from which quartiles mean something
WORTH = 1.1  # a whole step this many times faster is worth another way of calling
SAME = 0.999  # cosine between two updates that are the same but for rounding and the solver's tolerance
BUSY = 0.25  # quartiles of the plain step this far apart, in medians, mean that the machine did other things


@dataclasses.dataclass(frozen=True)
class Range:
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """Return the range of some values; with one, all three are it."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a method costs in one mode. Steps are forward pass, losses and backward; no optimizer step.

    Attributes:
        method: Key of the balancer with its options, ``"summed"`` or ``"seqK"``.
        mode: ``"default"``, ``"features="`` or ``"level=features"``.
        reads: What the method reads; empty for a baseline.
        num_backward: Backward passes through the shared part in a step, mean over rounds.
        step_ms: Time of a step in milliseconds.
        step_ratio: Time of a step over that of the summed step in the same round.
        backward_ratio: The same without the forward pass.
        default_ratio: Time of a step over that of the method's default mode in the same round.
        peak_memory_mb: Peak memory of the first step above what was in use before, in MB (2**20 bytes); what the method
            keeps for later steps is in it.
        cosine: Between the shared update of the first step and that of the default mode.
    """

    method: str
    mode: str
    reads: str
    num_backward: float
    step_ms: Range
    step_ratio: Range
    backward_ratio: Range
    default_ratio: Range
    peak_memory_mb: float
    cosine: float | None

    @property
    def is_baseline(self) -> bool:
        """Whether this is no balancer."""
        return not self.reads

    def gains_on(self, other: "Cost") -> bool:
        """Return whether the typical step is enough faster to be worth another way of calling."""
        return self.step_ratio.median * WORTH <= other.step_ratio.median

    @property
    def is_clearly_faster(self) -> bool:
        """Whether the step was faster than that of the default mode in three quarters of the rounds."""
        return self.default_ratio.high < 1.0


@dataclasses.dataclass(frozen=True)
class Profile:
    """The costs of some balancers for one model and batch; ``print`` shows table and advice.

    Attributes:
        costs: The baselines ``summed`` and ``seqK`` first, then each method in each mode.
        notes: What a reader has to know beside.
        num_tasks: Tasks in the batch.
        num_shared: Number of shared parameters.
        rounds: Rounds that were counted.
        device: Where it ran.
        threads: Threads of torch.
    """

    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    num_tasks: int
    num_shared: int
    rounds: int
    device: str
    threads: int

    def advice(self) -> list[str]:
        """Say in words which mode to take, as far as the measurements support it."""
        if self.rounds < ENOUGH:
            return [f"no advice on {self.rounds} rounds: take at least {ENOUGH}"]
        lines = []
        step = self.costs[0].step_ms
        if step.high - step.low > BUSY * step.median:
            lines.append(
                f"the machine was busy: half of the plain steps took {step.low:.3g} to {step.high:.3g} ms; the ratios, "
                "which are taken within rounds, suffer less, but repeat this on a quiet machine"
            )
        by_method: dict[str, list[Cost]] = {}
        for cost in self.costs:
            if not cost.is_baseline:
                by_method.setdefault(cost.method, []).append(cost)
        return [*lines, *(_advise(costs) for costs in by_method.values())]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        content = dataclasses.asdict(self)
        for cost in content["costs"]:
            for name, value in cost.items():
                if isinstance(value, dict):
                    cost[name] = {key: plain(number) for key, number in value.items()}
                elif isinstance(value, float):
                    cost[name] = plain(value)
        return {**content, "advice": self.advice()}

    def print_to(self, console: "Console") -> None:
        """Print table, notes and advice."""
        text = require("rich.text", extra="bench").Text
        where = f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}"
        console.print(text(f"{self.num_tasks} tasks, {self.num_shared:,} shared parameters; {where}", style="bold"))
        console.print(self._table())
        explained = (
            f"Medians of {self.rounds} rounds, quartiles in brackets; a step is forward pass, losses and backward. "
            "Ratios are to the summed one in the same round."
        )
        for line in (explained, *self.notes):
            console.print(text(line, style="dim"))
        for line in self.advice():
            console.print(text(line))

    def __str__(self) -> str:
        console = require("rich.console", extra="bench").Console(file=io.StringIO(), width=100)
        self.print_to(console)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def _table(self) -> Any:
        rich_table = require("rich.table", extra="bench")
        rich_box = require("rich.box", extra="bench")
        text = require("rich.text", extra="bench").Text
        table = rich_table.Table(box=rich_box.SIMPLE_HEAD, padding=0, pad_edge=False)  # fits 80 columns
        table.add_column("method", overflow="ellipsis", no_wrap=True, min_width=11)
        table.add_column("mode", no_wrap=True)
        labels = ("passes", "backward\nx summed", "step\nx", "step\nms", "extra\nMB", "update:\ncosine")
        for label in labels:
            table.add_column(label, justify="right", no_wrap=True)
        for cost in self.costs:
            other = not cost.is_baseline and cost.mode != "default"
            table.add_row(
                text(cost.method),
                "" if cost.is_baseline else cost.mode,
                f"{cost.num_backward:.3g}",
                _written(cost.backward_ratio),
                f"{cost.step_ratio.median:.2f}",
                f"{cost.step_ms.median:.3g}",
                f"{cost.peak_memory_mb:.3g}",
                _written_cosine(cost.cosine) if other else "",
                style="dim" if cost.is_baseline else "",
            )
        return table


def _advise(costs: Sequence[Cost]) -> str:
    """Return the advice on one method."""
    default, *others = costs
    if default.reads == "losses":
        return f"{default.method}: one mode, as it reads losses only; its step costs {_step(default)} of the plain one"
    if not others:
        return f"{default.method}: only the default was measured; its step costs {_step(default)} of the plain one"
    best = default
    words: list[str] = []
    for cost in others:
        numbers = _against(cost, best)
        if cost.gains_on(best) and not cost.is_clearly_faster:
            words.append(
                f"{cost.mode} may be faster, but not in three quarters of the rounds ({numbers}): measure again"
            )
        elif cost.gains_on(best) and cost.mode == "features=":
            words.append(f"pass features=: {numbers}, and the update is the same")
            best = cost
        elif cost.gains_on(best):
            words.append(f"take level=features {_condition(cost)}: {numbers}")
        elif cost.mode == "level=features":
            words.append(f"level=features is not worth its other weights: {numbers}")
    if not any(word.startswith(("pass", "take")) for word in words):
        words.insert(0, "keep the default")
    return f"{default.method}: {'; '.join(words)}"


def _condition(cost: Cost) -> str:
    """Say what speaks against balancing the gradients of the features: that its weights are others."""
    if cost.cosine is not None and cost.cosine >= SAME:
        return "(its update is the same on this batch)"
    shown = _written_cosine(cost.cosine)
    return f"if it trains as well (its weights differ: cosine between the two updates {shown} on this batch)"


def _against(cost: Cost, other: Cost) -> str:
    """Write the numbers of a mode against those of another."""
    return (
        f"backward {cost.backward_ratio.median:.2f} of the summed one against {other.backward_ratio.median:.2f}, "
        f"step {_step(cost)} against {_step(other)}, {cost.peak_memory_mb:.3g} MB against {other.peak_memory_mb:.3g}"
    )


def _step(cost: Cost) -> str:
    return f"{cost.step_ratio.median:.2f}"


def _written(values: Range) -> str:
    """Write median and quartiles; one number where all are the same."""
    low, median, high = (f"{value:.{2 if value < 9.995 else 1}f}" for value in (values.low, values.median, values.high))
    return f"{median}{f' ({low}-{high})' if low != high else ''}"


def _written_cosine(cosine: float | None) -> str:
    return MISSING if cosine is None else f"{cosine:.3f}"
