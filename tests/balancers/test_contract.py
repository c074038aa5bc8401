"""Every registered balancer keeps the contract, and the battery that says so can fail."""

import pytest
import torch

from balancers.cases import CASES
from counterpoint.balancers import BALANCERS, GramBalancer
from counterpoint.testing import check_balancer

ROWS = [
    pytest.param(case, options, id=f"{case.key}-{index}")
    for case in CASES
    for index, options in enumerate(({}, *case.variants))
]


def test_every_registered_balancer_has_one_case():
    assert sorted(case.key for case in CASES) == BALANCERS.names()
    for case in CASES:
        assert BALANCERS.get(case.key).reads == case.kind


@pytest.mark.parametrize(("case", "options"), ROWS)
def test_contract(case, options):
    check_balancer(lambda num_tasks: case.build(num_tasks, **options), num_tasks=range(1, 9))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_facts_are_declared(case):
    facts = BALANCERS.describe(case.key).facts
    assert {"equation", "source", "provenance", "reads", "scale", "cost", "task_gradients"} <= set(facts)


class _Sound(GramBalancer):
    """Weights that depend on the number of steps so far."""

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.add_state("steps", torch.zeros(self.num_tasks, dtype=torch.float64))

    def solve(self, gram, losses, present):  # noqa: ARG002
        index = torch.tensor(present)
        self.steps[index] += 1
        return self.steps[index].to(gram)


class _Forgets(_Sound):
    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks=tasks)
        self.count = 0

    def solve(self, gram, losses, present):  # noqa: ARG002
        self.count += 1
        return torch.full_like(gram.diagonal(), self.count)


class _MovesAbsent(_Sound):
    def solve(self, gram, losses, present):  # noqa: ARG002
        self.steps += 1
        return self.steps[torch.tensor(present)].to(gram)


class _Divides(_Sound):
    def solve(self, gram, losses, present):  # noqa: ARG002
        return 1 / gram.diagonal()


class _Mutates(_Sound):
    def weights(self, gram, losses=None, *, present=None):
        gram.mul_(2)
        return super().weights(gram, losses, present=present)


class _NoOption(_Sound):
    def __init__(self, num_tasks=None, *, tasks=None, strength=1.0):
        super().__init__(num_tasks, tasks=tasks)
        self.strength = 2 * strength

    def solve(self, gram, losses, present):  # noqa: ARG002
        return torch.full_like(gram.diagonal(), self.strength)


def test_battery_accepts_a_sound_balancer():
    check_balancer(_Sound, num_tasks=[1, 3])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_Forgets, "load_state_dict"),
        (_MovesAbsent, "absent"),
        (_Divides, "zero gradients"),
        (_Mutates, "changed in place"),
        (_NoOption, "repr"),
    ],
)
def test_battery_finds_what_is_broken(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_balancer(broken, num_tasks=[3])
