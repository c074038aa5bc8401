"""The monitor against gradients formed one by one, and what it keeps with and without every cosine."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from counterpoint.balancers import MGDA
from counterpoint.diagnostics import ConflictMonitor, ConflictRecord, _bins
from counterpoint.errors import OptionError, ShapeError, UnknownNameError
from counterpoint.splitting import SplitPlan, layer_parameters, split

TASKS = ("a", "b", "c")


class Net(nn.Module):
    """Shared trunk with a normalization, one head per task; a layer of two tasks only, and one that nobody uses."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.late, self.unused = nn.Linear(8, 8), nn.Linear(2, 2)
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in TASKS)

    def forward(self, x):
        shared = self.two(self.norm(self.one(x)).relu()).relu()
        late = self.late(shared).relu()
        return [head(h) for head, h in zip(self.heads, (shared, late, late), strict=True)]


def losses_of(net, seed, dtype=torch.float64):
    torch.manual_seed(seed)
    outputs = net(torch.randn(12, 5, dtype=dtype))
    return {task: (y - torch.randn_like(y)).square().mean() for task, y in zip(TASKS, outputs, strict=True)}


def make():
    torch.manual_seed(0)
    return Net().double()


def cosines_by_hand(net, losses, layers):
    found = []
    for name in layers:
        rows = []
        for loss in losses:
            pieces = torch.autograd.grad(loss, layer_parameters(net)[name], retain_graph=True, allow_unused=True)
            rows.append(None if any(p is None for p in pieces) else torch.cat([p.flatten() for p in pieces]))
        pairs = itertools.combinations(rows, 2)
        nan = torch.tensor(float("nan"))
        found.append([nan if x is None or y is None else x @ y / x.norm() / y.norm() for x, y in pairs])
    return torch.tensor(found)


def train(net, monitor, steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    balancer = MGDA(tasks=TASKS)
    for step in range(steps):
        losses = losses_of(net, step)
        monitor.observe(losses)
        optimizer.zero_grad()
        balancer.backward(losses)
        optimizer.step()


def test_cosines_and_norms_of_each_layer_and_of_all():
    net = make()
    losses = losses_of(net, 1)
    monitor = ConflictMonitor(net, tasks=TASKS, keep_cosines=True)
    assert monitor.observe(losses, step=7)
    record = monitor.record()
    assert record.layers == ("one", "norm", "two", "late")
    assert list(record.sizes) == ["one", "norm", "two", "late", "unused", "heads.0", "heads.1", "heads.2"]
    assert record.sizes["norm"] == 16
    assert record.steps.tolist() == [7]
    by_hand = cosines_by_hand(net, losses.values(), record.layers)
    np.testing.assert_allclose(record.cosines[0], by_hand, atol=2e-7)
    assert np.isnan(record.cosines[0, 3, :2]).all()  # task a does not reach it
    assert record.measured[0].tolist() == [[1, 1, 1]] * 3 + [[0, 0, 1]]
    leaves = [p for name in record.layers for p in layer_parameters(net)[name]]
    rows = []
    for loss in losses.values():
        pieces = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros(p.numel()).double() if g is None else g.flatten()
                    for g, p in zip(pieces, leaves, strict=True)
                ]
            )
        )
    rows = torch.stack(rows)
    units = rows / rows.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(record.whole_cosines[0], (units @ units.T)[[0, 0, 1], [1, 2, 2]], atol=2e-7)
    np.testing.assert_allclose(record.whole_norms[0], rows.norm(dim=1), rtol=1e-6)
    np.testing.assert_allclose(record.norms[0, 3], [0, *(row[-72:].norm() for row in rows[1:])], rtol=1e-6)
    shares = torch.linalg.svdvals(rows) / torch.linalg.svdvals(rows).sum()
    assert record.effective_rank[0] == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-5)


