"""What a record says, in plain words, each sentence with the numbers that justify it, or why nothing can be said."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from counterpoint._checks import check_integer, check_range
from counterpoint.diagnostics._groups import describe, find_group
from counterpoint.diagnostics.record import ConflictRecord
from counterpoint.splitting.plan import SplitPlan

_Z = 1.959963984540054  # of a two-sided interval of 95 %
_MIN_EVENTS = 30  # with fewer measurements the interval of a rate is wider than 35 points
_MAX_PAIRS = 3
_CHANCE = 0.5  # two gradients that have nothing to do with each other have a negative cosine every second time
_DOMINANT = 3.0  # ratio of lengths from which the longer gradient is called dominant
_SHARE = 0.8  # of the conflicts that a suggested split takes away
_FEW_LAYERS, _FEW_PARAMETERS = 0.5, 0.1  # a split of more layers and of more parameters than this is not suggested


@dataclasses.dataclass(frozen=True)
class Finding:
    """One statement.

    Attributes:
        kind: ``"support"``, ``"pair"``, ``"place"``, ``"split"``, ``"length"`` or ``"time"``.
        text: The statement.
        numbers: What it rests on.
        supported: Whether it says that there is something; ``False`` where it says that there is nothing, or that the
            data do not tell.
    """

    kind: str
    text: str
    numbers: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    supported: bool = True


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of Wilson for a rate, from 0 to 1; all of it without trials.

    Example:
        >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
        [0.4902, 0.9433]

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, _Z * _Z
    middle = (rate + square / (2 * trials)) / (1 + square / trials)
    half = _Z / (1 + square / trials) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def findings(
    record: ConflictRecord,
    *,
    threshold: float = 0.0,
    min_measurements: int = _MIN_EVENTS,
    recipe: str = "RECIPE",
) -> list[Finding]:
    """Say what a record shows: which tasks conflict, in which layers, what splitting would take away, who dominates.

    A pair is said to conflict if the 95 % interval of its conflict rate lies above one half, the rate of gradients that
    have nothing to do with each other. The interval takes the measurements for independent, which those of neighboring
    steps are not quite.

    Args:
        record: Of a monitor.
        threshold: S: cosines strictly below it are conflicts in the layers. For the pairs it is 0.
        min_measurements: With fewer nothing is said.
        recipe: What the suggested command is to be called with.

    Raises:
        OptionError: If an option is outside its range, or this threshold was not counted.
    """
    check_range("findings: threshold", threshold, low=-1.0, high=1.0)
    check_integer("findings: min_measurements", min_measurements, low=1)
    if len(record.tasks) < 2:
        return [Finding("support", "There is one task, so there is nobody to conflict with.", supported=False)]
    if not record.layers:
        text = "No layer was reached by two tasks, so there is nothing that could conflict."
        return [Finding("support", text, {"measurements": record.num_measurements}, supported=False)]
    if record.num_measurements < min_measurements:
        count = record.num_measurements
        text = (
            f"Only {count} measurement{'s' * (count != 1)}; at least {min_measurements} are needed to tell conflict "
            "from chance. Train longer, or measure more often (every=...)."
        )
        return [Finding("support", text, {"measurements": count}, supported=False)]
    pairs = _pairs(record, min_measurements)
    found = [*pairs, *_places(record, threshold, recipe, suggest=any(finding.supported for finding in pairs))]
    return [*found, _lengths(record), *_time(record, threshold, min_measurements)]


def _pairs(record: ConflictRecord, min_measurements: int) -> list[Finding]:
    """Say which pairs conflict more often than chance, worst first."""
    below, measured = record.whole_conflicts(0.0), record.whole_measured.sum(axis=0)
    means = _weighted_mean(record.whole_cosines, record.whole_measured)
    rates = [(below[at] / measured[at], at) for at in range(len(measured)) if measured[at] >= min_measurements]
    few = [at for at in range(len(measured)) if measured[at] < min_measurements]
    found: list[Finding] = []
    order = sorted(rates, reverse=True)
    conflicting = [(rate, at) for rate, at in order if wilson_interval(int(below[at]), int(measured[at]))[0] > _CHANCE]
    for rate, at in conflicting[:_MAX_PAIRS]:
        one, other = record.pairs[at]
        low, high = wilson_interval(int(below[at]), int(measured[at]))
        text = (
            f"{one} and {other} conflict in {_percent(rate)} of {int(measured[at])} measurements (95 % interval "
            f"{_percent(low)} to {_percent(high)}), more than the half that chance would give; mean cosine "
            f"{means[at]:.3f}."
        )
        numbers = {"rate": float(rate), "low": low, "high": high, "measured": float(measured[at])}
        found.append(Finding("pair", text, {**numbers, "mean_cosine": float(means[at])}))
    if len(conflicting) > _MAX_PAIRS:
        more = len(conflicting) - _MAX_PAIRS
        text = (
            f"{more} more pair{'s' * (more != 1)} of {len(record.pairs)} conflict{'s' * (more == 1)} more than chance."
        )
        found.append(Finding("pair", text, {"pairs": more}))
    if not conflicting and order:
        rate, at = order[0]
        low, high = wilson_interval(int(below[at]), int(measured[at]))
        one, other = record.pairs[at]
        text = (
            f"No pair of tasks conflicts more often than chance. The highest rate is {_percent(rate)} of "
            f"{int(measured[at])} measurements, of {one} and {other} (95 % interval {_percent(low)} to "
            f"{_percent(high)}; chance gives half); mean cosine {means[at]:.3f}."
        )
        found.append(Finding("pair", text, {"rate": float(rate), "low": low, "high": high}, supported=False))
    if few:
        names = ", ".join(" and ".join(record.pairs[at]) for at in few[:_MAX_PAIRS])
        more = f" and {len(few) - _MAX_PAIRS} more pairs" if len(few) > _MAX_PAIRS else ""
        text = f"Too few measurements had gradients of both tasks to say anything of {names}{more}."
        found.append(Finding("support", text, {"pairs": len(few)}, supported=False))
    return found


def _places(record: ConflictRecord, threshold: float, recipe: str, *, suggest: bool) -> list[Finding]:
    """Say where the conflicts of the layers are, and what splitting some of them would take away."""
    scores = record.scores(threshold)
    total = sum(scores.values())
    what = "" if threshold == 0 else f" (cosine below {threshold:g})"
    if total == 0:
        return [Finding("place", f"In no layer was there a conflict{what}.", {"conflicts": 0}, supported=False)]
    found = [_where(record, scores, threshold, what)]
    if not suggest:
        text = (
            "Splitting layers is not suggested from this: no pair of tasks conflicts more often than chance. Recon's "
            "own rule asks for no such thing: it takes the layers with the most cosines below a threshold like -0.1; "
            "whether that helps here only training tells (counterpoint split)."
        )
        return [*found, Finding("split", text, supported=False)]
    plan = SplitPlan.share(scores, record.sizes, _SHARE)
    measured = sum(record.sizes[name] for name in record.layers)
    network = sum(record.sizes.values())
    share_of_layers, share = len(plan.layers) / len(record.layers), plan.num_parameters / network
    numbers = {
        "layers": float(len(plan.layers)),
        "of_layers": float(len(record.layers)),
        "parameters": share,
        "removed": plan.removed,
    }
    if share_of_layers > _FEW_LAYERS and plan.num_parameters > _FEW_PARAMETERS * measured:
        text = (
            f"Splitting a few layers would not help much: {_percent(_SHARE)} of the conflicts{what} are in no fewer "
            f"than {len(plan.layers)} of {len(record.layers)} layers ({_percent(share)} of the parameters)."
        )
        return [*found, Finding("split", text, numbers, supported=False)]
    text = (
        f"Splitting {len(plan.layers)} of {len(record.layers)} layers ({_percent(share)} of the parameters) would give "
        f"each task its own copy where {_percent(plan.removed)} of the conflicts of single layers{what} were"
    )
    if record.exact:
        left = record.cosines_without(plan.layers)
        after = float(np.mean(left[~np.isnan(left)] < 0)) if not np.isnan(left).all() else 0.0
        before = float(np.mean(record.whole_cosines[~np.isnan(record.whole_cosines)] < 0))
        text += f"; what stays shared would have conflicted in {_percent(after)} instead of {_percent(before)} of cases"
        numbers |= {"before": before, "after": after}
    option = "" if threshold == 0 else f" --threshold {threshold:g}"
    text += f". Try: counterpoint split {recipe} --layers {len(plan.layers)}{option}"
    return [*found, Finding("split", text, numbers)]


def _where(record: ConflictRecord, scores: Mapping[str, int], threshold: float, what: str) -> Finding:
    measured = dict(zip(record.layers, record.measured.sum(axis=(0, 2)).tolist(), strict=True))
    total = sum(scores.values())
    group = find_group(record, scores)
    if group is None:
        text = f"The conflicts{what} are spread: no kind or part of the network holds three quarters of them."
        return Finding("place", text, {"conflicts": total}, supported=False)
    inside = sum(scores[name] for name in group.layers)
    rate = inside / sum(measured[name] for name in group.layers)
    others = [name for name in record.layers if name not in group.layers]
    rest = (total - inside) / max(sum(measured[name] for name in others), 1)
    text = (
        f"{_percent(inside / total)} of the conflicts of single layers{what} are in {describe(group)}: "
        f"{len(group.layers)} of {len(record.layers)} layers, where {_percent(rate)} of the measured cosines are below "
        f"{threshold:g}, against {_percent(rest)} in the others."
    )
    numbers = {"share": inside / total, "layers": float(len(group.layers)), "rate": rate, "rest": rest}
    return Finding("place", text, numbers)


def _lengths(record: ConflictRecord) -> Finding:
    """Say whether the gradient of one task is far longer than another's, most of the time."""
    norms = record.whole_norms.astype(np.float64)
    medians = np.array(
        [np.median(column[~np.isnan(column)]) if (~np.isnan(column)).any() else np.nan for column in norms.T]
    )
    if np.isnan(medians).all():
        return Finding("length", "The lengths of the gradients were not measured.", supported=False)
    if not (medians > 0).any():
        text = "The gradient of every task is zero in half of the measurements or more."
        return Finding("length", text, supported=False)
    longest, shortest = int(np.nanargmax(medians)), int(np.nanargmin(medians))
    here = ~np.isnan(norms[:, longest]) & ~np.isnan(norms[:, shortest]) & (norms[:, longest] > 0)
    if not here.any():
        text = "The tasks with the longest and the shortest gradient were never measured together."
        return Finding("length", text, supported=False)
    one, other = record.tasks[longest], record.tasks[shortest]
    zero = float(np.mean(norms[here, shortest] == 0))
    if zero >= 0.5:
        text = (
            f"The gradient of {other} is zero in {_percent(zero)} of the measurements, so {other} hardly trains the "
            "layers that it shares; see whether its loss is saturated or its labels are constant."
        )
        return Finding("length", text, {"zero": zero})
    with np.errstate(divide="ignore"):
        ratios = norms[here, longest] / norms[here, shortest]
    ratio = float(np.median(ratios))
    often = float(np.mean(ratios >= _DOMINANT))
    numbers = {"ratio": ratio, "often": often}
    if ratio >= _DOMINANT and often >= 0.75:
        text = (
            f"{one} dominates: its gradient is {ratio:.1f} times as long as that of {other} (median; at least "
            f"{_DOMINANT:g} times in {_percent(often)} of the measurements). With a plain sum it decides the update; "
            "try other loss weights, or a balancer that makes the lengths even."
        )
        return Finding("length", text, numbers)
    text = (
        f"No task dominates by the length of its gradient: that of {one} is {ratio:.1f} times that of {other} (median; "
        f"dominance would be {_DOMINANT:g} times or more, three quarters of the time)."
    )
    return Finding("length", text, numbers, supported=False)


