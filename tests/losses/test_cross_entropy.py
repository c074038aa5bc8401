import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.errors import OptionError
from counterpoint.losses import cross_entropy


def slow(scores, target, mask):
    """Negative log-likelihood, entry by entry, in float64."""
    scores = np.moveaxis(scores.astype(np.float64), 1, -1)
    losses = []
    for place in np.ndindex(target.shape):
        if mask is None or mask[place]:
            row = scores[place]
            top = row.max()
            losses.append(top + np.log(np.sum(np.exp(row - top))) - row[target[place]])
    return np.mean(losses)


def example(seed, shape, num_classes, *, masked):
    stream = np.random.default_rng(seed)
    scores = stream.normal(scale=5.0, size=(shape[0], num_classes, *shape[1:]))
    mask = stream.random(shape) < 0.5 if masked else None
    if mask is not None:
        mask.flat[stream.integers(mask.size)] = True
    return scores, stream.integers(0, num_classes, shape), mask


SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@given(seed=st.integers(0, 999), shape=SHAPES, num_classes=st.integers(1, 6), masked=st.booleans())
def test_it_is_the_mean_over_labelled_entries(seed, shape, num_classes, masked):
    scores, target, mask = example(seed, shape, num_classes, masked=masked)
    tensor = None if mask is None else torch.from_numpy(mask)
    found = cross_entropy(torch.from_numpy(scores), torch.from_numpy(target), tensor)
    assert found.item() == pytest.approx(slow(scores, target, mask), rel=1e-12, abs=1e-12)  # rounding of float64
    single = cross_entropy(torch.from_numpy(scores).float(), torch.from_numpy(target), tensor)
    assert single.item() == pytest.approx(found.item(), rel=1e-5, abs=1e-5)


@given(seed=st.integers(0, 999), shape=SHAPES, masked=st.booleans())
def test_the_gradient_is_the_softmax_minus_the_label(seed, shape, masked):
    scores, target, mask = example(seed, shape, 4, masked=masked)
    leaf = torch.from_numpy(scores).requires_grad_()
    cross_entropy(leaf, torch.from_numpy(target), None if mask is None else torch.from_numpy(mask)).backward()
    last = np.moveaxis(scores, 1, -1)
    share = np.exp(last - last.max(axis=-1, keepdims=True))
    wanted = share / share.sum(axis=-1, keepdims=True) - np.eye(4)[target]
    mask = np.ones(shape, bool) if mask is None else mask
    wanted = np.moveaxis(wanted * mask[..., None] / mask.sum(), -1, 1)
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_what_is_masked_has_no_influence():
    scores, target, mask = example(0, (6, 3), 4, masked=True)
    hidden = torch.from_numpy(~mask)
    first = cross_entropy(torch.from_numpy(scores), torch.from_numpy(target), ~hidden)
    scores = torch.where(hidden[:, None], torch.tensor(1e6, dtype=torch.float64), torch.from_numpy(scores))
    labels = torch.from_numpy(target).masked_fill(hidden, 255)  # as public data sets mark entries without a label
    assert torch.equal(cross_entropy(scores, labels, ~hidden), first)


def test_a_label_out_of_range_is_refused_with_and_without_a_mask():
    scores, mask = torch.zeros(3, 4), torch.ones(3, dtype=torch.bool)
    for label in (4, -100, -1):
        target = torch.tensor([0, label, 1])
        with pytest.raises((IndexError, ValueError)):
            cross_entropy(scores, target)
        with pytest.raises((IndexError, ValueError)):
            cross_entropy(scores, target, mask)


def test_inputs_are_left_alone():
    scores, target, mask = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 0, 1, 1, 0]).bool()
    copies = scores.clone(), target.clone(), mask.clone()
    cross_entropy(scores, target, mask)
    assert all(torch.equal(one, other) for one, other in zip((scores, target, mask), copies, strict=True))


def test_one_loss_for_each_labelled_sample():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 3, 5, generator=generator)
    target = torch.randint(3, (4, 5), generator=generator)
    mask = torch.rand(4, 5, generator=generator) < 0.6
    mask[1] = False
    found = cross_entropy(scores, target, mask, reduction="none")
    kept = [torch.nn.functional.cross_entropy(scores[i].T[mask[i]], target[i][mask[i]]) for i in (0, 2, 3)]
    torch.testing.assert_close(found, torch.stack(kept))
    plain = cross_entropy(scores[..., 0], target[:, 0], reduction="none")
    torch.testing.assert_close(plain.mean(), cross_entropy(scores[..., 0], target[:, 0]))


def test_another_reduction_is_refused():
    with pytest.raises(OptionError, match="reduction must be one of mean, none, got 'sum'"):
        cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), reduction="sum")
