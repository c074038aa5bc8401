import pytest
import torch

from counterpoint import data
from counterpoint.errors import OptionError, ShapeError, UnknownNameError


def test_a_split_refuses_unequal_lengths_and_unknown_divisors():
    with pytest.raises(ShapeError, match=r"image.*2.*left.*3"):
        data.TensorSplit({"image": torch.zeros(2), "left": torch.zeros(3)})
    with pytest.raises(UnknownNameError, match="did you mean image"):
        data.TensorSplit({"image": torch.zeros(2)}, divisors={"imag": 2})


def test_division_is_exact_at_every_byte_and_leaves_memory_alone():
    stored = torch.arange(256, dtype=torch.uint8)
    split = data.TensorSplit({"image": stored, "left": torch.arange(256)}, divisors={"image": 255})
    batch = split.__getitems__(list(range(256)))
    assert torch.equal(batch["image"], torch.arange(256, dtype=torch.float32) / 255)
    assert torch.equal(batch["left"], torch.arange(256))
    assert torch.equal(stored, torch.arange(256, dtype=torch.uint8))
    floats = torch.ones(3)
    assert data.TensorSplit({"image": floats}, divisors={"image": 2})[0]["image"] == 0.5
    assert torch.equal(floats, torch.ones(3))


def test_select_tasks():
    digits = data.Digits(num_train=1, num_val=1, num_test=1)
    assert [task.name for task in digits.select_tasks(None)] == ["left", "right"]
    assert [task.name for task in digits.select_tasks(["right", "left"])] == ["left", "right"]
    assert [task.name for task in digits.select_tasks(["right"])] == ["right"]
    with pytest.raises(UnknownNameError, match="did you mean right"):
        digits.select_tasks(["rihgt"])
    with pytest.raises(OptionError, match="at least one"):
        digits.select_tasks([])
