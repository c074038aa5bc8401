"""The verdict says what the records support and no more; so do the digits."""

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.bench.numbers import choose_decimals, format_number, format_spread
from counterpoint.bench.results import Spread
from counterpoint.bench.verdict import RULE, chance_of_clear, is_clear, rule, verdict

NAN = math.nan


@pytest.fixture
def made(synthetic):
    return synthetic.make_comparison(hostile=False)


def with_rows(made, deltas):
    """Keep single-task networks and the methods given, with these delta_m per seed; differences follow."""
    rows = [row for row in made.rows if row.method == "single_task"]
    for method, values in deltas.items():
        row = next(row for row in made.rows if row.method == method)
        equal = deltas.get("equal", values)
        against = Spread(tuple(a - b for a, b in zip(values, equal, strict=True)))
        final = dataclasses.replace(
            row.final, delta={**row.final.delta, "tasks": Spread(values)}, against_equal=against
        )
        rows.append(dataclasses.replace(row, final=final))
    return dataclasses.replace(made, rows=tuple(rows))


@pytest.mark.parametrize(
    ("deltas", "has", "has_not"),
    [
        ({"equal": (1, 2, 3), "cagrad": (3, 4.5, 5)}, ["cagrad has the highest", "clearly better",
          "+4.2 ± 1.0 % over 3 seeds", "+2.2 ± 0.3 percentage points"], ["below", "no method"]),
        ({"equal": (1, 2, 3), "cagrad": (5, 1, 2)}, ["no method is clearly better", "cagrad has", "not larger"], []),
        ({"equal": (1, 2, 3), "cagrad": (0, 1, 2)}, ["no method is clearly better", "highest mean delta_m itself"], []),
        ({"equal": (-4, -5, -3), "cagrad": (-2, -3, -1)}, ["cagrad has", "still below the single-task networks"], []),
        # the best mean is noise, the second is steady
        ({"equal": (1, 2, 3), "cagrad": (9, -1, 2), "pcgrad": (2, 3, 4)},
         ["cagrad has the highest", "clearly better than equal weighting: pcgrad"], ["no method"]),
        ({"equal": (1, NAN, NAN), "cagrad": (3, NAN, NAN)}, ["fewer than two seeds", "1 of 3 seeds"], []),
        ({"cagrad": (3, 4, 5)}, ["equal weighting has no result"], ["clearly"]),
        ({"equal": (1, 2, 3)}, ["only equal weighting"], ["clearly"]),
        ({}, ["no multi-task method has a result"], []),
    ],
)  # fmt: skip
def test_sentence(made, deltas, has, has_not):
    text = verdict(with_rows(made, deltas))
    assert text.startswith("At the end of training, ")
    assert text.endswith(".")
    for part in has:
        assert part in text
    for part in has_not:
        assert part not in text


def test_equal_time_is_read_from_its_own_records(made):
    rows = tuple(dataclasses.replace(row, equal_time=None) for row in made.rows)
    assert verdict(dataclasses.replace(made, rows=rows), "equal_time") == (
        "At equal wall-clock, no multi-task method has a result."
    )


@given(st.lists(st.floats(-10, 10), min_size=0, max_size=5))
def test_clear_needs_two_seeds_and_more_than_the_spread(values):
    spread = Spread(tuple(values))
    clear = is_clear(spread)
    assert clear == (len(values) > 1 and spread.mean > 0 and spread.mean > spread.std)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 10, 30])
def test_chance_to_be_called_better_is_that_of_student(seeds):
    from scipy import stats

    assert chance_of_clear(seeds) == pytest.approx(stats.t.sf(seeds**0.5, seeds - 1), rel=1e-6)


def test_chance_to_be_called_better_in_a_simulation():
    draws = random.Random(0)
    clear = sum(is_clear(Spread(tuple(draws.gauss(0, 1) for _ in range(3)))) for _ in range(20_000))
    assert clear / 20_000 == pytest.approx(chance_of_clear(3), abs=0.01)  # four standard errors


def test_the_rule_says_what_chance_makes_of_it(made):
    methods = [row for row in made.rows if row.final is not None and row.method not in ("single_task", "equal")]
    text = rule(made)
    assert text.startswith(RULE)
    assert f"If none of the {len(methods)} methods differed from equal weighting at all, 11 % of them" in text
    assert f"here {0.11270 * len(methods):.1f}, would still be expected to pass with 3 seeds." in text
    assert rule(dataclasses.replace(made, seeds=(0,))) == RULE
    assert rule(dataclasses.replace(made, rows=made.rows[:2])) == RULE


@pytest.mark.parametrize(
    ("values", "decimals", "text"),
    [
        ((38.41, 38.55, 38.21), 2, "38.39 ± 0.17"),
        ((0.6083, 0.6121, 0.6064), 4, "0.6089 ± 0.0029"),
        ((12.0, 15.0, 19.0), 1, "15.3 ± 3.5"),
        ((3000.0, 3000.0, 3000.0), 0, "3000 ± 0"),
        ((0.02671,), 5, "0.02671"),
        ((-1.25, NAN), 3, "\u22121.250"),
        ((NAN, NAN), 0, "\u2013"),
    ],
)
def test_digits_follow_the_spread(values, decimals, text):
    spread = Spread(values)
    if spread.finite:
        assert choose_decimals([spread]) == decimals
    assert format_spread(spread, decimals) == text


@given(st.floats(-1e300, 1e300), st.integers(0, 6), st.booleans())
def test_written_number_is_within_half_a_digit(value, decimals, signed):
    text = format_number(value, decimals, signed=signed).replace("\u2212", "-")
    slack = 0.5000001 * 10.0**-decimals if abs(value) < 1e6 else 0.005000001 * abs(value)
    assert abs(float(text) - value) <= slack + 1e-12 * abs(value)
    assert "-0.00" != text != "+0.00"


@given(st.lists(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=4), max_size=4))
def test_decimals_are_always_usable(columns):
    assert 0 <= choose_decimals([Spread(tuple(values)) for values in columns]) <= 6
