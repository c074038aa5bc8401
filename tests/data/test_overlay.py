import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data._overlay import Placement, draw_pairs, overlay, random_stream, split_scans

PLACEMENT = Placement(canvas=(9, 12), first=((0, 2), (0, 3)), second=((1, 3), (4, 6)))


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    shares=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 99),
)
def test_parts_are_disjoint_complete_and_stratified(labels, shares, seed):
    labels = np.array(labels)
    parts = split_scans(labels, shares, random_stream(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - len(labels) * share / sum(shares)) <= share
        for label in np.unique(labels):
            wanted = np.sum(labels == label) * share / sum(shares)
            assert abs(np.sum(labels[part] == label) - wanted) <= share


def _pool(stream, size, num_classes=4):
    return np.sort(stream.permutation(200)[:size]), np.arange(size) % num_classes


@given(num_pairs=st.integers(1, 80), size=st.integers(4, 30), different=st.booleans(), seed=st.integers(0, 99))
def test_pairs_come_from_their_pools_and_obey_the_rules(num_pairs, size, different, seed):
    indices, labels = _pool(np.random.default_rng(seed), size)
    of = dict(zip(indices.tolist(), labels.tolist(), strict=True))
    pairs = draw_pairs(
        (indices, labels), (indices, labels), num_pairs, PLACEMENT, different_classes=different, key=(seed,)
    )
    assert len(pairs) == num_pairs
    uses = [np.sum(pairs.first == index) for index in indices]
    assert max(uses) - min(uses) <= 1
    assert sum(uses) == num_pairs
    assert set(pairs.second.tolist()) <= set(of)
    if different:
        assert all(of[a] != of[b] for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    for offsets, ends in ((pairs.first_offset, PLACEMENT.first), (pairs.second_offset, PLACEMENT.second)):
        for axis, (low, high) in enumerate(ends):
            assert low <= offsets[:, axis].min()
            assert offsets[:, axis].max() <= high


@pytest.mark.parametrize("different", [True, False])
def test_partners_and_offsets_are_uniform(different):
    chisquare = pytest.importorskip("scipy.stats").chisquare
    indices, labels = np.arange(100, 117), np.array([0] * 9 + [1] * 5 + [2] * 3)
    pairs = draw_pairs((indices, labels), (indices, labels), 34_000, PLACEMENT, different_classes=different, key=(3,))
    for label in range(3):
        among = [index for index, own in zip(indices, labels, strict=True) if not different or own != label]
        chosen = pairs.second[labels[pairs.first - 100] == label]
        # 1 in 10,000 to fail by chance, once and for all: the seed is fixed
        assert chisquare([np.sum(chosen == index) for index in among]).pvalue > 1e-4
    assert chisquare(np.unique(pairs.first_offset, axis=0, return_counts=True)[1]).pvalue > 1e-4
    assert chisquare(np.unique(pairs.second_offset, axis=0, return_counts=True)[1]).pvalue > 1e-4
    together = np.concatenate([pairs.first_offset[:, :1], pairs.second_offset[:, :1]], axis=1)
    assert chisquare(np.unique(together, axis=0, return_counts=True)[1]).pvalue > 1e-4  # drawn independently


@given(fewer=st.integers(1, 60), seed=st.integers(0, 9), different=st.booleans())
def test_fewer_pairs_are_the_beginning_of_more(fewer, seed, different):
    pool = (np.arange(13), np.arange(13) % 3)
    small, large = (
        draw_pairs(pool, pool, size, PLACEMENT, different_classes=different, key=(seed, 1)) for size in (fewer, 60)
    )
    for name in ("first", "second", "first_offset", "second_offset"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name)[:fewer])


def test_an_overlay_is_the_maximum_pixel_by_pixel():
    stream = np.random.default_rng(1)
    first = stream.integers(0, 256, (7, 4, 5), dtype=np.uint8)
    second = stream.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pairs = draw_pairs(
        (np.arange(7), np.zeros(7, int)),
        (np.arange(5), np.zeros(5, int)),
        40,
        PLACEMENT,
        different_classes=False,
        key=(0,),
    )
    found = overlay(first, second, pairs, PLACEMENT.canvas)
    assert found.dtype == np.uint8
    for n in range(40):
        slow = [[0] * 12 for _ in range(9)]
        for scan, (row, column) in (
            (first[pairs.first[n]], pairs.first_offset[n]),
            (second[pairs.second[n]], pairs.second_offset[n]),
        ):
            for r in range(scan.shape[0]):
                for c in range(scan.shape[1]):
                    slow[row + r][column + c] = max(slow[row + r][column + c], int(scan[r, c]))
        np.testing.assert_array_equal(found[n], slow)
