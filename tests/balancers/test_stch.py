"""STCH: its phases, its nadir, tasks that miss the warm-up, resuming, and the two limits of the paper's form."""

import math
import warnings

import pytest
import torch

from counterpoint.balancers import STCH, _periodic

EPOCHS = [[(4.0, 1.0), (2.0, 3.0)], [(1.0, 1.0), (2.0, 0.5)], [(0.5, 0.7), (0.4, 0.9)]]
NOW = torch.tensor([0.5, 0.25], dtype=torch.float64)


def run(balancer, epochs=EPOCHS, *, factors=(1.0, 1.0)):
    """Train on the losses of some epochs; return the weights of all steps."""
    found = []
    for epoch in epochs:
        for losses in epoch:
            present = [task for task, loss in enumerate(losses) if loss is not None]
            values = torch.tensor([losses[task] * factors[task] for task in present], dtype=torch.float64)
            found.append(balancer.weights(None, values, present=present))
        balancer.end_epoch()
    return found


def expected_weights(losses, nadir, mu):
    """Independent of the code: K softmax(x / mu) / L with x = ln(L / nadir), term by term."""
    terms = [(loss / start) ** (1 / mu) for loss, start in zip(losses, nadir, strict=True)]
    return [len(losses) * term / sum(terms) / loss for term, loss in zip(terms, losses, strict=True)]


def test_phases():
    balancer = STCH(2, warmup_epochs=1, mu=0.5)
    found = run(balancer)
    for weights, losses in zip(found[:4], EPOCHS[0] + EPOCHS[1], strict=True):
        assert weights.tolist() == pytest.approx([1 / loss for loss in losses])  # sum of ln L, two epochs long
    assert balancer.nadir.tolist() == pytest.approx([1.5, 0.75])  # the means of the second
    for weights, losses in zip(found[4:], EPOCHS[2], strict=True):
        assert weights.tolist() == pytest.approx(expected_weights(losses, [1.5, 0.75], 0.5))
    run(balancer, EPOCHS)
    assert balancer.nadir.tolist() == pytest.approx([1.5, 0.75])  # and it stays


def test_value_of_the_objective():
    balancer = STCH(2, warmup_epochs=0, mu=0.5)
    assert float(balancer.objective(NOW)) == pytest.approx(math.log(0.125))
    balancer.end_epoch()
    assert float(balancer.objective(NOW / 2)) == pytest.approx(2 * 0.5 * math.log(2 * 0.25))  # 2 mu ln sum x^(1 / mu)


def test_the_scale_of_a_loss_is_not_seen():
    factors = torch.tensor([1e4, 1e-3], dtype=torch.float64)
    plain, scaled = STCH(2, warmup_epochs=0, mu=0.3), STCH(2, warmup_epochs=0, mu=0.3)
    for first, second in zip(run(plain), run(scaled, factors=factors.tolist()), strict=True):
        torch.testing.assert_close(second * factors, first)


def test_a_small_mu_trains_the_task_that_is_worst_against_its_nadir():
    balancer = STCH(2, warmup_epochs=0, mu=1e-3)
    balancer.weights(None, NOW)
    balancer.end_epoch()
    assert balancer.weights(None, NOW * torch.tensor([0.5, 0.6])).tolist() == pytest.approx([0.0, 2 / 0.15])


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumes_before_in_and_after_the_epoch_of_the_nadir(after):
    whole, first, second = (STCH(2, warmup_epochs=1) for _ in range(3))
    run(whole, EPOCHS[:after])
    run(first, EPOCHS[:after])
    for balancer in (whole, first):
        balancer.weights(None, NOW)  # in the middle of an epoch
    second.load_state_dict(first.state_dict())
    for before, resumed in zip(run(whole, EPOCHS), run(second, EPOCHS), strict=True):
        assert torch.equal(before, resumed)
    assert torch.equal(whole.nadir, second.nadir)


def test_a_task_that_misses_the_warm_up_counts_as_at_its_nadir_until_it_has_one():
    balancer = STCH(2, warmup_epochs=0)
    run(balancer, [[(None, 2.0)]])
    weights = balancer.weights(None, torch.tensor([5.0, 1.0], dtype=torch.float64))
    assert weights.tolist() == pytest.approx(expected_weights([5.0, 1.0], [5.0, 2.0], 1.0))
    balancer.end_epoch()
    assert balancer.nadir.tolist() == pytest.approx([5.0, 2.0])
    assert balancer.weights(None, NOW[:1], present=[0]).tolist() == pytest.approx([2.0])  # alone: 1 / L


def test_a_loss_of_zero():
    balancer = STCH(2, warmup_epochs=0)
    losses = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert balancer.weights(None, losses).tolist() == [0.0, 1.0]
    balancer.end_epoch()
    assert math.isnan(float(balancer.nadir[0]))  # there is no progress to measure from 0
    assert bool(torch.isfinite(balancer.weights(None, losses)).all())
    balancer.weights(None, losses + 1)
    balancer.end_epoch()
    weights = balancer.weights(None, losses)
    assert float(weights[0]) == 0.0
    assert float(weights[1]) == pytest.approx(2.0)


def test_period_counts_steps():
    told, counted = STCH(2, warmup_epochs=1), STCH(2, warmup_epochs=1, period=2)
    for first, second in zip(run(told), run(counted), strict=True):  # here end_epoch() is ignored
        assert torch.equal(first, second)
    assert int(counted.num_epochs) == 2


def test_it_warns_only_while_an_epoch_must_end(monkeypatch):
    monkeypatch.setattr(_periodic, "_PATIENCE", 3)
    ready = STCH(2, warmup_epochs=0)
    ready.weights(None, NOW)
    ready.end_epoch()
    for balancer, number in ((STCH(2), 1), (ready, 0), (STCH(2, variant="paper"), 0)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(8):
                balancer.weights(None, NOW)
        assert [str(one.message)[:5] for one in found] == ["STCH:"] * number


def test_the_papers_form_lies_just_above_the_largest_weighted_loss():
    losses = torch.tensor([0.9, 2.0, 1.5], dtype=torch.float64)
    preference, ideal = [0.5, 0.2, 0.3], [0.1, 0.0, 0.3]
    largest = max(p * (float(loss) - z) for p, z, loss in zip(preference, ideal, losses, strict=True))
    for mu in (1.0, 0.1, 0.001):
        balancer = STCH(3, variant="paper", mu=mu, preference=preference, ideal_point=ideal)
        assert largest <= float(balancer.objective(losses)) <= largest + mu * math.log(3)
        weights = balancer.weights(None, losses)
        assert float((weights / torch.tensor(preference)).sum()) == pytest.approx(1.0)  # p_i softmax_i


def test_the_papers_form_of_the_tasks_that_are_present():
    balancer = STCH(
        tasks=["a", "b"], variant="paper", ideal_point={"b": 0.1, "a": 0.0}, preference={"a": 2.0, "b": 3.0}
    )
    assert balancer.weights(None, NOW[:1], present=[1]).tolist() == pytest.approx([3.0])
    assert STCH(2, variant="paper").weights(None, NOW[:1], present=[1]).tolist() == pytest.approx([1.0])
