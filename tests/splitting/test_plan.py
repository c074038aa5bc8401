"""Plans: what is chosen, files, and the parameter counts of the paper."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from counterpoint.errors import FileError, OptionError, UnknownNameError
from counterpoint.splitting import SplitPlan, sizes, split

SIZES = {"a": 10, "b": 200, "c": 30, "d": 5}
SCORES = {"a": 4.0, "b": 9, "c": 4.0, "d": 0}


def test_top_k_ranks_and_keeps_the_order_of_the_network_in_ties():
    plan = SplitPlan.top_k(SCORES, SIZES, 2)
    assert plan.layers == ("b", "a")
    assert plan.tied == ("c",)
    assert plan.removed == pytest.approx(13 / 17)
    assert plan.num_parameters == 210
    assert plan.added_parameters(3) == 420


def test_more_layers_than_there_are_means_all_that_conflict():
    assert SplitPlan.top_k(SCORES, SIZES, 9).layers == ("b", "a", "c")
    assert SplitPlan.top_k(SCORES, SIZES, 9).tied == ()
    assert SplitPlan.top_k({}, SIZES, 3).layers == ()
    assert SplitPlan.share({}, SIZES, 1.0).layers == ()
    assert SplitPlan.top_k({}, SIZES, 3).removed == 0


@pytest.mark.parametrize(
    ("share", "layers"), [(0, ""), (0.5, "b"), (9 / 17, "b"), (0.54, "ba"), (0.77, "bac"), (1.0, "bac")]
)
def test_share(share, layers):
    assert SplitPlan.share(SCORES, SIZES, share).layers == tuple(layers)


@pytest.mark.parametrize(
    ("budget", "tasks", "layers"), [(0, 2, ""), (39, 2, "a"), (40, 2, "ac"), (240, 2, "bac"), (79, 3, "a")]
)
def test_budget_passes_over_what_does_not_fit(budget, tasks, layers):
    plan = SplitPlan.budget(SCORES, SIZES, budget, tasks)
    assert plan.layers == tuple(layers)
    assert plan.added_parameters(tasks) <= budget


def test_first_and_last():
    assert SplitPlan.first(SIZES, 2).layers == ("a", "b")
    assert SplitPlan.last(SIZES, 3).layers == ("b", "c", "d")
    assert SplitPlan.last(SIZES, 0).layers == ()
    assert SplitPlan.last(SIZES, 7).layers == tuple(SIZES)


def test_random_plans():
    drawn = {SplitPlan.random_layers(SIZES, 2, seed=seed).layers for seed in range(50)}
    assert all(len(layers) == 2 for layers in drawn)
    assert {name for layers in drawn for name in layers} == set(SIZES)
    assert SplitPlan.random_layers(SIZES, 2, seed=3) == SplitPlan.random_layers(SIZES, 2, seed=3)
    for seed in range(50):
        plan = SplitPlan.random_parameters(SIZES, 40, seed=seed)
        left = 40 - plan.num_parameters
        assert left >= 0
        assert all(size > left for name, size in SIZES.items() if name not in plan.layers)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 50)), min_size=1, max_size=12), st.floats(0, 1))
def test_share_is_the_least_number_of_layers(rows, share):
    scores = {str(index): score for index, (score, _) in enumerate(rows)}
    plan = SplitPlan.share(scores, {str(index): size for index, (_, size) in enumerate(rows)}, share)
    best = sorted(scores.values(), reverse=True)
    count, total = len(plan.layers), sum(best)
    assert sum(best[:count]) >= share * total - 1e-9
    assert count == 0 or sum(best[: count - 1]) < share * total


def test_file(tmp_path):
    plan = SplitPlan.share(SCORES, SIZES, 0.6)
    plan.save(tmp_path / "plan.json")
    assert SplitPlan.load(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["layers"] == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON .*make it again"),
        ("[]", "no SplitPlan .*expected data of format 1, got 'list'"),
        ('{"format": 2}', "expected data of format 1, got 2"),
        ('{"format": 1, "layers": ["x"], "sizes": {"a": 1}}', "no layer of this network is called 'x'"),
        ('{"format": 1, "layers": ["a"], "sizes": {"a": 1}, "scorse": {}}', "did you mean scores"),
    ],
)
def test_damaged_file(tmp_path, content, message):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(FileError, match=message):
        SplitPlan.load(tmp_path / "plan.json")
    with pytest.raises(FileError, match=r"none\.json: cannot be read \(No such file"):
        SplitPlan.load(tmp_path / "none.json")


def test_bad_input():
    with pytest.raises(UnknownNameError, match="no layer of this network is called 'e'"):
        SplitPlan.top_k({"e": 1.0}, SIZES, 1)
    with pytest.raises(OptionError, match=r"score of a must be in \[0, inf\), got nan"):
        SplitPlan.top_k({"a": float("nan")}, SIZES, 1)
    with pytest.raises(OptionError, match="layers must be different"):
        SplitPlan(("a", "a"), SIZES)
    with pytest.raises(OptionError, match="num_layers"):
        SplitPlan.top_k(SCORES, SIZES, -1)
    with pytest.raises(OptionError, match="share must be in"):
        SplitPlan.share(SCORES, SIZES, 1.5)


def megabytes(module):
    return sum(parameter.numel() for parameter in module.parameters()) * 4 / 2**20


# layer=score of the search on Multi-Fashion+MNIST that the paper's authors published
RANKING = """
bn1=4427 layer1.0.bn1=4168 layer1.1.bn1=3793 layer1.0.bn2=3402 layer1.1.bn2=3028 layer2.0.bn1=2193 layer2.1.bn1=2088
conv1=1944 layer2.0.downsample.1=1829 layer2.0.bn2=1785 layer2.1.bn2=1448 layer1.0.conv1=889 layer3.0.bn1=886
layer3.1.bn1=791 layer4.1.bn1=761 layer4.0.bn1=696 layer3.0.downsample.1=566 layer3.0.bn2=517 layer4.1.bn2=435
layer3.1.bn2=423 layer4.0.bn2=349 layer4.0.downsample.1=340 layer1.0.conv2=90 layer1.1.conv1=69 layer1.1.conv2=52
layer2.0.downsample.0=38
"""


def fashion_network():
    """ResNet-18 with one channel and 100 features, and two heads of 10 classes, on no device."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed (extra: vision)")
    with torch.device("meta"):
        trunk = models.resnet18(num_classes=100)
        trunk.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        return nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList([nn.Linear(100, 10), nn.Linear(100, 10)])})


