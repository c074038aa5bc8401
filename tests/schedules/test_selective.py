"""Selective updates against the numbers of the specification (seeds.md, 4.9), counts, absent tasks and state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import counterpoint as cp
from counterpoint.errors import NonFiniteError, OptionError
from schedules.problem import Problem, same

NAMES = ["a", "b", "c"]


class Toy:
    """L_1 = (s h_1 - 1)^2 / 2, L_2 = (s h_2 + 1)^2 / 2 from s = 1, h = 0.5."""

    def __init__(self):
        self.s, self.h1, self.h2 = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.0, 0.5, 0.5))
        self.optimizer = torch.optim.SGD([self.s, self.h1, self.h2], lr=0.1)

    def losses(self):
        return [0.5 * (self.s * self.h1 - 1) ** 2, 0.5 * (self.s * self.h2 + 1) ** 2]

    def values(self):
        return [value.item() for value in (self.s, self.h1, self.h2)]


def selective(num_tasks=2, **options):
    return cp.schedules.Selective(num_tasks, **{"order": "fixed", "beta": 0.1} | options)


def equal():
    return cp.balancers.Equal(2)


def test_sequential_toy_and_its_records():
    toy, schedule = Toy(), selective(measure_last="forward")
    seen = []

    def compute():
        seen.append([value.item() for value in toy.losses()])
        return toy.losses()

    report = schedule.step(compute, toy.optimizer, equal())
    np.testing.assert_allclose(seen, [[0.125, 1.125], [0.095157, 1.143828], [0.114167, 0.881134]], atol=5e-7)
    np.testing.assert_allclose(toy.values(), [0.949375, 0.55, 0.344969], atol=5e-7)
    np.testing.assert_allclose(schedule.affinity, [[0.023874, -0.001674], [-0.019978, 0.022966]], atol=5e-7)
    assert report.num_forward == 3
    assert report.groups == ((0,), (1,))


def test_the_last_group_is_not_measured_otherwise():
    toy, schedule = Toy(), selective()
    schedule.step(toy.losses, toy.optimizer, equal())
    np.testing.assert_allclose(schedule.affinity, [[0.023874, -0.001674], [0, 0]], atol=5e-7)


def test_official_credit():
    toy, schedule = Toy(), selective(credit="official")
    schedule.step(toy.losses, toy.optimizer, equal())
    np.testing.assert_allclose(schedule.affinity, [[0, 0], [0.023874, 0]], atol=5e-7)


def test_the_last_group_seen_on_the_next_batch():
    toy, schedule = Toy(), selective(measure_last="next")
    schedule.step(toy.losses, toy.optimizer, equal())
    first = schedule.affinity
    assert not first[1].any()
    schedule.step(toy.losses, toy.optimizer, equal())  # the same batch again, so the same numbers as a pass back
    np.testing.assert_allclose(schedule.affinity[1], [-0.019978, 0.022966], atol=5e-7)


@pytest.mark.parametrize("groups", [[[0], [1], [2]], [[0, 2], [1]], [[0, 1, 2]]])
def test_counts(groups):
    problem = Problem()
    schedule = cp.schedules.Selective(tasks=NAMES, groups=groups, warm_up=10**6, repeat_single=False)
    for _ in range(4):
        report = schedule.step(problem.batch(), problem.optimizer, problem.balancer)
        assert len(report.groups) == len(groups)
    assert problem.forwards == problem.steps == 4 * len(groups)


def test_one_group_once_is_joint_training_and_twice_two_steps():
    problem, joint = Problem(), Problem()
    schedule = cp.schedules.Selective(tasks=NAMES, groups=[NAMES], warm_up=10**6, repeat_single=False)
    for _ in range(5):
        schedule.step(problem.batch(), problem.optimizer, problem.balancer)
        joint.plain_step(joint.batch(), NAMES)
    assert same(problem, joint)
    twice, by_hand = Problem(), Problem()
    schedule = cp.schedules.Selective(tasks=NAMES, groups=[NAMES], warm_up=10**6)
    for _ in range(3):
        report = schedule.step(twice.batch(), twice.optimizer, twice.balancer)
        assert report.num_forward == len(report.groups) == 2
        compute = by_hand.batch()
        by_hand.plain_step(compute, NAMES)
        by_hand.plain_step(compute, NAMES)
    assert same(twice, by_hand)


def test_singletons_in_order_are_alternating_steps():
    problem, other = Problem(), Problem()
    schedule = cp.schedules.Selective(tasks=NAMES, order="fixed", warm_up=10**6)
    alternating = cp.schedules.create("alternating", tasks=NAMES)
    for _ in range(4):
        schedule.step(problem.batch(), problem.optimizer, problem.balancer)
        alternating.step(other.batch(), other.optimizer, other.balancer)
    assert same(problem, other)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_stale_heads(kind):
    options = {"SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}.get(kind, {"lr": 0.1, "weight_decay": 0.1})
    for stale in ("freeze", "zeros"):
        problem = Problem()
        optimizer = getattr(torch.optim, kind)(problem.model.parameters(), **options)
        schedule = cp.schedules.Selective(tasks=NAMES, warm_up=10**6, stale_heads=stale)
        schedule.step(problem.batch(), optimizer, problem.balancer)  # every head has a momentum now
        moved = []

        def update(losses, problem=problem, optimizer=optimizer, moved=moved):
            before = copy.deepcopy(problem.heads.state_dict())
            optimizer.zero_grad()
            report = problem.balancer.backward(losses)
            optimizer.step()
            inside = dict(zip(NAMES, report.present.tolist(), strict=True))
            for name, value in problem.heads.state_dict().items():
                if not inside[name.split(".")[0]]:
                    moved.append(not torch.equal(value, before[name]))
            return report

        schedule.step(problem.batch(), optimizer, problem.balancer, update=update)
        assert all(moved) if stale == "zeros" else not any(moved)
        assert len(optimizer._optimizer_step_pre_hooks) == 0


def test_stale_adam_of_the_specification():
    """One step of Adam on a gradient of zero, after one on a gradient g, still moves: m = 0.09 g, v = 0.000999 g^2.

    The specification saw 0.0673 with lr 0.1, in a set-up that it does not give; the closed form is 0.0670.
    """
    parameter, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter, other], lr=0.1)
    schedule = cp.schedules.Selective(2, order="fixed", stale_heads="zeros")
    places = []

    def losses():
        places.append(parameter.item())
        return [parameter.sum() + 5, other.sum() + 5]

    schedule.step(losses, optimizer, cp.balancers.Equal(2))
    assert places[1] == pytest.approx(-0.1, rel=1e-4)
    expected = 0.1 * (0.09 / (1 - 0.9**2)) / (0.000999 / (1 - 0.999**2)) ** 0.5
    assert places[1] - parameter.item() == pytest.approx(expected, rel=1e-4)


def test_groups_follow_what_helps():
    """Two pairs of tasks pull at a shared vector in opposite directions: each pair becomes a group."""
    torch.manual_seed(0)
    shared = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    pull = torch.tensor([[1.0, 0.2], [1.0, 0.1], [-1.0, 0.2], [-1.0, 0.1]], dtype=torch.float64)
    optimizer = torch.optim.SGD([shared], lr=0.02)
    schedule = cp.schedules.Selective(4, beta=0.1, warm_up=5, generator=torch.Generator().manual_seed(0))
    for _ in range(30):
        schedule.step(lambda: list((shared - pull).square().sum(dim=1) + 1), optimizer, cp.balancers.PCGrad(4))
    assert schedule.record()["groups"] == [["0", "1"], ["2", "3"]]
    assert schedule.num_passes == 2
    assert schedule.record()["num_groups"] == 2.0


def test_absent_tasks_leave_no_entry():
    problem = Problem(absent=["b"])
    schedule = cp.schedules.Selective(tasks=NAMES, beta=0.5, warm_up=3)

    def train():
        return [schedule.step(problem.batch(), problem.optimizer, problem.balancer) for _ in range(8)]

    with pytest.warns(RuntimeWarning, match="nothing was measured of task 'b'") as warned:
        reports = train()
    assert len(warned) == 1
    assert all(1 not in group for report in reports for group in report.groups)
    assert not schedule.affinity[1].any()
    assert not schedule.affinity[:, 1].any()
    assert schedule.affinity[0].any()


def test_losses_below_zero_are_left_out():
    toy = Toy()
    schedule = selective(warm_up=1)
    schedule.step(lambda: [toy.losses()[0], toy.losses()[1] - 5], toy.optimizer, equal())
    with pytest.warns(RuntimeWarning, match="task '1'"):
        schedule.step(lambda: [toy.losses()[0], toy.losses()[1] - 5], toy.optimizer, equal())
    for _ in range(3):
        schedule.step(lambda: [toy.losses()[0], toy.losses()[1] - 5], toy.optimizer, equal())
    assert not schedule.affinity[1].any()
    assert not schedule.affinity[:, 1].any()
    assert schedule.affinity[0, 0] > 0


def test_nan_in_one_task_is_an_error_that_names_it():
    problem = Problem()
    schedule = cp.schedules.Selective(tasks=NAMES, order="fixed")

    def compute():
        losses = problem.batch()()
        return losses | {"b": losses["b"] * float("nan")}

    with pytest.raises(NonFiniteError, match="'b'"):
        schedule.step(compute, problem.optimizer, problem.balancer)
    assert np.isfinite(schedule.affinity).all()


@pytest.mark.parametrize("balancer", ["pomsi", "pcgrad", "nash_mtl", "uncertainty"])
def test_resume_after_the_warm_up_is_bit_exact(balancer):
    def build():
        torch.manual_seed(4)
        options = {"beta": 0.2, "warm_up": 3, "measure_last": "next", "regroup_every": 2}
        return Problem(balancer=balancer, optimizer="Adam"), cp.schedules.Selective(tasks=NAMES, **options)

    whole, schedule = build()
    groups = [schedule.step(whole.batch(), whole.optimizer, whole.balancer).groups for _ in range(16)]
    first, schedule = build()
    for _ in range(9):
        schedule.step(first.batch(), first.optimizer, first.balancer)
    parts = (first.model, first.optimizer, first.balancer, schedule)
    states = copy.deepcopy([part.state_dict() for part in parts])
    second, schedule = build()
    torch.manual_seed(99)
    for part, state in zip((second.model, second.optimizer, second.balancer, schedule), states, strict=True):
        part.load_state_dict(state)
    second.batches = first.batches
    after = [schedule.step(second.batch(), second.optimizer, second.balancer).groups for _ in range(7)]
    assert after == groups[9:]
    assert same(second, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"warm_up": -1}, "warm_up"),
        ({"regroup_every": 0}, "regroup_every"),
        ({"groups": [["a"], ["b"]]}, "task 'c' is in no group"),
        ({"groups": [["a", "b"], ["b", "c"]]}, "one group only"),
        ({"groups": [["a", "d"]]}, "no task is called 'd'|unknown|'d'"),
        ({"credit": "officiall"}, "did you mean official"),
        ({"credit": "official", "measure_last": "forward"}, "measure_last='never'"),
        ({"stale_heads": "zero"}, "did you mean zeros"),
        ({"normalise": "row"}, "normalise"),
        ({"preference": float("nan")}, "preference"),
        ({"clip": "no"}, "clip must be true or false"),
        ({"repeat_single": "never"}, "repeat_single must be true or false"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(OptionError, match=message):
        cp.schedules.Selective(tasks=NAMES, **options)


def test_taskonomy_table_of_the_paper():
    """Our delta_m on the printed table, seeds.md 4.7."""
    names = ["DE", "DZ", "EO", "ET", "K2", "K3", "N", "C", "R", "S2", "S2.5"]
    rows = {
        "single": ".0155 .0160 .1012 .1713 .1620 .082 .2169 .7103 .1357 .1700 .1435",
        -8.65: ".0163 .0167 .1211 .1742 .1715 .093 .2333 .7527 .1625 .1837 .1487",
        -10.81: ".0168 .0172 .1229 .1744 .1727 .091 .2562 .7615 .1656 .1862 .1511",
        -7.65: ".0167 .0151 .1212 .1728 .1712 .089 .2360 .7471 .1607 .1829 .1538",
        -8.16: ".0169 .0153 .1213 .1720 .1707 .089 .2517 .7481 .1603 .1814 .1503",
        -7.92: ".0147 .0155 .1209 .1725 .1711 .089 .2619 .7486 .1613 .1845 .1543",
        -7.72: ".0161 .0165 .1206 .1735 .1696 .090 .2301 .7540 .1625 .1830 .1483",
        -10.05: ".0162 .0166 .1202 .1769 .1651 .091 .2565 .7653 .1661 .1861 .1571",
        -8.03: ".0162 .0165 .1206 .1741 .1710 .090 .2268 .7497 .1617 .1832 .1543",
        -6.22: ".0150 .0155 .1135 .1725 .1630 .086 .2513 .8039 .1646 .1800 .1438",
        -7.58: ".0157 .0155 .1211 .1730 .1702 .090 .2433 .7479 .1610 .1823 .1527",
        -1.42: ".0140 .0145 .1136 .1735 .1679 .087 .2029 .7166 .1500 .1769 .1469",
    }
    table = {
        key: {name: {"error": float(value)} for name, value in zip(names, text.split(), strict=True)}
        for key, text in rows.items()
    }
    directions = {name: {"error": False} for name in names}
    single = table.pop("single")
    for printed, metrics in table.items():
        found = cp.metrics.delta_m(metrics, single, directions, convention="tasks")
        assert found == pytest.approx(printed, abs=0.0051)


def test_fixed_order_is_that_of_the_first_tasks():
    """Six tasks of the specification, whose clusters come as {1, 2, 5}, {0, 3, 4}."""
    schedule = cp.schedules.Selective(6, order="fixed", warm_up=0)
    schedule._tracker.matrix = np.array(
        [
            [1, -0.02, 0.66, 0.4, -0.19, 0.22],
            [0.27, 1, 0.58, -0.16, 0.17, 0.32],
            [0.22, 0.4, 1, 0.85, 0.04, 0.48],
            [0.54, 0.05, -0.3, 1, 0.06, 0.08],
            [0.77, 0.4, 0.27, 0.63, 1, 0.55],
            [0.15, -0.19, 0.49, 0.82, -0.05, 1],
        ]
    )
    assert list(schedule._plan(tuple(range(6)))) == [(0, 3, 4), (1, 2, 5)]


def test_losses_of_all_labels_count_for_their_own_task():
    """A balancer that reads cross losses gets (K,) of each task; affinities are of each task's own."""

    class Cross(cp.balancers.Equal):
        loss_form = "cross"

    toy, plain = Toy(), Toy()
    schedule, other = selective(measure_last="forward"), selective(measure_last="forward")

    def crossed():
        first, second = toy.losses()
        return [torch.stack([first, 100 + second]), torch.stack([50 + first, second])]

    def update(losses):
        own = [None if loss is None else loss[task] for task, loss in enumerate(losses)]
        toy.optimizer.zero_grad()
        report = equal().backward(own)
        toy.optimizer.step()
        return report

    schedule.step(crossed, toy.optimizer, Cross(2), update=update)
    other.step(plain.losses, plain.optimizer, equal())
    np.testing.assert_allclose(schedule.affinity, other.affinity)


