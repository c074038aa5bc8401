"""Plans: which layers of a network to split, as plain data."""

import dataclasses
import itertools
import random
from collections.abc import Iterable, Mapping
from typing import Any, Self

from counterpoint._checks import check_integer, check_range
from counterpoint._files import JsonData
from counterpoint.errors import OptionError
from counterpoint.registry import unknown


@dataclasses.dataclass(frozen=True)
class SplitPlan(JsonData):
    """Layers to split, and what they were chosen from; made by one of the class methods.

    Attributes:
        layers: The chosen layers, best first.
        sizes: Number of parameters of every layer of the network by name, in the network's order.
        rule: How they were chosen, as text.
        scores: Conflict of each layer, where the choice was made by it.
    """

    layers: tuple[str, ...]
    sizes: Mapping[str, int]
    rule: str = "given"
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and make plain data of what came.

        Raises:
            UnknownNameError: If a layer or a score is not of the network.
            OptionError: If a layer stands twice, or a score is negative or not a number.
        """
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "sizes", {name: int(size) for name, size in self.sizes.items()})
        object.__setattr__(self, "scores", {name: float(score) for name, score in self.scores.items()})
        for name in (*self.layers, *self.scores):
            if name not in self.sizes:
                raise unknown("layer of this network", name, self.sizes)
        if len(set(self.layers)) != len(self.layers):
            raise OptionError(f"SplitPlan: layers must be different, got {list(self.layers)}")
        for name, score in self.scores.items():
            check_range(f"SplitPlan: the score of {name}", score, low=0.0, high_open=True)

    @classmethod
    def top_k(cls, scores: Mapping[str, float], sizes: Mapping[str, int], num_layers: int) -> Self:
        """Choose the layers with the highest scores; ties keep the network's order.

        A layer without any conflict is never chosen, so fewer may come out.

        Args:
            scores: Layer -> conflict, at least 0. A layer that is missing has none.
            sizes: Layer -> number of parameters, of all layers: ``sizes(network)``.
            num_layers: How many; more than there are means all.

        References:
            Shi et al., Recon, ICLR 2023, arXiv:2302.11289. Differs: there a layer with score 0 can be
            chosen, where fewer layers have conflicts than are asked for.
        """
        check_integer("SplitPlan.top_k: num_layers", num_layers, low=0)
        ranked = _rank(scores, sizes)
        return cls(ranked[:num_layers], sizes, f"top_k(num_layers={num_layers})", scores)

    @classmethod
    def share(cls, scores: Mapping[str, float], sizes: Mapping[str, int], share: float) -> Self:
        """Choose the fewest layers, best first, that hold at least this share of all conflict.

        Args:
            scores: Layer -> conflict, at least 0.
            sizes: Layer -> number of parameters, of all layers.
            share: Share of the sum of all scores, in [0, 1].
        """
        check_range("SplitPlan.share: share", share, low=0.0, high=1.0)
        ranked = _rank(scores, sizes)
        wanted = share * sum(scores[name] for name in ranked) * (1 - 1e-12)  # sums in another order may differ
        reached = itertools.accumulate((scores[name] for name in ranked), initial=0.0)
        count = next((count for count, so_far in enumerate(reached) if so_far >= wanted), len(ranked))
        return cls(ranked[:count], sizes, f"share(share={share})", scores)

    @classmethod
    def budget(cls, scores: Mapping[str, float], sizes: Mapping[str, int], max_added: int, num_tasks: int) -> Self:
        """Choose layers, best first, while the copies add at most so many parameters; what does not fit is passed over.

        Args:
            scores: Layer -> conflict, at least 0.
            sizes: Layer -> number of parameters, of all layers.
            max_added: Parameters that the copies may add.
            num_tasks: Number of tasks K; each layer adds K - 1 times its size.
        """
        check_integer("SplitPlan.budget: max_added", max_added, low=0)
        check_integer("SplitPlan.budget: num_tasks", num_tasks, low=1)
        chosen = _fill(_rank(scores, sizes), sizes, max_added, num_tasks - 1)
        return cls(chosen, sizes, f"budget(max_added={max_added}, num_tasks={num_tasks})", scores)

    @classmethod
    def random_layers(cls, sizes: Mapping[str, int], num_layers: int, *, seed: int) -> Self:
        """Choose so many layers at random: the paper's baseline RSL."""
        check_integer("SplitPlan.random_layers: num_layers", num_layers, low=0)
        chosen = random.Random(seed).sample(list(sizes), min(num_layers, len(sizes)))
        return cls(tuple(chosen), sizes, f"random_layers(num_layers={num_layers}, seed={seed})")

    @classmethod
    def random_parameters(cls, sizes: Mapping[str, int], num_parameters: int, *, seed: int) -> Self:
        """Choose layers at random that have together about, and at most, so many parameters: the paper's baseline RSP.

        In random order, every layer that still fits is taken.
        """
        check_integer("SplitPlan.random_parameters: num_parameters", num_parameters, low=0)
        order = random.Random(seed).sample(list(sizes), len(sizes))
        rule = f"random_parameters(num_parameters={num_parameters}, seed={seed})"
        return cls(_fill(order, sizes, num_parameters, 1), sizes, rule)

    @classmethod
    def first(cls, sizes: Mapping[str, int], num_layers: int) -> Self:
        """Choose the first layers of the network."""
        check_integer("SplitPlan.first: num_layers", num_layers, low=0)
        return cls(tuple(sizes)[:num_layers], sizes, f"first(num_layers={num_layers})")

    @classmethod
    def last(cls, sizes: Mapping[str, int], num_layers: int) -> Self:
        """Choose the last layers of the network."""
        check_integer("SplitPlan.last: num_layers", num_layers, low=0)
        return cls(tuple(sizes)[max(len(sizes) - num_layers, 0) :], sizes, f"last(num_layers={num_layers})")

    @property
    def num_parameters(self) -> int:
        """Parameters of the chosen layers, before splitting."""
        return sum(self.sizes[name] for name in self.layers)

    @property
    def removed(self) -> float:
        """Share of all conflict that is in the chosen layers, in [0, 1]; 0 where no conflict was measured."""
        total = sum(self.scores.values())
        return sum(self.scores.get(name, 0.0) for name in self.layers) / total if total else 0.0

    @property
    def tied(self) -> tuple[str, ...]:
        """Layers that were left out with the score of the last one chosen: the cut between them is arbitrary."""
        if not self.layers or not self.scores:
            return ()
        at_cut = self.scores.get(self.layers[-1], 0.0)
        return tuple(name for name, score in self.scores.items() if score == at_cut and name not in self.layers)

    def added_parameters(self, num_tasks: int) -> int:
        """Return how many parameters the copies add."""
        return (num_tasks - 1) * self.num_parameters

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raise unless a network has the layers that the plan was made for.

        With scores these are the layers that were measured, so that heads may differ: of other tasks, or data.

        Args:
            sizes: Layer -> number of parameters of the network to split.

        Raises:
            OptionError: If layers differ; the message says which.
        """
        check_sizes(self.required, sizes, whole=not self.scores)

    @property
    def required(self) -> Mapping[str, int]:
        """Sizes that a network to split must have: of the layers that were measured, or of all."""
        return {name: size for name, size in self.sizes.items() if name in self.scores} or self.sizes

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {"format": self.FORMAT, **dataclasses.asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            OptionError: If something is missing, unknown, or of another format.
        """
        return cls(**cls.fields_of(data))


