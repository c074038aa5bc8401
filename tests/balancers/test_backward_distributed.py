"""Two processes against one on the whole batch; both processes alike; an error in one is an error in both.

The file is its own worker: the test starts it twice, every scenario runs in the same pair of processes, and what they
found is compared afterwards. They meet through a file, so no port has to be free.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from balancers.cases import CASES
from counterpoint.balancers import (
    BALANCERS,
    Equal,
    GradNorm,
    GramBalancer,
    JacobianBalancer,
    LossBalancer,
    MoDo,
    PCGrad,
    RotoGrad,
)
from counterpoint.diagnostics import ConflictMonitor
from counterpoint.errors import CounterpointError


class RandomLosses(LossBalancer):
    key = "random_losses"

    def __init__(self, num_tasks=None, *, tasks=None, generator=None):
        super().__init__(num_tasks, tasks, generator, random=True)
        self.add_state("mean", torch.zeros(self.num_tasks))
        self.add_parameter("scale", [1.0] * self.num_tasks)

    def objective(self, losses, *, present=None):
        self.mean += losses.detach().to(self.mean)
        draws = torch.rand(len(losses), generator=self.generator).to(losses)
        return (draws * losses * torch.stack(list(self.scale))).sum()


class RandomGram(GramBalancer):
    key = "random_gram"

    def __init__(self, num_tasks=None, *, tasks=None, generator=None):
        super().__init__(num_tasks, tasks, generator, random=True)
        self.add_state("mean", torch.zeros(self.num_tasks, dtype=torch.float64))

    def solve(self, gram, losses, present):
        self.mean += gram.diagonal()
        return torch.rand(len(gram), generator=self.generator).double() / gram.diagonal().sqrt() + losses


class Rows(JacobianBalancer):
    """Reads single coordinates and the norm of all, so that every column has to be there."""

    key = "rows"

    def aggregate(self, jacobian, losses, present):
        return jacobian.sum(dim=0) * (jacobian[0] * jacobian[1] > 0) / jacobian.norm() * losses.sum()


KINDS = {kind.__name__: kind for kind in (Equal, RandomLosses, PCGrad, RandomGram, Rows)}
WAYS = [None, "parameters", "features"]
PAIRS = [(name, way) for name in KINDS for way in WAYS]
BY_PARAMETERS = {kind.__name__: kind for kind in (GradNorm, MoDo)}
PAIRS += [(name, way) for name in BY_PARAMETERS for way in WAYS[:2]]
KINDS |= BY_PARAMETERS
BY_FEATURES = {"RotoGrad": functools.partial(RotoGrad, learning_rate=0.05)}
PAIRS += [(name, "features") for name in BY_FEATURES]
# every registered method of one scalar a task; for the others each process reads its own instances or label sets
REGISTERED = {case.key: case.build for case in CASES if BALANCERS.get(case.key).loss_form == "task"}
PAIRS += [(key, "features" if "transform" in BALANCERS.get(key).needs else None) for key in REGISTERED]
ALL = KINDS | BY_FEATURES | REGISTERED
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}  # float64; the sums of the two halves are taken in another order


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.trunk, self.neck = nn.Linear(3, 5), nn.Linear(5, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])
        self.double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)

    def forward(self, x, balancer=None):
        h = torch.tanh(self.neck(torch.tanh(self.trunk(x))))
        read = [h if balancer is None else balancer.transform(h, k) for k in range(len(self.heads))]
        return h, [((head(z) - k) ** 2).mean() for k, (head, z) in enumerate(zip(self.heads, read, strict=True))]


def batch(part=None, seed=8):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if part is None else x.chunk(2)[part]


def run(kind, way, group=None, rank=None):
    """Two steps; return gradients, weights, Gram matrix and state."""
    torch.manual_seed(rank or 0)  # the processes have different seeds on purpose
    net, balancer = Net(), kind(3)
    for _ in range(2):
        h, losses = net(batch(rank), balancer)
        options = {} if way is None else {"features": h, "level": way}
        more = [net(batch(rank, 9 + i))[1] for i in range(balancer.num_batches - 1)]
        report = balancer.backward(losses, process_group=group, more=more, **options)
    own = [p.grad for p in balancer.parameters()] + list(balancer.buffers())
    state = balancer.get_extra_state()["generator"]
    found = [*(p.grad for p in net.parameters()), report.losses, report.weights, report.gram, *own, state]
    return [value.clone() for value in found if value is not None]


def refused(rank, group, change, kind, *, scaler=None):
    """Return the error of a step that ``change`` spoils, and whether anything was written."""
    net = Net()
    h, losses = net(batch(rank))
    more = [change(rank, *net(batch(rank)), net) for _ in range(kind.num_batches - 1)]
    try:
        report = kind(3).backward(change(rank, h, losses, net), process_group=group, scaler=scaler, more=more)
    except CounterpointError as error:
        return type(error).__name__, str(error), any(p.grad is not None for p in net.parameters())
    return (
        "none",
        str(report.skipped),
        any(p.grad is not None and not torch.isfinite(p.grad).all() for p in net.parameters()),
    )


def watched(rank, group, kind, monitors):
    """Return the gradients of a step, and what was measured where this process has a monitor."""
    torch.manual_seed(0)  # of the balancer's own generator
    net, balancer = Net(), kind(3)
    monitor = ConflictMonitor(net, num_tasks=3) if rank in monitors else None
    more = [net(batch(rank, 9 + i))[1] for i in range(balancer.num_batches - 1)]
    balancer.backward(net(batch(rank))[1], process_group=group, more=more, monitor=monitor)
    return [p.grad for p in net.parameters()], None if monitor is None else len(monitor.record().steps)


def other_tasks(rank, h, losses, net):
    return [None, *losses[1:]] if rank else losses


def nan_loss(rank, h, losses, net):
    return [losses[0], losses[1] * (float("nan") if rank else 1.0), losses[2]]


def too_few(rank, h, losses, net):
    return losses[: 3 - rank]


def bad_gradient(rank, h, losses, net):
    return [losses[0], losses[1] + ((net.heads[1](h) * 0).sum().sqrt() if rank else 0.0), losses[2]]


def other_graph(rank, h, losses, net):
    return [losses[0], losses[1] if not rank else h.sum(), losses[2]]


def all_absent(rank, h, losses, net):
    return [None, None, None]


SPOILED = [other_tasks, nan_loss, too_few, bad_gradient, other_graph]


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = dist.group.WORLD
    found = {(name, way): run(kind, way, group, rank) for name, way in PAIRS for kind in [ALL[name]]}
    for change in [*SPOILED, all_absent]:
        for name, kind in KINDS.items():
            found[change.__name__, name] = refused(rank, group, change, kind)
    for name, kind in KINDS.items():
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        found["scaler", name] = refused(rank, group, bad_gradient, kind, scaler=scaler)
        found["watched", name] = [watched(rank, group, kind, monitors) for monitors in ((), (0,), (0, 1))]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, __file__]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=90)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_two_processes_are_one_on_the_whole_batch(both, name, way):
    expected = run(ALL[name], way)
    for one, two, whole in zip(both[0][name, way], both[1][name, way], expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)  # between the processes bit for bit
        torch.testing.assert_close(one, whole, **TOLERANCE, equal_nan=True)  # NaN: a state that waits for its epoch


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("change", SPOILED)
def test_an_error_in_one_process_is_an_error_in_both_and_writes_nothing(both, name, change):
    results = [ranks[change.__name__, name] for ranks in both]
    kinds = [kind for kind, _, _ in results]
    assert [written for _, _, written in results] == [False, False]
    if change is other_tasks:
        assert kinds == ["ShapeError", "ShapeError"]
        assert all("tasks in the batch must be the same" in message for _, message, _ in results)
    elif change is other_graph:
        assert kinds == ["ShapeError", "ShapeError"]
    elif change is bad_gradient:
        assert kinds == ["NonFiniteError", "NonFiniteError"]
        assert all("'1'" in message for _, message, _ in results)
    else:
        assert kinds == ["CounterpointError", "NonFiniteError" if change is nan_loss else "ShapeError"]
        assert "another process of the group refused" in results[0][1]
        assert "'1'" in results[1][1] or change is too_few


@pytest.mark.parametrize("name", KINDS)
def test_all_tasks_absent_everywhere(both, name):
    assert [ranks["all_absent", name][0] for ranks in both] == ["none", "none"]


@pytest.mark.parametrize("name", KINDS)
def test_an_overflow_in_one_process_makes_both_skip(both, name):
    assert [ranks["scaler", name] for ranks in both] == [("none", "True", True)] * 2


@pytest.mark.parametrize("name", KINDS)
def test_a_monitor_in_one_process_alone_changes_nothing(both, name):
    for rank, ranks in enumerate(both):
        (plain, none), (first, alone), (second, together) = ranks["watched", name]
        assert (none, alone, together) == (None, None if rank else 1, 1)
        for a, b, c in zip(plain, first, second, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(int(sys.argv[1]), sys.argv[2])