def test_a_matrix_for_solvers():
    toy, schedule = Toy(), selective(measure_last="forward")
    with pytest.raises(OptionError, match="no update of a task"):
        schedule.affinity_matrix()
    schedule.step(toy.losses, toy.optimizer, equal())
    found = schedule.affinity_matrix()
    np.testing.assert_allclose(found.values, schedule.affinity / schedule.affinity.diagonal())
    assert found.tasks == ("0", "1")
    assert cp.grouping.create("branch_and_bound", singleton=0.0).solve(found, 2).groups


def test_states_of_others_are_refused():
    with pytest.raises(OptionError, match="of 4 tasks, this schedule of 3"):
        selective(3).load_state_dict(selective(4).state_dict())
    with pytest.raises(OptionError, match="another schedule"):
        selective(3).load_state_dict(cp.schedules.create("joint", num_tasks=3).state_dict())


def clusterings(monkeypatch, **options):
    """Return the batches before which groups were formed, and with what."""
    calls, schedule = [], selective(3, beta=0.5, **options)

    def form(matrix, **given):
        calls.append((schedule._batches, given["normalise"], given["preference"]))
        return

    monkeypatch.setattr("counterpoint.schedules.selective.form_groups", form)
    problem = Problem()
    for _ in range(9):
        report = schedule.step(problem.batch(), problem.optimizer, problem.balancer)
        assert len(report.groups) == 3, "a clustering that does not settle leaves the groups as they are"
    return calls


def test_when_groups_are_formed_and_how(monkeypatch):
    assert [at for at, *_ in clusterings(monkeypatch, warm_up=3)] == [3, 4, 5, 6, 7, 8]
    assert [at for at, *_ in clusterings(monkeypatch, warm_up=2, regroup_every=3)] == [2, 5, 8]
    assert clusterings(monkeypatch, warm_up=8, normalise="inplace", preference=0.3) == [(8, "inplace", 0.3)]


def test_clip_reaches_the_tracker():
    toy = Toy()
    losses = iter([[1e-6, 1.0], [1.0, 0.5]])

    def compute():
        first, second = next(losses)
        return [toy.s.sum() * 0 + first, toy.h2 * 0 + second]

    schedule = selective(beta=1.0, clip=True)
    schedule.step(compute, toy.optimizer, equal())
    assert schedule.affinity[0].tolist() == [0.0, 0.5], "the loss that exploded counts -1, which no diagonal takes up"
    assert schedule._tracker.clip
