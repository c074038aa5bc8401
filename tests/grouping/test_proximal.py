"""The tracker and the groups against the numbers of the specification (seeds.md, 4.5 and 4.9)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from counterpoint.errors import OptionError, ShapeError
from counterpoint.grouping import AffinityTracker, form_groups, proximal_values, relative_affinity

NAN = float("nan")


def as_sets(groups):
    return {frozenset(group) for group in groups}


def test_update_rules():
    tracker = AffinityTracker(2, beta=0.1)
    tracker.observe([1.0, 2.0], None)
    tracker.observe([0.8, 1.8], (0, 1))
    np.testing.assert_allclose(tracker.matrix, [[0.01, 0.005], [0.01, 0.005]], rtol=1e-12)
    tracker.observe([0.72, 1.98], (0, 1))
    np.testing.assert_allclose(tracker.matrix, [[0.014, -0.0005], [0.004, 0.005]], rtol=1e-12)


def test_credit_of_the_executed_group():
    tracker = AffinityTracker(3, beta=1.0)
    tracker.observe([1.0, 1.0, 1.0], None)
    tracker.observe([0.5, 1.1, 1.0], (0,))
    np.testing.assert_allclose(tracker.matrix, [[0.5, -0.1, 0], [0, 0, 0], [0, 0, 0]], atol=1e-12)
    official = AffinityTracker(3, beta=1.0)
    official.observe([1.0, 1.0, 1.0], None)
    official.observe([0.5, 1.1, 1.0], (1, 2))
    np.testing.assert_allclose(official.matrix, [[0, 0, 0], [0.25, 0, 0], [0.25, -0.05, 0]], atol=1e-12)


def reference_values(before, after, group):
    """The rules once more, entry by entry."""
    count = len(before)
    found = np.full((count, count), np.nan)
    for s in group:
        for t in range(count):
            pairs = [before[s], after[s], before[t], after[t]]
            if any(not np.isfinite(value) or value <= 0 for value in pairs):
                continue
            b_s, b_t = ((1 - after[k] / before[k]) / len(group) for k in (s, t))
            if t not in group or (t != s and b_t * b_s >= 0):
                found[s, t] = b_t
            elif t == s:
                found[s, t] = b_s if b_s >= 0 else np.nan
            else:
                found[s, t] = -max(b_t, b_s)
    return found


losses = st.lists(st.one_of(st.floats(0.01, 10), st.sampled_from([0.0, -1.0, NAN])), min_size=4, max_size=4)


@given(losses, losses, st.sets(st.integers(0, 3), min_size=1).map(sorted).map(tuple))
def test_values_are_the_rules_entry_by_entry(before, after, group):
    np.testing.assert_allclose(
        proximal_values(before, after, group), reference_values(before, after, group), rtol=1e-12
    )


def test_a_loss_that_falls_to_zero_is_no_full_improvement():
    assert np.isnan(proximal_values([1.0, 1.0], [0.0, 0.9], (0,))).all()
    found = proximal_values([1.0, 1.0], [0.9, 0.0], (0,))
    assert np.isnan(found[0, 1])
    assert found[0, 0] == pytest.approx(0.1)


def test_clip():
    assert proximal_values([1e-6, 1.0], [1.0, 0.5], (1,), clip=True)[1, 0] == -1.0
    assert proximal_values([1e-6, 1.0], [1.0, 0.5], (1,))[1, 0] == pytest.approx(1 - 1e6)


def test_normalization():
    given_matrix = np.array([[2.0, 4, 8], [6, 8, 3], [5, 7, 10]])
    column = np.array([[1, 0.5, 0.8], [3, 1, 0.3], [2.5, 0.875, 1]])
    inplace = np.array([[1, 0.5, 0.8], [6, 1, 0.3], [5, 7, 1]])
    np.testing.assert_allclose(relative_affinity(given_matrix), (column + column.T) / 2)
    np.testing.assert_allclose(relative_affinity(given_matrix, normalise="inplace"), (inplace + inplace.T) / 2)
    with pytest.raises(OptionError, match="did you mean column"):
        relative_affinity(given_matrix, normalise="colu")


def test_zero_diagonals():
    assert relative_affinity(np.zeros((3, 3))) is None
    assert form_groups(np.zeros((3, 3))) is None
    found = relative_affinity(np.array([[2.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_allclose(found, [[1.0, 0.5], [0.5, 0.0]])


FOUR = np.array([[1, 0.8, -0.2, -0.3], [0.7, 1, -0.1, -0.2], [-0.3, -0.2, 1, 0.9], [-0.2, -0.1, 0.6, 1]])
SIX = np.array(
    [
        [1, -0.02, 0.66, 0.4, -0.19, 0.22],
        [0.27, 1, 0.58, -0.16, 0.17, 0.32],
        [0.22, 0.4, 1, 0.85, 0.04, 0.48],
        [0.54, 0.05, -0.3, 1, 0.06, 0.08],
        [0.77, 0.4, 0.27, 0.63, 1, 0.55],
        [0.15, -0.19, 0.49, 0.82, -0.05, 1],
    ]
)


def test_groups_of_four_and_six_tasks():
    np.testing.assert_allclose(relative_affinity(FOUR)[0], [1, 0.75, -0.25, -0.25])
    for seed in range(3):
        assert as_sets(form_groups(FOUR, seed=seed)) == {frozenset({0, 1}), frozenset({2, 3})}
        assert as_sets(form_groups(SIX, seed=seed)) == {frozenset({1, 2, 5}), frozenset({0, 3, 4})}


@pytest.mark.parametrize(("x", "count"), [(0.1, 2), (1.0, 1), (1.2, 1)])
def test_two_tasks_are_grouped_from_one_on(x, count):
    assert len(form_groups(np.array([[1.0, x], [x, 1.0]]))) == count


def test_one_task_and_equal_affinities():
    assert form_groups(np.array([[0.3]])) == [(0,)]
    assert form_groups(np.full((3, 3), 0.5) + 0.5 * np.eye(3)) == [(0, 1, 2)]


@given(
    arrays.arrays(np.float64, (5, 5), elements=st.floats(-1, 1)),
    st.floats(0.5, 4),
    st.lists(st.floats(0.5, 4), min_size=5, max_size=5),
)
def test_scales_do_not_matter(values, factor, factors):
    values = values + 2 * np.eye(5)
    whole = relative_affinity(values)
    np.testing.assert_allclose(relative_affinity(values * np.array(factors)), whole, rtol=1e-9, atol=1e-15)
    assert as_sets(form_groups(values * 2.0**3) or []) == as_sets(form_groups(values) or [])
    np.testing.assert_allclose(relative_affinity(factor * values), whole, rtol=1e-9, atol=1e-15)


def test_state_is_t_squared_and_t():
    tracker = AffinityTracker(11)
    assert tracker.matrix.size + tracker.previous.size == 11**2 + 11
    with pytest.raises(ShapeError, match="expected 11 losses"):
        tracker.observe([1.0], None)
    with pytest.raises(OptionError, match="beta"):
        AffinityTracker(2, beta=0.0)
