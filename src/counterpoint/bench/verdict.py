"""What a comparison supports, in one sentence computed from its records."""

import math

from counterpoint.bench.columns import summary_columns
from counterpoint.bench.numbers import format_number, format_spread
from counterpoint.bench.readings import EQUAL, READINGS, SINGLE_TASK, get_reading
from counterpoint.bench.results import Comparison, Reading, Spread

RULE = (
    "Rule: a method counts as clearly better than equal weighting if the mean over seeds of its paired difference of "
    "delta_m (same seed) is positive and larger than the sample standard deviation of that difference, "
    "with two or more seeds. This is a description of these seeds and not a significance test; the best of many "
    "methods "
    "is also in part the luckiest."
)


def chance_of_clear(num_seeds: int) -> float:
    """Return how probable it is that a method which equals equal weighting counts as clearly better.

    With normal differences this is P(T > sqrt(n)) of Student's distribution with n - 1 degrees of freedom, here by the
    substitution t = sqrt(n - 1) tan(a), which leaves a power of the cosine, and Simpson's rule.

    Args:
        num_seeds: Number of seeds n, at least two.

    Example:
        >>> round(chance_of_clear(2), 4), round(chance_of_clear(3), 4), round(chance_of_clear(5), 4)
        (0.1959, 0.1127, 0.0445)
    """
    freedom, steps = num_seeds - 1, 400
    start = math.atan(math.sqrt(num_seeds / freedom))
    width = (math.pi / 2 - start) / steps
    powers = [math.cos(start + index * width) ** (freedom - 1) for index in range(steps + 1)]
    integral = width / 3 * (powers[0] + powers[-1] + 4 * sum(powers[1:-1:2]) + 2 * sum(powers[2:-1:2]))
    return math.exp(math.lgamma(num_seeds / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi) * integral


def rule(comparison: Comparison) -> str:
    """Return :data:`RULE` with what chance alone makes of it for this many seeds and methods."""
    methods = sum(row.final is not None and row.method not in (SINGLE_TASK, EQUAL) for row in comparison.rows)
    seeds = len(comparison.seeds)
    if seeds < 2 or not methods:
        return RULE
    chance = chance_of_clear(seeds)
    share = format_number(100 * chance, 0 if chance > 0.01 else 2)
    return (
        f"{RULE} If none of the {methods} methods differed from equal weighting at all, {share} % of them, here "
        f"{format_number(chance * methods, 1)}, would still be expected to pass with {seeds} seeds."
    )


def is_clear(difference: Spread) -> bool:
    """Tell whether a paired difference to equal weighting is positive and larger than its spread, see :data:`RULE`."""
    return difference.mean > 0 and difference.mean > difference.std


def verdict(comparison: Comparison, reading: str = "final") -> str:
    """Return one sentence on which method is best and whether it is clearly better than equal weighting.

    Args:
        comparison: The records.
        reading: ``"final"`` or ``"equal_time"``.
    """
    start = f"{READINGS[reading].capitalize()}, "
    readings: dict[str, Reading] = {}
    for row in comparison.rows:
        found = get_reading(row, reading)
        if row.method != SINGLE_TASK and found is not None and found.delta["tasks"].finite:
            readings[row.method] = found
    if not readings:
        return f"{start}no multi-task method has a result."
    best = max(readings, key=lambda method: readings[method].delta["tasks"].mean)
    decimals = max(1, summary_columns()[0].decimals(comparison))  # as in the table
    value = _delta(readings[best], len(comparison.seeds), decimals)
    if EQUAL not in readings:
        return (
            f"{start}{best} has the highest mean delta_m, {value}, but equal weighting has no result to compare with."
        )
    if len(readings) == 1:
        return f"{start}only equal weighting has a result: delta_m {value}."
    clear = [method for method, own in readings.items() if method != EQUAL and is_clear(own.against_equal)]
    return start + _judge(best, value, readings, clear, decimals)


def _judge(best: str, value: str, readings: dict[str, Reading], clear: list[str], decimals: int) -> str:
    """Return the sentence where equal weighting and at least one other method have a result."""
    below = ", still below the single-task networks" if readings[best].delta["tasks"].mean < 0 else ""
    if best in clear:
        others = len(clear) - 1
        more = f"; so {'is' if others == 1 else 'are'} {others} other method{'s' * (others > 1)}" if others else ""
        return (
            f"{best} has the highest mean delta_m, {value}{below}, and is clearly better than equal weighting: "
            f"the paired difference, {_points(readings[best], decimals)}, is larger than its spread over seeds{more}."
        )
    if all(len(own.against_equal.finite) < 2 for own in readings.values()):
        return (
            f"{best} has the highest delta_m, {value}{below}; with fewer than two seeds there is no spread, so no "
            f"method "
            "can be called clearly better than equal weighting."
        )
    if clear:
        named = ", ".join(f"{method} ({_points(readings[method], decimals)})" for method in clear)
        return f"{best} has the highest mean delta_m, {value}{below}; clearly better than equal weighting: {named}."
    if best == EQUAL:
        itself = f"has the highest mean delta_m itself, {value}{below}"
        return f"no method is clearly better than equal weighting, which {itself}."
    return (
        f"no method is clearly better than equal weighting: {best} has the highest mean delta_m, {value}{below}, but "
        f"its "
        f"paired difference, {_points(readings[best], decimals)}, is not larger than its spread over seeds."
    )


def _delta(reading: Reading, total: int, decimals: int) -> str:
    spread = reading.delta["tasks"]
    count = len(spread.finite)
    seeds = f"{count} of {total} seeds" if count < total else f"{count} seed{'s' * (count != 1)}"
    return f"{format_spread(spread, decimals, signed=True)} % over {seeds}"


def _points(reading: Reading, decimals: int) -> str:
    difference = reading.against_equal
    if not difference.finite:
        return "not available"
    while decimals < 6 and format_number(difference.mean, decimals) == format_number(difference.std, decimals):
        decimals += 1  # the reader has to see which of the two is larger
    return f"{format_spread(difference, decimals, signed=True)} percentage points"
