"""Settings of all tests: determinism, no network, where the real data is."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
hypothesis.settings.register_profile("counterpoint", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("counterpoint")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """The folder of real data that COUNTERPOINT_DATA names."""
    root = os.environ.get("COUNTERPOINT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("COUNTERPOINT_DATA does not name a folder with the real data")
    return Path(root)