def check_sizes(required: Mapping[str, int], sizes: Mapping[str, int], *, whole: bool) -> None:
    """Raise unless a network has layers of these sizes.

    Args:
        required: Layer -> number of parameters that it must have.
        sizes: The same of all layers of the network.
        whole: The network may have no other layers.

    Raises:
        OptionError: If layers differ; the message says which.
    """
    missing = [name for name in required if name not in sizes]
    further = [name for name in sizes if name not in required] if whole else []
    resized = [name for name, size in required.items() if sizes.get(name, size) != size]
    found = []
    if missing:
        found.append(f"not in the network: {_some(missing)}")
    if further:
        found.append(f"not in the plan: {_some(further)}")
    if resized:
        shown = [f"{name} ({required[name]} in the plan, {sizes[name]} here)" for name in resized]
        found.append(f"of another size: {_some(shown)}")
    if found:
        raise OptionError(
            f"SplitPlan: made for another network ({'; '.join(found)}); "
            "to use its layers all the same, pass plan.layers instead of the plan"
        )


def _rank(scores: Mapping[str, float], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the layers with a score above 0, highest first, ties in the network's order."""
    for name in scores:
        if name not in sizes:
            raise unknown("layer of this network", name, sizes)
    return tuple(sorted((name for name in sizes if scores.get(name, 0) > 0), key=lambda name: -scores[name]))


def _fill(order: Iterable[str], sizes: Mapping[str, int], room: int, factor: int) -> tuple[str, ...]:
    """Return the layers, in the given order, that still fit."""
    chosen = []
    for name in order:
        if factor * sizes[name] <= room:
            room -= factor * sizes[name]
            chosen.append(name)
    return tuple(chosen)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
