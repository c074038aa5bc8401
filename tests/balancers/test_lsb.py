"""LSB: scales that are balanced, difficulties, tasks without a record."""

import pytest
import torch

from counterpoint.balancers import LSB

EPOCHS = [[(4.0, 1.0), (2.0, 3.0)], [(1.0, 1.0), (2.0, 0.6)], [(0.9, 0.7), (0.3, 0.9)]]
MEANS = torch.tensor([[3.0, 2.0], [1.5, 0.8], [0.6, 0.8]], dtype=torch.float64)


def train(balancer, epochs=EPOCHS, factors=(1.0, 1.0)):
    for epoch in epochs:
        for losses in epoch:
            present = [task for task, loss in enumerate(losses) if loss is not None]
            values = torch.tensor([losses[task] * factors[task] for task in present], dtype=torch.float64)
            balancer.weights(None, values, present=present)
        balancer.end_epoch()


def run(balancer, epochs=EPOCHS, factors=(1.0, 1.0)):
    """Train on the losses of some epochs; return the weights after them."""
    train(balancer, epochs, factors)
    return balancer.weights(None, torch.ones(2, dtype=torch.float64))


def reconstruction(period, gamma):
    """Independent of the code: the steps of the reconstruction, with the difficulties normalized to the sum K."""
    last = MEANS[period - 1].tolist()
    difficulty = [1.0, 1.0]
    if period > 1:
        ratios = [now / before for now, before in zip(last, MEANS[period - 2].tolist(), strict=True)]
        difficulty = [2 * ratio / sum(ratios) for ratio in ratios]
    unscaled = [d**gamma / mean for d, mean in zip(difficulty, last, strict=True)]
    factor = float(MEANS[0].sum()) / sum(w * mean for w, mean in zip(unscaled, last, strict=True))
    return [factor * w for w in unscaled]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_weights_of_every_period(gamma):
    assert run(LSB(2, gamma=gamma, normalization="initial"), []).tolist() == [1.0, 1.0]
    for period in (1, 2, 3):
        found = run(LSB(2, gamma=gamma, normalization="initial"), EPOCHS[:period])
        assert found.tolist() == pytest.approx(reconstruction(period, gamma))
        scales = found * MEANS[period - 1]
        assert float(scales.sum()) == pytest.approx(float(MEANS[0].sum()))
        if gamma == 0 or period == 1:
            assert float(scales[0]) == pytest.approx(float(scales[1]))  # balanced
        else:
            ratios = MEANS[period - 1] / MEANS[period - 2]
            assert float(scales[0] / scales[1]) == pytest.approx(float(ratios[0] / ratios[1]) ** gamma)


def test_a_task_whose_loss_falls_slowly_counts_more():
    weights = run(LSB(2), [[(2.0, 2.0)], [(1.9, 1.0)]])
    scales = weights * torch.tensor([1.9, 1.0])
    assert float(scales[0]) > float(scales[1])


def test_a_factor_on_a_loss_is_a_factor_common_to_all_tasks():
    factors = torch.tensor([1e4, 1e-3], dtype=torch.float64)
    for normalization in ("sum_k", "initial"):
        plain = run(LSB(2, normalization=normalization))
        scaled = run(LSB(2, normalization=normalization), factors=factors.tolist()) * factors
        torch.testing.assert_close(scaled / scaled.sum(), plain / plain.sum())
        assert not 0.5 < float(scaled.sum() / plain.sum()) < 2


def test_sum_k_has_the_same_ratio_and_sums_to_k():
    weights, initial = run(LSB(2)), run(LSB(2, normalization="initial"))
    assert float(weights.sum()) == pytest.approx(2.0)
    torch.testing.assert_close(weights / weights[0], initial / initial[0])


def test_difficulty_is_held_between_a_tenth_and_ten():
    weights = run(LSB(2), [[(1.0, 1.0)], [(1e-4, 500.0)]])
    scales = weights * torch.tensor([1e-4, 500.0])
    assert float(scales[1] / scales[0]) == pytest.approx(100.0)


def test_a_task_without_a_record_has_weight_one_and_an_absent_one_keeps_its_own():
    balancer = LSB(2, normalization="initial")
    assert run(balancer, [[(None, 2.0)], [(None, 1.0)]]).tolist() == pytest.approx([1.0, 2.0])  # 2.0 / 1.0: alone
    balancer.reset()
    train(balancer, EPOCHS[:2])
    train(balancer, [[(None, 0.5)]])
    assert balancer.last.tolist() == pytest.approx([1.5, 0.5])
    assert balancer.previous.tolist() == pytest.approx([3.0, 0.8])


def test_losses_that_become_zero_or_were_zero():
    for epochs in ([[(0.0, 1.0)], [(0.0, 1.0)]], [[(1.0, 1.0)], [(0.0, 1.0)], [(0.0, 0.5)], [(1.0, 0.5)]]):
        balancer = LSB(2)
        for end in range(1, len(epochs) + 1):
            balancer.reset()
            weights = run(balancer, epochs[:end])
            assert bool(torch.isfinite(weights).all())
            assert bool((weights > 0).all())


def test_period_counts_steps():
    counted = LSB(2, period=2)
    assert torch.equal(run(counted), run(LSB(2)))  # here end_epoch() is ignored
    assert int(counted.num_steps) == 1
