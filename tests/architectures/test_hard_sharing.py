import importlib.util

import pytest
import torch

from counterpoint import architectures, blocks
from counterpoint.errors import MissingExtraError, OptionError, ShapeError, UnknownNameError

SHAPE = (1, 12, 14)


def names():
    """All backbones; the one that needs an extra is skipped without it."""
    without = importlib.util.find_spec("torchvision") is None
    skip = pytest.mark.skipif(without, reason="torchvision is not installed")
    return [pytest.param(name, marks=skip) if name == "resnet18" else name for name in blocks.BACKBONES.names()]


def network(backbone, tasks=("a", "b"), **options):
    trunk = blocks.BACKBONES.create(backbone, SHAPE, **options)
    heads = {task: blocks.Classifier(trunk.channels[-1], 3 + i, hidden=5 * i or None) for i, task in enumerate(tasks)}
    return architectures.create("hard_sharing", trunk, heads)


@pytest.mark.parametrize("backbone", names())
def test_contract(backbone):
    net = network(backbone)
    x = torch.randn(4, *SHAPE)
    output = net(x)
    assert {task: pred.shape for task, pred in output.preds.items()} == {"a": (4, 3), "b": (4, 4)}
    shared, own = list(net.shared_parameters()), {task: list(net.task_parameters(task)) for task in ("a", "b")}
    together = [*shared, *own["a"], *own["b"]]
    assert len(together) == len(set(together)), "a parameter belongs to two"
    assert set(together) == set(net.parameters()), "a parameter belongs to nobody"
    sum(pred.square().sum() for pred in output.preds.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in together)
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x).preds["a"], net(x).preds["a"])
        only = net(x, ["b"])
        assert list(only.preds) == ["b"]
        assert torch.equal(only.preds["b"], net(x).preds["b"])
        assert torch.equal(net.heads["b"](only.features[0]), only.preds["b"])


@pytest.mark.parametrize("backbone", names())
def test_running_stage_by_stage_is_running_whole(backbone):
    trunk = blocks.BACKBONES.create(backbone, SHAPE).eval()
    x = torch.randn(2, *SHAPE)
    whole = trunk.features(x)
    assert [feature.shape[1] for feature in whole] == list(trunk.channels)
    for stage, expected in enumerate(whole):
        x = trunk.step(stage, x)
        assert torch.equal(x, expected)


def test_parameter_counts():
    net = blocks.SmallConv((1, 12, 14), widths=(16, 32), hidden=64)
    convs = 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32
    assert sum(p.numel() for p in net.parameters()) == convs + (32 * 3 * 3 + 1) * 64
    mlp = blocks.MLP((3, 4), widths=(7, 5))
    assert sum(p.numel() for p in mlp.parameters()) == 13 * 7 + 8 * 5


def test_resnet18_is_torchvisions():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    reference = models.resnet18(weights=None).eval()
    trunk = blocks.ResNet18((3, 64, 64)).eval()
    own, theirs = list(trunk.parameters()), [p for n, p in reference.named_parameters() if not n.startswith("fc.")]
    with torch.no_grad():
        for mine, other in zip(own, theirs, strict=True):
            mine.copy_(other)
    x = torch.randn(2, 3, 64, 64)
    reference.fc = torch.nn.Identity()
    torch.testing.assert_close(trunk(x).mean((2, 3)), reference(x))


def test_resnet18_takes_other_channels_and_small_images():
    pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    assert blocks.ResNet18((1, 36, 36))(torch.randn(2, 1, 36, 36)).shape == (2, 512, 2, 2)
    assert blocks.ResNet18((1, 36, 36), small_images=True)(torch.randn(2, 1, 36, 36)).shape == (2, 512, 5, 5)


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'counterpoint\[vision\]'"):
        blocks.ResNet18((3, 32, 32))


def test_a_single_task_network_is_the_same_code():
    net = network("mlp", tasks=("only",))
    assert list(net(torch.randn(2, *SHAPE)).preds) == ["only"]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: network("small_conv", tasks=()), OptionError, "at least one task"),
        (lambda: network("mpl"), UnknownNameError, "did you mean mlp"),
        (lambda: blocks.SmallConv((12, 14)), ShapeError, r"\(channels, height, width\)"),
        (lambda: blocks.SmallConv((1, 3, 3)), OptionError, "at least 4 pixels"),
        (lambda: blocks.SmallConv(SHAPE, dropout=1.0), OptionError, r"dropout must be in \[0, 1\)"),
        (lambda: blocks.MLP(SHAPE, widths=()), OptionError, "at least one layer"),
        (
            lambda: network("mlp")(torch.randn(2, *SHAPE), ["c"]),
            UnknownNameError,
            "no task of HardSharing is called 'c'",
        ),
        (lambda: network("mlp").task_parameters("aa"), UnknownNameError, "'aa'"),
        (lambda: blocks.Classifier(4, 2)(torch.randn(2, 3, 4)), ShapeError, r"must be \(B, C\) or"),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()
