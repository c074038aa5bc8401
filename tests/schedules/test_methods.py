"""What is peculiar to each schedule, against plain loops and closed forms."""

import itertools

import pytest
import torch
from torch import nn

import counterpoint as cp
from counterpoint.balancers import Equal
from schedules.cases import NAMES
from schedules.problem import Problem, same


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- joint and the groups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balancer", ["equal", "pcgrad", "uncertainty", "dwa", "rlw", "graddrop"])
@pytest.mark.parametrize("absent", [[], ["b"]])
@pytest.mark.parametrize("name", ["joint", "one_group"])
def test_one_group_is_joint_training(balancer, absent, name):
    ours, plain = (Problem(balancer=balancer, optimizer="Adam", absent=absent) for _ in range(2))
    options = {} if name == "joint" else {"groups": [["c", "a", "b"]]}
    schedule = cp.schedules.create("joint" if name == "joint" else "fixed_groups", tasks=NAMES, **options)
    for _ in range(4):
        schedule.step(ours.batch(), ours.optimizer, ours.balancer)
        plain.plain_step(plain.batch(), NAMES)
    assert same(ours, plain)


@pytest.mark.parametrize(
    ("name", "options", "groups"),
    [
        ("alternating", {}, [["a"], ["b"], ["c"]]),
        ("fixed_groups", {"groups": [["c"], ["a", "b"]]}, [["c"], ["a", "b"]]),
        ("fixed_groups", {"groups": [["a", "b"], ["b", "c"]]}, [["a", "b"], ["b", "c"]]),
        ("fixed_groups", {"groups": [["b"]], "partial": True}, [["b"]]),
    ],
)
def test_groups_are_updated_in_turn_on_one_batch(name, options, groups):
    ours, plain = Problem(optimizer="Adam"), Problem(optimizer="Adam")
    schedule = cp.schedules.create(name, tasks=NAMES, **options)
    for _ in range(3):
        schedule.step(ours.batch(), ours.optimizer, ours.balancer)
        compute = plain.batch()
        for group in groups:
            plain.plain_step(compute, group)
    assert same(ours, plain)


def test_a_task_in_no_group_is_not_trained():
    problem = Problem()
    before = problem.heads["a"].weight.clone()
    schedule = cp.schedules.FixedGroups(tasks=NAMES, groups=[["b"], ["c"]], partial=True)
    schedule.step(problem.batch(), problem.optimizer, problem.balancer)
    assert torch.equal(problem.heads["a"].weight, before)


def orders(schedule, count, **given):
    problem = Problem(**given)
    return [schedule.step(problem.batch(), problem.optimizer, problem.balancer).groups for _ in range(count)]


def test_one_task_a_batch_in_turn():
    schedule = cp.schedules.Alternating(tasks=NAMES, per_batch="one")
    assert orders(schedule, 5) == [((0,),), ((1,),), ((2,),), ((0,),), ((1,),)]
    schedule = cp.schedules.Alternating(tasks=NAMES, per_batch="one")
    assert orders(schedule, 4, absent=["b"]) == [((0,),), ((2,),), ((0,),), ((2,),)], "an absent task loses its turn"


def test_random_orders_are_even_and_repeatable():
    for options in ({}, {"per_batch": "one"}):
        found, again = (
            orders(cp.schedules.Alternating(tasks=NAMES, order="random", generator=generator(), **options), 300)
            for _ in range(2)
        )
        assert found == again
        counts = [found.count(order) for order in set(found)]
        assert len(counts) == (3 if options else 6)
        assert min(counts) > 0.6 * 300 / len(counts)
    found = orders(
        cp.schedules.FixedGroups(tasks=NAMES, order="random", groups=[["a"], ["b", "c"]], generator=generator()), 100
    )
    assert {frozenset(order) for order in found} == {frozenset([(0,), (1, 2)])}
    assert 30 < sum(order[0] == (0,) for order in found) < 70


def test_random_groups_are_even_partitions():
    schedule = cp.schedules.RandomGroups(tasks=NAMES, generator=generator())
    found = orders(schedule, 300)
    for groups in found:
        assert sorted(itertools.chain(*groups)) == [0, 1, 2]
        assert sorted(map(len, groups)) == [1, 2]
    alone = [next(group[0] for group in groups if len(group) == 1) for groups in found]
    assert min(alone.count(task) for task in range(3)) > 70
    assert 100 < sum(len(groups[0]) == 1 for groups in found) < 200
    schedule = cp.schedules.RandomGroups(tasks=NAMES, generator=generator(), regroup_every=4)
    found = [frozenset(groups) for groups in orders(schedule, 40)]
    assert all(len(set(found[at : at + 4])) == 1 for at in range(0, 40, 4))
    assert len(set(found)) == 3


def test_a_schedule_leaves_the_global_generator_alone():
    problem = Problem()
    torch.manual_seed(1)
    schedules = [
        cp.schedules.create("joint", num_tasks=3),
        cp.schedules.create("alternating", num_tasks=3),
        cp.schedules.create("random_groups", num_tasks=3, generator=generator()),
    ]
    for schedule in schedules:
        schedule.step(problem.batch(), problem.optimizer, problem.balancer)
    found = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(3))


# --- sequential Reptile --------------------------------------------------------------------------------------------


