"""Fixtures of the bench tests."""

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("bench_synthetic", Path(__file__).with_name("synthetic.py"))
synthetic_module = importlib.util.module_from_spec(_SPEC)
sys.modules["bench_synthetic"] = synthetic_module
_SPEC.loader.exec_module(synthetic_module)


@pytest.fixture(scope="session")
def synthetic():
    """The module with the builder of made-up comparisons."""
    return synthetic_module


@pytest.fixture(scope="session")
def comparison():
    """A made-up comparison with failures, gaps and hostile text."""
    return synthetic_module.make_comparison()
