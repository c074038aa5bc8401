"""The page of a diagnosis: findings, maps, distributions, lengths and the worst layers in one file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.bench.diagnose_figures import distribution_section, lengths_section, map_section
from counterpoint.bench.page import render_page
from counterpoint.bench.tables import write_text
from counterpoint.diagnostics import ConflictBins, ConflictRecord, conflict_bins, findings

WORST = 10


def diagnose_page(
    record: ConflictRecord,
    path: str | os.PathLike[str],
    *,
    threshold: float = 0.0,
    bins: str | Sequence[float] = "mnist",
    title: str = "Conflict between tasks",
    recipe: str = "RECIPE",
    config: str = "",
) -> Path:
    """Write what a monitor measured as one HTML file that needs no network, replacing an older one in one step.

    Args:
        record: Of :meth:`counterpoint.diagnostics.ConflictMonitor.record`.
        path: File to write.
        threshold: S: cosines of layers strictly below it count as conflicts in findings and table.
        bins: Bins of the distribution, by the name of a data set of Recon's paper or by falling edges; see
            :func:`counterpoint.diagnostics.conflict_bins`.
        title: Heading.
        recipe: What the suggested command is to be called with.
        config: Configuration of the run as text, shown folded.

    Raises:
        MissingExtraError: If plotly or jinja2 is not installed.
        FileError: If the file cannot be written.
        OptionError: If this threshold was not counted.
    """
    chosen = conflict_bins(bins)
    page = render_diagnosis(record, threshold=threshold, bins=chosen, title=title, recipe=recipe, config=config)
    return write_text(path, page)


def render_diagnosis(
    record: ConflictRecord, *, threshold: float, bins: ConflictBins, title: str, recipe: str, config: str
) -> str:
    """Return the page as HTML; the arguments are those of :func:`diagnose_page`."""
    sections = []
    if record.num_measurements and record.layers and record.pairs:
        sections = [map_section(record), distribution_section(record, bins), lengths_section(record)]
    return render_page(
        "diagnose.html.jinja",
        sections,
        title=title,
        record=record,
        last_step=int(record.steps[-1]) if len(record.steps) else 0,
        findings=findings(record, threshold=threshold, recipe=recipe),
        threshold=f"{threshold:g}",
        worst=worst_layers(record, threshold),
        config=config,
    )


def worst_layers(record: ConflictRecord, threshold: float = 0.0, count: int = WORST) -> list[Mapping[str, Any]]:
    """Return the layers with the highest S-conflict scores, highest first; ties in the network's order.

    Args:
        record: Of a monitor.
        threshold: S.
        count: How many at most.
    """
    if not record.pairs:
        return []
    scores = record.scores(threshold)
    by_pair = record.conflicts(threshold).sum(axis=0)  # (n, pairs)
    measured = record.measured.sum(axis=0)
    total = sum(scores.values())
    lines = []
    for name in sorted(record.layers, key=lambda name: -scores[name])[:count]:
        at = record.layer_index(name)
        events = int(measured[at].sum())
        means = np.nansum(record.cosines[:, at] * record.measured[:, at]) / max(events, 1)
        rates = by_pair[at] / np.maximum(measured[at], 1)
        lines.append(
            {
                "name": name or "(the network itself)",
                "kind": record.kinds.get(name, ""),
                "size": record.sizes[name],
                "score": scores[name],
                "share": 100 * scores[name] / total if total else 0.0,
                "rate": 100 * scores[name] / events if events else float("nan"),
                "cosine": float(means) if events else float("nan"),
                "pair": " and ".join(record.pairs[int(rates.argmax())]) if scores[name] else "",
            }
        )
    return lines
