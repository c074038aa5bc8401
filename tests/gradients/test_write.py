"""Writing to .grad: added, refused as a whole, and laid out as autograd does."""

import pytest
import torch

from counterpoint.gradients import accumulate, all_finite, backward_into


def sparse(rows):
    return torch.sparse_coo_tensor([rows], torch.ones(len(rows), 2), (4, 2), check_invariants=True).coalesce()


@pytest.mark.parametrize("old", [None, "dense", "sparse"])
@pytest.mark.parametrize("new", ["dense", "sparse"])
def test_accumulate_every_pair_of_layouts(old, new):
    leaf = torch.zeros(4, 2, requires_grad=True)
    made = {"dense": lambda: torch.full((4, 2), 3.0), "sparse": lambda: sparse([1, 3]), None: lambda: None}
    leaf.grad = made[old]()
    expected = made[new]().to_dense() + (0 if old is None else made[old]().to_dense())
    accumulate([(leaf, made[new]())])
    assert torch.equal(leaf.grad.to_dense(), expected)
    assert leaf.grad.is_sparse == (new == "sparse" and old != "dense")


def test_accumulate_adds_in_place_as_autograd_does():
    leaf = torch.zeros(2, requires_grad=True)
    leaf.grad = kept = torch.ones(2)
    accumulate([(leaf, torch.ones(2))])
    assert leaf.grad is kept
    assert kept.tolist() == [2.0, 2.0]


def test_accumulate_takes_the_layout_and_dtype_of_the_leaf():
    leaf = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    accumulate([(leaf, torch.ones(2, 3, 4, 4))])
    assert leaf.grad.stride() == leaf.stride()
    assert leaf.grad.dtype == torch.bfloat16


def test_backward_into_puts_everything_back_after_a_refusal():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    a.grad = kept = torch.full((2,), 7.0)

    def refuse(found):
        assert len(found) == 2
        assert a.grad.tolist() == [1.0, 1.0]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        backward_into([(a * b).sum()], [None], [a, b], refuse)
    assert a.grad is kept
    assert kept.tolist() == [7.0, 7.0]
    assert b.grad is None


def test_backward_into_writes_only_to_the_leaves_named():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    backward_into([(a * b).sum()], [None], [a], lambda _: None)
    assert b.grad is None
    backward_into([(a * b).sum()], [None], [], lambda _: None)
    assert a.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_all_finite(bad):
    good = [torch.ones(2), torch.zeros(0), None, torch.ones(1, dtype=torch.bfloat16), torch.ones(2).double()]
    assert all_finite(good)
    assert all_finite([])
    assert all_finite([torch.full((2,), 3e38), sparse([0])])  # finite, though its square is not
    assert not all_finite([*good, torch.tensor([1.0, bad])])
    assert not all_finite([*good, sparse([0]) * bad])
