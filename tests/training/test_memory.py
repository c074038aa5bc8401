import pytest
import torch

from counterpoint import balancers
from counterpoint.training.memory import step_peak_mb

CPU = torch.device("cpu")
MB = 2**18  # floats


def test_the_peak_counts_what_is_alive_at_once():
    def step():
        a = torch.zeros(MB)
        b = a + 1  # 2 alive
        del a
        c = b + 1  # 2 again
        del b
        torch.zeros(5 * MB)  # 6
        return c

    assert step_peak_mb(step, CPU) == 6.0


def test_views_changes_in_place_and_old_tensors_cost_nothing():
    old = torch.zeros(8 * MB)

    def step():
        old.add_(1.0)
        return [old.view(2, -1)[0], old.t(), old.detach(), old.split(MB)]

    assert step_peak_mb(step, CPU) == 0.0


def test_gradients_count_and_stay_counted():
    weight = torch.zeros(512, 512, requires_grad=True)  # 1 MB
    x = torch.zeros(1, 512)
    peak = step_peak_mb(lambda: (x @ weight).sum().backward(), CPU)
    assert 1.0 <= peak < 1.1
    assert weight.grad is not None


def test_the_same_number_at_every_run():
    def step():
        balancer = balancers.GradDrop(3, generator=torch.Generator().manual_seed(0))
        weight.grad = None
        balancer.backward([(x @ weight).square().mean() * k for k in (1.0, 2.0, 3.0)])

    weight, x = torch.ones(256, 256, requires_grad=True), torch.randn(8, 256)
    found = {step_peak_mb(step, CPU) for _ in range(3)}
    assert len(found) == 1
    assert found.pop() >= 3 * 256 * 256 * 4 / 2**20, "three rows are kept"


def test_an_error_in_the_step_comes_out():
    with pytest.raises(ZeroDivisionError):
        step_peak_mb(lambda: 1 / 0, CPU)
    assert step_peak_mb(lambda: torch.zeros(MB), CPU) == 1.0
