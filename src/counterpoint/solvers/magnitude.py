"""Rules that bring the lengths of task gradients nearer to each other: the mathematics that MSI and POMSI share."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint.linalg import combination_norms

_SHORT = 1e-12  # a vector this much shorter than the longest one takes no part
RULES = ("pair", "vaccine", "learned")


@dataclasses.dataclass(frozen=True)
class MagnitudeRule:
    """Which rule, with its constants; the balancers document them."""

    rule: str = "pair"
    static_target: float | None = None
    beta: float = 0.01
    learning_rate: float = 0.05
    s_max: float | None = None


@dataclasses.dataclass(frozen=True)
class MagnitudeState:
    """What the rules remember of k tasks.

    Attributes:
        similarity: Moving average of the magnitude similarity of pairs (``pair``, ``vaccine``), (k, k).
        log_scale: Logarithm of the factor of each task (``learned``), (k,).
        frozen: Which factors the static form of ``learned`` has already set, (k,).
    """

    similarity: Tensor
    log_scale: Tensor
    frozen: Tensor

    @staticmethod
    def initial(num_tasks: int) -> "MagnitudeState":
        """Return the state before the first step."""
        return MagnitudeState(
            torch.zeros(num_tasks, num_tasks, dtype=torch.float64),
            torch.zeros(num_tasks, dtype=torch.float64),
            torch.zeros(num_tasks, dtype=torch.bool),
        )


def similarity(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the gradient magnitude similarity ``2 a b / (a^2 + b^2)`` of two lengths; 0 if either is 0.

    Example:
        >>> similarity(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 3.0, 1.0]))
        tensor([0.8000, 0.6000, 0.0000])
    """
    high = torch.maximum(first, second)
    ratio = torch.minimum(first, second) / torch.where(high > 0, high, 1.0)
    return 2 * ratio / (1 + ratio * ratio)


