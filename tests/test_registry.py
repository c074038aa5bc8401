"""Names to classes: folding, suggestions, options read from the signature."""

import json
import subprocess
import sys

import pytest

from counterpoint import balancers
from counterpoint.errors import MissingExtraError, OptionError, UnknownNameError
from counterpoint.registry import Registry, closest, fold, nearest, unknown


class Animal:
    source = ""


class Cat(Animal):
    """A cat.

    More text.
    """

    key = "house_cat"
    source = "Linnaeus"

    def __init__(self, num_tasks: int, *, lives: int = 9, name: str | None = None) -> None:
        self.num_tasks, self.lives, self.name = num_tasks, lives, name


class Kitten(Cat):
    """Has no key of its own."""


class Dog(Animal):
    """A dog."""

    key = "dog"


def registry(**classes):
    return Registry("animal", Animal, classes or {"Cat": Cat, "Kitten": Kitten, "Dog": Dog, "Animal": Animal, "x": 3})


@pytest.mark.parametrize("name", ["house_cat", "House-Cat", "HOUSECAT", "house cat", "house.cat"])
def test_case_and_punctuation_do_not_matter(name):
    assert fold(name) == "housecat"
    assert registry().get(name) is Cat


def test_only_classes_with_their_own_key_are_kept():
    assert registry().names() == ["dog", "house_cat"]
    assert registry().names("house*") == ["house_cat"]
    assert registry().names("fish") == []


def test_an_unknown_name_suggests_the_nearest_or_lists_all():
    with pytest.raises(UnknownNameError, match=r"no animal is called 'house_cst'; did you mean house_cat\?"):
        registry().get("house_cst")
    with pytest.raises(UnknownNameError, match="there are: dog, house_cat"):
        registry().get("zzzz")
    assert isinstance(unknown("animal", "x", ["y"]), LookupError)
    assert str(unknown("animal", "x", ["y"])) == "no animal is called 'x'; there are: y"


def test_at_most_three_suggestions_best_first():
    assert closest("abcd", ["abcx", "abcd1", "abcd12", "abce", "zzz"])[0] == "abcd1"
    assert len(closest("abcd", ["abcx", "abcd1", "abcd12", "abce", "zzz"])) == 3
    assert nearest("abcd", ["zzz"]) == ""


def test_create_passes_options_and_refuses_unknown_ones():
    cat = registry().create("House-Cat", 2, lives=3)
    assert (cat.num_tasks, cat.lives) == (2, 3)
    with pytest.raises(OptionError, match=r"Cat has no option 'livs'; did you mean lives"):
        registry().create("house_cat", 2, livs=3)
    with pytest.raises(OptionError, match="its options: num_tasks, lives, name"):
        registry().create("house_cat", 2, qqqqqq=3)
    with pytest.raises(OptionError, match="its options: none"):
        registry().create("dog", qqqqqq=3)


def test_describe_reads_the_signature():
    found = registry().describe("housecat")
    assert (found.key, found.name, found.kind, found.summary) == ("house_cat", "Cat", "animal", "A cat.")
    assert found.facts == {"source": "Linnaeus"}
    assert [(o.name, o.type, o.default, o.required) for o in found.options] == [
        ("num_tasks", "int", None, True),
        ("lives", "int", 9, False),
        ("name", "str | None", None, False),
    ]
    assert json.loads(json.dumps(found.to_dict()))["options"][1]["default"] == 9


def test_two_classes_with_one_folded_key_are_refused():
    other = type("Other", (Animal,), {"key": "House-Cat"})
    with pytest.raises(OptionError, match="two animals are called 'House-Cat'"):
        registry(Cat=Cat, Other=other)


def test_the_same_class_under_two_names_is_one_member():
    assert registry(Cat=Cat, Alias=Cat).names() == ["house_cat"]


def test_balancers_describe_their_options_without_what_the_caller_supplies():
    found = balancers.describe("PC-Grad")
    assert [option.name for option in found.options] == ["reduction"]
    assert found.facts["reads"] == "gram"
    with pytest.raises(OptionError, match="did you mean reduction"):
        balancers.create("pcgrad", num_tasks=2, reductoin="sum")
    assert repr(balancers.create("pcgrad", num_tasks=2, reduction="mean")) == (
        "PCGrad(num_tasks=2, tasks=None, reduction='mean')"
    )


def test_registry_errors_and_root_import_no_torch():
    code = (
        "import sys, counterpoint, counterpoint.registry, counterpoint.errors, counterpoint._checks;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_extra_is_an_import_error():
    assert issubclass(MissingExtraError, ImportError)
