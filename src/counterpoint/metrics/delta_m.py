"""Delta_m: the mean relative change against a baseline, in the conventions that the literature uses."""

from collections.abc import Mapping

from counterpoint._checks import check_choice
from counterpoint.errors import OptionError

Results = Mapping[str, Mapping[str, float]]

CONVENTIONS: dict[str, str] = {
    "tasks": "mean over tasks of the mean over that task's metrics; positive is better (LibMTL, Auto-Lambda)",
    "metrics": "mean over all metrics, flat, sign turned; negative is better (CAGrad, Nash-MTL, FAMO, FairGrad)",
    "primary": "mean over tasks of the first metric of each; positive is better (ASTMT, MTI-Net, InvPT)",
    "metrics_positive": "mean over all metrics, flat; positive is better (Recon)",
}


def delta_m(
    results: Results,
    baseline: Results,
    higher_is_better: Mapping[str, Mapping[str, bool]],
    *,
    convention: str = "tasks",
) -> float:
    """Return the mean relative change of a method against a baseline, in per cent.

    With M the result, B the baseline and s = +1 where higher is better, else -1, each metric contributes
    100 s (M - B) / |B|. The literature divides by B, which is the same for metrics that are not negative; for others,
    such as a log-likelihood, it would turn the sign. The conventions differ in how these are averaged and in the sign,
    see :data:`CONVENTIONS`.

    Args:
        results: Task -> metric -> value of the method.
        baseline: The same of the baseline, usually single-task networks of the same size and schedule.
        higher_is_better: Task -> metric -> direction; the first metric of a task is its primary one.
        convention: A key of :data:`CONVENTIONS`.

    Raises:
        OptionError: If there is no metric, a value is missing, or the baseline is zero, where the relative change is
            not defined.

    Example:
        >>> better = {"seg": {"miou": True}, "depth": {"rmse": False}}
        >>> single = {"seg": {"miou": 40.0}, "depth": {"rmse": 0.5}}
        >>> delta_m({"seg": {"miou": 44.0}, "depth": {"rmse": 0.625}}, single, better)
        -7.5

    References:
        Maninis, Radosavovic, Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, arXiv:1904.08918. Navon
        et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv:2202.01017 (flat mean over metrics,
        negative is better).
    """
    check_choice("delta_m: convention", convention, CONVENTIONS)
    if not higher_is_better or not all(higher_is_better.values()):
        raise OptionError("delta_m: higher_is_better must have at least one task, and at least one metric for each")
    changes: list[list[float]] = []
    for task, metrics in higher_is_better.items():
        own = []
        for metric, higher in metrics.items():
            try:
                value, base = results[task][metric], baseline[task][metric]
            except KeyError as error:
                raise OptionError(
                    f"delta_m: no value of metric {metric!r} of task {task!r} (missing key {error})"
                ) from error
            if base == 0:
                raise OptionError(f"delta_m: the baseline of {task}/{metric} is 0, so a relative change is not defined")
            own.append(100.0 * (value - base) / abs(base) * (1.0 if higher else -1.0))
        changes.append(own)
    flat = [change for own in changes for change in own]
    if convention == "tasks":
        return sum(sum(own) / len(own) for own in changes) / len(changes)
    if convention == "primary":
        return sum(own[0] for own in changes) / len(changes)
    return sum(flat) / len(flat) * (-1.0 if convention == "metrics" else 1.0)