def _time(record: ConflictRecord, threshold: float, min_measurements: int) -> list[Finding]:
    """Say whether the layers conflict more at the end than at the begin; nothing if there is too little to compare."""
    third = len(record.counts) // 3
    if third == 0:
        return []
    below, measured = record.conflicts(threshold).sum(axis=(1, 2)), record.measured.sum(axis=(1, 2))
    ends = []
    for part in (slice(0, third), slice(len(record.counts) - third, None)):
        events, count = int(measured[part].sum()), int(record.counts[part].sum())
        if events == 0 or count < min_measurements:
            return []
        rate = float(below[part].sum()) / events
        # layers and pairs of one measurement go together, so only measurements count as trials
        ends.append((rate, wilson_interval(round(rate * count), count)))
    (first, before), (last, after) = ends
    if before[1] >= after[0] and after[1] >= before[0]:
        return []
    text = (
        f"Conflict in the layers {'grew' if last > first else 'fell'} during training: {_percent(first)} of the "
        f"measured cosines in the first third were below {threshold:g}, {_percent(last)} in the last."
    )
    return [Finding("time", text, {"first": first, "last": last})]


def _weighted_mean(means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over entries of means of so many; NaN where there are none."""
    total = counts.sum(axis=0)
    return np.where(total > 0, np.nansum(means * counts, axis=0) / np.maximum(total, 1), np.nan)


def _percent(share: float) -> str:
    """Write a share in per cent: whole numbers, more digits where it is small."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %"
