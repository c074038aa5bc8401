"""How each method looks, the same in every figure: colour, marker symbol and line style."""

import dataclasses

from counterpoint.bench.readings import EQUAL, SINGLE_TASK
from counterpoint.bench.results import Comparison

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255")
"""Told apart with every common colour blindness: six of Okabe and Ito, and Tol's indigo and wine for the yellow and
the black, which have too little contrast to white or belong to the baselines here."""

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "cross")
DASHES = ("solid", "dash", "dot", "dashdot")

_AGREES = "#74aed6"
_CONFLICTS = ("#fdd0a2", "#fdae6b", "#e6853c", "#c85f14", "#a63603", "#7a2502")

_GLYPHS = {
    "circle": "M8 12a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "square": "M8 8h8v8h-8Z",
    "triangle-up": "M12 7l5 9h-10Z",
    "diamond": "M12 7l5 5l-5 5l-5 -5Z",
    "cross": "M10.5 7h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5Z",
    "hexagon": "M8 9.7l4 -2.4l4 2.4v4.6l-4 2.4l-4 -2.4Z",
    "star": "M12 6.5l1.5 3.8l4.1 .2l-3.2 2.6l1.1 3.9l-3.5 -2.2l-3.5 2.2l1.1 -3.9l-3.2 -2.6l4.1 -.2Z",
}
_STROKES = {"solid": "", "dash": "5 3", "dot": "2 2", "dashdot": "6 2 2 2"}


@dataclasses.dataclass(frozen=True)
class MethodStyle:
    """Colour, marker symbol and line style, in the words of plotly."""

    color: str
    symbol: str
    dash: str

    @property
    def glyph(self) -> str:
        """The symbol as a path in a box of 24 x 24, for the legend."""
        return _GLYPHS[self.symbol]

    @property
    def stroke(self) -> str:
        """The line style as an SVG dash array, for the legend."""
        return _STROKES[self.dash]


BASELINE_STYLES = {
    SINGLE_TASK: MethodStyle("#111111", "star", "dot"),
    EQUAL: MethodStyle("#757575", "hexagon", "solid"),
}


def bin_colors(count: int) -> list[str]:
    """Return colours for bins of cosines, falling: blue for the first, then ever darker ones.

    Args:
        count: Number of bins, at least 2.
    """
    last = len(_CONFLICTS) - (2 if count < len(_CONFLICTS) + 1 else 1)  # the darkest only where it is needed
    places = [round(at * last / max(count - 2, 1)) for at in range(count - 1)]
    return [_AGREES, *(_CONFLICTS[place] for place in places)]


def method_styles(comparison: Comparison) -> list[MethodStyle]:
    """Return the style of each row; no two of the first forty methods are alike in colour and symbol."""
    styles: list[MethodStyle] = []
    index = 0
    for row in comparison.rows:
        if row.method in BASELINE_STYLES:
            styles.append(BASELINE_STYLES[row.method])
            continue
        dash = DASHES[(index // len(COLORS)) % len(DASHES)]
        styles.append(MethodStyle(COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS)], dash))
        index += 1
    return styles
