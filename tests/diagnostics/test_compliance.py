"""The update compliance ratio against a count over explicit gradients."""

import pytest
import torch

from counterpoint.diagnostics import update_compliance
from counterpoint.errors import OptionError

NAN = float("nan")


def counted(batches):
    """Count over gradients by task, as the definition says; ``None`` for an absent task."""
    count = len(batches[0])
    pairwise, per_task = torch.full((count, count), NAN).double(), torch.full((count,), NAN).double()
    for i in range(count):
        for j in range(count):
            votes = [float(b[i] @ b[j] > 0) for b in batches if b[i] is not None and b[j] is not None]
            if votes:
                pairwise[i, j] = sum(votes) / len(votes)
        votes = [float(b[i] @ sum(g for g in b if g is not None) > 0) for b in batches if b[i] is not None]
        if votes:
            per_task[i] = sum(votes) / len(votes)
    return pairwise, per_task


def gram_of(gradients):
    rows = torch.stack([torch.full((4,), NAN).double() if g is None else g for g in gradients])
    return rows @ rows.T


@pytest.mark.parametrize("absent", [0.0, 0.4])
def test_it_is_the_count_over_batches(absent):
    torch.manual_seed(0)
    batches = [
        [None if torch.rand(()) < absent else torch.randn(4, dtype=torch.float64) for _ in range(3)] for _ in range(40)
    ]
    pairwise, per_task = counted(batches)
    found = update_compliance([gram_of(gradients) for gradients in batches])
    assert torch.equal(found.pairwise, pairwise)
    assert torch.equal(found.per_task, per_task)
    assert torch.equal(found.pairwise, found.pairwise.T)


def test_a_task_never_present_is_nan_and_hurts_no_other():
    gradient = torch.ones(4, dtype=torch.float64)
    found = update_compliance([gram_of([gradient, None, -2 * gradient])])
    assert torch.equal(found.per_task.isnan(), torch.tensor([False, True, False]))
    assert found.pairwise[0].tolist()[::2] == [1.0, 0.0]
    assert found.pairwise[1].isnan().all()
    assert found.per_task[[0, 2]].tolist() == [0.0, 1.0]


def test_zero_gradients_do_not_comply():
    found = update_compliance([torch.zeros(2, 2)])
    assert not found.pairwise.any()
    assert not found.per_task.any()


def test_no_batches():
    with pytest.raises(OptionError, match="at least one batch"):
        update_compliance([])
