"""``backward`` against the plain loop: equal weighting bit for bit, the balanced gradient to rounding."""

import copy

import pytest
import torch
from torch import Tensor, nn

from counterpoint.balancers import Equal, GramBalancer, JacobianBalancer, LossBalancer, PCGrad


class Fixed(LossBalancer):
    """Weights 1, 2, 3, ..."""

    key = "fixed"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)

    def objective(self, losses, *, present=None):
        return (losses * weights_of(self._positions(len(losses), present)).to(losses)).sum()


class FixedGram(GramBalancer):
    """The same weights, by way of the Gram matrix."""

    key = "fixed_gram"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)

    def solve(self, gram, losses, present):
        return weights_of(present)


class FixedRows(JacobianBalancer):
    """The same weights, on the rows."""

    key = "fixed_rows"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)

    def aggregate(self, jacobian, losses, present):
        return weights_of(present).to(jacobian) @ jacobian


def weights_of(present):
    return torch.tensor([1.0 + task for task in present], dtype=torch.float64)


class Plain(nn.Module):
    """A trunk with batch norm, dropout and a weight used twice; heads of several kinds."""

    def __init__(self, num_tasks, width=4):
        super().__init__()
        self.embed = nn.Embedding(6, width, sparse=True)
        self.conv = nn.Conv2d(2, width, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm, self.drop = nn.BatchNorm2d(width), nn.Dropout(0.2)
        self.twice = nn.Linear(width, width)
        self.left, self.right = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))  # one gradient tensor
        self.transposed = nn.Parameter(torch.randn(width, 3).t())
        self.unused = nn.Parameter(torch.randn(2))
        self.frozen = nn.Parameter(torch.randn(width), requires_grad=False)
        self.heads = nn.ModuleList([nn.Linear(width, 3) for _ in range(num_tasks)])

    def forward(self, x, words):
        h = self.drop(torch.relu_(self.norm(self.conv(x.to(memory_format=torch.channels_last))))).mean(dim=(2, 3))
        h = self.twice(torch.tanh(self.twice(h))) + self.frozen
        h = h.view(-1, h.shape[1] // 2, 2).flatten(1) + 0.1 * self.embed(words).mean(dim=1)
        side = (self.left + self.right).sum() + self.transposed.sum() * 0.01
        return [(head(h) ** 2).mean() * (k + 1) + side * 0.01 * k for k, head in enumerate(self.heads)]


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 2, 4, 4, generator=generator), torch.randint(6, (5, 3), generator=generator)


def same_gradients(one, two):
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert p.grad.layout == q.grad.layout, name
            assert p.grad.dtype == q.grad.dtype, name
            if not p.grad.is_sparse:
                assert p.grad.stride() == q.grad.stride(), name
            assert torch.equal(p.grad.to_dense(), q.grad.to_dense()), name


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_equal_is_the_summed_backward_bit_for_bit_over_twenty_steps(num_tasks, optimizer):
    ours = Plain(num_tasks)
    theirs = copy.deepcopy(ours)

    def optimizers(net):
        dense = [p for name, p in net.named_parameters() if name != "embed.weight" and p.requires_grad]
        if optimizer == "sgd":
            return [torch.optim.SGD(dense, lr=0.05, momentum=0.9), torch.optim.SGD([net.embed.weight], lr=0.05)]
        return [torch.optim.Adam(dense, lr=0.01), torch.optim.SparseAdam([net.embed.weight], lr=0.01)]

    balancer = Equal(num_tasks)
    for net, backward in ((ours, balancer.backward), (theirs, lambda losses: sum(losses).backward())):
        steps = optimizers(net)
        for step in range(20):
            torch.manual_seed(step)
            for one in steps:
                one.zero_grad()
            backward(net(*batch(step)))
            for one in steps:
                one.step()
    same_gradients(ours, theirs)
    for p, q in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("times", [2, 3])
