"""What is peculiar to single methods: options, states, warnings, bad input."""

import math
import warnings

import pytest
import torch

from counterpoint import balancers
from counterpoint.balancers import (
    BALANCERS,
    DWA,
    GLS,
    IMTLL,
    MGDA,
    MSI,
    RLW,
    UWSO,
    CAGrad,
    Fixed,
    GradDrop,
    GradVac,
    Uncertainty,
    _periodic,
    cagrad,
)
from counterpoint.balancers.cagrad import cagrad_weights
from counterpoint.balancers.rlw import rlw_weights
from counterpoint.errors import NonFiniteError, OptionError, ShapeError

ONES = torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("fixed", {"task_weights": [1.0]}, "2 values"),
        ("fixed", {"task_weights": [1.0, -1.0]}, r"\[0, inf\)"),
        ("fixed", {"task_weights": [1.0, float("inf")]}, r"\[0, inf\)"),
        ("fixed", {"task_weights": [0.0, 0.0]}, "positive"),
        ("fixed", {"task_weights": 2.0}, "sequence"),
        ("rlw", {"distribution": "gauss"}, "normal"),
        ("uncertainty", {"form": "huber"}, "half"),
        ("uncertainty", {"form": ["half"]}, "2 values"),
        ("uncertainty", {"regularizer": "l2"}, "log1p"),
        ("uncertainty", {"initial": 1000.0}, "80"),
        ("imtl_l", {"initial": 1000.0}, "80"),
        ("imtl_l", {"initial": [0.0]}, "2 values"),
        ("uw_so", {"temperature": 0.0}, "temperature"),
        ("uw_so", {"form": "linear"}, "inverse"),
        ("dwa", {"temperature": 0.0}, "temperature"),
        ("dwa", {"period": 0}, "period"),
        ("dwa", {"period": 2.5}, "period"),
        ("scale_invariant", {"form": "ln"}, "log1p"),
        ("scale_invariant", {"eps": 0.0}, "eps"),
        ("scale_invariant", {"task_weights": [1.0]}, "2 values"),
        ("scale_invariant", {"task_weights": [0.0, 0.0]}, "positive"),
        ("stch", {"variant": "log"}, "paper"),
        ("stch", {"mu": 0.0}, "mu"),
        ("stch", {"warmup_epochs": -1}, "warmup_epochs"),
        ("stch", {"warmup_epochs": 1.5}, "whole number"),
        ("stch", {"period": 0}, "period"),
        ("stch", {"preference": [0.5, 0.5]}, "variant='paper'"),
        ("stch", {"ideal_point": 0.0}, "variant='paper'"),
        ("stch", {"variant": "paper", "period": 5}, "variant='released'"),
        ("stch", {"variant": "paper", "preference": [1.0, 0.0]}, "preference"),
        ("stch", {"variant": "paper", "ideal_point": float("nan")}, "ideal_point"),
        ("lsb", {"gamma": -1.0}, "gamma"),
        ("lsb", {"normalization": "mean"}, "sum_k"),
        ("lsb", {"period": True}, "period"),
        ("dtp", {"perfect": 0.0}, "must differ"),
        ("dtp", {"perfect": float("inf")}, "perfect"),
        ("dtp", {"perfect": 1.0, "worst": [0.0]}, "2 values"),
        ("dtp", {"perfect": 1.0, "gamma": [1.0, -1.0]}, "gamma"),
        ("dtp", {"perfect": 1.0, "ema_new_weight": 0.0}, "ema_new_weight"),
        ("ldc_mtl", {"normalization": "log"}, "log_ratio"),
        ("ldc_mtl", {"lam": -0.1}, "lam"),
        ("ldc_mtl", {"initial": 1000.0}, "80"),
        ("mgda", {"normalization": "l1"}, "l2"),
        ("mgda", {"apply_to": "all"}, "original"),
        ("mgda", {"task_gradients": "none"}, "raw"),
        ("gradvac", {"beta": 1.5}, r"\[0, 1\]"),
        ("gradvac", {"reduction": "max"}, "sum"),
        ("cagrad", {"c": -0.1}, r"\[0, inf\)"),
        ("cagrad", {"c": float("nan")}, r"\[0, inf\)"),
        ("cagrad", {"rescale": 3}, "0, 1 or 2"),
        ("cagrad", {"rescale": True}, "0, 1 or 2"),
        ("cagrad", {"on_stationary": "stop"}, "zero"),
        ("imtl_g", {"task_gradients": "all"}, "raw"),
        ("nash_mtl", {"max_norm": 0.0}, "max_norm"),
        ("nash_mtl", {"update_every": 0}, "update_every"),
        ("nash_mtl", {"update_every": 1.5}, "whole number"),
        ("nash_mtl", {"task_gradients": "none"}, "weighted"),
        ("fairgrad", {"alpha": 0.0}, "alpha"),
        ("fairgrad", {"alpha": float("inf")}, "alpha"),
        ("fairgrad", {"max_norm": -1.0}, "max_norm"),
        ("aligned_mtl", {"scale_mode": "mean"}, "rmse"),
        ("aligned_mtl", {"preference": [1.0]}, "2 values"),
        ("aligned_mtl", {"eps": 1.0}, "eps"),
        ("upgrad", {"preference": [1.0, -1.0]}, "preference"),
        ("dual_proj", {"preference": {"a": 1.0}}, "tasks="),
        ("con_fig", {"preference": [1.0, 0.0]}, "preference"),
        ("con_fig", {"length": "sum"}, "projections"),
        ("con_fig", {"length": "task"}, "go together"),
        ("con_fig", {"length_task": 0}, "go together"),
        ("con_fig", {"length": "task", "length_task": 2}, "below 2"),
        ("con_fig", {"length": "task", "length_task": "depth"}, "below 2"),
        ("gradops", {"alpha": float("nan")}, "alpha"),
        ("gradops", {"alpha": float("-inf")}, "alpha"),
        ("msi", {"rule": "pairs"}, "pair"),
        ("msi", {"static_target": 1.1}, "static_target"),
        ("msi", {"rule": "learned", "static_target": 0.5}, "but 1"),
        ("pomsi", {"s_max": 1.0}, "s_max"),
        ("pomsi", {"learning_rate": 0.0}, "learning_rate"),
        ("gradnorm", {"alpha": -1.0}, "alpha"),
        ("gradnorm", {"learning_rate": 0.0}, "learning_rate"),
        ("gradnorm", {"update": "adamw"}, "adam"),
        ("gradnorm", {"measure": "first"}, "last"),
        ("gradnorm", {"initial_losses": [1.0]}, "2 values"),
        ("gradnorm", {"initial_losses": 0.0}, r"\(0, inf\)"),
        ("sdmgrad", {"pull": -0.1}, "pull"),
        ("sdmgrad", {"inner_steps": 0}, "inner_steps"),
        ("sdmgrad", {"learning_rate": 0.0}, "learning_rate"),
        ("sdmgrad", {"momentum": 1.0}, "momentum"),
        ("modo", {"learning_rate": 0.0}, "learning_rate"),
        ("modo", {"rho": -1.0}, "rho"),
        ("rotograd", {"mode": "rotate"}, "rotate_only"),
        ("rotograd", {"variant": "code"}, "released"),
        ("rotograd", {"learning_rate": 0.0}, "learning_rate"),
        ("rotograd", {"burn_in": 0}, "burn_in"),
        ("rotograd", {"size": 0}, "size"),
        ("graddrop", {"leak": 1.5}, r"\[0, 1\]"),
        ("graddrop", {"leak": [0.1, 0.2, 0.3]}, "2 values"),
    ],
)
def test_bad_options_are_refused(key, options, message):
    with pytest.raises(OptionError, match=message) as found:
        BALANCERS.create(key, 2, **options)
    assert str(found.value).startswith(BALANCERS.get(key).__name__)


