import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.errors import OptionError
from counterpoint.metrics import mean_rank


def _table(rows, directions):
    better = {f"{task}/{metric}": higher for task, own in directions.items() for metric, higher in own.items()}
    values = {method: dict(zip(better, row, strict=True)) for method, (row, _, _) in rows.items()}
    return values, better


def test_nyuv2_table(cases):
    found = mean_rank(*_table(cases.NYUV2_ROWS, cases.NYUV2))
    for method, (_, printed, _) in cases.NYUV2_ROWS.items():
        assert found[method] == pytest.approx(printed, abs=0.005), method  # printed to two decimals


def test_cityscapes_table(cases):
    found = mean_rank(*_table(cases.CITYSCAPES_ROWS, cases.CITYSCAPES))
    for method, (_, recomputed, _) in cases.CITYSCAPES_ROWS.items():
        assert found[method] == pytest.approx(recomputed, abs=0.0501), method  # given to one decimal


@given(
    table=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=7),
    higher=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_it_is_scipys_average_rank(table, higher):
    rankdata = pytest.importorskip("scipy.stats").rankdata
    values = {f"m{i}": dict(zip("xyz", map(float, row), strict=True)) for i, row in enumerate(table)}
    found = mean_rank(values, dict(zip("xyz", higher, strict=True)))
    signs = np.where(higher, -1, 1)
    wanted = rankdata(np.array(table) * signs, axis=0, method="average").mean(axis=1)
    np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-12)
    assert sum(found.values()) == pytest.approx(len(table) * (len(table) + 1) / 2)


def test_what_is_not_defined_is_refused():
    with pytest.raises(OptionError, match="at least one metric"):
        mean_rank({"a": {"acc": 1.0}}, {})
    with pytest.raises(OptionError, match="no value of metric 'err' of 'b'"):
        mean_rank({"a": {"acc": 1.0, "err": 2.0}, "b": {"acc": 1.0}}, {"acc": True, "err": False})
    with pytest.raises(OptionError, match="'err' of 'b' must be a number, got nan"):
        mean_rank({"a": {"err": 1.0}, "b": {"err": float("nan")}}, {"err": False})


def test_infinity_is_a_rank_like_any_other():
    assert mean_rank({"a": {"err": float("inf")}, "b": {"err": 1.0}}, {"err": False}) == {"a": 2.0, "b": 1.0}
