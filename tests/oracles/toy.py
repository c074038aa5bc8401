"""The 2-D toy problem and its derivative, written out in plain Python: fast, and independent of the package."""

import math

SMALLEST = 5e-6


def _valley(argument, by_first, by_second):
    size = max(abs(argument), SMALLEST)
    slope = 1 / argument if abs(argument) >= SMALLEST else 0.0
    return math.log(size) + 6, slope * by_first, slope * by_second


def _bowl(first, second, center):
    return (
        ((first - center) ** 2 + 0.1 * (second + 8) ** 2) / 10 - 20,
        (first - center) / 5,
        0.02 * (second + 8),
    )


def values_and_jacobian(first, second, scales=(1.0, 1.0)):
    """Return the two losses, and a row of two derivatives each; at second = 0 both switches count as growing."""
    bend, bend_slope = math.tanh(second), 1 - math.tanh(second) ** 2
    half, slope = math.tanh(second / 2), (1 - math.tanh(second / 2) ** 2) / 2
    up, up_slope = (half, slope) if second >= 0 else (0.0, 0.0)
    down, down_slope = (-half, -slope) if second <= 0 else (0.0, 0.0)
    valleys = (
        _valley(-0.5 * first - 3.5 + bend, -0.5, bend_slope),
        _valley(-0.5 * first + 3.5 - bend, -0.5, -bend_slope),
    )
    values, rows = [], []
    for scale, valley, center in zip(scales, valleys, (7, -7), strict=True):
        bowl = _bowl(first, second, center)
        values.append(scale * (up * valley[0] + down * bowl[0]))
        rows.append(
            [
                scale * (up * valley[1] + down * bowl[1]),
                scale * (up_slope * valley[0] + up * valley[2] + down_slope * bowl[0] + down * bowl[2]),
            ]
        )
    return values, rows
