"""The picture of the walks over the 2-D toy problem: a small panel for each balancer, readable on light and dark."""

import torch

from counterpoint.testing import toy_losses

SIDE, GAP, TITLE, COLUMNS = 150, 10, 20, 5
REACH = 10.5  # the panels show both coordinates from -REACH to REACH
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")  # told apart by color-blind readers, too
LEVELS = range(-10, 5)
STYLE = """
.paper { fill: #ffffff } .field { fill: #f6f8fa } .ink { fill: #24292f } .level { stroke: #c4ccd4 }
.pareto { stroke: #57606a } .ring { fill: #ffffff }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117 } .field { fill: #161b22 } .ink { fill: #e6edf3 } .level { stroke: #3b434d }
.pareto { stroke: #9da7b3 } .ring { fill: #0d1117 }
}
text { font: 12px system-ui, sans-serif } path, line { fill: none; stroke-linejoin: round }
""".strip()


def _place(point: list[float]) -> tuple[float, float]:
    """Return where a point lies in its panel."""
    scale = SIDE / (2 * REACH)
    return (point[0] + REACH) * scale, (REACH - point[1]) * scale


def _line(points: list[list[float]]) -> str:
    """Return the path through points."""
    places = [f"{x:.1f} {y:.1f}" for x, y in map(_place, points)]
    return "M" + "L".join(dict.fromkeys(places) if len(set(places)) == len(places) else places)


def _contours(scales: tuple[float, float], cells: int = 84) -> str:
    """Return the level lines of the mean loss as one path: in each cell the crossings of its sides are joined."""
    axis = torch.linspace(-REACH, REACH, cells + 1, dtype=torch.float64)
    heights = toy_losses(torch.cartesian_prod(axis, axis), scales).mean(dim=1).reshape(cells + 1, cells + 1).tolist()
    ticks, parts = axis.tolist(), []
    for level in LEVELS:
        for i in range(cells):
            for j in range(cells):
                corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
                crossed = []
                for (a, b), (c, d) in zip(corners, [*corners[1:], corners[0]], strict=True):
                    low, high = heights[a][b] - level, heights[c][d] - level
                    if (low < 0) != (high < 0):
                        share = low / (low - high)
                        crossed.append(
                            [
                                ticks[a] + share * (ticks[c] - ticks[a]),
                                ticks[b] + share * (ticks[d] - ticks[b]),
                            ]
                        )
                parts += [_line(crossed[k : k + 2]) for k in range(0, len(crossed) - 1, 2)]
    return "".join(parts)


def _panel(key: str, walks: list[dict]) -> list[str]:
    """Return the elements of one panel."""
    parts = [
        f'<text class="ink" x="0" y="-6">{key}</text>',
        '<use href="#ground"/>',
    ]
    for color, walked in zip(COLORS, walks, strict=False):
        parts.append(f'<path d="{_line(walked["line"])}" stroke="{color}" stroke-width="1.5"/>')
    for color, walked in zip(COLORS, walks, strict=False):
        (x, y), (u, v) = _place(walked["line"][0]), _place(walked["end"])
        parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="2.5" stroke="{color}" stroke-width="1.5"/>')
        if walked["arrived"] is not None:
            parts.append(f'<circle cx="{u:.1f}" cy="{v:.1f}" r="3" fill="{color}"/>')
        else:
            cross = f"M{u - 3:.1f} {v - 3:.1f}l6 6m0-6l-6 6"
            parts.append(f'<path d="{cross}" stroke="{color}" stroke-width="2.5"/>')
    return parts


def picture(walks: dict[str, list[dict]], scales: tuple[float, float]) -> str:
    """Return the SVG of all walks.

    Args:
        walks: By balancer, one walk for each start: ``line``, ``end`` and ``arrived``.
        scales: Factors of the two losses, for the level lines.
    """
    rows = -(-len(walks) // COLUMNS)
    width = COLUMNS * (SIDE + GAP) + GAP
    height = rows * (SIDE + GAP + TITLE) + GAP
    (left, middle), (right, _) = _place([-7, -8.3552]), _place([7, -8.3552])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">',
        "<title>Walks of every balancer over the 2-D toy problem</title>",
        f"<style>{STYLE}</style>",
        f'<defs><clipPath id="frame"><rect width="{SIDE}" height="{SIDE}"/></clipPath><g id="ground">',
        f'<rect class="field" width="{SIDE}" height="{SIDE}"/>',
        f'<path class="level" stroke-width=".6" d="{_contours(scales)}"/>',
        f'<line class="pareto" x1="{left:.1f}" y1="{middle:.1f}" x2="{right:.1f}" y2="{middle:.1f}" stroke-width="4" '
        'stroke-opacity=".55"/></g></defs>',
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    for number, key in enumerate(sorted(walks)):
        row, column = divmod(number, COLUMNS)
        x, y = GAP + column * (SIDE + GAP), GAP + TITLE + row * (SIDE + GAP + TITLE) - GAP / 2
        parts.append(f'<g transform="translate({x:g} {y:g})">')
        parts += _panel(key, walks[key])
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])