def test_gradients_are_added_as_autograd_adds_them(times):
    ours = Plain(3)
    theirs = copy.deepcopy(ours)
    for step in range(times):
        torch.manual_seed(step)
        Equal(3).backward(ours(*batch(step)))
        torch.manual_seed(step)
        sum(theirs(*batch(step))).backward()
    same_gradients(ours, theirs)


@pytest.mark.parametrize("form", [list, tuple, torch.stack, lambda losses: dict(zip("abc", losses, strict=True))])
def test_every_form_of_losses_is_the_same(form):
    ours = Plain(3)
    theirs = copy.deepcopy(ours)
    torch.manual_seed(1)
    report = PCGrad(3, generator=torch.Generator().manual_seed(0)).backward(form(ours(*batch(0))))
    torch.manual_seed(1)
    PCGrad(3, generator=torch.Generator().manual_seed(0)).backward(theirs(*batch(0)))
    same_gradients(ours, theirs)
    assert report.tasks == (("a", "b", "c") if report.tasks[0] == "a" else ("0", "1", "2"))


KINDS = [FixedGram, FixedRows]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_kinds_give_shared_weighted_and_heads_raw(kind):
    ours = Plain(3).double()
    theirs = copy.deepcopy(ours)
    x, words = batch(0)
    for repeat in range(2):  # on top of what is there
        torch.manual_seed(repeat)
        report = kind(3).backward(ours(x.double(), words))
        torch.manual_seed(repeat)
        losses = theirs(x.double(), words)
        heads = {id(p) for p in theirs.heads.parameters()}
        inputs = [p for p in theirs.parameters() if p.requires_grad and p is not theirs.unused]
        raw = torch.autograd.grad(sum(losses), inputs, retain_graph=True)
        weighted = torch.autograd.grad(losses[0] + 2 * losses[1] + 3 * losses[2], inputs)
        for p, plain, balanced in zip(inputs, raw, weighted, strict=True):
            new = (plain if id(p) in heads else balanced).to_dense()
            p.grad = new if p.grad is None else p.grad + new
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad.to_dense(), q.grad, rtol=1e-10, atol=1e-12)
            if p.grad.layout == torch.strided and name not in {"embed.weight"}:
                assert p.grad.stride() == p.stride(), name
    assert report.num_backward == 3


def test_loss_kinds_weight_the_heads_too():
    ours = Plain(3)
    theirs = copy.deepcopy(ours)
    torch.manual_seed(0)
    report = Fixed(3).backward(ours(*batch(0)))
    torch.manual_seed(0)
    losses = theirs(*batch(0))
    torch.autograd.backward(losses, [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)])
    same_gradients(ours, theirs)
    assert report.weights.tolist() == [1.0, 2.0, 3.0]
    assert report.num_backward == 1


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_one_storage_or_none_are_separate_afterwards(kind):
    a, b, c, d = (torch.ones(3, requires_grad=True) for _ in range(4))
    shared = torch.ones(2, requires_grad=True)
    factor = torch.tensor([1.0, 2.0, 3.0])
    kind(2).backward([((a + b) * factor).sum() + shared.sum(), c.sum() + (d * 2).sum() + shared.sum()])
    for p in (a, c):
        p.grad.add_(1.0)  # an expanded gradient could not be written to, a common one would change twice
    assert [p.grad.tolist() for p in (a, b)] == [[2.0, 3.0, 4.0], [1.0, 2.0, 3.0]]
    assert [p.grad.tolist() for p in (c, d)] == [[2.0] * 3, [2.0] * 3]


class WeightedHeads(FixedGram):
    key = "weighted_heads"
    task_gradients = "weighted"


def test_task_gradients_weighted():
    a, b, shared = (torch.ones(2, requires_grad=True) for _ in range(3))
    WeightedHeads(2).backward([(a * shared).sum(), (b * shared).sum()])
    assert a.grad.tolist() == [1.0, 1.0]
    assert b.grad.tolist() == [2.0, 2.0]
    assert shared.grad.tolist() == [3.0, 3.0]


