"""A loss balancer feeding a gradient balancer: row scales, own parameters, heads."""

import pytest
import torch
from torch import nn

import counterpoint as cp
from counterpoint import testing
from counterpoint.balancers import IMTL, IMTLG, IMTLL, MGDA, Chain, Equal, GradDrop, PCGrad, Uncertainty, Wrapped
from counterpoint.errors import OptionError, ShapeError


def network(num_tasks=3, seed=0):
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6)).double()
    heads = [nn.Linear(6, 1).double() for _ in range(num_tasks)]
    x, y = torch.randn(9, 5).double(), torch.randn(9, num_tasks).double()

    def losses():
        z = trunk(x)
        return [(head(z)[:, 0] - y[:, k]).square().mean() for k, head in enumerate(heads)]

    return trunk, heads, losses


def gradients(losses, parameters):
    parameters = list(parameters)
    return [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]


@pytest.mark.parametrize("second", [PCGrad, MGDA, GradDrop])
def test_chain_equals_the_second_on_losses_scaled_by_hand(second):
    trunk, heads, losses = network()
    first = Uncertainty(3, initial=[0.3, -0.7, 1.1]).double()
    factors = [0.5 * torch.exp(-s.detach()) for s in first.log_noise]
    seed = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    options = {} if second is MGDA else {"generator": seed()}
    expected_balancer = second(3, **options)
    expected_balancer.backward([factor * loss for factor, loss in zip(factors, losses(), strict=True)])
    parameters = [*trunk.parameters(), *(p for head in heads for p in head.parameters())]
    expected = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    options = {} if second is MGDA else {"generator": seed()}
    values = [float(loss.detach()) for loss in losses()]
    chain = Chain(first, second(3, **options))
    report = chain.backward(losses())
    for p, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-9, atol=1e-12)
    own = [0.5 - 0.5 * torch.exp(-s.detach()) * v for s, v in zip(first.log_noise, values, strict=True)]
    torch.testing.assert_close(torch.stack([s.grad for s in first.log_noise]), torch.stack(own))
    if second is not GradDrop:
        rows = gradients(losses(), trunk.parameters())
        by_hand = [sum(w * row[i] for w, row in zip(report.weights, rows, strict=True)) for i in range(len(rows[0]))]
        for p, wanted in zip(trunk.parameters(), by_hand, strict=True):
            torch.testing.assert_close(p.grad, wanted, rtol=1e-9, atol=1e-12)
        plain = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        torch.testing.assert_close(report.gram, plain @ plain.T)  # of the plain gradients, for the monitor


def test_imtl_is_its_two_halves():
    losses = torch.tensor([0.7, 2.5, 0.04], dtype=torch.float64)
    rows = torch.tensor([[1.0, 0, 2, -1], [-2, 1, 0, 3], [0.5, -1, 1, 0]], dtype=torch.float64)
    scalars = (-0.5 * losses.log()).tolist()
    found = IMTL(3, initial=scalars).double().weights(rows @ rows.T, losses)
    scaled = torch.tensor(scalars, dtype=torch.float64).exp()[:, None] * rows
    inner = IMTLG(3).weights(scaled @ scaled.T)
    torch.testing.assert_close(inner, torch.tensor([0.385575, 0.570471, 0.0439537]).double(), rtol=0, atol=5e-7)
    torch.testing.assert_close(found @ rows, inner @ scaled, rtol=1e-6, atol=0)  # the scalars are float32
    chained = Chain(IMTLL(3, initial=scalars), IMTLG(3)).double().weights(rows @ rows.T, losses)
    assert torch.equal(chained, found)


@pytest.mark.parametrize(
    "build",
    [
        lambda k: Chain(Uncertainty(k), PCGrad(k)),
        lambda k: Chain(cp.balancers.DWA(k, period=1), cp.balancers.CAGrad(k)),
        lambda k: Chain(cp.balancers.RLW(k), cp.balancers.GradVac(k, beta=0.5)),
        lambda k: Chain(cp.balancers.GLS(k), GradDrop(k)),
        lambda k: Chain(Uncertainty(k), Wrapped(PCGrad(k), every=2, gram_decay=0.5)),
    ],
)
def test_chains_keep_the_contract_of_a_balancer(build):
    def seeded(k):
        torch.manual_seed(11)  # equal generators in both of a pair
        return build(k)

    testing.check_balancer(seeded, num_tasks=[1, 2, 3])


