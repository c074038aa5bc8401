"""Which two gradients conflict most, and who wins: the steadier and stronger one, unless it has won too often."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from counterpoint._checks import check_range
from counterpoint.errors import OptionError
from counterpoint.linalg import combination_norms

TIE = 1e-6  # cosines and scores nearer than this differ by the rounding of float32 gradients
_GONE = 1e-3  # a gradient this much shorter than it was is rounding in part, and takes every further round


def check_thresholds(name: str, values: Sequence[float]) -> Sequence[float]:
    """Return three cosines that do not decrease.

    Raises:
        OptionError: If they are not.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 3:
        raise OptionError(f"{name} must be three cosines (critical, main, weak), got {values!r}")
    for value in values:
        check_range(name, value, low=-1.0, high=1.0)
    if list(values) != sorted(values):
        raise OptionError(f"{name} must not decrease (critical, main, weak), got {list(values)}")
    return values


def row_lengths(cosines: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the lengths of combinations of unit rows; 0 where the terms cancel to rounding."""
    return combination_norms(torch.from_numpy(cosines), torch.from_numpy(rows)).numpy()


def worst_pair(cosines: np.ndarray, rows: np.ndarray, weak: float) -> tuple[float, int, int] | None:
    """Return the most negative cosine below ``weak`` between combinations of unit rows and which two, or ``None``."""
    lengths = row_lengths(cosines, rows)
    usable = lengths > _GONE
    scales = np.where(usable, lengths, 1.0)
    now = rows @ cosines @ rows.T / scales[:, None] / scales[None, :]
    now = np.where(np.triu(np.outer(usable, usable), k=1), now, np.inf)
    if not now.min() < weak - TIE:
        return None
    first, second = (int(found[0]) for found in np.nonzero(now <= now.min() + TIE))
    return max(float(now[first, second]), -1.0), first, second


@dataclasses.dataclass
class Arbiter:
    """Decides who wins a conflict, and keeps count of who won in a row.

    Attributes:
        cosines: Of the gradients of now, (k, k).
        past: Entry (j, i) is the cosine of gradient j of now with gradient i of that task's step before.
        relative: Length of each gradient over its running mean, (k,).
        present: The task of each gradient.
        shares: Shares of steadiness and of relative length in the score.
        window: Number of conflicts won in a row that make a task dominant; 0 for no such rule.
        dominant_wins: Whether a dominant task wins, or loses.
        winner: The task that won last, -1 for none.
        streak: How often it did in a row.
    """

    cosines: np.ndarray
    past: np.ndarray
    relative: np.ndarray
    present: tuple[int, ...]
    shares: tuple[float, float]
    window: int
    dominant_wins: bool
    winner: int
    streak: int

    def __call__(self, rows: np.ndarray, first: int, second: int) -> int:
        """Return the position of the winner.

        Args:
            rows: The gradients as changed so far: coefficients of unit rows.
            first: Position of one of the two.
            second: Position of the other.
        """
        pair, tasks = [first, second], [self.present[first], self.present[second]]
        if 0 < self.window <= self.streak and self.winner in tasks:
            chosen = tasks.index(self.winner)
            chosen = chosen if self.dominant_wins else 1 - chosen
        else:
            lengths = row_lengths(self.cosines, rows[pair])
            stable = np.clip([rows[i] @ self.past[:, i] for i in pair] / lengths, 0.0, 1.0)
            strength = self.relative[pair] * lengths
            scores = self.shares[0] * stable + self.shares[1] * strength / strength.sum()
            chosen = int(scores[1] > scores[0] + TIE * sum(self.shares))
        self.streak = self.streak + 1 if tasks[chosen] == self.winner else 1
        self.winner = tasks[chosen]
        return pair[chosen]
