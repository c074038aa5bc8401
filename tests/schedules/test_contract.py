"""What every schedule promises: counts, absent tasks, one task, state, messages."""

import copy
import io

import pytest
import torch

import counterpoint as cp
from counterpoint.errors import NonFiniteError, OptionError, ShapeError, UnknownNameError
from schedules.cases import CASES, NAMES
from schedules.problem import Problem, same


def make(case, **given):
    return cp.schedules.create(case.key, **({"tasks": NAMES} | case.options | given))


def train(schedule, problem, count):
    return [
        schedule.step(problem.batch(), problem.optimizer, problem.balancer, model=problem.model) for _ in range(count)
    ]


every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def test_each_schedule_has_a_case():
    assert {case.key for case in CASES} == set(cp.schedules.names())
    for name in cp.schedules.names():
        assert set(cp.schedules.describe(name).facts) == {"source", "provenance", "cost"}


@every
@pytest.mark.parametrize("form", [dict, list, lambda losses: torch.stack(list(losses))])
def test_passes_are_as_stated(case, form):
    problem, schedule = Problem(form=form), make(case)
    for report in train(schedule, problem, 4):
        assert len(report.groups) == len(report.reports) == report.num_forward == report.num_backward == case.passes
    assert schedule.num_passes == case.passes
    assert problem.forwards == problem.steps == 4 * case.passes


@every
def test_heads_outside_the_group_do_not_move(case):
    problem, schedule = Problem(optimizer="Adam", form=lambda losses: torch.stack(list(losses))), make(case)
    train(schedule, problem, 3)  # momentum everywhere
    before = {}

    def update(losses):
        before.clear()
        before.update(copy.deepcopy(problem.heads.state_dict()))
        problem.optimizer.zero_grad()
        report = problem.balancer.backward(losses)
        problem.optimizer.step()
        after = problem.heads.state_dict()
        here = dict(zip(NAMES, report.present.tolist(), strict=True))
        for name, value in before.items():
            assert torch.equal(value, after[name]) is not here[name.split(".")[0]], name
        return report

    for _ in range(4):
        report = schedule.step(problem.batch(), problem.optimizer, problem.balancer, update=update)
        for group, part in zip(report.groups, report.reports, strict=True):
            assert part.present.nonzero().flatten().tolist() == list(group)


@every
@pytest.mark.parametrize("balancer", ["pcgrad", "dwa", "uncertainty", "mgda"])
def test_any_balancer_works_inside(case, balancer):
    problem = Problem(balancer=balancer)
    train(make(case), problem, 3)
    assert all(value.isfinite().all() for value in problem.state().values())


@every
def test_an_absent_task_takes_no_part(case):
    problem, schedule = Problem(absent=["b"]), make(case)
    before = copy.deepcopy(problem.heads["b"].state_dict())
    reports = train(schedule, problem, 4)
    assert all(1 not in group and group for report in reports for group in report.groups)
    assert problem.forwards == problem.steps == sum(len(report.groups) for report in reports)
    assert all(torch.equal(value, before[name]) for name, value in problem.heads["b"].state_dict().items())


@every
def test_a_batch_without_labels_changes_nothing(case):
    problem, schedule = Problem(absent=NAMES), make(case)
    before = copy.deepcopy(problem.heads.state_dict())
    (report,) = train(schedule, problem, 1)
    assert report.groups == ()
    assert not report.reports[0].present.any()
    assert report.num_forward == 1
    assert all(torch.equal(value, before[name]) for name, value in problem.heads.state_dict().items())


@every
def test_one_task_is_plain_training(case):
    single = case.single if case.single is not None else case.options
    schedule = make(case, tasks=["a"]) if case.single is None else cp.schedules.create(case.key, tasks=["a"], **single)
    if case.key == "sequential_reptile" and schedule.eta < 1:
        pytest.skip("one task of Reptile is Reptile, not plain training")
    ours, plain = Problem(["a"]), Problem(["a"])
    for _ in range(3 if case.key != "sequential_reptile" else 1):
        schedule.step(ours.batch(), ours.optimizer, ours.balancer)
        plain.plain_step(plain.batch(), ["a"])
    assert same(ours, plain)
    assert schedule.num_passes == 1


@every
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_state_goes_on_where_it_stopped(case, stop):
    def build():
        torch.manual_seed(4)
        problem = Problem(balancer="rlw", optimizer="Adam")
        return problem, make(case)

    whole, schedule = build()
    train(schedule, whole, 9)

    first, schedule = build()
    train(schedule, first, stop)
    file = io.BytesIO()
    parts = (first.model, first.optimizer, first.balancer, schedule)
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    torch.manual_seed(77)
    second = Problem(balancer="rlw", optimizer="Adam")
    schedule = make(case)
    for part, state in zip((second.model, second.optimizer, second.balancer, schedule), torch.load(file), strict=True):
        part.load_state_dict(state)
    second.batches = first.batches
    train(schedule, second, 9 - stop)
    assert same(second, whole)


