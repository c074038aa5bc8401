"""Mean rank over metrics."""

import math
from collections.abc import Mapping

from counterpoint.errors import OptionError


def mean_rank(values: Mapping[str, Mapping[str, float]], higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """Return the mean over metrics of each method's rank; 1 is best, ties share the mean of their ranks.

    Ranks change when a method is added, so they cannot be compared between tables with different methods.

    Args:
        values: Method -> metric -> value; every method has every metric.
        higher_is_better: Metric -> direction.

    Raises:
        OptionError: If there is no metric, a value is missing, or a value is NaN, which has no rank.

    Example:
        >>> mean_rank({"a": {"acc": 0.9, "err": 3.0}, "b": {"acc": 0.8, "err": 3.0}}, {"acc": True, "err": False})
        {'a': 1.25, 'b': 1.75}

    References:
        Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv:2202.01017 (their MR, one-based).
    """
    if not higher_is_better:
        raise OptionError("mean_rank: higher_is_better must name at least one metric")
    for method, row in values.items():
        for metric in higher_is_better:
            if metric not in row:
                raise OptionError(f"mean_rank: no value of metric {metric!r} of {method!r}")
            if math.isnan(row[metric]):
                raise OptionError(f"mean_rank: {metric!r} of {method!r} must be a number, got nan; leave it out")
    totals = dict.fromkeys(values, 0.0)
    for metric, higher in higher_is_better.items():
        for method, own in values.items():
            signed = [row[metric] * (1.0 if higher else -1.0) for row in values.values()]
            mine = own[metric] * (1.0 if higher else -1.0)
            better = sum(value > mine for value in signed)
            equal = sum(value == mine for value in signed)
            totals[method] += better + (equal + 1) / 2
    return {method: total / len(higher_is_better) for method, total in totals.items()}
