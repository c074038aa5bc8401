"""Methods that read three batches a step: the matrix of two, the gradients of the third, and what is refused."""

import pytest
import torch
from torch import nn

from counterpoint.balancers import MGDA, MoDo, SDMGrad
from counterpoint.balancers.modo import modo_weights
from counterpoint.balancers.sdmgrad import sdmgrad_weights
from counterpoint.errors import NonFiniteError, OptionError, ShapeError
from counterpoint.linalg import gram, inner_products
from counterpoint.solvers.min_norm import min_norm

KINDS = pytest.mark.parametrize("kind", [SDMGrad, MoDo])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])
        self.double()

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return [((head(h) - k) ** 2).mean() for k, head in enumerate(self.heads)]


def batches(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def rows_of(net, x):
    leaves = list(net.trunk.parameters())
    found = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in net(x)]
    return torch.stack([torch.cat([g.flatten() for g in one]) for one in found])


def flat(parameters):
    return torch.cat([p.grad.flatten() for p in parameters])


@KINDS
def test_backward_against_the_plain_loop(kind):
    net, (x, y, z) = Net(), batches()
    balancer, other = kind(3), kind(3)
    for _ in range(2):
        net.zero_grad()
        report = balancer.backward(net(x), more=[net(y), net(z)])
        first, second = rows_of(net, y), rows_of(net, z)
        cross = first @ second.T
        assert float((cross - cross.T).abs().max()) > 1e-3 * float(cross.abs().max())
        weights = other.weights(cross)
        torch.testing.assert_close(report.weights, weights, rtol=1e-9, atol=0)
        assert float((other.weights(cross.T) - weights).abs().max()) > 0
        other.load_state_dict(balancer.state_dict())
        torch.testing.assert_close(flat(net.trunk.parameters()), weights @ rows_of(net, x), rtol=1e-9, atol=1e-12)
        heads = torch.autograd.grad(sum(net(x)), list(net.heads.parameters()))
        torch.testing.assert_close(flat(net.heads.parameters()), torch.cat([g.flatten() for g in heads]))
        assert report.num_backward == 7
        assert report.gram is None


@KINDS
def test_all_batches_may_come_from_one_forward_pass(kind):
    net, data = Net(), batches()
    separate = kind(3).backward(net(data[0]), more=[net(data[1]), net(data[2])])
    h = torch.tanh(net.trunk(torch.cat(data)))
    losses = [[((head(part) - k) ** 2).mean() for k, head in enumerate(net.heads)] for part in h.chunk(3)]
    torch.testing.assert_close(kind(3).backward(losses[0], more=losses[1:]).weights, separate.weights)


@KINDS
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_batches_is_refused(kind, count):
    net, (x, _, _) = Net(), batches()
    with pytest.raises(OptionError, match=f"reads 3 batches a step; give the losses of 2 further .* got {count}"):
        kind(3).backward(net(x), more=[net(x)] * count)
    assert all(p.grad is None for p in net.parameters())


@KINDS
def test_other_refusals_write_nothing_and_move_nothing(kind):
    net, (x, y, z) = Net(), batches()
    balancer = kind(3)
    first = net(z)
    h = torch.tanh(net.trunk(x))
    losses = [head(h).sum() for head in net.heads]
    with pytest.raises(ShapeError, match=r"batch 3 has the tasks \['0', '2'\].*same tasks"):
        balancer.backward(net(x), more=[net(y), [first[0], None, first[2]]])
    with pytest.raises(OptionError, match="level='parameters'"):
        balancer.backward(losses, more=[net(y), net(z)], features=h, level="features")
    with pytest.raises(OptionError, match="measure="):
        balancer.backward(net(x), more=[net(y), net(z)], measure="last")
    for which in range(3):
        parts = [net(x), net(y), net(z)]
        parts[which][1] = parts[which][1] + (net.trunk.weight * 0).sum().sqrt()
        with pytest.raises(NonFiniteError):
            balancer.backward(parts[0], more=parts[1:])
    assert all(p.grad is None for p in net.parameters())
    assert balancer.task_weights.tolist() == pytest.approx([1 / 3] * 3, abs=0)


