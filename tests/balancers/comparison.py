"""How results are compared with oracle values."""

import numpy as np


def agree(found, expected, tolerance):
    """Largest difference relative to the largest expected entry."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-300)
