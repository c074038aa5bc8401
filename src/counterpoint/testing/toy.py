"""The 2-D problem on which papers draw trajectories: two losses of two numbers, valleys above and bowls below."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

TOY_LOWER_BOUND = -21.0  # below both losses at scale 1, for methods that take logarithms
_HEIGHT = -8.3552  # x_2 of the middle of the Pareto set; at its ends, x_1 = -7 and 7, it is 0.08 lower
_SMALLEST = 5e-6  # what is taken the logarithm of is at least this


@dataclasses.dataclass(frozen=True)
class ToySetup:
    """How a paper runs the problem.

    Attributes:
        source: The paper.
        scales: Factors of the two losses.
        starts: Points to start from.
        steps: Number of steps of Adam.
        rate: Step size of Adam.
        own_rate: Step size for what a method learns besides the point.
    """

    source: str
    scales: tuple[float, float]
    starts: tuple[tuple[float, float], ...]
    steps: int
    rate: float = 1e-3
    own_rate: float = 0.025


_FIVE = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
TOY_SETUPS = {
    "cagrad": ToySetup("arXiv:2110.14048", (1.0, 1.0), ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)), 100_000),
    "nash_mtl": ToySetup("arXiv:2202.01017", (0.1, 1.0), _FIVE, 35_000),
    "famo": ToySetup("arXiv:2306.03792", (0.1, 1.0), _FIVE, 50_000),
    "aligned_mtl": ToySetup("arXiv:2305.19000", (0.5, 0.5), _FIVE, 35_000),
}


def toy_losses(point: Float[Tensor, "*batch 2"], scales: tuple[float, float] = (1.0, 1.0)) -> Float[Tensor, "*batch 2"]:
    """Return the two losses at a point x.

    With ``up = max(tanh(x_2 / 2), 0)`` and ``down = max(tanh(-x_2 / 2), 0)``, which of the two is zero depends on the
    half-plane::

        f_1 = up (ln max(|(-x_1 - 7) / 2 + tanh x_2|, 5e-6) + 6) + down (((x_1 - 7)^2 + (x_2 + 8)^2 / 10) / 10 - 20)
        f_2 = up (ln max(|(3 - x_1) / 2 - tanh x_2 + 2|, 5e-6) + 6) + down (((x_1 + 7)^2 + (x_2 + 8)^2 / 10) / 10 - 20)

    In the upper half-plane each loss has a narrow valley, near x_1 = -5 and 5 for large x_2, with steep walls: there
    the gradient of one task is far longer than that of the other. In the lower one are two bowls. The Pareto set is
    their common floor, x_1 from -7 to 7 at x_2 near -8.36 (:func:`toy_pareto_distance`).

    At x_2 = 0 both losses are zero and have a kink. Here both ``up`` and ``down`` count as growing there: the two
    gradients are equal, and a step of any method leads into the lower half-plane. The released codes leave it to
    ``clamp``, whose derivative at the bound depends on the version of torch; where it is 0, as in torch 2.14, nothing
    ever leaves the line.

    Args:
        point: Any number of points.
        scales: Factors of the two losses. The papers take (1, 1), (0.1, 1) and (0.5, 0.5).

    Returns:
        The losses, above ``TOY_LOWER_BOUND`` times the scale.

    Example:
        >>> toy_losses(torch.tensor([9.0, 9.0]))
        tensor([7.9439, 6.6915])

    References:
        Liu et al., "Conflict-Averse Gradient Descent for Multi-Task Learning", NeurIPS 2021, arXiv:2110.14048; with the
        first loss scaled by 0.1: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv:2202.01017.
        The setups of four papers are in ``TOY_SETUPS``; they ran in float32.
    """
    first, second = point.unbind(dim=-1)
    bend = second.tanh()
    half = (second / 2).tanh()
    up, down = torch.where(second >= 0, half, 0.0), torch.where(second <= 0, -half, 0.0)  # not clamp: see above
    valleys = (-first - 7) / 2 + bend, (3 - first) / 2 - bend + 2
    bowls = (first - 7) ** 2, (first + 7) ** 2
    above = [valley.abs().clamp(min=_SMALLEST).log() + 6 for valley in valleys]
    below = [(bowl + (second + 8) ** 2 / 10) / 10 - 20 for bowl in bowls]
    losses = [scale * (up * high + down * low) for scale, high, low in zip(scales, above, below, strict=True)]
    return torch.stack(losses, dim=-1)


def toy_pareto_distance(point: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """Return the distance to the segment x_1 in [-7, 7] at x_2 = -8.3552, within 0.08 that to the Pareto set.

    Example:
        >>> toy_pareto_distance(torch.tensor([10.0, -4.3552]))
        tensor(5.)
    """
    outside = (point[..., 0].abs() - 7).clamp(min=0)
    return torch.hypot(outside, point[..., 1] - _HEIGHT)
