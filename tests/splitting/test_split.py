"""What ``split`` makes of a network: a normal module, trained by any balancer, and what it refuses."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn

import counterpoint as cp
from counterpoint.errors import OptionError, UnknownNameError
from counterpoint.splitting import SplitPlan, find_layers, sizes, split, streams


def small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).double()


X = torch.randn(5, 1, 6, 6, dtype=torch.float64)


def apart(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".original" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def assert_same(one, other, x=X):
    for a, b in zip(streams(one(x)), streams(other(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda network: copy.deepcopy(copy.deepcopy(network)),
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "pickle of a pickle": lambda network: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(network)))),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_are_equal_and_apart(make):
    network = apart(split(small(), ["1", "4"], 3)).eval()
    made = make(network)
    assert_same(made, network)
    before = [y.detach().clone() for y in streams(network(X))]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
        made.train()(X)
    for output, wanted in zip(streams(network(X)), before, strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=0)
    assert isinstance(made[1], nn.BatchNorm2d)
    split(made, ["0"], 3)  # and a copy can be split further, without the other noticing
    assert_same(network, make(network))


def test_save_whole_network():
    network = apart(split(small(), ["0"], 2)).eval()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False), network)


def test_state_dict_goes_into_a_network_split_alike():
    network = apart(split(small(), ["1", "4"], 2))
    network(X)
    other = split(small(), ["1", "4"], 2)
    assert other.load_state_dict(network.state_dict()).missing_keys == []
    assert_same(other.eval(), network.eval())
    names = [name for name, _ in network[1].named_parameters()]
    assert names == [f"parametrizations.{name}.original{task}" for name in ("weight", "bias") for task in (0, 1)]


def test_conversion_moves_every_copy():
    network = split(small(), ["1", "4"], 2).float()
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}
    assert streams(network(X.float()))[1].dtype == torch.float32
    assert {tensor.device.type for tensor in network.to("meta").state_dict().values()} == {"meta"}


def test_modules_stay_where_they_are():
    network = small()
    before = list(network.modules())
    assert split(network, ["0", "4"], 2) is network
    assert [module for module in network.modules() if module in before] == before
    assert type(network[2]) is nn.ReLU


def test_prefix_runs_once():
    network = small()
    calls = []
    network[0].register_forward_hook(lambda *_: calls.append(0))
    split(network, ["4"], 3)
    streams(network(X))
    assert len(calls) == 1


def test_split_again():
    once, twice = small(), small()
    split(once, ["0", "4"], 2)
    split(split(twice, ["4"], 2), ["0"], 2)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert_same(once, twice)
    assert {name: layer.num_copies for name, layer in find_layers(twice).items()} == {"0": 2, "1": 1, "4": 2}
    assert sizes(twice) == sizes(small())
    with pytest.raises(OptionError, match="layer 4 is split already, for 2 tasks"):
        split(twice, ["4"], 2)
    with pytest.raises(OptionError, match="was split for 2 tasks already, got num_tasks=3"):
        split(twice, ["1"], 3)


def test_one_task_changes_nothing():
    network = split(small(), ["0"], 1)
    assert network.state_dict().keys() == small().state_dict().keys()
    assert len(streams(network(X), num_tasks=1)) == 1


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.mix(self.mix(self.embedding(x))).relu())  # one module used twice


@pytest.mark.parametrize("layers", [["embedding"], ["embedding", "out", "mix"]])
def test_tied_weights_and_reused_modules(layers):
    torch.manual_seed(0)
    plain = Tied().double()
    x = torch.arange(7)
    network = apart(split(copy.deepcopy(plain), layers, 2))
    for name, parameter in (*network.named_parameters(), *copy.deepcopy(network).named_parameters()):
        assert name.startswith("out.parametrizations.weight") is False, "still tied: one name a tensor"
        assert parameter.requires_grad
    weights = streams(network.out.weight)
    assert all(one is other for one, other in zip(weights, streams(network.embedding.weight), strict=True))
    outputs = streams(network(x))
    sum(output.sin().sum() for output in outputs).backward()
    for task, output in enumerate(outputs):
        single = copy.deepcopy(plain)
        with torch.no_grad():
            single.embedding.weight.copy_(weights[task])
            for layer, name in itertools.product(("mix", "out"), ("weight", "bias")):
                value = streams(getattr(getattr(network, layer), name), 2)[task]
                getattr(getattr(single, layer), name).copy_(value)
        torch.testing.assert_close(single(x), output, rtol=1e-12, atol=1e-12)
        single(x).sin().sum().backward()
        torch.testing.assert_close(weights[task].grad, single.embedding.weight.grad, rtol=1e-12, atol=1e-12)


def test_a_tied_layer_counts_once():
    assert sizes(Tied()) == {"embedding": 28, "mix": 20, "out": 7}


def test_gradient_of_a_task_is_zero_at_the_copies_of_others():
    network = split(small(), ["0"], 2)
    streams(network(X))[0].sum().backward()
    originals = network[0].parametrizations.weight
    assert originals.original0.grad.abs().sum() > 0
    assert originals.original1.grad is None


def hard_sharing(split_layers, names=("a", "b")):
    torch.manual_seed(0)
    backbone = cp.blocks.SmallConv((1, 12, 12), widths=(4, 6), hidden=8)
    heads = {name: cp.blocks.Classifier(8, 3) for name in names}
    return split(cp.architectures.HardSharing(backbone, heads), split_layers, len(names), heads="heads")


@pytest.mark.parametrize("name", ["equal", "pcgrad", "cagrad", "graddrop", "uncertainty", "mgda", "nash_mtl"])
def test_balancers_find_what_is_still_shared(name):
    model = hard_sharing(["backbone.stages.1.0"])
    balancer = cp.balancers.create(name, tasks=["a", "b"])
    x, y = torch.randn(9, 1, 12, 12), torch.randint(3, (2, 9))
    output = model(x)
    losses = {task: nn.functional.cross_entropy(output.preds[task], y[k]) for k, task in enumerate(("a", "b"))}
    own = {}
    for k, task in enumerate(losses):
        copies = model.backbone.stages[1][0].parametrizations.weight
        own[task] = torch.autograd.grad(losses[task], getattr(copies, f"original{k}"), retain_graph=True)[0]
    balancer.backward(losses)
    assert all(parameter.grad is not None for parameter in model.parameters())
    if name in ("equal", "pcgrad"):
        for k, task in enumerate(losses):
            gradient = getattr(model.backbone.stages[1][0].parametrizations.weight, f"original{k}").grad
            torch.testing.assert_close(gradient, own[task])


def test_heads_read_their_own_stream():
    model = apart(hard_sharing(["backbone.stages.1.0"]))
    output = model(torch.randn(4, 1, 12, 12))
    assert {type(pred) for pred in output.preds.values()} == {torch.Tensor}
    assert output.features == ()
    assert list(model(torch.randn(4, 1, 12, 12), tasks=["b"]).preds) == ["b"]
    calls = []
    model.heads["a"].layers.register_forward_hook(lambda module, args, out: calls.append(type(args[0])))
    again = pickle.loads(pickle.dumps(hard_sharing(["backbone.stages.0.0"])))
    assert type(again(torch.randn(4, 1, 12, 12)).preds["a"]) is torch.Tensor
    model(torch.randn(4, 1, 12, 12))
    assert calls == [torch.Tensor], "a head runs once"
    x = torch.randn(4, 1, 12, 12)
    for k, task in enumerate(("a", "b")):
        model.eval()
        features = streams(model.backbone(x))[k]
        torch.testing.assert_close(model(x).preds[task], model.heads[task](features))


def test_training_step_of_the_package():
    model = hard_sharing(["backbone.stages.0.0", "backbone.stages.0.1"], names=("left", "right"))
    tasks = [
        cp.tasks.Task(name, cp.losses.cross_entropy, {"accuracy": cp.metrics.accuracy(3)}, num_outputs=3)
        for name in ("left", "right")
    ]
    batch = {"image": torch.randn(9, 1, 12, 12)} | {task.name: torch.randint(3, (9,)) for task in tasks}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    balancer = cp.balancers.PCGrad(tasks=["left", "right"])
    report = cp.training.step.training_step(model, tasks, batch, balancer, optimizer)
    assert report.losses.isfinite().all()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_independent_copies():
    network = small()
    first = network[0].weight.detach().clone()
    split(network, ["0", "1", "4"], 3, init="independent")
    copies = streams(network[0].weight)
    assert torch.equal(copies[0], first)
    assert not torch.equal(copies[0], copies[1])
    assert not torch.equal(copies[1], copies[2])
    assert all(torch.equal(part, torch.ones(4, dtype=torch.float64)) for part in streams(network[1].weight))
    assert copies[1].abs().max() <= 1 / 3  # the bound of the uniform distribution that reset_parameters draws from


def test_init_by_a_function():
    network = split(small(), ["4"], 3, init=lambda layer, task: nn.init.constant_(layer.weight, task))
    assert [part.mean().item() for part in streams(network[4].weight)] == [0.0, 1.0, 2.0]
    torch.testing.assert_close(*streams(network[4].bias)[:2])


def test_multihead_attention_is_a_layer_without_its_output_projection():
    attention = nn.MultiheadAttention(8, 2)
    assert sizes(attention) == {"": 216, "out_proj": 72}
    x = torch.randn(3, 2, 8)
    expected = attention(x, x, x)[0]
    split(attention, [""], 2, init="independent")
    outputs = [output for output, _ in streams(attention(x, x, x))]
    torch.testing.assert_close(outputs[0], expected)
    assert not torch.equal(outputs[0], outputs[1])


def test_what_users_noted_on_parameters_is_kept():
    network = small()
    network[4].weight.no_decay = True
    network[4].bias.requires_grad_(False)
    split(network, ["4"], 2)
    assert all(part.no_decay for part in streams(network[4].weight))
    assert not any(part.requires_grad for part in streams(network[4].bias))


def test_buffers_stay_out_of_the_state_dict_where_they_were():
    network = nn.Linear(2, 2)
    network.register_buffer("hidden", torch.zeros(2), persistent=False)
    split(network, [""], 2)
    assert not any("hidden" in key for key in network.state_dict())


ERRORS = [
    ({"layers": ["3.conv"]}, UnknownNameError, "no layer of this network is called '3.conv'; there are: 0, 1, 4"),
    ({"layers": ["2"]}, OptionError, r"2 \(ReLU\) has no parameters of its own$"),
    ({"layers": [""]}, OptionError, r"\(Sequential\) has no parameters of its own; its layers are 0, 1, 4"),
    ({"layers": "0"}, OptionError, r"layers must be a list of names, got the text '0'; write \['0'\]"),
    ({"layers": ["0"], "num_tasks": 0}, OptionError, r"split: num_tasks must be in \[1, inf\], got 0"),
    ({"layers": ["0"], "init": "zeros"}, OptionError, "split: init must be one of same, independent, got 'zeros'"),
    ({"layers": ["0"], "dropout": "none"}, OptionError, "split: dropout must be one of own, same"),
    ({"layers": ["0"], "heads": ["4"]}, OptionError, "heads must be num_tasks = 2 different modules, got 1"),
    ({"layers": ["0"], "heads": ["3", "9"]}, UnknownNameError, "no module of this network is called '9'"),
    ({"layers": ["4"], "heads": ["3", "4"]}, OptionError, "layer 4 is in the head of task 1"),
    ({"layers": ["0"], "whole": ["block"]}, UnknownNameError, "no module of this network is called 'block'"),
]


@pytest.mark.parametrize(("options", "error", "message"), ERRORS)
def test_bad_input_changes_nothing(options, error, message):
    network = small()
    with pytest.raises(error, match=message):
        split(network, **{"num_tasks": 2, **options})
    assert network.state_dict().keys() == small().state_dict().keys()
    assert [type(module) for module in network.modules()] == [type(module) for module in small().modules()]


def test_misspelt_name_gets_the_nearest():
    network = nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1), "norm": nn.BatchNorm2d(1)})
    with pytest.raises(UnknownNameError, match=r"'conv_1.weight'; did you mean conv1\?"):
        split(network, ["conv_1.weight"], 2)


def test_independent_needs_a_way_to_start():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(OptionError, match=r"needs reset_parameters, which 0 \(Scale\) has not"):
        split(nn.Sequential(Scale()), ["0"], 2, init="independent")


def test_plan_of_another_network():
    plan = SplitPlan(("0",), sizes(small()))
    split(small(), plan, 2)
    with pytest.raises(OptionError, match=r"not in the network: 1, 4; of another size: 0 \(40 in the plan, 6 here\)"):
        split(nn.Sequential(nn.Linear(2, 2)), plan, 2)


class Unpacked(nn.Module):
    """A split network that returns one output per task."""

    def __init__(self):
        super().__init__()
        self.network = apart(split(small(), ["1", "4"], 2))

    def forward(self, x):
        return streams(self.network(x))


@pytest.mark.filterwarnings("ignore")
def test_export():
    network = Unpacked().eval()
    exported = torch.export.export(network, (X,)).module()
    for output, wanted in zip(exported(X), network(X), strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)