def test_absent_tasks_and_names_reach_both_parts():
    chain = Chain(Uncertainty(2, tasks=["a", "b"]), PCGrad(2, tasks=["a", "b"]))
    x = torch.ones(2, requires_grad=True)
    report = chain.backward({"a": x.square().sum()})
    assert report.tasks == ("a", "b")
    assert report.weights.tolist() == [0.5, 0.0]
    assert chain.first.log_noise[1].grad is None
    unnamed = Chain(Uncertainty(2), cp.balancers.PIVRG(2, references=[1.0, 1.0]))
    unnamed.backward({"left": x.square().sum(), "right": x.sum() ** 2})
    unnamed.observe_metrics({"left": 0.5, "right": 0.9}, higher_is_better={"left": True, "right": True})
    assert unnamed.second.scores.tolist() != [0.0, 0.0]
    assert unnamed.needs == {"metrics"}


def test_state_dict_of_a_chain_has_every_tensor_once_and_loads():
    first = Chain(Uncertainty(2), cp.balancers.GradVac(2))
    names = [name for name in first.state_dict() if "extra" not in name]
    assert sorted(names) == ["first.log_noise.0", "first.log_noise.1", "second.rho"]


def test_what_cannot_be_chained_is_refused():
    with pytest.raises(OptionError, match="first must be a loss balancer, got PCGrad"):
        Chain(PCGrad(2), PCGrad(2))
    with pytest.raises(OptionError, match="two loss balancers cannot be chained"):
        Chain(Equal(2), Equal(2))
    with pytest.raises(OptionError, match=r"Equal is of 3 tasks .* PCGrad of 2"):
        Chain(Equal(3), PCGrad(2))
    with pytest.raises(OptionError, match=r"reads the gram; call weights\(gram, losses\) instead of combine"):
        Chain(Equal(2), PCGrad(2)).combine(torch.eye(2), torch.ones(2))
    with pytest.raises(OptionError, match=r"a chain is a loss balancer and a gradient balancer, got 3"):
        cp.balancers.create("equal+equal+pcgrad", 2)
    with pytest.raises(OptionError, match=r"options are given by balancer, as \{'equal': \{...\}\}, got 'reduction'"):
        cp.balancers.create("equal+pcgrad", 2, reduction="mean")


def test_a_refused_step_leaves_both_parts_as_they_were():
    chain = Chain(cp.balancers.DWA(2, period=1), cp.balancers.GradVac(2, beta=0.5))
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    chain.backward([x.square().sum(), -(x**3).sum()])
    before = {k: v.clone() for k, v in chain.state_dict().items() if isinstance(v, torch.Tensor)}
    bad = torch.sqrt(x - 1).sum()  # a finite loss whose gradient is infinite
    x.grad = None
    with pytest.raises(cp.errors.NonFiniteError):
        chain.backward([bad, x.square().sum()])
    assert x.grad is None
    for name, value in before.items():
        assert torch.equal(chain.state_dict()[name].nan_to_num(-1.0), value.nan_to_num(-1.0)), name


def test_created_by_name_with_options_and_wrap():
    found = cp.balancers.create("uncertainty+pcgrad", 2, pcgrad={"reduction": "mean"}, wrap={"every": 4})
    assert isinstance(found, Wrapped)
    assert isinstance(found.balancer, Chain)
    assert found.balancer.second.reduction == "mean"
    with pytest.raises(OptionError, match="Wrapped has no option 'evry'; did you mean every"):
        cp.balancers.create("pcgrad", 2, wrap={"evry": 4})


@pytest.mark.parametrize(
    ("second", "ignores"),
    [
        (lambda: cp.balancers.NashMTL(2), True),
        (lambda: cp.balancers.FairGrad(2), True),
        (lambda: cp.balancers.FairGrad(2, alpha=2.0), False),
        (lambda: MGDA(2, normalization="l2", apply_to="normalized"), True),
        (lambda: MGDA(2, normalization="l2"), False),
    ],
)
def test_a_first_part_without_effect_is_told(second, ignores):
    rows = torch.tensor([[1.0, 0.2, 0.0], [-0.5, 0.3, 0.4]], dtype=torch.float64)
    scaled = rows * torch.tensor([[1.0], [7.0]], dtype=torch.float64)
    plain, other = (second().weights(g @ g.T, torch.ones(2)) @ g for g in (rows, scaled))
    assert torch.allclose(plain, other, rtol=1e-9) == ignores == second().ignores_scale
    if ignores:
        with pytest.warns(UserWarning, match="Equal before it changes nothing for the shared parameters"):
            Chain(Equal(2), second())
    else:
        Chain(Equal(2), second())


def test_a_chain_without_losses_says_who_reads_them():
    with pytest.raises(ShapeError, match="Uncertainty reads the losses"):
        Chain(Uncertainty(2), PCGrad(2)).weights(torch.eye(2))
    with pytest.raises(ShapeError, match="Uncertainty reads the losses"):
        Chain(Uncertainty(2), GradDrop(2)).combine(torch.eye(2))
