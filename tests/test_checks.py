"""Checks of user input and optional imports."""

import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from counterpoint import errors
from counterpoint._checks import check_choice, check_range
from counterpoint._optional import require


@given(st.floats(allow_nan=False), st.booleans(), st.booleans())
def test_range_agrees_with_plain_comparison(value, low_open, high_open):
    inside = (value > 0 if low_open else value >= 0) and (value < 1 if high_open else value <= 1)
    if inside:
        assert check_range("X: c", value, low=0, high=1, low_open=low_open, high_open=high_open) == value
    else:
        with pytest.raises(errors.OptionError, match=r"X: c must be in [\[(]0, 1[\])], got "):
            check_range("X: c", value, low=0, high=1, low_open=low_open, high_open=high_open)


def test_bounds_are_shown_open_or_closed():
    with pytest.raises(errors.OptionError, match=r"in \(0, 1\], got 0$"):
        check_range("X: c", 0, low=0, high=1, low_open=True)
    with pytest.raises(errors.OptionError, match=r"in \[0, 1\), got 1$"):
        check_range("X: c", 1, low=0, high=1, high_open=True)


@pytest.mark.parametrize("value", [float("nan"), True, "1", None, [1]])
def test_range_refuses_what_is_no_number(value):
    with pytest.raises(errors.OptionError, match="X: c must be"):
        check_range("X: c", value)


def test_range_returns_the_value_itself():
    assert check_range("X: n", 3, low=1) == 3
    assert isinstance(check_range("X: n", 3, low=1), int)


def test_choice():
    assert check_choice("X: mode", "sum", ("sum", "mean")) == "sum"
    with pytest.raises(errors.OptionError, match=r"X: mode must be one of sum, mean, got 'men'; did you mean mean"):
        check_choice("X: mode", "men", ("sum", "mean"))
    with pytest.raises(errors.OptionError, match="got None"):
        check_choice("X: mode", None, ("sum", "mean"))


def test_require_imports_or_names_the_extra():
    assert require("json", extra="bench").dumps(1) == "1"
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'counterpoint\[bench\]'"):
        require("no_such_package_of_ours", extra="bench")
    with pytest.raises(errors.MissingExtraError, match=r"json\.nothing"):
        require("json.nothing", extra="bench")


def test_require_does_not_blame_the_extra_for_a_broken_package(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency_of_it\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency_of_it") as caught:
        require("half_installed", extra="bench")
    assert not isinstance(caught.value, errors.MissingExtraError)
    sys.modules.pop("half_installed", None)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ShapeError, ValueError),
        (errors.OptionError, ValueError),
        (errors.UnknownNameError, LookupError),
        (errors.GraphError, RuntimeError),
        (errors.NonFiniteError, ArithmeticError),
        (errors.SolverError, RuntimeError),
        (errors.FileError, OSError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_every_error_is_ours_and_a_builtin(error, builtin):
    assert issubclass(error, errors.CounterpointError)
    assert issubclass(error, builtin)
    assert str(error("what and how")) == "what and how"
