"""How numbers are written for readers: as many digits as their spread supports."""

import math
import statistics
from collections.abc import Iterable

from counterpoint.bench.results import Spread

MINUS = "\u2212"
MISSING = "\u2013"
HUGE = 1e6  # from here on fixed notation says nothing more than the power of ten


def choose_decimals(spreads: Iterable[Spread]) -> int:
    """Return how many decimals a column needs: as many as its typical spread supports, at most five digits in all.

    Two digits of the median standard deviation where it begins with 1 to 3, else one. Without a spread (one seed) four
    significant digits of the typical value; none if all are whole numbers.
    """
    spreads = list(spreads)
    values = [value for spread in spreads for value in spread.finite]
    stds = [spread.std for spread in spreads if spread.std > 0]
    if not values or (not stds and all(value == round(value) for value in values)):
        return 0
    size = statistics.median(abs(value) for value in values) or max(abs(value) for value in values)
    integer_digits = math.floor(math.log10(size)) + 1
    wanted = 4 - integer_digits
    if stds:
        std = statistics.median(stds)
        power = math.floor(math.log10(std))
        wanted = -power + (std < 3.55 * 10.0**power)
    return max(0, min(wanted, 5 - integer_digits, 6))


def format_number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Write one number with a proper minus sign; a dash where there is none."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "\u221e" if value > 0 else f"{MINUS}\u221e"
    sign = "+" if signed else "-"
    text = f"{value:{sign}.3g}" if abs(value) >= HUGE else f"{value:{sign}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")  # what rounds to nothing has no sign
    return text.replace("-", MINUS)


def format_spread(spread: Spread | None, decimals: int, *, signed: bool = False) -> str:
    """Write a mean, with its standard deviation where two or more seeds have one."""
    if spread is None or not spread.finite:
        return MISSING
    text = format_number(spread.mean, decimals, signed=signed)
    return text if math.isnan(spread.std) else f"{text} \u00b1 {format_number(spread.std, decimals)}"


def format_exact(value: float, *, signed: bool = False) -> str:
    """Write six significant digits, as a tooltip does."""
    if not math.isfinite(value):
        return format_number(value, 0)
    return f"{value:{'+' if signed else '-'}.6g}".replace("-", MINUS)


def plain(value: float) -> float | None:
    """Return the value as JSON can hold it: seven significant digits, ``None`` for NaN and infinity."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
