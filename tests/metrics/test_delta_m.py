import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.errors import OptionError
from counterpoint.metrics import delta_m
from counterpoint.metrics.delta_m import CONVENTIONS


def test_nyuv2_table(cases):
    base = cases.nested(cases.NYUV2_BASE, cases.NYUV2)
    for method, (row, _, printed) in cases.NYUV2_ROWS.items():
        if printed is not None:
            found = delta_m(cases.nested(row, cases.NYUV2), base, cases.NYUV2, convention="metrics")
            assert found == pytest.approx(printed, abs=0.02), method  # the table rounds to four digits


def test_cityscapes_table(cases):
    base = cases.nested(cases.CITYSCAPES_BASE, cases.CITYSCAPES)
    for method, (row, _, printed) in cases.CITYSCAPES_ROWS.items():
        found = delta_m(cases.nested(row, cases.CITYSCAPES), base, cases.CITYSCAPES, convention="metrics")
        assert found == pytest.approx(printed, abs=0.11), method  # depth errors have three digits


def test_pomsi_table(cases):
    base = cases.nested(cases.POMSI_BASE, cases.NYUV2)
    for method, (row, flat, by_task) in cases.POMSI_ROWS.items():
        results = cases.nested(row, cases.NYUV2)
        found = delta_m(results, base, cases.NYUV2, convention="metrics_positive")
        assert found == pytest.approx(flat, abs=0.006), method  # given to two decimals
        assert delta_m(results, base, cases.NYUV2, convention="metrics") == -found
        if by_task is not None:
            assert delta_m(results, base, cases.NYUV2) == pytest.approx(by_task, abs=0.006), method


TREES = st.dictionaries(
    st.sampled_from("abcd"),
    st.dictionaries(
        st.sampled_from("wxyz"),
        st.tuples(st.booleans(), st.floats(0.1, 100), st.floats(0.1, 100)),
        min_size=1,
    ),
    min_size=1,
)


def _parts(tree):
    take = lambda which: {t: {m: v[which] for m, v in own.items()} for t, own in tree.items()}  # noqa: E731
    return take(0), take(1), take(2)


@given(tree=TREES)
def test_every_convention_is_its_formula(tree):
    better, results, baseline = _parts(tree)
    change = {
        task: [100 * (1 if higher else -1) * (value - base) / base for higher, value, base in own.values()]
        for task, own in tree.items()
    }
    flat = [value for own in change.values() for value in own]
    wanted = {
        "primary": np.mean([own[0] for own in change.values()]),
        "metrics": -np.mean(flat),
        "metrics_positive": np.mean(flat),
        "tasks": np.mean([np.mean(own) for own in change.values()]),
    }
    assert set(wanted) == set(CONVENTIONS)
    for convention, value in wanted.items():
        found = delta_m(results, baseline, better, convention=convention)
        assert found == pytest.approx(value, rel=1e-9, abs=1e-9)
        assert delta_m(baseline, baseline, better, convention=convention) == 0.0


@given(tree=TREES, factor=st.floats(0.01, 100))
def test_the_unit_of_a_metric_does_not_matter(tree, factor):
    better, results, baseline = _parts(tree)
    scaled = [{t: {m: factor * v for m, v in own.items()} for t, own in tree.items()} for tree in (results, baseline)]
    assert delta_m(*scaled, better) == pytest.approx(delta_m(results, baseline, better), rel=1e-9, abs=1e-9)


def test_single_metric_sign_of_the_conventions():
    better = {"depth": {"rmse": False}}
    results, baseline = {"depth": {"rmse": 0.5}}, {"depth": {"rmse": 0.4}}
    assert delta_m(results, baseline, better, convention="primary") == pytest.approx(-25.0)
    assert delta_m(results, baseline, better, convention="metrics") == pytest.approx(25.0)


def test_a_negative_baseline_keeps_the_direction():
    better = {"fit": {"log_likelihood": True}}
    assert delta_m({"fit": {"log_likelihood": -1.0}}, {"fit": {"log_likelihood": -2.0}}, better) == pytest.approx(50.0)


def test_what_is_not_defined_is_refused():
    better = {"seg": {"miou": True}}
    full, zero = {"seg": {"miou": 0.5}}, {"seg": {"miou": 0.0}}
    with pytest.raises(OptionError, match="baseline of seg/miou is 0"):
        delta_m(full, zero, better)
    assert delta_m(zero, full, better) == -100.0
    for results, baseline in (({}, full), (full, {}), ({"seg": {}}, full), (full, {"seg": {"acc": 1.0}})):
        with pytest.raises(OptionError, match="no value of metric 'miou' of task 'seg'"):
            delta_m(results, baseline, better)
    with pytest.raises(OptionError, match="did you mean metrics"):
        delta_m(full, full, better, convention="metric")
    for empty in ({}, {"seg": {}}):
        with pytest.raises(OptionError, match="at least one metric for each"):
            delta_m(full, full, empty)
