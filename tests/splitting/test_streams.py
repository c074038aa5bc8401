"""What a network can do with streams: everything a tensor can, or a clear error; never a wrong number."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from counterpoint.errors import OptionError, SplitError
from counterpoint.splitting import each, split, streams


class Body(nn.Module):
    """A split linear layer after a common one, and a function of both."""

    def __init__(self, function) -> None:
        super().__init__()
        self.common, self.own = nn.Linear(4, 4), nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        x = self.common(x)
        return self.function(x * 1.0, self.own(x))


def apart(network):
    """Set the copies of a split network apart."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".original" in name:
                parameter.add_(torch.randn_like(parameter))
    return network


def run_both(function, x=None):
    """Outputs and gradients of the streams, and of the function called per task with plain tensors."""
    network = apart(split(Body(function).double(), ["own"], 3))
    x = torch.randn(2, 4, dtype=torch.float64) if x is None else x
    outputs = streams(network(x.clone()), 3)
    z = network.common(x)
    expected = [function(z * 1.0, y) for y in streams(network.own(z))]
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=0)
    if outputs[0].requires_grad:
        parameters = list(network.parameters())
        found = torch.autograd.grad(sum(o.sin().sum() for o in outputs), parameters, allow_unused=True)
        wanted = torch.autograd.grad(sum(o.sin().sum() for o in expected), parameters, allow_unused=True)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    return outputs


def in_place_method(x, y):
    kept = x
    x.add_(y)  # the result is not bound to a name
    return kept * 2


def set_item(x, y):
    x[:, 1:3] = y[:, :2]
    x[0] += y[1]
    return x


def read_metadata(x, y):
    assert y.shape == x.shape
    assert y.size(0) == 2
    assert y.dim() == 2
    assert len(y) == 2
    assert y.dtype == torch.float64
    assert y.device == x.device
    assert not y.is_cuda
    assert y.numel() == 8
    assert y.requires_grad
    assert torch.is_tensor(y)
    return y.new_zeros(4) + torch.zeros_like(y)


def in_a_view(x, y):
    x = x.view(4, 2)
    x += y.view(4, 2)
    return x


FUNCTIONS = {
    "residual sum": lambda x, y: x + y,
    "residual sum in place": lambda x, y: x.__iadd__(y),
    "product in place": lambda x, y: x.mul_(y),
    "in-place method without binding": in_place_method,
    "assignment to a part": set_item,
    "in-place sum to a view": in_a_view,
    "copy_": lambda x, y: x.copy_(y),
    "masked_fill_ with a streamed mask": lambda x, y: x.masked_fill_(y > 0, 3.0),
    "in place on streams": lambda x, y: (y * 1.0).add_(x).mul_(2),
    "streams with a view in place": lambda x, y: (y[:, 0].add_(x[:, 0]), y)[1],
    "concatenation": lambda x, y: torch.cat([x, y, x], dim=1),
    "stack in a tuple": lambda x, y: torch.stack((y, x)),
    "functional": lambda x, y: F.layer_norm(F.gelu(y), (4,)) @ x.T,
    "where": lambda x, y: torch.where(y > 0, x, y),
    "index by streams": lambda x, y: x.gather(1, y.argsort(dim=1)),
    "advanced index": lambda x, y: x[torch.arange(2), y.argmax(dim=1)],
    "max with indices": lambda x, y: y.max(dim=1).values + y.max(dim=1)[0],
    "split and unpack": lambda x, y: sum(part * x[:, :2] for part in y.split(2, dim=1)),
    "iteration": lambda x, y: sum(row for row in y),
    "unpacking": lambda x, y: (lambda a, b: a * b)(*y),
    "broadcast": lambda x, y: torch.broadcast_tensors(x, y)[0].add_(1) * y,
    "expand_as": lambda x, y: x[:1].expand_as(y) * 2,
    "to the type of streams": lambda x, y: x.to(y).type_as(y).add_(1) + y,
    "detach": lambda x, y: y.detach() * x,
    "no_grad inside": lambda x, y: y - y.softmax(dim=1).detach(),
    "metadata": read_metadata,
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "linalg": lambda x, y: torch.linalg.svdvals(y) + torch.linalg.norm(x),
    "scaled dot product": lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None]),
    "decision that tasks take alike": lambda x, y: y * 2 if (y.abs() < 1e9).all() else x,
    "a guard": lambda x, y: y if not torch.isnan(y).any() else x,
    "nonzero of each": lambda x, y: y[y.nonzero(as_tuple=True)].sum(),
    "custom function applied with each": lambda x, y: each(Doubled.apply, y),
}