def test_writes_nothing_and_leaves_training_as_it_was():
    watched, alone = make(), make()

    class Nothing:
        def observe(self, losses):
            return False

    train(watched, ConflictMonitor(watched, tasks=TASKS), 3)
    train(alone, Nothing(), 3)
    for one, other in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_counters_agree_with_every_cosine():
    thresholds = (0.0, -0.1, -0.37)
    net, other = make(), make()
    every = ConflictMonitor(net, tasks=TASKS, keep_cosines=True)
    few = ConflictMonitor(other, tasks=TASKS, thresholds=thresholds)
    train(net, every, 9)
    train(other, few, 9)
    full, counted = every.record(), few.record()
    assert full.num_measurements == counted.num_measurements == 9
    for threshold in thresholds:
        assert counted.scores(threshold) == full.scores(threshold)
        assert counted.conflict_rate(threshold, layer="late", pair=("c", "b")) == full.conflict_rate(
            threshold, layer="late", pair=("b", "c")
        )
    assert sum(full.scores().values()) > 0
    edges = (0.0, -0.1, -0.2)
    np.testing.assert_allclose(counted.distribution(edges), full.distribution(edges))
    assert counted.distribution().sum() == pytest.approx(1.0)
    with pytest.raises(OptionError, match=r"below -0\.2 were not counted, only below 0, -0\.1, -0\.37"):
        counted.scores(-0.2)
    with pytest.raises(OptionError, match=r"steps of 0\.01"):
        counted.conflict_rate(-0.005)
    plan = SplitPlan.top_k(counted.scores(), counted.sizes, 2)
    plan.check(full.sizes)


def test_bins_keep_sums_and_have_equal_widths():
    bins = _bins.Bins(4)
    for step in range(11):
        bins.add(10 * step, {"x": np.array([1.0, step])})
    assert bins.width == 4
    assert bins.counts == [4, 4, 3]
    assert bins.steps == [0, 40, 80]
    np.testing.assert_array_equal(bins.stacked()["x"], [[4, 6], [4, 22], [3, 27]])


def test_bins_of_a_long_run(monkeypatch):
    monkeypatch.setattr("counterpoint.diagnostics.monitor._BINS", 4)
    net, other = make(), make()
    exact, binned = ConflictMonitor(net, tasks=TASKS, keep_cosines=True), ConflictMonitor(other, tasks=TASKS)
    train(net, exact, 6)
    train(other, binned, 6)
    full, short = exact.record(), binned.record()
    assert short.counts.tolist() == [2, 2, 2]
    assert short.steps.tolist() == [0, 2, 4]
    means = full.cosines.reshape(3, 2, 4, 3)
    np.testing.assert_allclose(short.cosines[:, :3], means.mean(axis=1)[:, :3], rtol=1e-5)
    np.testing.assert_array_equal(short.conflicts(), full.conflicts().reshape(3, 2, 4, 3).sum(axis=1))
    np.testing.assert_allclose(short.whole_norms, full.whole_norms.reshape(3, 2, 3).mean(axis=1), rtol=1e-5)


def test_every_nth_call_and_absent_tasks():
    net = make()
    monitor = ConflictMonitor(net, tasks=TASKS, every=2)
    measured = [monitor.observe({**losses_of(net, step), "b": None}) for step in range(4)]
    assert measured == [True, False, True, False]
    assert monitor.observe({"a": losses_of(net, 1)["a"]}) is False  # one task: nothing to compare
    record = monitor.record()
    assert record.steps.tolist() == [0, 2]
    assert record.layers == ("one", "norm", "two")  # of "late" only c is left
    assert np.isnan(record.cosines[:, :, [0, 2]]).all()
    assert np.isnan(record.whole_norms[:, 1]).all()
    assert np.isnan(record.conflict_rate(pair=("a", "b")))
    assert record.measured.sum(axis=(0, 1)).tolist() == [0, 6, 0]


def test_a_zero_gradient_is_never_a_conflict():
    net = make()
    monitor = ConflictMonitor(net, tasks=TASKS, keep_cosines=True)
    losses = losses_of(net, 1)
    monitor.observe({**losses, "a": 0.0 * losses["a"]})
    record = monitor.record()
    assert np.isnan(record.cosines[0, :, :2]).all()
    assert record.whole_norms[0, 0] == 0
    monitor.observe({**losses, "a": 1e-14 * losses["a"]})  # rounding, beside the others
    assert np.isnan(monitor.record().cosines[1, :, :2]).all()