def test_a_graph_that_changes_from_step_to_step():
    net = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])
    balancer = FixedGram(2)
    for step in range(6):
        for p in net.parameters():
            p.grad = None
        h = net[step % 3](torch.ones(1, 3))
        losses = [h.sum(), net[3](h).sum() if step % 2 else (h**2).sum()]
        expected = torch.autograd.grad(losses[0] + 2 * losses[1], list(net[step % 3].parameters()), retain_graph=True)
        balancer.backward(losses)
        torch.testing.assert_close([p.grad for p in net[step % 3].parameters()], list(expected))
        used = {step % 3, 3} if step % 2 else {step % 3}
        assert {k for k, layer in enumerate(net) if layer.weight.grad is not None} == used


@pytest.mark.parametrize("kind", [Fixed, *KINDS])
def test_one_task_the_same_loss_twice_zero_and_equal_gradients_are_ordinary(kind):
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    kind(1).backward([p.sum()])
    assert p.grad.tolist() == [1.0, 1.0]
    p.grad = None
    loss = p.sum()
    kind(2).backward([loss, loss])
    assert p.grad.tolist() == [3.0, 3.0]
    p.grad = None
    kind(2).backward([(p * 0).sum(), p.sum()])
    assert p.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("kind", [Equal, PCGrad, FixedRows])
def test_losses_of_shape_one_and_of_several_dtypes(kind):
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    losses = [p.sum()[None], (p * 2).sum().double(), (p * 3).to(torch.bfloat16).sum()]
    report = kind(3).backward(losses)
    assert report.losses.dtype == torch.float64
    assert report.losses.tolist() == [3.0, 6.0, 9.0]
    assert p.grad.tolist() == ([14.0, 14.0] if kind is FixedRows else [6.0, 6.0])


@pytest.mark.parametrize("kind", [Equal, PCGrad, FixedRows])
def test_works_without_gradients_switched_on_and_keeps_no_graph_in_grad(kind):
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    losses = [p.sum(), (p**2).sum()]
    with torch.no_grad():
        kind(2).backward(losses)
    assert not p.grad.requires_grad


def test_report_fields():
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    report = FixedGram(tasks=["seg", "depth"]).backward({"depth": (2 * p).sum(), "seg": p[0] * 1})
    assert report.tasks == ("seg", "depth")
    assert report.present.tolist() == [True, True]
    assert report.losses.tolist() == [1.0, 6.0]
    assert report.gram.tolist() == [[1.0, 2.0], [2.0, 8.0]]
    assert (report.level, report.skipped, report.num_backward) == ("parameters", False, 2)
    assert report.to_dict() == {
        "losses": {"seg": 1.0, "depth": 6.0},
        "weights": {"seg": 1.0, "depth": 2.0},
        "num_backward": 2,
    }
    for value in (report.losses, report.weights, report.gram):
        assert isinstance(value, Tensor)
        assert not value.requires_grad


def test_rows_kind_reports_neither_weights_nor_gram():
    p = torch.ones(2, requires_grad=True)
    report = FixedRows(2).backward([p.sum(), p.sum()])
    assert report.weights is None
    assert report.gram is None
    assert "weights" not in report.to_dict()


def test_pure_calls_without_autograd():
    gram = torch.eye(2)
    assert FixedGram(2).weights(gram).tolist() == [1.0, 2.0]
    assert FixedGram(3).weights(gram, present=[0, 2]).tolist() == [1.0, 3.0]
    assert FixedGram(2).weights(gram.to(torch.bfloat16)).dtype == torch.bfloat16
    assert FixedRows(2).combine(torch.eye(2)).tolist() == [1.0, 2.0]
    assert Fixed(2).weights(None, torch.ones(2)).tolist() == [1.0, 2.0]
