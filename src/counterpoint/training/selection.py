"""Which epoch's test result counts: rules that look at the validation split only."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint._checks import check_choice, check_range
from counterpoint.errors import OptionError

Metrics = Mapping[str, Mapping[str, float]]

RULES: dict[str, str] = {
    "last": "the last epoch",
    "best": "the epoch with the best validation score (mean over tasks of the signed log of the primary metric)",
    "mean_last": "the mean over the last {k} epochs",
}


def describe_rule(rule: str, k: int) -> str:
    """Return the rule as a phrase for tables and reports."""
    return RULES[check_choice("selection", rule, RULES)].format(k=k)


def validation_score(metrics: Metrics, higher_is_better: Mapping[str, Mapping[str, bool]]) -> float:
    """Return a scale-free score of one epoch; higher is better.

    The mean over tasks of log(value) of the primary metric, negated where lower is better: a change by one per cent
    counts the same in every task.

    Args:
        metrics: Task -> metric -> value on the validation split. NaN (no labels in the split) is left out.
        higher_is_better: Task -> metric -> direction; the first metric of each task is the primary one.

    Raises:
        OptionError: If a value is negative.
    """
    terms = []
    for task, directions in higher_is_better.items():
        name, higher = next(iter(directions.items()))
        value = metrics[task][name]
        if value is None or math.isnan(value):
            continue
        if value < 0:
            raise OptionError(f"selection 'best' needs metrics of at least 0, got {task}/{name} = {value}; take 'last'")
        terms.append(math.log(max(value, 1e-12)) * (1.0 if higher else -1.0))
    return sum(terms) / len(terms) if terms else math.nan


def select(
    history: Sequence[Mapping[str, Any]], rule: str, k: int, higher_is_better: Mapping[str, Mapping[str, bool]]
) -> tuple[int, dict[str, dict[str, dict[str, float]]]]:
    """Return the chosen epoch and its metrics by split.

    Args:
        history: One record per epoch, with ``epoch``, ``val`` and ``test``.
        rule: A key of :data:`RULES`.
        k: Number of epochs of ``"mean_last"``; fewer if there are not so many.
        higher_is_better: Task -> metric -> direction.

    Returns:
        The epoch (the last one for ``"mean_last"``), and split -> task -> metric -> value.

    Raises:
        OptionError: If the rule is unknown or there is no epoch.
    """
    check_choice("selection", rule, RULES)
    check_range("selection_k", k, low=1)
    if not history:
        raise OptionError("selection: no epoch has ended yet")
    chosen = [history[-1]]
    if rule == "best":
        scores = [validation_score(record["val"], higher_is_better) for record in history]
        ranked = [(-math.inf if math.isnan(score) else score, -index) for index, score in enumerate(scores)]
        chosen = [history[-max(ranked)[1]]]  # the earliest of equals
    elif rule == "mean_last":
        chosen = list(history[-k:])
    splits = {
        split: {
            task: {name: _mean([record[split][task][name] for record in chosen]) for name in values}
            for task, values in chosen[-1][split].items()
        }
        for split in ("val", "test")
    }
    return chosen[-1]["epoch"], splits


def _mean(values: Sequence[float | None]) -> float:
    numbers = [math.nan if value is None else value for value in values]
    return numbers[0] if len(numbers) == 1 else sum(numbers) / len(numbers)