class Doubled(torch.autograd.Function):
    """Twice a tensor, in NumPy's way of autograd."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_equals_one_call_per_task(function):
    run_both(function)


REFUSED = {
    "a branch": (lambda x, y: y if y.sum() > y.mean() * 100 or y.sum() > 0 else x, "gives"),
    "item": (lambda x, y: x * y.sum().item(), "item reads a number"),
    "float": (lambda x, y: x * float(y.sum()), "reads a number"),
    "tolist": (lambda x, y: torch.tensor(y.tolist()), "reads a number"),
    "integer": (lambda x, y: x[:, : int((y.sum() * 100).long())], "__int__ gives"),
    "numpy": (lambda x, y: torch.from_numpy(y.detach().numpy()), "numpy gives a ndarray"),
    "data_ptr": (lambda x, y: y.data_ptr(), "data_ptr gives"),
    "shape that differs": (lambda x, y: y[y > 0].shape[0], "shape gives"),
    "custom function": (lambda x, y: Doubled.apply(y) + 1, "custom function DoubledBackward"),
    "custom function at the end": (lambda x, y: Doubled.apply(y), "custom function DoubledBackward"),
    "memory shared by a view": (lambda x, y: (x.view(-1), x.add_(y))[0], "memory that other tensors share"),
    "memory shared by a detached tensor": (lambda x, y: (x.detach(), x.add_(y))[1], "memory that other tensors"),
    "a view of something kept": (lambda x, y: (x[:, :2].add_(y[:, :2]), x)[1], "memory that other tensors share"),
    "needed by the backward pass": (lambda x, y: (x.sigmoid_() if False else x.exp()).add_(y), "backward pass needs"),
    "out": (lambda x, y: torch.add(x, y, out=torch.empty_like(x)), "out="),
    "common memory": (lambda x, y: torch.narrow(x, 1, y.argmax().clamp(max=0), 2).add_(1), "writes once per task"),
}


@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name_of_the_module(function, message):
    inner = Body(function)
    network = apart(split(nn.Sequential(nn.Linear(4, 4), inner), ["1.own"], 3))
    with torch.no_grad():
        network[1].own.parametrizations.weight.original1.mul_(-1)
        network[1].own.parametrizations.bias.original1.sub_(100)
    with pytest.raises(SplitError, match=message) as caught:
        streams(network(torch.randn(2, 4)))
    if "at the end" not in str(message) and "DoubledBackward" not in message:
        assert "in 1 (Body)" in str(caught.value)


@pytest.mark.parametrize("key", ["a branch", "item", "numpy", "custom function", "data_ptr", "out"])
def test_refused_code_works_in_a_module_run_as_a_whole(key):
    function = REFUSED[key][0]
    if key == "out":
        function = lambda x, y: torch.add(x, y, out=torch.empty_like(x))  # noqa: E731
    network = nn.Sequential(nn.Linear(4, 4), Body(function)).double()
    plain = copy.deepcopy(network)
    split(network, ["1.own"], 2, whole=["1"])
    x = torch.randn(2, 4, dtype=torch.float64)
    with torch.set_grad_enabled(key != "out"):
        for output in streams(network(x), 2) if key != "data_ptr" else ():
            torch.testing.assert_close(output, plain(x), rtol=0, atol=0)


def test_c_code_that_bypasses_python_is_refused():
    """The dispatcher is reached without the protocol by which operations are mapped."""

    def compiled(x, y):
        with torch._C.DisableTorchFunctionSubclass():
            return torch.relu(y)

    with pytest.raises(SplitError, match=r"aten.*code that Python does not see"):
        split(Body(compiled), ["own"], 2)(torch.randn(2, 4))


def test_own_buffer_written_with_values_of_tasks():
    class Center(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))
            self.register_buffer("center", torch.zeros(4))

        def forward(self, x):
            if self.training:
                self.center.mul_(0.9).add_(x.detach().mean(dim=0), alpha=0.1)
            return (x - self.center) * self.weight

    build = lambda: nn.Sequential(nn.Linear(4, 4), Center())  # noqa: E731
    with pytest.raises(SplitError, match=r"in 1 \(Center\).*its own 'center'.*split this layer too"):
        split(build(), ["0"], 2)(torch.randn(3, 4))
    network = apart(split(build(), ["0", "1"], 2))
    x = torch.randn(3, 4)
    network(x)
    for task in range(2):
        first = F.linear(x, *(getattr(network[0].parametrizations[n], f"original{task}") for n in ("weight", "bias")))
        torch.testing.assert_close(
            network.state_dict()[f"1.parametrizations.center.original{task}"], 0.1 * first.mean(0)
        )


def test_assignment_behind_the_back_of_python_fails():
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        split(Body(lambda x, y: setattr(x, "data", y)), ["own"], 2)(torch.randn(2, 4))


def test_leaf_with_gradient_is_refused_as_by_pytorch():
    network = split(Body(lambda x, y: y), ["own"], 2)
    leaf = torch.zeros(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        leaf += network(torch.randn(2, 4))


def test_shared_batch_norm_reads_each_stream():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    apart(split(network, ["0"], 3))
    inputs = streams(network[0](x))
    alone = nn.BatchNorm1d(3).double()
    expected = [alone(z) for z in inputs]
    for output, wanted in zip(streams(network(x)), expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(network[1].named_buffers()), dict(alone.named_buffers()), rtol=1e-12, atol=1e-12)
    assert network[1].num_batches_tracked == 3
    network.eval()
    alone.eval()
    for output, z in zip(streams(network(x)), inputs, strict=True):
        torch.testing.assert_close(output, alone(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [["0"], ["0", "1"]])
def test_batch_norm_with_cumulative_average(layers):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=None)).double()
    apart(split(network, layers, 2))
    x = torch.randn(8, 4, dtype=torch.float64)
    for _ in range(2):
        network(x)
    means = torch.stack([z.mean(dim=0) for z in streams(network[0](x))])
    found = streams(network[1].running_mean, 2)
    for task in range(2):
        wanted = means[task] if len(layers) == 2 else means.mean(dim=0)
        torch.testing.assert_close(found[task].detach(), wanted.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("dropout", ["own", "same"])
def test_dropout_masks(dropout, functional):
    last = Body(lambda x, y: F.dropout(y, 0.5)) if functional else nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    network = nn.Sequential(nn.Linear(4, 4), last)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(3.0)  # no zeros but those of the mask
    split(network, ["1.own" if functional else "1.0"], 3, dropout=dropout)
    outputs = streams(network(torch.rand(50, 4)))
    equal = [torch.equal(outputs[0] == 0, other == 0) for other in outputs[1:]]
    assert equal == [dropout == "same"] * 2
    assert all(0.3 < float((output == 0).double().mean()) < 0.7 for output in outputs)


def test_same_dropout_draws_what_the_unsplit_network_draws():
    network = nn.Sequential(nn.Linear(4, 64), nn.Dropout(), nn.Linear(64, 2), nn.Dropout())
    x, plain = torch.randn(9, 4), copy.deepcopy(network)
    split(network, ["0"], 2, dropout="same")
    torch.manual_seed(5)
    expected = plain(x)
    torch.manual_seed(5)
    for output in streams(network(x)):
        torch.testing.assert_close(output, expected)


def test_packed_sequence_through_a_split_lstm():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.lstm = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True)

        def forward(self, x):
            packed = pack_padded_sequence(self.first(x), torch.tensor([4, 2]), batch_first=True)
            return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)

    x = torch.randn(2, 4, 3)
    for layers in (["first"], ["lstm"], ["first", "lstm"]):
        torch.manual_seed(0)
        plain = Reader()
        network = split(copy.deepcopy(plain), layers, 2)
        for output in streams(network(x)):
            torch.testing.assert_close(output, plain(x))


def test_foreign_parametrizations_belong_to_their_layer():
    normed = parametrizations.orthogonal(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 2))
    network = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), *normed).double()
    plain = copy.deepcopy(network)
    x = torch.randn(5, 4, dtype=torch.float64)
    split(network, ["0", "1", "2"], 2)
    for _ in range(2):  # spectral normalization changes its buffers
        expected = plain(x)
        for output in streams(network(x)):
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    network.eval()
    apart(network)
    sum(o.square().sum() for o in streams(network(x))).backward()
    assert all(p.grad is not None for p in network.parameters())
    moved = copy.deepcopy(network)
    for one, other in zip(streams(moved(x)), streams(network(x)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert parametrize.is_parametrized(moved[0], "weight")


def test_streams_of_nested_outputs():
    network = split(Body(lambda x, y: {"a": (y, [x]), "b": None, "c": 3}), ["own"], 2)
    outputs = streams(network(torch.randn(2, 4)))
    assert len(outputs) == 2
    assert type(outputs[0]["a"][0]) is torch.Tensor
    assert outputs[0]["a"][1][0] is outputs[1]["a"][1][0]
    with pytest.raises(OptionError, match="pass num_tasks"):
        streams(torch.zeros(2))
    with pytest.raises(OptionError, match="split for 2 tasks, got num_tasks=3"):
        streams(network(torch.randn(2, 4)), 3)


def test_streams_of_other_numbers_of_tasks_do_not_mix():
    two, three = (split(nn.Linear(4, 4), [""], count) for count in (2, 3))
    with pytest.raises(SplitError, match=r"streams of \[2, 3\] tasks meet"):
        two(three(torch.randn(1, 4)))


class _Custom(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


@pytest.mark.parametrize("last", [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.ReLU(), nn.Identity()])
@pytest.mark.parametrize("also", [True, False])
def test_a_custom_function_before_another_module_is_an_error(last, also):
    """Behind a split layer, one that is not, or a head, the history of the function would be lost."""
    network = nn.Sequential(nn.Linear(4, 4), _Custom(), copy.deepcopy(last))
    heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    model = nn.ModuleDict({"trunk": network, "heads": heads})
    layers = ["trunk.0", *(["trunk.2"] if also and list(last.parameters()) else [])]
    split(model, layers, 2, heads="heads")

    def run():
        z = model["trunk"](torch.randn(3, 4))
        return [head(z) for head in heads]

    with pytest.raises(SplitError, match="custom function DoubledBackward is applied to streams"):
        run()