# --- Fixed ------------------------------------------------------------------------------------------------------------


def test_fixed_takes_weights_by_position_and_by_name():
    assert Fixed(task_weights=[2.0, 3.0]).num_tasks == 2
    named = Fixed(task_weights={"depth": 2.0, "seg": 3.0})
    assert named.tasks == ("depth", "seg")
    other_order = Fixed(tasks=["seg", "depth"], task_weights={"depth": 2.0, "seg": 3.0})
    assert other_order.weights(None, ONES).tolist() == [3.0, 2.0]
    assert other_order.weights(None, ONES[:1], present=[1]).tolist() == [2.0]
    with pytest.raises(OptionError, match="one value for each"):
        Fixed(tasks=["seg", "normals"], task_weights={"depth": 2.0, "seg": 3.0})
    with pytest.raises(OptionError, match="tasks="):
        GradDrop(2, leak={"depth": 0.5, "seg": 0.1})


def test_fixed_backward_is_the_backward_of_the_weighted_sum():
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    Fixed(task_weights={"a": 0.5, "b": 4.0}).backward({"b": (x**3).sum(), "a": (x**2).sum()})
    expected = x.detach() * 0.5 * 2 + 4.0 * 3 * x.detach() ** 2
    torch.testing.assert_close(x.grad, expected)


