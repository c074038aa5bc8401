"""Attributes against a loop over single pixels, and against what the labels say."""

import numpy as np
import pytest

from counterpoint.data import FashionAttributes
from counterpoint.data.fashion_attributes import measure
from counterpoint.errors import FileError, OptionError

NAMES = ["category", "footwear", "long_sleeves", "bright", "symmetric", "large"]


def by_pixel(image):
    thing = [int(value) for value in image.ravel() if value >= 26]
    total = sum(abs(int(row[c]) - int(row[27 - c])) for row in image for c in range(28)) / 28**2
    return sum(thing) / len(thing), total / (sum(map(int, image.ravel())) / 28**2), len(thing)


@pytest.fixture
def data(root):
    return FashionAttributes(root, verify=False)


def test_measures_pixel_by_pixel(scans):
    images, _ = scans["FashionMNIST", "t10k"]
    images = images // np.arange(1, 7, dtype=np.uint8).repeat(2)[:, None, None]  # of different brightness
    np.testing.assert_allclose(np.stack(measure(images), 1), [by_pixel(image) for image in images], rtol=1e-5)
    mirrored = np.concatenate([images[:, :, :14], images[:, :, 13::-1]], axis=2)
    np.testing.assert_allclose(measure(mirrored)[1], 0)
    assert all(np.isfinite(value).all() for value in measure(np.zeros((1, 28, 28), np.uint8)))


def test_targets_are_what_labels_and_pixels_say(data, scans):
    images, labels = scans["FashionMNIST", "t10k"]
    split = data.split("test")
    assert [task.name for task in data.tasks] == NAMES
    position = {image.tobytes(): at for at, image in enumerate(images)}
    assert len(split) == len(images)
    for at in range(len(split)):
        sample = {name: tensor[at] for name, tensor in split.tensors.items()}
        own = position[sample["image"].numpy().tobytes()]
        label = labels[own]
        gray, asymmetry, size = by_pixel(images[own])
        assert sample["category"] == label
        assert sample["footwear"] == (label in (5, 7, 9))
        assert sample["long_sleeves_mask"] == (label in (0, 2, 3, 4))
        assert sample["long_sleeves"] == (label in (2, 4))
        assert sample["bright"] == (gray > data.medians[0])
        assert sample["symmetric"] == (asymmetry < data.medians[1])
        assert sample["large"] == (size > data.medians[2])


def test_splits_are_disjoint_and_fixed(data, root):
    sizes = {name: len(data.split(name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 75, "val": 15, "test": 12}
    seen = [image.numpy().tobytes() for name in sizes for image in data.split(name).tensors["image"]]
    assert len(set(seen)) == len(seen)
    fewer = FashionAttributes(root, num_train=10, num_val=3, verify=False)
    assert fewer.medians == data.medians
    assert (fewer.split("train").tensors["image"] == data.split("train").tensors["image"][:10]).all()
    assert data.split("train")[0]["image"].max() <= 1
    for name in ("bright", "symmetric"):
        assert data.split("train").tensors[name].sum() == 37, "half of 75 values that are all different"


def test_bad_input(root, tmp_path):
    with pytest.raises(FileError, match="missing; put train-images"):
        FashionAttributes(tmp_path / "nothing")
    with pytest.raises(FileError, match="not the published one"):
        FashionAttributes(root)
    with pytest.raises(OptionError, match="num_val must be at most 15, got 16"):
        FashionAttributes(root, num_val=16, verify=False)
    with pytest.raises(OptionError, match="num_train"):
        FashionAttributes(root, num_train=0, verify=False)
    assert FashionAttributes.problems(root, verify=False) == []
    assert len(FashionAttributes.problems(tmp_path / "nothing")) == 4
