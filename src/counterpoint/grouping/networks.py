"""Networks to choose from, measured or predicted, and the best choice under a budget of cost."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from counterpoint._checks import check_range
from counterpoint.errors import NonFiniteError, OptionError, SolverError
from counterpoint.grouping.groups import Grouping
from counterpoint.registry import unknown


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One network that could be trained.

    Attributes:
        losses: Task -> its loss in this network; lower is better, so turn accuracies into errors first.
        cost: Cost of running it; 1 for a standard network.
    """

    losses: Mapping[str, float]
    cost: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: If there is no task or the cost is not positive.
            NonFiniteError: If a loss is NaN or infinite.
        """
        if not self.losses:
            raise OptionError("Candidate: losses must have at least one task")
        check_range("Candidate: cost", self.cost, low=0.0, low_open=True)
        for task, loss in self.losses.items():
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"Candidate: the loss of {task} is {loss}; leave out networks not measured", (task,)
                )


@dataclasses.dataclass(frozen=True)
class Selection:
    """Networks chosen under a budget.

    Attributes:
        grouping: Groups of the networks; ``score`` is the sum of losses, lower is better.
        networks: The candidates, in the order of the groups.
        cost: Their cost.
    """

    grouping: Grouping
    networks: tuple[Candidate, ...]
    cost: float


def higher_order(single: Mapping[str, float], pair: Mapping[tuple[str, str], Mapping[str, float]]) -> list[Candidate]:
    """Return a candidate for every group: losses of three or more tasks predicted from those of pairs.

    ``loss_G[i]`` is the mean over the other members j of ``loss_{i, j}[i]``. T(T + 1)/2 trainings instead of 2^T - 1.

    Args:
        single: Task -> loss of its own network.
        pair: Two tasks -> the losses of both in their common network.

    Raises:
        OptionError: If a pair was not measured.

    References:
        Standley et al., "Which Tasks Should Be Learned Together in Multi-task Learning?", ICML 2020, arXiv:1905.07553.
    """
    tasks = list(single)
    table = {frozenset(key): losses for key, losses in pair.items()}
    for both in itertools.combinations(tasks, 2):
        if set(table.get(frozenset(both), {})) != set(both):
            raise OptionError(f"higher_order: the losses of the pair {both[0]}, {both[1]} are missing; train it too")
    found = [Candidate({task: single[task]}) for task in tasks]
    for size in range(2, len(tasks) + 1):
        for group in itertools.combinations(tasks, size):
            losses = {
                task: float(np.mean([table[frozenset((task, other))][task] for other in group if other != task]))
                for task in group
            }
            found.append(Candidate(losses))
    return found


def select_networks(tasks: Sequence[str], candidates: Sequence[Candidate], budget: float) -> Selection:
    """Return the networks with the smallest sum over tasks of the best loss, within a budget of cost; exact.

    Branch and bound; the bound lets every task have its best loss among the candidates that are left. Equal sums: the
    cheaper choice, then that with smaller groups. At most one network for the same set of tasks.

    Args:
        tasks: Tasks that must be served.
        candidates: Networks to choose from, such as those of :func:`higher_order`.
        budget: Largest sum of costs.

    Raises:
        SolverError: If no choice within the budget serves every task; the message names tasks or the budget.

    References:
        Standley et al., ICML 2020, arXiv:1905.07553, problem; the search is ours.
    """
    check_range("select_networks: budget", budget, low=0.0)
    table = np.full((len(candidates), len(tasks)), np.inf)
    for row, candidate in zip(table, candidates, strict=True):
        for task, loss in candidate.losses.items():
            if task not in tasks:
                raise unknown("task", task, tasks)
            row[list(tasks).index(task)] = loss
    left = [at for at, candidate in enumerate(candidates) if candidate.cost <= budget + 1e-9]
    uncovered = [task for at, task in enumerate(tasks) if not left or np.isinf(table[left, at]).all()]
    if uncovered:
        raise SolverError(f"select_networks: no network within the budget {budget:g} serves {', '.join(uncovered)}")
    total, cost, chosen = _search(table, [candidate.cost for candidate in candidates], left, budget)
    if not chosen:
        raise SolverError(f"select_networks: no choice within the budget {budget:g} serves all of {', '.join(tasks)}")
    return _selection(tasks, [candidates[at] for at in chosen], total, cost)


def _search(
    table: np.ndarray, costs: Sequence[float], left: Sequence[int], budget: float
) -> tuple[float, float, tuple[int, ...]]:
    order = sorted(left, key=lambda at: (np.minimum(table[at], 1e9).sum(), at))
    after = np.full((len(order) + 1, table.shape[1]), np.inf)
    for at in reversed(range(len(order))):
        after[at] = np.minimum(after[at + 1], table[order[at]])
    inside = np.isfinite(table)
    best: tuple[float, float, tuple[int, ...]] = (math.inf, math.inf, ())

    def members(chosen: tuple[int, ...]) -> int:
        return int(inside[list(chosen)].sum()) if chosen else 0

    def visit(start: int, current: np.ndarray, cost: float, chosen: tuple[int, ...]) -> None:
        nonlocal best
        total = float(current.sum())
        if total < best[0] - 1e-12 or (
            total < best[0] + 1e-12 and (cost, members(chosen)) < (best[1], members(best[2]))
        ):
            best = (total, cost, chosen)
        for at in range(start, len(order)):
            bound = float(np.minimum(current, after[at]).sum())
            if bound > best[0] + 1e-12 or (bound > best[0] - 1e-12 and cost >= best[1]):
                return
            new = np.minimum(current, table[order[at]])
            again = any(np.array_equal(inside[order[at]], inside[taken]) for taken in chosen)
            if not again and cost + costs[order[at]] <= budget + 1e-9 and (new < current).any():
                visit(at + 1, new, cost + costs[order[at]], (*chosen, order[at]))

    visit(0, np.full(table.shape[1], np.inf), 0.0, ())
    return best


def _selection(tasks: Sequence[str], networks: list[Candidate], total: float, cost: float) -> Selection:
    networks.sort(key=lambda network: sorted(list(tasks).index(task) for task in network.losses))
    losses = np.array([[network.losses.get(task, np.inf) for task in tasks] for network in networks])
    serves = losses.argmin(axis=0)
    grouping = Grouping(
        tuple(tasks),
        tuple(tuple(network.losses) for network in networks),
        tuple(int(at) for at in serves),
        total,
        tuple(float(loss) for loss in losses.min(axis=0)),
        "select_networks",
    )
    return Selection(grouping, tuple(networks), cost)
