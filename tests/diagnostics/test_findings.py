"""Findings: said where the data support them, withheld where they do not, with the numbers that they rest on."""

import dataclasses

import numpy as np
import pytest

from counterpoint.diagnostics import ConflictRecord, findings, wilson_interval
from counterpoint.errors import OptionError

LAYERS = ("stage1.conv", "stage1.bn", "stage2.conv", "stage2.bn", "fc")
KINDS = dict(zip(LAYERS, ("Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "Linear"), strict=True)) | {
    "head": "Linear"
}
SIZES = dict(zip(LAYERS, (400, 4, 500, 6, 80), strict=True)) | {"head": 10}


def make(rates, whole, *, entries=100, norms=(1.0, 1.0), tasks=("depth", "seg"), lengths=None):
    """Build a record in which so many of the cosines of each layer, evenly in time, are -0.5 and the others 0.5."""
    steps = np.arange(entries)

    def drawn(rate):
        return np.where(np.floor((steps + 1) * rate) > np.floor(steps * rate), -0.5, 0.5)

    pairs = len(tasks) * (len(tasks) - 1) // 2
    cosines = np.stack([np.stack([drawn(rate)] * pairs, axis=-1) for rate in rates], axis=1).astype(np.float32)
    whole = np.stack([drawn(whole)] * pairs, axis=-1).astype(np.float32)
    layer_norms = np.ones((entries, len(rates), len(tasks)), dtype=np.float32)
    if lengths is not None:
        layer_norms = layer_norms * np.asarray(lengths, dtype=np.float32)[None, :, None]
    return ConflictRecord(
        tasks=tasks,
        layers=LAYERS[: len(rates)],
        sizes=SIZES,
        steps=steps,
        counts=np.ones(entries, dtype=np.int64),
        cosines=cosines,
        measured=np.ones(cosines.shape, dtype=np.int32),
        norms=layer_norms,
        whole_cosines=whole,
        whole_measured=np.ones(whole.shape, dtype=np.int32),
        whole_norms=np.tile(np.asarray(norms, dtype=np.float32), (entries, 1)),
        effective_rank=np.ones(entries, dtype=np.float32),
        whole_below=np.zeros((pairs, 201), dtype=np.int64),
        thresholds=(),
        below=np.zeros((0, entries, len(rates), pairs), dtype=np.int32),
        exact=True,
        kinds=KINDS,
    )


def by_kind(record, **options):
    found = {}
    for finding in findings(record, **options):
        found.setdefault(finding.kind, []).append(finding)
    return found


def test_everything_is_found_where_it_is():
    record = make([0.02, 0.9, 0.02, 0.7, 0.04], 0.8, norms=(12.0, 1.0), lengths=[0.01, 1, 0.01, 1, 0.01])
    found = by_kind(record, recipe="digits")
    assert all(finding.supported for kind in found.values() for finding in kind)
    (pair,) = found["pair"]
    assert pair.text.startswith("depth and seg conflict in 80 % of 100 measurements (95 % interval 71 % to 87 %)")
    (place,) = found["place"]
    assert "95 % of the conflicts of single layers are in the normalization layers: 2 of 5 layers" in place.text
    assert place.numbers["share"] == pytest.approx(160 / 168)
    assert place.numbers["rate"] == pytest.approx(0.8)
    assert place.numbers["rest"] == pytest.approx(8 / 300)
    (split,) = found["split"]
    assert split.text.startswith("Splitting 2 of 5 layers (1 % of the parameters)")
    assert split.text.endswith("instead of 80 % of cases. Try: counterpoint split digits --layers 2")
    assert split.numbers["removed"] == pytest.approx(160 / 168)
    (length,) = found["length"]
    assert length.text.startswith("depth dominates: its gradient is 12.0 times as long as that of seg")
    assert "time" not in found


def test_too_few_measurements_say_only_that():
    record = make([0.9, 0.9], 0.9, entries=29)
    (only,) = findings(record)
    assert not only.supported
    assert only.text.startswith("Only 29 measurements; at least 30 are needed")
    assert len(findings(record, min_measurements=29)) > 1


@pytest.mark.parametrize(("rate", "conflicts"), [(0.5, False), (0.59, False), (0.6, True), (0.2, False)])
def test_conflict_is_more_than_chance(rate, conflicts):
    found = by_kind(make([rate, rate], rate))
    assert found["pair"][0].supported is conflicts
    assert found["split"][0].supported is False  # both layers alike: nothing to gain from splitting one
    if not conflicts:
        assert found["pair"][0].text.startswith("No pair of tasks conflicts more often than chance.")
        assert "not suggested" in found["split"][0].text


def test_no_conflict_at_all():
    found = by_kind(make([0.0, 0.0], 0.0))
    assert found["place"][0].text == "In no layer was there a conflict."
    assert "split" not in found
    found = by_kind(make([0.9, 0.0], 0.9), threshold=-0.7)
    assert found["place"][0].text == "In no layer was there a conflict (cosine below -0.7)."


def test_conflict_that_is_spread():
    found = by_kind(make([0.8] * 5, 0.8))
    assert found["place"][0].text.startswith("The conflicts are spread")
    assert found["split"][0].text.startswith("Splitting a few layers would not help much: 80 % of the conflicts")


def test_part_of_the_network():
    found = by_kind(make([0.9, 0.9, 0.01, 0.01, 0.01], 0.8))
    assert "are in the layers of stage1: 2 of 5 layers" in found["place"][0].text


def test_change_over_time():
    record = make([0.5, 0.5], 0.5, entries=120)
    cosines = record.cosines.copy()
    cosines[:40], cosines[80:] = 0.5, -0.5
    changed = by_kind(dataclasses.replace(record, cosines=cosines))
    (time,) = changed["time"]
    assert time.text.startswith("Conflict in the layers grew during training: 0 % of the measured cosines")
    assert time.numbers == {"first": 0.0, "last": 1.0}
    assert "time" not in by_kind(record)


def test_what_stays_shared_is_computed_from_the_layers():
    record = make([0.9, 0.0], 0.9, lengths=[2.0, 1.0])
    left = record.cosines_without(["stage1.conv"])
    np.testing.assert_allclose(left, record.cosines[:, 1])
    both = record.cosines_without([])
    np.testing.assert_allclose(both[:, 0], (4 * record.cosines[:, 0, 0] + record.cosines[:, 1, 0]) / 5, rtol=1e-6)


def test_no_dominance_where_lengths_change_places():
    norms = np.ones((100, 2), dtype=np.float32)
    norms[:60, 0], norms[60:, 1] = 10.0, 10.0
    found = by_kind(dataclasses.replace(make([0.5, 0.5], 0.5), whole_norms=norms))
    assert found["length"][0].supported is False


def test_gradients_of_zero_are_said_to_be_zero():
    norms = np.tile(np.array([4.0, 0.0], dtype=np.float32), (100, 1))
    record = make([0.5, 0.5], 0.5)
    norms[:40, 1] = 0.1
    (found,) = by_kind(dataclasses.replace(record, whole_norms=norms))["length"]
    assert found.text.startswith("The gradient of seg is zero in 60 % of the measurements")
    assert found.numbers == {"zero": pytest.approx(0.6)}
    norms[:60, 1] = 0.1
    (found,) = by_kind(dataclasses.replace(record, whole_norms=norms))["length"]
    assert "its gradient is 40.0 times as long" in found.text
    norms[:60] = 0.0
    (found,) = by_kind(dataclasses.replace(record, whole_norms=norms))["length"]
    assert found.text.startswith("The gradient of every task is zero in half")
    assert not found.supported


def test_absent_tasks_are_named():
    record = make([0.9, 0.9], 0.9, tasks=("a", "b", "c"), norms=(1, 1, 1))
    measured, cosines = record.whole_measured.copy(), record.whole_cosines.copy()
    measured[5:, 1], cosines[5:, 1] = 0, np.nan
    found = by_kind(dataclasses.replace(record, whole_measured=measured, whole_cosines=cosines))
    assert found["support"][0].text == "Too few measurements had gradients of both tasks to say anything of a and c."
    assert len(found["pair"]) == 2


def test_one_task_and_no_layers():
    one = dataclasses.replace(make([0.5], 0.5), tasks=("a",))
    assert [finding.text for finding in findings(one)] == ["There is one task, so there is nobody to conflict with."]
    none = dataclasses.replace(make([0.5], 0.5), layers=())
    assert findings(none)[0].text.startswith("No layer was reached by two tasks")


def test_bad_options():
    with pytest.raises(OptionError, match="threshold"):
        findings(make([0.5], 0.5), threshold=2.0)
    with pytest.raises(OptionError, match="min_measurements"):
        findings(make([0.5], 0.5), min_measurements=0)


@pytest.mark.parametrize(("successes", "trials"), [(8, 10), (0, 10), (10, 10), (61, 100)])
def test_the_bounds_are_where_the_score_test_just_rejects(successes, trials):
    low, high = wilson_interval(successes, trials)
    share = successes / trials
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / trials, abs=1e-12)
    assert wilson_interval(0, 0) == (0.0, 1.0)