def test_scaling_a_loss_changes_no_cosine_and_the_order_of_tasks_no_score():
    net = make()
    scaled, turned = (ConflictMonitor(net, num_tasks=3, keep_cosines=True) for _ in range(2))
    plain = ConflictMonitor(net, num_tasks=3, keep_cosines=True)
    losses = list(losses_of(net, 1).values())
    for monitor, given in ((plain, losses), (scaled, [losses[0], 1e4 * losses[1], losses[2]]), (turned, losses[::-1])):
        monitor.observe(given)
    np.testing.assert_allclose(scaled.record().cosines, plain.record().cosines, atol=1e-6)
    assert turned.record().scores(0.3) == plain.record().scores(0.3)
    assert plain.record().tasks == ("0", "1", "2")


def test_a_split_network_is_measured_where_it_is_shared():
    net = split(make(), ["norm"], 3, heads="heads")
    monitor = ConflictMonitor(net, tasks=TASKS, keep_cosines=True)
    losses = losses_of(net, 1)
    monitor.observe(losses)
    record = monitor.record()
    assert record.layers == ("one", "two", "late")
    np.testing.assert_allclose(record.cosines[0], cosines_by_hand(net, losses.values(), record.layers), atol=2e-7)


def test_a_shared_normalization_after_a_split():
    net = split(make(), ["one"], 3, heads="heads")
    monitor = ConflictMonitor(net, tasks=TASKS, keep_cosines=True)
    losses = losses_of(net, 1)
    monitor.observe(losses)
    record = monitor.record()
    assert record.layers == ("norm", "two", "late")
    np.testing.assert_allclose(record.cosines[0], cosines_by_hand(net, losses.values(), record.layers), atol=2e-7)


def test_mixed_precision_and_its_scaler():
    net = make().float()
    monitor = ConflictMonitor(net, tasks=TASKS, keep_cosines=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(net, 1, torch.float32)
    monitor.observe(losses)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    monitor.observe(losses, scaler=scaler)
    record = monitor.record()
    assert np.abs(record.cosines[0] - cosines_by_hand(net, losses.values(), record.layers).numpy())[:3].max() < 0.02
    np.testing.assert_allclose(record.whole_norms[1], record.whole_norms[0], rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_not_measured():
    net = make()
    monitor = ConflictMonitor(net, tasks=TASKS, keep_cosines=True)
    losses = losses_of(net, 1)
    monitor.observe({**losses, "a": (losses["a"] - losses["a"].detach()).sqrt()})
    record = monitor.record()
    assert np.isnan(record.cosines[0, :, :2]).all()
    assert np.isfinite(record.cosines[0, :, 2]).all()
    assert np.isfinite(record.whole_cosines[0, 2])


def test_nothing_measured_yet(tmp_path):
    for keep in (False, True):
        record = ConflictMonitor(make(), tasks=TASKS, keep_cosines=keep).record()
        assert record.num_measurements == 0
        assert record.scores() == {}
        assert np.isnan(record.conflict_rate())
        record.save(tmp_path / "empty.npz")
        assert ConflictRecord.load(tmp_path / "empty.npz").layers == ()


def test_bad_input():
    net = make()
    with pytest.raises(OptionError, match="every"):
        ConflictMonitor(net, tasks=TASKS, every=0)
    with pytest.raises(OptionError, match="thresholds"):
        ConflictMonitor(net, tasks=TASKS, thresholds=(-2.0,))
    with pytest.raises(OptionError, match="num_tasks"):
        ConflictMonitor(net)
    with pytest.raises(OptionError, match="ReLU has no parameters"):
        ConflictMonitor(nn.ReLU(), num_tasks=2)
    monitor = ConflictMonitor(net, tasks=TASKS)
    with pytest.raises(UnknownNameError, match="'aa'"):
        monitor.observe({"aa": losses_of(net, 0)["a"]})
    with pytest.raises(ShapeError):
        monitor.observe(list(losses_of(net, 0).values())[:2])