@pytest.mark.parametrize(
    ("num_layers", "size"),
    [(5, 42.8169), (10, 42.8328), (15, 42.9822), (20, 42.9959), (25, 43.4256), (26, 43.4568)],
)
def test_sizes_of_the_paper_multi_fashion_mnist(num_layers, size):
    network = fashion_network()
    trunk = network["trunk"]
    assert len(sizes(trunk)) == 41
    assert round(megabytes(network), 4) == 42.8145
    scores = {name: float(score) for name, score in (word.split("=") for word in RANKING.split())}
    plan = SplitPlan.top_k(scores, sizes(trunk), num_layers)
    split(trunk, plan, 2)
    assert round(megabytes(network), 4) == size
    assert round(megabytes(fashion_network()) + plan.added_parameters(2) * 4 / 2**20, 4) == size


def test_sizes_of_the_paper_all_first_and_last():
    network = fashion_network()
    for plan, size in (
        (SplitPlan.first(sizes(network["trunk"]), 25), 48.900),
        (SplitPlan.last(sizes(network["trunk"]), 25), 84.166),
        (SplitPlan.first(sizes(network["trunk"]), 41), 85.6213),
    ):
        assert megabytes(network) + plan.added_parameters(2) * 4 / 2**20 == pytest.approx(size, abs=5e-4)


class ConvLayer(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)


def paper_segnet():
    """Modules of the SegNet of the paper, on no device, under the names of its published ranking."""
    with torch.device("meta"):
        widths = (64, 128, 256, 512, 512)
        pairs = [(widths[max(i - 1, 0)], widths[i]) for i in range(5)]
        blocks = [
            [ConvLayer(w, w) if i < 2 else nn.Sequential(ConvLayer(w, w), ConvLayer(w, w)) for i, w in enumerate(side)]
            for side in (widths, [a for a, _ in pairs])
        ]
        return nn.ModuleDict(
            {
                "encoder_block": nn.ModuleList([ConvLayer(3 if i == 0 else a, b) for i, (a, b) in enumerate(pairs)]),
                "decoder_block": nn.ModuleList([ConvLayer(b, a) for a, b in pairs]),
                "conv_block_enc": nn.ModuleList(blocks[0]),
                "conv_block_dec": nn.ModuleList(blocks[1]),
            }
        )


def segnet_head(outputs):
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, outputs, 1))


SHARED = """
conv_block_enc.2.0.bn1 conv_block_dec.4.1.conv1 encoder_block.2.conv1 conv_block_enc.2.0.conv1 conv_block_enc.2.1.conv1
encoder_block.3.conv1 conv_block_enc.3.0.conv1 conv_block_enc.3.1.conv1 encoder_block.4.conv1 conv_block_enc.4.0.conv1
conv_block_dec.4.0.conv1 conv_block_enc.4.1.conv1 decoder_block.4.conv1
"""


def test_sizes_of_the_paper_segnet():
    trunk = paper_segnet()
    rest = nn.ModuleList([segnet_head(7), segnet_head(1)])
    assert len(sizes(trunk)) == 52
    assert round(2 * megabytes(trunk) + megabytes(rest), 4) == 190.5860
    rest.unused = nn.Parameter(torch.zeros(3))  # the published network has three scalars that it does not use
    assert round(megabytes(trunk) + megabytes(rest), 4) == 95.4349
    split(trunk, [name for name in sizes(trunk) if name not in SHARED.split()], 2)
    assert round(megabytes(trunk) + megabytes(rest), 4) == 108.4385
