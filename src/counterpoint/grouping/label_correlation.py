"""Correlation of the labels of two tasks."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import nn

from counterpoint.errors import OptionError
from counterpoint.grouping._observer import Compute, Estimator
from counterpoint.grouping._preserve import Snapshot
from counterpoint.grouping.affinity import AffinityMatrix, Matrix


@final
class LabelCorrelation(Estimator):
    """Pearson correlation of the labels over all samples seen, pairs with a missing label (NaN) left out.

    ``compute`` returns the labels by task, one number per sample. A label that never changes has correlation 0.

    Args:
        num_tasks: Number of tasks T; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        every: Measure every so many calls of ``observe``.
        use_abs: Take absolute values: a strong negative correlation relates two tasks too.

    References:
        Sarafianos et al., "Curriculum Learning for Multi-Task Classification of Visual Attributes", ICCV workshop 2017,
        arXiv:1708.08728, which sums these correlations with their signs.
    """

    key = "label_correlation"
    directed = False
    diagonal = "1 where the label changes, else 0"
    source = "Sarafianos et al., ICCV workshop 2017, arXiv:1708.08728"
    provenance = "formula second-hand"
    cost = "no pass; T^2 sums over the batch per observation"
    reads = "labels"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        every: int = 1,
        use_abs: bool = False,
    ) -> None:
        self.use_abs = use_abs
        super().__init__(num_tasks, tasks, every)
        self._moments: Matrix = np.zeros((6, self.num_tasks, self.num_tasks))

    def _measure(self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None) -> Matrix:  # noqa: ARG002
        labels = self.by_task(compute(), "label tensors")
        size = max((len(label) for label in labels if label is not None), default=0)
        columns = np.full((size, self.num_tasks), np.nan)
        for task, label in enumerate(labels):
            if label is None:
                continue
            column = torch.as_tensor(label).detach().double().cpu().numpy()
            if column.shape != (size,):
                raise OptionError(
                    f"LabelCorrelation: the labels of {self.names[task]} must be one number for each of {size} "
                    f"samples, got shape {column.shape}"
                )
            columns[:, task] = column
        seen = ~np.isnan(columns)
        x, m = np.where(seen, columns, 0.0), seen.astype(np.float64)
        self._moments += np.stack([m.T @ m, x.T @ m, m.T @ x, (x * x).T @ m, m.T @ (x * x), x.T @ x])
        return np.where(m.T @ m > 0, 0.0, np.nan)

    def result(self) -> AffinityMatrix:
        """Return the correlations; NaN where two labels were never seen together.

        Raises:
            OptionError: If nothing was observed.
        """
        if not self.measured:
            return super().result()
        count, x, y, xx, yy, xy = self._moments
        size = np.maximum(count, 1)
        spread = np.sqrt(np.maximum(xx - x * x / size, 0) * np.maximum(yy - y * y / size, 0))
        tiny = 1e-12 * np.sqrt(xx * yy)
        values = np.divide(xy - x * y / size, spread, out=np.zeros_like(xy), where=spread > tiny)
        values = np.where(count > 0, np.clip(values, -1, 1), np.nan)
        return self._matrix(np.abs(values) if self.use_abs else values)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain data."""
        return {**super().state_dict(), "moments": self._moments.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._moments = np.array(state["moments"], dtype=np.float64)