def ratio_for(target: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the ratio of the shorter to the longer length whose similarity is ``target``.

    Example:
        >>> ratio_for(torch.tensor([0.6, 0.8, 1.0]))
        tensor([0.3333, 0.5000, 1.0000])
    """
    return target / (1 + (1 - target * target).clamp(min=0).sqrt())


def pair_lengths(
    first: Float[Tensor, "..."], second: Float[Tensor, "..."], target: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return new lengths with similarity ``target``, the same sum of squares and the same order.

    Example:
        >>> pair_lengths(torch.tensor(1.0), torch.tensor(4.0), torch.tensor(0.8))
        (tensor(1.8439), tensor(3.6878))
    """
    high = torch.hypot(first, second) / torch.hypot(torch.ones_like(target), ratio_for(target))
    low = high * ratio_for(target)
    swap = first <= second
    return torch.where(swap, low, high), torch.where(swap, high, low)


def pair_scales(
    lengths: Float[Tensor, " K"], targets: Float[Tensor, "K K"], usable: Bool[Tensor, " K"]
) -> Float[Tensor, " K"]:
    """Return one factor per vector that moves every pair below its target towards it.

    Each pair (i, j) with similarity below the target asks for new lengths (:func:`pair_lengths`), in logarithms
    ``l_ij = ln(n_i' / n_i)``. A vector takes the mean of what its K - 1 pairs ask for, and a common factor keeps
    ``sum n_i^2``. For two vectors the target is met exactly.

    Args:
        lengths: Length of each vector.
        targets: Target similarity of each pair, symmetric.
        usable: Which vectors are long enough; the others keep factor 1 and their pairs ask for nothing.
    """
    if len(lengths) < 2:
        return torch.ones_like(lengths)
    row, column = lengths[:, None].expand_as(targets), lengths[None, :].expand_as(targets)
    active = (similarity(row, column) < targets) & _pairs(usable)
    new = pair_lengths(row, column, targets)[0]
    asked = torch.where(active, new / torch.where(active, row, 1.0), 1.0).log()
    scales = (asked.sum(dim=1) / (len(lengths) - 1)).exp()
    counted = torch.where(usable, lengths / lengths.max().clamp(min=torch.finfo(lengths.dtype).tiny), 0.0)
    before, after = counted.square().sum(), (scales * counted).square().sum()
    common = torch.where(after > 0, (before / torch.where(after > 0, after, 1.0)).sqrt(), 1.0)
    return torch.where(usable, common * scales, 1.0)


def vaccine_scales(
    lengths: Float[Tensor, " K"],
    targets: Float[Tensor, "K K"],
    usable: Bool[Tensor, " K"],
    orders: Int[Tensor, "K K-1"],
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]:
    """Return factors from meeting one partner after another, as GradVac does for cosines.

    The working length m_i starts at n_i. For each partner j, if the similarity of m_i and n_j is below the target, m_i
    is set so that it meets the target. Both sides of a pair move, so it overshoots: lengths (1, 5) with target 0.8
    become (2.5, 2).

    Args:
        lengths: Length of each vector.
        targets: Target similarity of each ordered pair.
        usable: Which vectors are long enough.
        orders: Row i lists the other vectors in the order in which i meets them.

    Returns:
        The factors, and the similarities met on the way, (K, K).
    """
    task = torch.arange(len(lengths))
    working = lengths.clone()
    met = torch.zeros_like(targets)
    for other in orders.T:
        found = similarity(working, lengths[other])
        met[task, other] = found
        target = targets[task, other]
        active = (found < target) & usable & usable[other]
        ratio = ratio_for(torch.where(active, target, 1.0))
        moved = torch.where(working < lengths[other], lengths[other] * ratio, lengths[other] / ratio)
        working = torch.where(active, moved, working)
    return torch.where(usable, working / torch.where(usable, lengths, 1.0), 1.0), met


def learned_log_scales(
    lengths: Float[Tensor, " K"], log_scale: Float[Tensor, " K"], usable: Bool[Tensor, " K"], learning_rate: float
) -> Float[Tensor, " K"]:
    """Return the logarithms of the factors after one gradient step on ``J = sum_{i<j} (1 - similarity)``.

    With ``d_ij = (a_i + ln n_i) - (a_j + ln n_j)``: ``dJ/da_i = sum_{j != i} sech(d_ij) tanh(d_ij)``. The derivatives
    sum to zero, so the mean of a stays what it is.

    Args:
        lengths: Length n_i of each vector, taken as constants.
        log_scale: The logarithms a_i before the step.
        usable: Which vectors are long enough; the others stay.
        learning_rate: Step size.
    """
    level = log_scale + torch.where(usable, lengths, 1.0).log()
    distance = (level[:, None] - level[None, :]).clamp(-700, 700)  # cosh overflows beyond
    slope = torch.where(_pairs(usable), distance.tanh() / distance.cosh(), 0.0).sum(dim=1)
    if bool(usable.any()):
        slope = torch.where(usable, slope - slope[usable].mean(), 0.0)
    return log_scale - learning_rate * slope


def frozen_log_scales(
    lengths: Float[Tensor, " K"], state: MagnitudeState, usable: Bool[Tensor, " K"]
) -> MagnitudeState:
    """Set the factors that are not set yet so that all scaled lengths equal the geometric mean, and freeze them.

    A task that appears after the others joins at the mean of those that are already frozen.
    """
    new = usable & ~state.frozen
    if not bool(new.any()):
        return state
    level = state.log_scale + torch.where(usable, lengths, 1.0).log()
    old = usable & state.frozen
    goal = level[old].mean() if bool(old.any()) else level[new].mean()
    log_scale = torch.where(new, state.log_scale + goal - level, state.log_scale)
    return MagnitudeState(state.similarity, log_scale, state.frozen | new)


def rescaled_weights(
    gram: Float[Tensor, "K K"],
    rows: Float[Tensor, "K K"],
    state: MagnitudeState,
    orders: Int[Tensor, "K K-1"],
    options: MagnitudeRule,
) -> tuple[Float[Tensor, " K"], MagnitudeState]:
    """Return the weights of ``sum_i s_i v_i`` with v_i given by coefficients, and the new state.

    Args:
        gram: Inner products of the task gradients.
        rows: Row i holds the coefficients of v_i; lengths are measured on the v_i.
        state: State before the step.
        orders: Orders for the rule ``vaccine``; otherwise not read.
        options: The rule and its constants.
    """
    lengths = combination_norms(gram, rows)
    usable = lengths > _SHORT * lengths.max()
    if options.rule == "learned":
        if options.static_target is not None:
            state = frozen_log_scales(lengths, state, usable)
        else:
            log_scale = learned_log_scales(lengths, state.log_scale, usable, options.learning_rate)
            state = MagnitudeState(state.similarity, log_scale, state.frozen)
        scales = state.log_scale.exp()
    else:
        static = options.static_target
        targets = state.similarity if static is None else torch.full_like(state.similarity, static)
        if options.rule == "pair":
            scales = pair_scales(lengths, targets, usable)
            met = similarity(lengths[:, None].expand_as(targets), lengths[None, :].expand_as(targets))
        else:
            scales, met = vaccine_scales(lengths, targets, usable, orders)
        if static is None:
            moved = (1 - options.beta) * state.similarity + options.beta * met
            average = torch.where(_pairs(usable), moved, state.similarity)
            state = MagnitudeState(average, state.log_scale, state.frozen)
    if options.s_max is not None:
        scales = scales.clamp(1 / options.s_max, options.s_max)
    return torch.where(usable, scales, 0.0) @ rows, state


def _pairs(usable: Bool[Tensor, " K"]) -> Bool[Tensor, "K K"]:
    pairs = usable[:, None] & usable[None, :]
    return pairs & ~torch.eye(len(usable), dtype=torch.bool)