@KINDS
def test_absent_tasks(kind):
    net, (x, y, z) = Net(), batches()
    balancer = kind(3)
    balancer.backward(net(x), more=[net(y), net(z)])
    before = float(balancer.task_weights[1])
    parts = [[loss if k != 1 else None for k, loss in enumerate(net(part))] for part in (x, y, z)]
    report = balancer.backward(parts[0], more=parts[1:])
    assert float(report.weights[1]) == 0.0
    assert float(balancer.task_weights[1]) == before
    assert float(balancer.task_weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(report.weights.sum()) == pytest.approx(1.0, abs=1e-12)


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is 1e30 times too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * 1e30


@KINDS
@pytest.mark.parametrize("where", [None, 0, 1, 2])
def test_a_scaler_scales_and_an_overflow_in_any_batch_skips(kind, where):
    net, data = Net().float(), batches(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10 if where is None else 2.0**40)
    parts = [net(part) for part in data]
    if where is not None:
        parts[where][1] = Overflow.apply(parts[where][1])
    balancer = kind(3)
    report = balancer.backward(parts[0], more=parts[1:], scaler=scaler)
    assert report.skipped == (where is not None)
    found = flat(net.trunk.parameters())
    if where is None:
        net.zero_grad()
        kind(3).backward(net(data[0]), more=[net(data[1]), net(data[2])])
        torch.testing.assert_close(found / 2.0**10, flat(net.trunk.parameters()))
    else:
        before = net.trunk.weight.detach().clone()
        scaler.step(torch.optim.SGD(net.parameters(), lr=0.1))
        assert torch.equal(net.trunk.weight, before)
        assert torch.equal(balancer.task_weights, kind(3).task_weights)


def test_inner_products_at_every_scale():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(3, 5001, generator=generator) for _ in range(2))
    for scales in ((1.0, 1.0, 1.0), (1e-30, 1.0, 1e30), (0.0, 1e-38, 1e36)):
        a, b = first * torch.tensor(scales)[:, None], second * torch.tensor(scales).flip(0)[:, None]
        exact = a.double() @ b.double().T
        lengths = a.double().norm(dim=1)[:, None] * b.double().norm(dim=1)[None, :]
        assert bool(((inner_products(a, b) - exact).abs() <= 1e-6 * lengths).all())


# --- the methods ------------------------------------------------------------------------------------------------------


def problem(seed, num_tasks=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tasks, num_tasks + 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_modo_with_equal_batches_ends_at_mgda(seed):
    rows = problem(seed)
    balancer = MoDo(4, learning_rate=0.05, rho=0.0)
    for _ in range(1500):
        weights = balancer.weights(gram(rows))
    torch.testing.assert_close(weights @ rows, MGDA(4).weights(gram(rows)) @ rows, rtol=1e-6, atol=1e-8)


def test_modo_regularizer_draws_to_equal_weights():
    weights = torch.tensor([0.9, 0.1], dtype=torch.float64)
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    assert modo_weights(nothing, weights, rho=0.0, learning_rate=0.5).tolist() == pytest.approx([0.9, 0.1])
    assert modo_weights(nothing, weights, rho=0.5, learning_rate=0.5).tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pull", [0.0, 0.3, 2.0])
def test_sdmgrad_solved_is_the_shortest_vector_of_a_smaller_simplex(seed, pull):
    """With y = (w + pull / K) / (1 + pull) the problem is that of MGDA with y_i >= pull / (K (1 + pull))."""
    rows = problem(seed)
    least = pull / (4 * (1 + pull))
    corners = least * rows.sum(dim=0) + (1 - 4 * least) * rows
    expected = min_norm(corners @ corners.T)[0] @ corners
    w = torch.full((4,), 0.25, dtype=torch.float64)
    w = sdmgrad_weights(gram(rows), w, pull=pull, inner_steps=2000, learning_rate=0.3)
    torch.testing.assert_close((w + pull / 4) / (1 + pull) @ rows, expected, rtol=1e-6, atol=1e-8)


def test_sdmgrad_with_a_large_pull_is_the_mean():
    weights = SDMGrad(4, pull=1e9).weights(gram(problem(0)))
    torch.testing.assert_close(weights, torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("exponent", [-30, 30])
def test_sdmgrad_does_not_see_the_scale_of_all_gradients(exponent):
    products = gram(problem(1))  # a power of two, since steps of length 5 amplify rounding
    assert torch.equal(SDMGrad(4).weights(products), SDMGrad(4).weights(products * 4.0**exponent))


def test_sdmgrad_where_the_diagonal_is_noise():
    """Gradients of independent batches may have products below zero with themselves."""
    found = SDMGrad(2).weights(torch.tensor([[-1.0, 0.5], [0.2, -3.0]], dtype=torch.float64))
    assert bool(torch.isfinite(found).all())
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
