"""A monitor given to ``backward`` is told what the balancer knows, and has the record of one that looks itself."""

import numpy as np
import pytest
import torch
from torch import nn

from counterpoint import balancers
from counterpoint.balancers import Chain, PCGrad, Uncertainty, Wrapped
from counterpoint.diagnostics import ConflictMonitor
from counterpoint.errors import ShapeError, UnknownNameError
from counterpoint.gradients import group_grams

TASKS = ("a", "b", "c")


class Network(nn.Module):
    """Layers of all kinds that the engine takes in different ways, in double precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Linear(64, 96)
        self.bare = nn.Linear(96, 96, bias=False)
        self.heads = nn.ModuleDict({task: nn.Linear(96, 1) for task in TASKS})
        self.double()

    def forward(self, x):
        h = self.norm(self.convolution(x)).relu().flatten(1)
        h = self.bare(self.wide(h).tanh()).tanh()
        return {task: (head(h) - index).square().mean() for index, (task, head) in enumerate(self.heads.items())}


def batch(step):
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def records(make, *, absent=(), **how):
    """Train twice, with a monitor that looks before and with one that is given to ``backward``; return both records."""
    found = []
    for given in (False, True):
        net = Network()
        balancer, monitor = make(), ConflictMonitor(net, tasks=TASKS, every=2, keep_cosines=True)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
        torch.manual_seed(1)
        for step in range(5):
            losses = {task: None if step in absent and task == "c" else y for task, y in net(batch(step)).items()}
            optimizer.zero_grad()
            if not given:
                monitor.observe(losses)
            balancer.backward(losses, **({"monitor": monitor} if given else {}), **how)
            optimizer.step()
        found.append((monitor.record(), [parameter.detach().clone() for parameter in net.parameters()]))
    return found


MAKERS = {
    "pcgrad": lambda: PCGrad(tasks=TASKS),
    "graddrop": lambda: balancers.create("graddrop", tasks=TASKS),
    "moco": lambda: balancers.create("moco", tasks=TASKS),
    "equal": lambda: balancers.create("equal", tasks=TASKS),
    "chain": lambda: Chain(Uncertainty(tasks=TASKS), PCGrad(tasks=TASKS)),
    "wrapped": lambda: Wrapped(PCGrad(tasks=TASKS), every=2),
    "gradnorm": lambda: balancers.create("gradnorm", tasks=TASKS),
}


CASES = [(name, "auto", ()) for name in MAKERS]
CASES += [(name, "auto", (2,)) for name in MAKERS if name != "moco"]  # whose columns are not known without a task
CASES += [("pcgrad", engine, absent) for engine in ("rows", "low_memory") for absent in ((), (2,))]


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize(("name", "engine", "absent"), CASES)
def test_the_record_is_that_of_a_monitor_that_looks_itself(name, engine, absent, scale):
    how = {} if scale is None else {"scaler": torch.amp.GradScaler("cpu", init_scale=scale)}

    def make():
        balancer = MAKERS[name]()
        balancer.engine = engine
        return balancer

    (looked, first), (told, second) = records(make, absent=absent, **how)
    assert told.layers == looked.layers
    assert told.steps.tolist() == looked.steps.tolist() == [0, 2, 4]
    for field in ("cosines", "norms", "whole_cosines", "whole_norms", "effective_rank"):
        torch.testing.assert_close(
            torch.from_numpy(getattr(told, field)),
            torch.from_numpy(getattr(looked, field)),
            rtol=1e-5,
            atol=1e-6,
            equal_nan=True,
        )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def passes(monkeypatch, make, **how):
    """Return how often the monitor measured by passes of its own."""
    count = 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return group_grams(*args, **kwargs)

    monkeypatch.setattr("counterpoint.balancers._balancer.group_grams", counted)
    net, balancer = Network(), make()
    monitor = ConflictMonitor(net, tasks=TASKS)
    balancer.backward(net(batch(0)), monitor=monitor, **{key: value(net) for key, value in how.items()})
    assert len(monitor.record().steps) == 1
    return count


@pytest.mark.parametrize(("name", "own"), [("pcgrad", 0), ("graddrop", 0), ("moco", 0), ("equal", 1), ("chain", 1)])
def test_who_knows_the_layers_makes_no_further_passes(name, own, monkeypatch):
    assert passes(monkeypatch, MAKERS[name]) == own


def test_what_is_not_the_gradient_of_all_parameters_is_measured_apart(monkeypatch):
    assert passes(monkeypatch, MAKERS["pcgrad"], shared=lambda net: list(net.wide.parameters())) == 1
    assert passes(monkeypatch, MAKERS["pcgrad"], measure=lambda _: "last") == 1


def test_weight_and_bias_in_two_layers_of_the_record():
    net = Network()
    balancer = PCGrad(tasks=TASKS)
    found = {}

    class Two:
        """A monitor whose layers part the weight of a linear layer from its bias."""

        def due(self):
            return {"weight": [net.wide.weight], "bias": [net.wide.bias]}

        def take(self, step, grams):
            found.update(grams)

    wanted = group_grams(list(net(batch(0)).values()), Two().due())
    balancer.backward(net(batch(0)), monitor=Two())
    for name, gram in wanted.items():
        torch.testing.assert_close(found[name], gram, rtol=1e-10, atol=0)


def test_an_overflow_under_a_scaler_measures_nothing():
    net = Network().float()
    monitor = ConflictMonitor(net, tasks=TASKS)
    losses = net(batch(0).float())
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    report = PCGrad(tasks=TASKS).backward({t: 1e6 * x for t, x in losses.items()}, scaler=scaler, monitor=monitor)
    assert report.skipped
    assert monitor.record().steps.tolist() == [0]
    assert not monitor.record().whole_measured.any()


def test_features_make_no_difference_to_what_is_measured():
    found = []
    for features in (False, True):
        net = Network()
        h = net.norm(net.convolution(batch(0))).relu().flatten(1)
        z = net.bare(net.wide(h).tanh()).tanh()
        losses = [(head(z) - index).square().mean() for index, head in enumerate(net.heads.values())]
        monitor = ConflictMonitor(net, num_tasks=3, keep_cosines=True)
        PCGrad(3).backward(losses, monitor=monitor, **({"features": [z]} if features else {}))
        found.append(monitor.record())
    assert found[0].layers == found[1].layers
    np.testing.assert_allclose(found[0].cosines, found[1].cosines, atol=1e-5)


def measured(monitor_tasks, balancer_tasks, losses):
    net = Network()
    monitor = ConflictMonitor(net, tasks=monitor_tasks, keep_cosines=True)
    values = net(batch(0))
    PCGrad(tasks=balancer_tasks).backward({task: values[task] for task in losses}, monitor=monitor)
    return monitor.record()


def test_tasks_in_another_order_are_put_right():
    one, other = measured(TASKS, TASKS, TASKS), measured(("c", "a", "b"), TASKS, TASKS)
    assert other.tasks == ("c", "a", "b")
    assert other.whole_norms[0].tolist() == pytest.approx([one.whole_norms[0][at] for at in (2, 0, 1)])
    partly = measured(("c", "a", "b"), TASKS, ("a", "c"))
    assert np.isnan(partly.whole_norms[0]).tolist() == [False, False, True]


def test_a_balancer_without_names_leaves_the_monitor_its_own():
    net = Network()
    monitor = ConflictMonitor(net, tasks=TASKS)
    PCGrad(3).backward(list(net(batch(0)).values()), monitor=monitor)
    assert monitor.record().tasks == TASKS


@pytest.mark.parametrize(("tasks", "error"), [(("a", "b"), ShapeError), (("a", "b", "d"), UnknownNameError)])
def test_a_monitor_of_other_tasks_is_refused(tasks, error):
    net = Network()
    with pytest.raises(error, match="ConflictMonitor"):
        PCGrad(tasks=TASKS).backward(net(batch(0)), monitor=ConflictMonitor(net, tasks=tasks))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_steps_are_counted_from_where_one_says():
    net = Network()
    monitor = ConflictMonitor(net, tasks=TASKS, every=2)
    monitor.next_step(11)
    for step in range(3):
        PCGrad(tasks=TASKS).backward(net(batch(step)), monitor=monitor)
    assert monitor.record().steps.tolist() == [12]
