import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.metrics import accuracy


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_it_counts_over_the_whole_split(sizes, seed):
    stream = np.random.default_rng(seed)
    spec = accuracy(4)
    metric = spec.make()
    correct = total = 0
    for size in sizes:
        scores, target = stream.normal(size=(size, 4)), stream.integers(0, 4, size)
        metric.update(torch.from_numpy(scores), torch.from_numpy(target))
        for row, label in zip(scores.tolist(), target.tolist(), strict=True):
            correct += row.index(max(row)) == label
            total += 1
    assert spec.factor * metric.compute().item() == pytest.approx(100 * correct / total, rel=1e-6)  # float32 inside


def test_it_is_no_mean_of_batches_or_classes():
    spec = accuracy(3)
    metric = spec.make()
    metric.update(torch.eye(3)[[0]], torch.tensor([0]))  # all of one right
    metric.update(torch.eye(3)[[0, 0, 1]], torch.tensor([1, 2, 2]))  # none of three
    assert spec.factor * metric.compute().item() == pytest.approx(25.0)


def test_direction_and_unit():
    spec = accuracy(10)
    assert spec.higher_is_better
    assert spec.unit == "%"
    assert spec.make() is not spec.make()


def test_it_counts_pixels_too():
    scores = torch.zeros(2, 3, 4, 5)
    scores[:, 1] = 1.0
    target = torch.ones(2, 4, 5, dtype=torch.int64)
    target[0, 0, 0] = 2
    metric = accuracy(3).make()
    metric.update(scores, target)
    assert metric.compute().item() == pytest.approx(39 / 40)
