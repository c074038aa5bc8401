"""The Gram matrix without gradients against the gradients formed one by one, in float64, layer by layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from counterpoint.balancers import PCGrad
from counterpoint.errors import GraphError, NonFiniteError
from counterpoint.gradients import layer_gradients, task_gradients
from counterpoint.linalg import gram


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.inside(x, x, x, need_weights=False)[0]


class SeparateAttention(Attention):
    """Query, key and value differ, so that the packed weight is cut in pieces."""

    def forward(self, x):
        return self.inside(x, x.tanh(), x * 2, need_weights=False)[0]


class Twice(nn.Module):
    """One weight used twice: no layer answers for it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(self.linear(x).relu())


class Plain(nn.Module):
    """A parameter that is added, and a weight that multiplies from the right as it is."""

    def __init__(self):
        super().__init__()
        self.position, self.weight = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return (x + self.position) @ self.weight


class TiedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.bias = self.first.bias

    def forward(self, x):
        return self.second(self.first(x).relu())


class Scaled(nn.Module):
    """``addmm`` with factors of its own."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=3.0)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.last = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)), nn.Linear(6, 5)

    def forward(self, x):
        return self.last(checkpoint(self.inside, x, use_reentrant=False))


def image(*shape):
    return torch.randn(3, *shape, dtype=torch.float64)


# name: module, input, number of weights that a layer answers for
CASES = {
    "linear": (lambda: nn.Linear(6, 5), image(6), 1),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), image(6), 1),
    "linear on tokens": (lambda: nn.Linear(6, 5), image(4, 6), 1),
    "linear on tokens without bias": (lambda: nn.Linear(6, 5, bias=False), image(4, 6), 1),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), image(4, 7, 6), 1),
    "convolution, every option": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False),
        image(4, 8, 9),
        1,
    ),
    "depthwise convolution": (lambda: nn.Conv2d(4, 8, 3, padding="same", groups=4), image(4, 6, 6), 1),
    "convolution over time": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), image(4, 11), 1),
    "convolution in 3-D": (lambda: nn.Conv3d(2, 3, 2), image(2, 3, 4, 3), 0),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 3, 2), image(4, 3, 3), 0),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)), image(4, 6), 1),
    "rms norm": (lambda: nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 3)), image(4, 6), 1),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)), image(4, 5, 5), 1),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True)), image(4, 5, 5), 1),
    "batch norm, eval": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).eval(), image(4, 5, 5), 1),
    "attention": (Attention, image(4, 6), 2),
    "attention, cut weight": (SeparateAttention, image(4, 6), 1),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), image(4, 6), 4),
    "recurrent": (lambda: nn.GRUCell(6, 5), image(6), 2),
    "weight used twice": (Twice, image(6), 0),
    "plain parameters": (Plain, image(6), 1),
    "tied bias": (TiedBias, image(6), 2),
    "addmm with factors": (Scaled, image(6), 0),
    "in-place activation": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)), image(6), 1),
    "checkpointed": (Checkpointed, image(6), 1),
}


def task_losses(module, x, num_tasks=3):
    """Losses of random linear heads."""
    out = module(x).flatten(1)
    generator = torch.Generator().manual_seed(1)
    heads = torch.randn(num_tasks, out.shape[1], generator=generator, dtype=torch.float64).to(out)
    return [(out @ head).tanh().square().mean() for head in heads]


def whole_gram(found, losses):
    """Inner products of the gradients, formed one after the other."""
    rows = [torch.autograd.grad(loss, found.leaves, retain_graph=True, allow_unused=True) for loss in losses]
    dense = [
        torch.cat(
            [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(r, found.leaves, strict=True)]
        )
        for r in rows
    ]
    return torch.stack(dense)


@pytest.mark.parametrize("name", CASES)
def test_layer_by_layer(name):
    torch.manual_seed(0)
    build, x, expected = CASES[name]
    module = build().double()
    losses = task_losses(module, x)
    found = layer_gradients(losses, always=True, retain_graph=True)
    assert (0 if found is None else len(found.layers)) == expected
    if found is None:
        return
    assert {id(leaf) for leaf in found.leaves} == {id(p) for p in module.parameters()}
    jacobian = whole_gram(found, losses)
    exact = jacobian @ jacobian.T
    torch.testing.assert_close(found.gram(), exact, rtol=1e-10, atol=1e-12 * float(exact.diagonal().max()))
    weights = torch.tensor([0.7, -2.0, 1.5], dtype=torch.float64)
    combined = torch.cat([piece.flatten() for piece in found.combine(weights)])
    torch.testing.assert_close(combined, weights @ jacobian, rtol=1e-10, atol=1e-12 * float(jacobian.abs().max()))


@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("always", [True, False])
def test_embedding_of_a_large_table(padding, always):
    table = nn.Embedding(50, 4, padding_idx=padding).double()
    losses = task_losses(table, torch.tensor([[0, 1, 7], [7, 7, 1], [3, 3, 49]]))
    found = layer_gradients(losses, always=always, retain_graph=True)
    assert found is not None
    jacobian = whole_gram(found, losses)
    torch.testing.assert_close(found.gram(), jacobian @ jacobian.T, rtol=1e-10, atol=1e-14)
    weights = torch.tensor([0.7, -2.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(found.combine(weights)[0].flatten(), weights @ jacobian)


@pytest.mark.parametrize("options", [{"sparse": True}, {"scale_grad_by_freq": True}])
def test_embeddings_that_are_left_alone(options):
    table = nn.Embedding(50, 4, **options)
    assert layer_gradients(task_losses(table, torch.tensor([[0, 1], [1, 1]])), always=True) is None


def test_a_layer_that_only_some_tasks_reach():
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    hidden = first(image(4)).relu()
    deep = second(hidden)
    losses = [deep.square().sum(), deep.exp().sum(), hidden.sum()]
    found = layer_gradients(losses, always=True, retain_graph=True)
    assert found is not None
    assert len(found.layers) == 2
    jacobian = whole_gram(found, losses)
    torch.testing.assert_close(found.gram(), jacobian @ jacobian.T)
    weights = torch.tensor([1.0, 0.5, -3.0], dtype=torch.float64)
    torch.testing.assert_close(torch.cat([p.flatten() for p in found.combine(weights)]), weights @ jacobian)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_linear_of_any_size(rows, inputs, outputs, num_tasks, bias, seed):
    torch.manual_seed(seed)
    module = nn.Linear(inputs, outputs, bias=bias).double()
    losses = task_losses(module, torch.randn(rows, inputs, dtype=torch.float64), num_tasks)
    shared = list(module.parameters())
    found = layer_gradients(losses, shared=shared, always=True, retain_graph=True)
    plain = task_gradients(losses, shared=shared)
    assert found is not None
    torch.testing.assert_close(found.gram(), plain.gram(), rtol=1e-9, atol=1e-12 * float(plain.gram().max() + 1e-300))


def net():
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 48), nn.Tanh())
    return trunk, nn.ModuleList([nn.Linear(48, 2) for _ in range(4)])


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0, 1.0), (1e-19, 1.0, 1e18, 1e3), (1e-20, 1e-21, 1e-22, 1e-20)])
def test_float32_is_accurate_at_every_scale(scales):
    trunk, heads = net()
    z = trunk(torch.randn(8, 40))
    losses = [head(z).square().mean() * scale for head, scale in zip(heads, scales, strict=True)]
    found = layer_gradients(losses, always=True, retain_graph=True)
    assert found is not None
    assert len(found.layers) == 2
    exact = gram(whole_gram(found, losses).double())
    lengths = exact.diagonal().sqrt()
    error = (found.gram() - exact).abs() / lengths[:, None] / lengths[None, :]
    assert float(error.max()) < 2e-6  # of the order of the rounding of the gradients themselves


def test_backward_writes_what_the_plain_engine_writes(monkeypatch):
    written = []
    for plain in (False, True):
        trunk, heads = net()
        trunk, heads = trunk.double(), heads.double()
        if plain:
            monkeypatch.setattr("counterpoint.gradients.layer_gradients", lambda *args, **kwargs: None)
        z = trunk(torch.ones(8, 40, dtype=torch.float64).cumsum(1).sin())
        losses = [(head(z) - k).square().mean() for k, head in enumerate(heads)]
        report = PCGrad(4, generator=torch.Generator().manual_seed(0)).backward(losses)
        written.append([p.grad for p in [*trunk.parameters(), *heads.parameters()]])
        assert report.num_backward == 4
    for mine, theirs in zip(*written, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_saved_input_that_was_changed_is_refused_as_autograd_does():
    module, x = nn.Linear(6, 5), torch.randn(3, 6)
    losses = task_losses(module, x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        layer_gradients(losses, always=True)


def test_autocast():
    trunk, heads = net()
    x = torch.randn(8, 40)
    with torch.autocast("cpu", torch.bfloat16):
        z = trunk(x)
        losses = [head(z).float().square().mean() for head in heads]
    found = layer_gradients(losses, always=True, retain_graph=True)
    assert found is not None
    assert len(found.layers) == 2
    exact = gram(whole_gram(found, losses).double())
    lengths = exact.diagonal().sqrt()
    assert float(((found.gram() - exact).abs() / lengths[:, None] / lengths).max()) < 2e-2  # bfloat16 has 3 digits
    assert all(
        piece.shape == leaf.shape for piece, leaf in zip(found.combine(torch.ones(4)), found.leaves, strict=True)
    )


def test_a_loss_scale_leaves_no_trace():
    trunk, heads = net()
    z = trunk(torch.randn(8, 40))
    losses = [head(z).square().mean() for head in heads]
    plain = layer_gradients(losses, always=True, retain_graph=True)
    scaled = layer_gradients(losses, always=True, retain_graph=True, scale=1024.0)
    assert plain is not None
    assert scaled is not None
    torch.testing.assert_close(scaled.gram(), plain.gram())
    for mine, theirs in zip(scaled.combine(torch.ones(4)), plain.combine(torch.ones(4)), strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(scaled.private, plain.private, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_task_parameters_with_one_gradient_get_memory_of_their_own():
    trunk, _ = net()
    first, second = (torch.zeros(48, requires_grad=True) for _ in range(2))
    z = trunk(torch.randn(8, 40))
    PCGrad(2).backward([(z + (first + second)).square().mean(), z.tanh().mean()])
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.data_ptr() != second.grad.data_ptr()


def test_nan_in_one_task_names_it_and_writes_nothing():
    trunk, heads = net()
    z = trunk(torch.randn(8, 40))
    bad = (heads[1](z) - heads[1](z).detach()).abs().sqrt().mean()  # its value is 0, its gradient is not finite
    with pytest.raises(NonFiniteError, match="task '1'"):
        PCGrad(2).backward([heads[0](z).square().mean(), bad])
    assert all(p.grad is None for p in [*trunk.parameters(), *heads.parameters()])


def test_a_hook_on_a_weight_counts():
    """A mask on a gradient is part of it; a layer whose weight has one is left to the rows."""
    linear, mask = nn.Linear(6, 5).double(), torch.zeros(5, 6, dtype=torch.float64)
    mask[0] = 1
    handle = linear.weight.register_hook(lambda gradient: gradient * mask)
    losses = task_losses(linear, image(6))
    assert layer_gradients(losses, always=True, retain_graph=True) is None
    PCGrad(3, generator=torch.Generator().manual_seed(0)).backward(losses)
    assert linear.weight.grad is not None
    assert not linear.weight.grad[1:].any()
    assert linear.weight.grad[0].any()
    handle.remove()
    assert layer_gradients(task_losses(linear, image(6)), always=True) is not None


def test_a_bias_that_is_broadcast_is_no_part_of_the_layer():
    weight, bias = (nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((6, 5), (1,)))
    out = torch.addmm(bias, image(6), weight)
    losses = [out.square().mean(), out.sin().mean()]
    found = layer_gradients(losses, always=True, retain_graph=True)
    assert found is not None
    jacobian = whole_gram(found, losses)
    torch.testing.assert_close(found.gram(), jacobian @ jacobian.T)
    combined = found.combine(torch.ones(2, dtype=torch.float64))
    assert [piece.shape.numel() for piece in combined] == [leaf.numel() for leaf in found.leaves]


def test_a_sparse_input_is_left_to_the_rows():
    weight = nn.Parameter(torch.randn(6, 5))
    out = torch.mm(torch.eye(6).to_sparse(), weight)
    assert layer_gradients([out.square().mean(), out.sin().mean()], always=True) is None


def test_a_compiled_trunk_is_left_to_the_rows():
    trunk, heads = net()
    compiled = torch.compile(trunk, backend="aot_eager")
    x, written = torch.randn(8, 40), []
    with torch._functorch.config.patch(donated_buffer=False):
        for module in (trunk, compiled):
            trunk.zero_grad()
            z = module(x)
            PCGrad(4, generator=torch.Generator().manual_seed(0)).backward([h(z).square().mean() for h in heads])
            written.append([p.grad.clone() for p in trunk.parameters()])
    for eager, fast in zip(*written, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-6)


def test_a_compiled_trunk_that_allows_one_pass_only_says_what_to_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("This backward function was compiled with non-empty donated buffers which requires ...")

    trunk, heads = net()
    z = trunk(torch.randn(8, 40))
    losses = [head(z).square().mean() for head in heads]
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    with pytest.raises(GraphError, match=r"donated_buffer = False before compiling, or use level='features'"):
        PCGrad(4).backward(losses)
    assert all(p.grad is None for p in trunk.parameters())