def quadratics(alpha=0.1, **options):
    """Two quadratics in five dimensions, with task 0 in the first batch and task 1 in the second."""
    torch.manual_seed(2)
    matrices = [(lambda m: m @ m.T)(torch.randn(5, 5, dtype=torch.float64)) for _ in range(2)]
    phi = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = torch.optim.SGD([phi], lr=alpha)
    schedule = cp.schedules.SequentialReptile(2, inner_steps=2, generator=generator(), **options)

    def step(task):
        losses = [0.5 * phi @ matrices[t] @ phi if t == task else None for t in range(2)]
        schedule.step(lambda: losses, optimizer, Equal(2))

    return phi, matrices, step, schedule, optimizer


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_reptile_on_quadratics(eta):
    alpha = 0.05
    phi, (first, second), step, _, _ = quadratics(alpha, eta=eta)
    for _ in range(3):
        start = phi.detach().clone()
        inner = start - alpha * first @ start
        expected = start - eta * alpha * (first @ start + second @ inner)
        step(0)
        step(1)
        torch.testing.assert_close(phi.detach(), expected, rtol=1e-13, atol=0)


def test_reptile_with_eta_one_is_sequential_training():
    ours, plain = Problem(), Problem()
    schedule = cp.schedules.SequentialReptile(
        tasks=NAMES, eta=1.0, inner_steps=2, reset_optimizer=False, generator=generator()
    )
    for _ in range(7):
        report = schedule.step(ours.batch(), ours.optimizer, ours.balancer, model=ours.model)
        plain.plain_step(plain.batch(), [NAMES[task] for group in report.groups for task in group])
    assert same(ours, plain)


@pytest.mark.parametrize("buffers", ["interpolate", "copy"])
@pytest.mark.parametrize("reset", [True, False])
def test_reptile_is_its_transcription(buffers, reset):
    ours, plain = Problem(), Problem()  # with momentum
    schedule = cp.schedules.SequentialReptile(
        tasks=NAMES, eta=0.3, inner_steps=3, generator=generator(), buffers=buffers, reset_optimizer=reset
    )
    fresh = Problem().optimizer.state_dict()["state"]
    for _ in range(3):
        start = {name: value.clone() for name, value in plain.model.state_dict().items()}
        if reset:
            plain.optimizer.load_state_dict({**plain.optimizer.state_dict(), "state": fresh})
        for _ in range(3):
            report = schedule.step(ours.batch(), ours.optimizer, ours.balancer, model=ours.model)
            plain.plain_step(plain.batch(), [NAMES[report.groups[0][0]]])
        kept = {name for name, _ in plain.model.named_buffers()} if buffers == "copy" else {"num_batches_tracked"}
        with torch.no_grad():
            for name, value in plain.model.state_dict().items():
                if not any(name.endswith(end) for end in kept):
                    value.copy_(start[name] + 0.3 * (value - start[name]))
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=1e-12, atol=1e-15)


def test_the_end_of_an_epoch_takes_the_outer_step_early():
    phi, (first, _), step, schedule, optimizer = quadratics(eta=0.4)
    start = phi.detach().clone()
    schedule.end_epoch(optimizer)
    assert torch.equal(phi.detach(), start)
    step(0)
    torch.testing.assert_close(phi.detach(), start - 0.1 * first @ start)
    schedule.end_epoch(optimizer)
    torch.testing.assert_close(phi.detach(), start - 0.4 * 0.1 * first @ start)
    assert schedule.state_dict()["phi"] == []
    after = phi.detach().clone()
    schedule.end_epoch(optimizer)
    assert torch.equal(phi.detach(), after)


def test_reptile_draws_as_it_is_told():
    schedule = cp.schedules.SequentialReptile(
        tasks=NAMES, probabilities={"a": 3, "b": 1, "c": 0}, generator=generator()
    )
    found = [groups[0][0] for groups in orders(schedule, 400)]
    assert found.count(2) == 0
    assert 270 < found.count(0) < 330
    schedule = cp.schedules.SequentialReptile(tasks=NAMES, probabilities=[3, 1, 0], generator=generator())
    assert orders(schedule, 3, absent=["a", "b"]) == [()] * 3, "the only task with labels is never drawn"
    schedule = cp.schedules.SequentialReptile(tasks=NAMES, probabilities=[3, 1, 0], generator=generator())
    assert set(orders(schedule, 20, absent=["a"])) == {((1,),)}


def test_aligned_gradients_are_favored():
    """The mean outer step over both orders is joint SGD minus the gradient of the inner product of the gradients.

    For ``g_i = H_i x``: ``-alpha (g_1 + g_2) + alpha^2 / 2 (H_1 g_2 + H_2 g_1)``.
    """
    alpha, moves = 0.05, []
    for order in ((0, 1), (1, 0)):
        phi, (first, second), step, _, _ = quadratics(alpha, eta=1.0)
        start = phi.detach().clone()
        for task in order:
            step(task)
        moves.append(phi.detach() - start)
    g = [first @ start, second @ start]
    expected = -alpha * (g[0] + g[1]) + alpha**2 / 2 * (first @ g[1] + second @ g[0])
    torch.testing.assert_close((moves[0] + moves[1]) / 2, expected, rtol=1e-12, atol=1e-15)
