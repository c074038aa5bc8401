import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.bench.build import build
from counterpoint.bench.compare import make_config, method_name, parse_method
from counterpoint.bench.recipes import RECIPES, digits, find_recipe
from counterpoint.bench.run_config import BalancerConfig, GroupConfig, RunConfig, override, parse_run
from counterpoint.bench.runner import run_one
from counterpoint.errors import OptionError, UnknownNameError


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_yaml(name):
    config = RECIPES[name]()
    text = yaml.safe_dump(config.to_dict())
    again = parse_run(yaml.safe_load(text), "test")
    assert again.to_dict() == config.to_dict()
    assert find_recipe(name) == config


def test_sections_and_dotted_options():
    changed = override(
        digits(),
        [
            ("balancer", "cagrad"),
            ("balancer.c", "0.2"),
            ("optimizer.lr", "1e-2"),
            ("optimizer.groups", "[{match: head, options: {lr: 0.5}}]"),
            ("scheduler.step_size", "3"),
            ("scheduler.name", "StepLR"),
            ("training.epochs", "4"),
            ("data.tasks", "[left, right]"),
            ("data.num_train", "100"),
            ("model.backbone_options.hidden", "8"),
            ("seed", "7"),
        ],
    )
    assert changed.balancer == BalancerConfig("cagrad", {"c": 0.2})
    assert changed.optimizer.options == {"lr": 1e-2}
    assert changed.optimizer.groups == (GroupConfig("head", {"lr": 0.5}),)
    assert (changed.scheduler.name, changed.scheduler.options) == ("StepLR", {"step_size": 3})
    assert changed.training.epochs == 4
    assert changed.data.tasks == ("left", "right")
    assert changed.data.options == {"num_train": 100}
    assert changed.model.backbone_options == {"widths": [16, 32], "hidden": 8}
    assert changed.seed == 7
    assert digits().balancer == BalancerConfig(), "the original was changed"


def test_another_method_forgets_the_options_of_the_one_before():
    first = override(digits(), [("balancer", "cagrad"), ("balancer.c", "0.2")])
    assert override(first, [("balancer", "pcgrad")]).balancer == BalancerConfig("pcgrad", {})
    assert override(first, [("balancer", "cagrad")]).balancer == first.balancer
    assert override(digits(), [("optimizer", "SGD")]).optimizer.options == {}
    mlp = override(digits(), [("model.backbone_options.widths", "[5]"), ("model.backbone", "mlp")])
    assert mlp.model.backbone_options == {"widths": [5]}, "the order of the options does not matter"


def test_numbers_written_like_1e_minus_3_are_numbers():
    assert override(digits(), [("optimizer.lr", "1e-3")]).optimizer.options["lr"] == 1e-3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("balncer", "x", "no option --balncer; did you mean balancer"),
        ("training.epoch", "1", "no key 'training.epoch'; did you mean training.epochs"),
        ("training.epochs.more", "1", "has no parts"),
        ("training.epochs", "1.5", 'key "training.epochs"'),
        ("data.tasks", "[", r"'\[' cannot be read \(expected the node content"),
        ("training", "1", "--training is a section; its options: training.epochs"),
    ],
)
def test_bad_overrides(path, value, message):
    with pytest.raises(OptionError, match=message) as caught:
        override(digits(), [(path, value)])
    assert "\n" not in str(caught.value)


def test_methods_with_options():
    assert parse_method("PC-Grad") == BalancerConfig("pcgrad", {})
    assert parse_method(" cagrad( c=0.2, rescale = 1 ) ") == BalancerConfig("cagrad", {"c": 0.2, "rescale": 1})
    assert parse_method("fixed(task_weights=[1.0, 2.0])") == BalancerConfig("fixed", {"task_weights": [1.0, 2.0]})
    config = make_config(RunConfig(), ["pcgrad", "cagrad(c=0.2)", "PCGrad", "equal"], [0])
    assert config.methods == ("equal", "rlw", "pcgrad", "cagrad(c=0.2)")
    with pytest.raises(UnknownNameError, match="did you mean pcgrad"):
        parse_method("pcgrda")


@given(c=st.floats(0, 10, allow_nan=False), rescale=st.sampled_from([0, 1, 2]))
def test_names_of_methods_can_be_read_back(c, rescale):
    balancer = BalancerConfig("cagrad", {"c": c, "rescale": rescale})
    assert parse_method(method_name(balancer)) == balancer


def test_the_engine_of_a_run(tmp_path):
    quick = [("training.epochs", "1"), ("data.num_train", "100"), ("data.num_val", "50"), ("data.num_test", "50")]
    assert "engine" not in digits().to_dict()["training"]
    results = {}
    for engine in ("auto", "rows", "low_memory"):
        config = override(digits(), [*quick, ("balancer", "mgda"), ("training.engine", engine)])
        assert build(config).balancer.engine == engine
        results[engine] = run_one(config, tmp_path / engine)
    assert results["rows"]["num_backward"] != results["low_memory"]["num_backward"]
    wrapped = override(
        digits(),
        [*quick, ("balancer", "uncertainty+pcgrad"), ("balancer.wrap", "{every: 2}"), ("training.engine", "rows")],
    )
    parts = [part for part in build(wrapped).balancer.modules() if getattr(part, "reads", "") == "gram"]
    assert parts
    assert all(part.engine == "rows" for part in parts)
    with pytest.raises(OptionError, match=r"Uncertainty does not read one; leave out --training\.engine"):
        build(override(digits(), [*quick, ("balancer", "uncertainty"), ("training.engine", "rows")]))
    with pytest.raises(OptionError, match="did you mean rows"):
        build(override(digits(), [*quick, ("balancer", "mgda"), ("training.engine", "row")]))
