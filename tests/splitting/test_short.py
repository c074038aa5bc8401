"""The short ways of single layers: what they give is what the layers' own ``forward`` gives, bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from counterpoint.splitting import _whole, split, streams
from counterpoint.splitting._short import short_way

CASES = {
    "linear": (lambda: nn.Linear(4, 4), (5, 4)),
    "linear without bias": (lambda: nn.Linear(4, 4, bias=False), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), (5, 4, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 4, 3, stride=2, groups=2), (5, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 4, 2, dilation=2), (5, 4, 4, 4, 4)),
    "norm1d": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "norm2d": (lambda: nn.BatchNorm2d(4), (5, 4, 6, 6)),
    "statistics alone": (lambda: nn.BatchNorm2d(4, affine=False), (5, 4, 6, 6)),
    "norm3d": (lambda: nn.BatchNorm3d(4, momentum=None), (5, 4, 2, 2, 2)),
    "norm of this batch": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (5, 4, 6, 6)),
}


class Two(nn.Module):
    """The layer on what is common, then on streams."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Linear(shape[-1], shape[-1])
        self.layer = layer

    def forward(self, x):
        return self.layer(self.first(x))


def apart(layer: nn.Module, task: int) -> None:
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.add_(0.1 * task + 0.1)


def ran_short(monkeypatch) -> list[bool]:
    """Note of each use of a short way whether it was taken."""
    taken = []

    def noting(kind):
        short = short_way(kind)

        def run(layer, x):
            made = short(layer, x)
            taken.append(made is not None)
            return made

        return None if short is None else run

    monkeypatch.setattr(_whole, "short_way", noting)
    return taken


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "which"),
    [(name, ["first"]) for name in CASES]
    + [(name, which) for name in CASES if "alone" not in name for which in (["layer"], ["first", "layer"])],
)
def test_as_the_layer_itself(monkeypatch, name, which, training):
    build, shape = CASES[name]
    plain = Two(build(), shape).train(training)
    monkeypatch.setattr(_whole, "short_way", lambda _kind: None)
    long = split(copy.deepcopy(plain), which, 3, init=apart)
    monkeypatch.undo()
    taken = ran_short(monkeypatch)
    short = split(copy.deepcopy(plain), which, 3, init=apart)
    short.load_state_dict(long.state_dict())
    x = torch.randn(shape)
    results = []
    for network in (long, short):
        outputs = streams(network(x))
        sum((task + 1) * output.square().sum() for task, output in enumerate(outputs)).backward()
        results.append((outputs, [parameter.grad for parameter in network.parameters()], network.state_dict()))
    norm = "norm" in name or "statistics" in name
    assert any(taken) == (not (norm and training) or "first" in which)
    for first, second in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(first, second)
    for first, second in zip(results[0][1], results[1][1], strict=True):
        assert (first is None and second is None) or torch.equal(first, second)
    assert all(torch.equal(value, results[1][2][key]) for key, value in results[0][2].items())


class Louder(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def test_another_forward_is_run(monkeypatch):
    taken = ran_short(monkeypatch)
    x = torch.randn(5, 4)
    layer = Louder(4, 4)
    wanted = layer(x)
    assert torch.equal(streams(split(nn.Sequential(layer), ["0"], 2)(x))[1], wanted)
    patched = split(nn.Sequential(nn.Linear(4, 4)), ["0"], 2)
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * forward(self, x))
    wanted = patched(x)
    monkeypatch.setattr(nn.Linear, "forward", forward)
    assert torch.equal(streams(wanted)[1], 2 * streams(patched(x))[1])
    assert taken == [False, True]


def test_weights_made_by_somebody_else_are_used():
    x = torch.randn(5, 4)
    network = split(nn.Sequential(nn.Linear(4, 4)), ["0"], 2)
    before = streams(network(x))[1]
    with torch.no_grad():
        network[0].bias = torch.zeros(4)
        halved = streams(network(x))[1] / 2
    parametrize.register_parametrization(network[0], "weight", Half())
    assert not torch.equal(before, halved)
    assert torch.allclose(streams(network(x))[1], halved)


def test_hooks_see_all_tasks_at_once():
    network = split(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), ["0", "1"], 2)
    seen = []
    network[1].register_forward_hook(lambda _module, args, output: seen.append(len(streams((args, output)))))
    network(torch.randn(5, 4))
    assert seen == [2]