# --- RLW --------------------------------------------------------------------------------------------------------------


def test_rlw_follows_its_generator_and_not_the_global_one():
    first, second = (RLW(3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    a = first.weights(None, torch.ones(3))
    torch.rand(10)
    assert torch.equal(a, second.weights(None, torch.ones(3)))
    assert not torch.equal(a, second.weights(None, torch.ones(3)))


def test_rlw_distributions_at_their_edges():
    nothing = torch.tensor([0.9, 0.7])
    assert rlw_weights(nothing, distribution="bernoulli").tolist() == [0.5, 0.5]
    assert rlw_weights(torch.tensor([0.9, 0.2]), distribution="bernoulli").tolist() == [0.0, 1.0]
    assert rlw_weights(torch.zeros(2), distribution="dirichlet").tolist() == [0.5, 0.5]
    # one coordinate of a uniform point of the simplex of three tasks has density 2 (1 - w): mean 1/3, variance 1/18
    balancer = RLW(3, distribution="dirichlet", generator=torch.Generator().manual_seed(0))
    draws = torch.stack([balancer.weights(None, torch.ones(3, dtype=torch.float64)) for _ in range(4000)])
    assert float(draws[:, 0].var()) == pytest.approx(1 / 18, rel=0.1)


# --- Uncertainty ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "best", "weight"),
    [
        ("half", lambda x: math.log(x), 0.5),
        ("laplace", lambda x: math.log(x), 1.0),
        ("classification", lambda x: math.log(2 * x), 1.0),
    ],
)
def test_uncertainty_minimum_over_the_noise(form, best, weight):
    """At the s that makes the derivative zero the weight of a loss is proportional to 1 / L."""
    for loss in (0.1, 3.0):
        balancer = Uncertainty(1, form=form, initial=best(loss)).double()
        leaf = torch.tensor([loss], dtype=torch.float64, requires_grad=True)
        by_loss, by_noise = torch.autograd.grad(balancer.objective(leaf), [leaf, balancer.log_noise[0]])
        assert float(by_noise.detach()) == pytest.approx(0.0, abs=1e-6)
        assert float(by_loss) == pytest.approx(weight * math.exp(-best(loss)), rel=1e-6)


@pytest.mark.parametrize(("form", "sigma_squared"), [("half", 0.3), ("laplace", 0.3**2), ("classification", 0.3)])
def test_uncertainty_nonnegative_regularizer(form, sigma_squared):
    zero = torch.zeros(1, dtype=torch.float64)
    balancer = Uncertainty(1, form=form, regularizer="log1p", initial=math.log(0.3)).double()
    assert float(balancer.objective(zero).detach()) == pytest.approx(math.log(1 + sigma_squared), rel=1e-6)
    plain = Uncertainty(1, form=form, initial=math.log(0.3)).double()
    assert float(plain.objective(zero).detach()) == pytest.approx(math.log(sigma_squared) / 2, rel=1e-6)


def test_uncertainty_forms_per_task_and_absent_tasks():
    balancer = Uncertainty(tasks=["depth", "seg"], form={"seg": "classification", "depth": "laplace"})
    assert balancer.weights(None, ONES).tolist() == [1.0, 1.0]
    assert Uncertainty(2, form=["half", "laplace"]).weights(None, ONES).tolist() == [0.5, 1.0]
    x = torch.ones(2, requires_grad=True)
    report = balancer.backward({"seg": (x**2).sum()})
    assert balancer.log_noise[0].grad is None
    assert float(balancer.log_noise[1].grad) == pytest.approx(0.5 - 2.0)
    assert report.weights.tolist() == [0.0, 1.0]
    with pytest.raises(OptionError, match="at least 0"):
        balancer.backward({"seg": -(x**2).sum()})


# --- DWA --------------------------------------------------------------------------------------------------------------


def run_epochs(balancer, epochs, *, close=True):
    for epoch in epochs:
        for losses in epoch:
            present = [task for task, loss in enumerate(losses) if loss is not None]
            values = torch.tensor([losses[task] for task in present], dtype=torch.float64)
            found = balancer.weights(None, values, present=present)
        if close:
            balancer.end_epoch()
    return found


def test_dwa_needs_two_epochs_and_follows_the_formula():
    balancer = DWA(2, temperature=1.0)
    assert run_epochs(balancer, [[(1.0, 8.0), (3.0, 8.0)]]).tolist() == [1.0, 1.0]
    assert run_epochs(balancer, [[(1.0, 4.0)]]).tolist() == [1.0, 1.0]
    found = run_epochs(balancer, [[(1.0, 1.0)]])
    expected = 2 * torch.softmax(torch.tensor([1.0 / 2.0, 4.0 / 8.0], dtype=torch.float64), 0)
    torch.testing.assert_close(found, expected)
    found = run_epochs(balancer, [[(1.0, 1.0)]])
    expected = 2 * torch.softmax(torch.tensor([1.0 / 1.0, 1.0 / 4.0], dtype=torch.float64), 0)
    torch.testing.assert_close(found, expected)


def test_dwa_period_counts_steps_and_ignores_end_epoch():
    epochs = [[(1.0, 2.0), (2.0, 1.0)], [(0.5, 2.0), (0.7, 1.0)], [(1.0, 1.0), (1.0, 1.0)]]
    told, counted = DWA(2), DWA(2, period=2)
    expected = run_epochs(told, epochs)
    assert torch.equal(run_epochs(counted, epochs, close=False), expected)
    counted.reset()
    counted.weights(None, ONES)
    counted.end_epoch()
    assert int(counted.num_steps) == 1


def test_dwa_keeps_the_means_of_a_task_that_is_absent_for_an_epoch():
    balancer = DWA(2)
    run_epochs(balancer, [[(4.0, 1.0)], [(2.0, 1.0)]])
    run_epochs(balancer, [[(None, 0.5)], [(None, 0.1)]])
    assert balancer.last.tolist() == pytest.approx([2.0, 0.1])
    assert balancer.previous.tolist() == pytest.approx([4.0, 0.5])
    balancer.end_epoch()  # an epoch without steps
    assert balancer.last.tolist() == pytest.approx([2.0, 0.1])


def test_dwa_with_a_loss_of_zero():
    balancer = DWA(2)
    run_epochs(balancer, [[(0.0, 1.0)], [(1.0, 1.0)]])
    assert balancer.weights(None, ONES).tolist() == [1.0, 1.0]


def test_dwa_warns_once_if_no_epoch_ends(monkeypatch):
    monkeypatch.setattr(_periodic, "_PATIENCE", 3)
    balancer = DWA(2)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(8):
            balancer.weights(None, ONES)
    assert [str(one.message)[:4] for one in found] == ["DWA:"]
    assert found[0].category is UserWarning


# --- GLS, MGDA, CAGrad, GradVac, MSI ----------------------------------------------------------------------------------


def test_gls_refuses_negative_losses():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(OptionError, match="at least 0"):
        GLS(2).backward([x.sum(), -x.sum()])


def test_mgda_normalizations_need_losses():
    gram = torch.eye(2, dtype=torch.float64)
    for kind in ("loss", "loss+"):
        with pytest.raises(OptionError, match="needs losses"):
            MGDA(2, normalization=kind).weights(gram)
        with pytest.raises(OptionError, match="needs losses"):
            MGDA(2, normalization=kind).weights(gram, torch.tensor([1.0, -1.0]))
        assert bool(torch.isfinite(MGDA(2, normalization=kind).weights(gram, torch.tensor([0.0, 1.0]))).all())
    assert bool(torch.isfinite(MGDA(2, normalization="loss").weights(gram, torch.zeros(2))).all())


def test_mgda_zero_gradient():
    gram = torch.tensor([[4.0, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert MGDA(3).weights(gram).tolist() == pytest.approx([0.2, 0.0, 0.8])
    assert MGDA(3, zero_row_is_stationary=True).weights(gram).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(("option", "expected"), [("weighted", [0.8, 0.2]), ("raw", [1.0, 1.0])])
def test_mgda_task_gradients(option, expected):
    trunk = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    heads = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    MGDA(2, task_gradients=option).backward([trunk[0] + heads[0], 2 * trunk[1] + heads[1]])
    assert [float(head.grad) for head in heads] == pytest.approx(expected)
    assert trunk.grad.tolist() == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize("balancer", [CAGrad(2), MGDA(2)])
def test_a_solver_that_stops_early_warns_once(balancer, monkeypatch):
    module = cagrad if isinstance(balancer, CAGrad) else __import__("counterpoint.balancers.mgda", fromlist=["mgda"])
    name = "linear_plus_norm" if isinstance(balancer, CAGrad) else "min_norm"
    monkeypatch.setattr(module, name, lambda gram, *_: (torch.full_like(gram.diagonal(), 0.5), 1e-3))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            weights = balancer.weights(torch.eye(2, dtype=torch.float64))
            assert bool(torch.isfinite(weights).all())
    assert len(found) == 1
    assert "1.0e-03" in str(found[0].message)


def test_cagrad_at_two_tasks_of_equal_length():
    """By symmetry v is along the mean, with length (1 + c) |g_0|."""
    gram = torch.tensor([[1.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    weights, residual = cagrad_weights(gram, c=0.3)
    assert weights.tolist() == pytest.approx([0.65, 0.65])
    assert residual < 1e-12


def test_gradvac_moves_no_target_of_an_absent_or_zero_task():
    balancer = GradVac(3, beta=0.5)
    gram = torch.tensor([[1.0, 0.5, 0], [0.5, 1.0, 0], [0, 0, 0]], dtype=torch.float64)
    balancer.weights(gram)
    assert balancer.rho.tolist() == [[0.0, 0.25, 0.0], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]]
    balancer.weights(gram[:2, :2], present=[2, 0])
    assert float(balancer.rho[2, 0]) == 0.25
    assert float(balancer.rho[0, 1]) == 0.25


def test_msi_state_belongs_to_tasks():
    balancer = MSI(3, beta=0.5)
    balancer.weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), present=[0, 2])
    assert float(balancer.similarity[0, 2]) == pytest.approx(0.4)
    assert float(balancer.similarity.sum()) == pytest.approx(0.8)


def test_msi_counts_the_tasks_that_are_present():
    lone = MSI(3, static_target=1.0).weights(torch.diag(torch.tensor([1.0, 25.0], dtype=torch.float64)), present=[0, 1])
    assert lone.tolist() == pytest.approx([3.605551, 0.721110], abs=1e-6)
    assert MSI(3).weights(torch.ones(1, 1), present=[1]).tolist() == [1.0]


# --- pure calls of loss balancers check their argument -------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (torch.tensor([1.0, float("nan")]), NonFiniteError, "loss of task '1' is not finite"),
        (torch.tensor([-1.0, 1.0]), OptionError, "needs losses of at least 0"),
        (torch.tensor([[1.0], [2.0]]), ShapeError, r"must be \(k,\)"),
        (torch.tensor([1, 2]), ShapeError, "floating-point"),
        (torch.tensor([1.0, 2.0, 3.0]), ShapeError, "got 3"),
    ],
)
def test_weights_of_losses_that_make_no_sense(losses, error, message):
    with pytest.raises(error, match=message):
        balancers.create("gls", 2).weights(None, losses)


def test_a_zero_gradient_has_weight_zero_in_pcgrad():
    weights = balancers.create("pcgrad", 3).weights(torch.diag(torch.tensor([2.0, 0.0, 3.0])))
    assert weights.tolist() == [1.0, 0.0, 1.0]


# --- IMTL-L, UW-SO ----------------------------------------------------------------------------------------------------


def test_imtl_l_learns_the_inverse_of_each_loss():
    balancer = IMTLL(2).double()
    losses = torch.tensor([0.2, 5.0], dtype=torch.float64)
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        balancer.objective(losses).backward()
        optimizer.step()
    assert torch.allclose(balancer.weights(None, losses), 1 / losses, rtol=1e-9)


def test_uw_so_of_a_zero_loss_and_of_the_scale():
    losses = torch.tensor([0.0, 1.0, 1.0])
    assert UWSO(3).weights(None, losses).tolist() == [1.0, 0.0, 0.0]
    assert UWSO(2).weights(None, torch.zeros(2)).tolist() == [0.5, 0.5]
    first, second = UWSO(2), UWSO(2, temperature=4.0)
    losses = torch.tensor([0.5, 0.8], dtype=torch.float64)
    assert float(first.weights(None, losses).sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(first.weights(None, 4 * losses), second.weights(None, losses))  # a factor is a temperature


@pytest.mark.parametrize("key", ["imtl_l", "uw_so"])
def test_inverse_losses_refuse_negative_ones(key):
    with pytest.raises(OptionError, match="losses of at least 0"):
        balancers.create(key, 2).weights(None, torch.tensor([1.0, -1.0]))


def test_a_need_that_no_loop_serves_is_refused_at_once():
    class Asking(balancers.LossBalancer):
        needs = frozenset({"metric"})

        def objective(self, losses, *, present=None):
            return losses.sum()

    with pytest.raises(OptionError, match=r"needs must be .*did you mean metrics"):
        Asking(2)
