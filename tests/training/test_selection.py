import math

import pytest

from counterpoint.errors import OptionError
from counterpoint.training.selection import describe_rule, select, validation_score

BETTER = {"seg": {"miou": True, "acc": True}, "depth": {"rmse": False}}


def epoch(number, miou, rmse, test=0.0):
    return {
        "epoch": number,
        "val": {"seg": {"miou": miou, "acc": 1.0}, "depth": {"rmse": rmse}},
        "test": {"seg": {"miou": test, "acc": test + 1}, "depth": {"rmse": 2 * test}},
    }


HISTORY = [epoch(1, 0.2, 0.9, 1.0), epoch(2, 0.4, 0.8, 2.0), epoch(3, 0.4, 0.8, 3.0), epoch(4, 0.5, 1.1, 6.0)]


def test_last():
    assert select(HISTORY, "last", 1, BETTER) == (4, {"val": HISTORY[3]["val"], "test": HISTORY[3]["test"]})


def test_best_looks_at_validation_only_and_takes_the_earliest_of_equals():
    chosen, metrics = select(HISTORY, "best", 1, BETTER)
    assert chosen == 2  # log(0.4 / 0.8) = log(0.5) beats log(0.2 / 0.9), and log(0.5 / 1.1) = log(0.4545)
    assert metrics["test"]["depth"]["rmse"] == 4.0
    other_test = [
        {**record, "test": {"seg": {"miou": -9.0, "acc": -9.0}, "depth": {"rmse": 9.0}}} for record in HISTORY
    ]
    assert select(other_test, "best", 1, BETTER)[0] == 2


def test_mean_of_the_last():
    chosen, metrics = select(HISTORY, "mean_last", 3, BETTER)
    assert chosen == 4
    assert metrics["test"]["seg"]["miou"] == pytest.approx((2 + 3 + 6) / 3)
    assert select(HISTORY, "mean_last", 50, BETTER)[1]["test"]["seg"]["miou"] == pytest.approx(3.0)


def test_score_is_scale_free_and_knows_the_direction():
    base = validation_score(HISTORY[0]["val"], BETTER)
    percent = {"seg": {"miou": 100 * 0.2, "acc": 1.0}, "depth": {"rmse": 1000 * 0.9}}
    better = {"seg": {"miou": 100 * 0.202, "acc": 1.0}, "depth": {"rmse": 1000 * 0.9}}
    worse = {"seg": {"miou": 100 * 0.2, "acc": 1.0}, "depth": {"rmse": 1000 * 0.9 * 1.01}}
    assert validation_score(better, BETTER) - validation_score(percent, BETTER) == pytest.approx(math.log(1.01) / 2)
    assert validation_score(worse, BETTER) - validation_score(percent, BETTER) == pytest.approx(-math.log(1.01) / 2)
    assert base == pytest.approx((math.log(0.2) - math.log(0.9)) / 2)


def test_missing_values_and_bad_rules():
    nothing = {"seg": {"miou": None, "acc": None}, "depth": {"rmse": float("nan")}}
    assert math.isnan(validation_score(nothing, BETTER))
    assert select([{**HISTORY[0], "val": nothing}, HISTORY[1]], "best", 1, BETTER)[0] == 2
    with pytest.raises(OptionError, match="did you mean best"):
        select(HISTORY, "bst", 1, BETTER)
    with pytest.raises(OptionError, match="no epoch has ended"):
        select([], "last", 1, BETTER)
    with pytest.raises(OptionError, match="metrics of at least 0"):
        select([epoch(1, -0.1, 0.5)], "best", 1, BETTER)
    assert describe_rule("mean_last", 5) == "the mean over the last 5 epochs"
