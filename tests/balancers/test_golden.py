"""The numbers of a method do not change unnoticed; ``python tools/record_golden.py`` records them anew."""

import json
from pathlib import Path

import numpy as np
import pytest

from balancers.cases import CASES
from balancers.golden_run import STEPS, curve

GOLDEN = Path(__file__).parent.parent / "golden" / "balancers.json"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_loss_curve(case):
    recorded = json.loads(GOLDEN.read_text())
    found = np.array(curve(case))
    assert found.shape == (STEPS, 3)
    # float64; LAPACK and BLAS differ between machines in the last digits, and 20 steps amplify that little.
    # Learned weights are float32, as a user has them.
    tolerance = 1e-5 if any(True for _ in case.build(3).parameters()) else 1e-9
    np.testing.assert_allclose(found, recorded[case.key], rtol=tolerance)


def test_every_balancer_is_recorded():
    assert sorted(json.loads(GOLDEN.read_text())) == sorted(case.key for case in CASES)