@every
def test_a_refused_batch_leaves_no_trace(case):
    given = [{"generator": torch.Generator().manual_seed(3)} if takes(case) else {} for _ in range(2)]
    ours, plain = (make(case, **own) for own in given)
    first, second = Problem(), Problem()
    with pytest.raises(NonFiniteError):
        ours.step(lambda: [p.sum() * float("nan") for p in first.trunk[0].weight[:3]], first.optimizer, first.balancer)
    for schedule, problem in ((ours, first), (plain, second)):
        train(schedule, problem, 4)
    assert same(first, second)


def takes(case):
    return "generator" in cp.schedules.SCHEDULES.get(case.key).__init__.__code__.co_varnames


@every
def test_repr_rebuilds_it(case):
    schedule = make(case)
    assert repr(eval(repr(schedule), vars(cp.schedules))) == repr(schedule)


@every
def test_wrong_losses(case):
    problem, schedule = Problem(), make(case)
    loss = next(iter(problem.batch()().values()))
    with pytest.raises(ShapeError, match="expected num_tasks = 3 losses, got 2"):
        schedule.step(lambda: [loss, loss], problem.optimizer, problem.balancer)
    with pytest.raises(UnknownNameError, match=r"'aa'.*did you mean a"):
        schedule.step(lambda: {"aa": loss}, problem.optimizer, problem.balancer)


def test_names_are_learned_from_the_first_mapping():
    problem, schedule = Problem(), cp.schedules.create("alternating", num_tasks=3)
    compute = problem.batch()
    schedule.step(lambda: dict(reversed(compute().items())), problem.optimizer, problem.balancer)
    assert schedule.state_dict()["tasks"] == ["c", "b", "a"]
    with pytest.raises(ShapeError, match="tasks="):
        cp.schedules.create("joint", num_tasks=3).step(
            lambda: {"a": compute()["a"]}, problem.optimizer, problem.balancer
        )
    with pytest.raises(OptionError, match="the state is of tasks"):
        cp.schedules.create("joint", tasks=NAMES).load_state_dict(schedule.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random_groups", {"num_tasks": 2, "num_groups": 3}, "at most num_tasks = 2, got 3"),
        ("random_groups", {"num_tasks": 2, "num_groups": 0}, "num_groups"),
        ("random_groups", {"num_tasks": 2, "regroup_every": 0}, "regroup_every"),
        ("fixed_groups", {"tasks": NAMES, "groups": [["a"], ["b"]]}, "task 'c' is in no group"),
        ("fixed_groups", {"tasks": NAMES, "groups": []}, "at least one group"),
        ("fixed_groups", {"tasks": NAMES, "groups": [[], NAMES]}, "at least one task"),
        ("fixed_groups", {"tasks": NAMES, "groups": ["abc"]}, "must be a list"),
        ("fixed_groups", {"tasks": NAMES, "groups": [["a", 0], ["b", "c"]]}, "each task once"),
        ("fixed_groups", {"tasks": ["depth"], "groups": [["dept"]]}, "did you mean depth"),
        ("fixed_groups", {"num_tasks": 1, "groups": [["a"]]}, r"build the schedule with tasks="),
        ("fixed_groups", {"num_tasks": 1, "groups": [[1]]}, "no task is called '1'"),
        ("alternating", {"num_tasks": 2, "order": "randm"}, "did you mean random"),
        ("sequential_reptile", {"num_tasks": 2, "eta": 0.0}, "eta"),
        ("sequential_reptile", {"num_tasks": 2, "inner_steps": 0}, "inner_steps"),
        ("sequential_reptile", {"num_tasks": 2, "probabilities": [0, 0]}, "above 0"),
        ("sequential_reptile", {"num_tasks": 2, "probabilities": [1, -1]}, "probabilities"),
        ("sequential_reptile", {"num_tasks": 2, "probabilities": [1]}, "num_tasks = 2 values"),
        ("joint", {}, "give num_tasks"),
        ("joint", {"num_tasks": 0}, "num_tasks"),
        ("joint", {"num_tasks": 3, "tasks": ["a"]}, "1 names"),
        ("joint", {"tasks": ["a", "a"]}, "different names"),
        ("joint", {"num_tasks": 2, "ordr": 1}, "no option 'ordr'"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(OptionError, match=message):
        cp.schedules.create(name, **options)


def test_unknown_name():
    with pytest.raises(UnknownNameError, match="did you mean alternating"):
        cp.schedules.create("alternate", num_tasks=2)
