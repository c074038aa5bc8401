"""Scores, the paper's bins and its reduction, and files, against the numbers of the specification."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from counterpoint.diagnostics import (
    MNIST_EDGES,
    ConflictRecord,
    effective_rank,
    reduced_mass,
    reduction,
)
from counterpoint.errors import FileError, OptionError, UnknownNameError


def make(cosines, whole=None, tasks=("a", "b", "c"), layers=("conv", "norm")):
    """Build a record of every cosine, (I, n, pairs)."""
    cosines = np.asarray(cosines, dtype=np.float32)
    entries, _, pairs = cosines.shape
    whole = np.zeros((entries, pairs)) if whole is None else np.asarray(whole)
    return ConflictRecord(
        tasks=tuple(tasks),
        layers=tuple(layers),
        sizes={"conv": 90, "norm": 10, "head": 5},
        steps=np.arange(entries),
        counts=np.ones(entries, dtype=np.int64),
        cosines=cosines,
        measured=(~np.isnan(cosines)).astype(np.int32),
        norms=np.ones((entries, len(layers), len(tasks)), dtype=np.float32),
        whole_cosines=whole.astype(np.float32),
        whole_measured=(~np.isnan(whole)).astype(np.int32),
        whole_norms=np.ones((entries, len(tasks)), dtype=np.float32),
        effective_rank=np.ones(entries, dtype=np.float32),
        whole_below=np.zeros((pairs, 201), dtype=np.int64),
        thresholds=(),
        below=np.zeros((0, entries, len(layers), pairs), dtype=np.int32),
        exact=True,
    )


PRINTED = np.array([[-0.2, 0.1, -0.05], [0.3, -0.01, -0.11], [0, -0.1, -0.1]])  # rows are iterations


def test_printed_scores_are_strict():
    record = make(np.stack([PRINTED, -PRINTED], axis=1))
    assert [record.scores(s)["conv"] for s in (-0.1, 0.0, -0.02)] == [2, 6, 5]
    assert record.conflict_rate(layer="conv") == pytest.approx(6 / 9)
    assert record.conflict_rate(layer="conv", pair=("c", "a")) == pytest.approx(2 / 3)


def test_nan_counts_nowhere():
    record = make(np.where(PRINTED == -0.2, np.nan, PRINTED)[:, None].repeat(2, 1))
    assert record.scores(0.0)["conv"] == 5
    assert record.conflict_rate(layer="conv") == pytest.approx(5 / 8)


def test_bins_and_reduction_of_the_paper():
    values = [0.5, 0.0, -0.01, -0.005, -0.015, -0.025, -0.03, -0.9]
    record = make(np.zeros((8, 2, 1)), np.array(values)[:, None], tasks=("a", "b"))
    np.testing.assert_allclose(record.distribution(MNIST_EDGES) * 8, [2, 2, 1, 2, 1])
    assert reduced_mass(3.04 + 0.5 + 0.25, 9.26 + 2.05 + 1.25) == pytest.approx(0.6982, abs=5e-5)
    better = make(np.zeros((4, 2, 1)), np.array([0.5, -0.02, 0.1, 0.2])[:, None], tasks=("a", "b"))
    assert reduction(better, record) == pytest.approx(1 - (1 / 4) / (4 / 8))
    assert np.isnan(reduction(record, make(np.zeros((1, 2, 1)), np.zeros((1, 1)), tasks=("a", "b"))))


def test_saved_and_loaded(tmp_path):
    record = make(np.stack([PRINTED, -PRINTED], axis=1))
    record.save(tmp_path / "record.npz")
    again = ConflictRecord.load(tmp_path / "record.npz")
    for field in dataclasses.fields(record):
        one, other = getattr(record, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other
            assert type(one) is type(other)
    assert [path.name for path in tmp_path.iterdir()] == ["record.npz"]


def test_damaged_files(tmp_path):
    path = tmp_path / "record.npz"
    with pytest.raises(FileError, match="no such file"):
        ConflictRecord.load(path)
    make(np.stack([PRINTED, -PRINTED], axis=1)).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match="damaged, or not a record"):
            ConflictRecord.load(path)
    for _ in range(100):
        spoiled = bytearray(whole)
        for at in rng.integers(0, len(whole), 8):
            spoiled[at] ^= 0x55
        path.write_bytes(bytes(spoiled))
        with contextlib.suppress(FileError):
            ConflictRecord.load(path)
    np.savez(path, header=np.array("{}"))
    with pytest.raises(FileError, match="damaged, or not a record"):
        ConflictRecord.load(path)
    dataclasses.replace(make(np.zeros((2, 2, 3))), norms=np.zeros((1, 2, 3))).save(path)
    with pytest.raises(FileError, match="norms is"):
        ConflictRecord.load(path)
    with pytest.raises(FileError, match="cannot be written"):
        make(np.zeros((1, 2, 3))).save(tmp_path / "no" / "folder.npz")


def test_names_that_are_not_there():
    record = make(np.zeros((1, 2, 3)))
    with pytest.raises(UnknownNameError, match="norm"):
        record.conflict_rate(layer="nrm")
    with pytest.raises(UnknownNameError, match="'d'"):
        record.conflict_rate(pair=("a", "d"))
    with pytest.raises(OptionError, match="two different tasks"):
        record.conflict_rate(pair=("a", "a"))
    with pytest.raises(OptionError, match="must fall"):
        record.distribution((0.0, 0.1))


def test_effective_rank():
    assert effective_rank(torch.eye(4)) == pytest.approx(4.0, rel=1e-12)
    assert effective_rank(torch.ones(3, 3)) == pytest.approx(1.0, abs=1e-6)
    # singular values 3 and 1: p = 0.75, 0.25; entropy 0.5623351446
    assert effective_rank(torch.diag(torch.tensor([9.0, 1.0]))) == pytest.approx(1.7547654, rel=1e-6)
    absent = torch.tensor([[9.0, float("nan"), 0], [float("nan")] * 3, [0, float("nan"), 1.0]])
    assert effective_rank(absent) == pytest.approx(1.7547654, rel=1e-6)
    assert np.isnan(effective_rank(torch.zeros(2, 2)))
