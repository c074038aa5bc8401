import pytest

from counterpoint import data
from counterpoint.errors import OptionError, UnknownNameError


def test_names_and_facts():
    assert data.names() == ["digits", "fashion_attributes", "multi_fashion_mnist"]
    for name in data.names():
        described = data.describe(name)
        assert described.facts["source"]
        assert described.facts["provenance"]
        assert described.summary
    assert "ROOT/MNIST/raw" in data.describe("multi-fashion-mnist").facts["layout"]
    assert [option.name for option in data.describe("digits").options] == ["num_train", "num_val", "num_test", "seed"]


def test_create_builds_and_suggests():
    assert len(data.create("Digits", num_train=7).split("train")) == 7
    with pytest.raises(UnknownNameError, match="did you mean digits"):
        data.create("digit")
    with pytest.raises(OptionError, match="did you mean num_train"):
        data.create("digits", num_trian=7)


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    import sys

    from counterpoint.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"counterpoint\[bench\]"):
        data.Digits()
