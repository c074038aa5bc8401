"""Estimators against the oracles, and that they leave no trace."""

import copy
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import counterpoint as cp
from counterpoint.errors import GraphError, NonFiniteError, OptionError

ESTIMATORS = [
    ("tag", {}),
    ("tag", {"use_optimizer_state": False}),
    ("tag_first_order", {}),
    ("gradient_cosine", {}),
    ("transfer_gain", {}),
    ("transfer_gain", {"lookahead_mode": "train", "update_heads": False, "measure_diagonal": True}),
    ("saliency", {}),
    ("label_correlation", {}),
]


def oracle(name):
    path = Path(os.environ.get("COUNTERPOINT_ORACLES", "")) / "relations_oracles.json"
    if not path.is_file():
        pytest.skip("COUNTERPOINT_ORACLES does not name a folder with relations_oracles.json")
    return json.loads(path.read_text())[name]


class Quadratics(nn.Module):
    """The problem of the oracles: L_i = (t - c_i)' A_i (t - c_i) / 2 + offset."""

    def __init__(self):
        super().__init__()
        given = oracle("tag_affinity")
        self.given = given
        self.a = torch.tensor(given["A"], dtype=torch.float64)
        self.c = torch.tensor(given["c"], dtype=torch.float64)
        self.theta = nn.Parameter(torch.tensor(given["theta"], dtype=torch.float64))

    def forward(self):
        away = self.theta - self.c
        return list(0.5 * torch.einsum("ti,tij,tj->t", away, self.a, away) + self.given["offset"])


@pytest.mark.parametrize("use_optimizer_state", [True, False])
def test_tag_on_quadratics(use_optimizer_state):
    model = Quadratics()
    optimizer = torch.optim.SGD(model.parameters(), lr=model.given["lr"])
    one = cp.grouping.TAG(3, use_optimizer_state=use_optimizer_state)
    one.observe(model, model, optimizer)
    np.testing.assert_allclose(one.result().values, model.given["Z_source_row_target_col"], atol=1e-9)
    mean = cp.grouping.TAG(3, every=1, use_optimizer_state=use_optimizer_state)
    for _ in range(5):
        mean.observe(model, model, optimizer)
        optimizer.zero_grad()
        sum(model()).backward()
        optimizer.step()
    np.testing.assert_allclose(model.theta.detach(), model.given["theta_after_5"], atol=1e-7)
    np.testing.assert_allclose(mean.result().values, model.given["mean_over_5_joint_steps"], atol=1e-9)


def test_first_order_and_cosine_on_quadratics():
    model = Quadratics()
    optimizer = torch.optim.SGD(model.parameters(), lr=model.given["lr"])
    first, cosine = cp.grouping.TAGFirstOrder(3), cp.grouping.GradientCosine(3)
    first.observe(model, model, optimizer)
    cosine.observe(model, model)
    np.testing.assert_allclose(first.result().values, model.given["first_order"], atol=1e-9)
    np.testing.assert_allclose(cosine.result().values, oracle("grad_cosine")["cos"], atol=1e-8)


def test_transfer_gain_on_quadratics():
    model = Quadratics()
    found = oracle("wang_transfer_gain_quadratic")
    optimizer = torch.optim.SGD(model.parameters(), lr=model.given["lr"])
    gain = cp.grouping.TransferGain(3)
    gain.observe(model, model, optimizer)
    np.testing.assert_allclose(gain.result().values, found["pairwise"], atol=1e-9)
    assert gain.group_gain(model, model, optimizer, [0, 1], 2) == pytest.approx(found["group_01_to_2"], abs=1e-9)


def test_saliency_of_linear_heads_is_the_distance_of_their_weights():
    found = oracle("srdml")
    weights = torch.tensor(found["linear_weights"])
    trunk = nn.Linear(4, 2)
    estimator = cp.grouping.Saliency(3)

    def compute():
        features = trunk(torch.ones(5, 4))
        return features, list(weights @ features.T)

    estimator.observe(compute, trunk)
    values = estimator.result().values
    assert [values[0, 1], values[0, 2], values[1, 2]] == pytest.approx(found["l1_distances"])
    assert not estimator.result().higher_is_better


def test_label_correlation_over_batches_equals_numpy():
    draw = np.random.default_rng(0)
    labels = draw.normal(size=(40, 3)) + draw.normal(size=(40, 1))
    estimator = cp.grouping.LabelCorrelation(4)
    for batch in np.split(labels, 4):
        columns = [torch.tensor(batch[:, at]) for at in range(3)]
        estimator.observe(lambda columns=columns: [*columns, torch.full((10,), 3.0)], nn.Identity())
    values = estimator.result().values
    np.testing.assert_allclose(values[:3, :3], np.corrcoef(labels.T), atol=1e-10)
    assert not values[3].any()


class Net(nn.Module):
    """Trunk with a norm and dropout, three heads."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))


def computes(model, reads):
    x, y = torch.randn(8, 4), torch.randn(3, 8)

    def outputs():
        features = model.trunk(x)
        return features, [head(features)[:, 0] for head in model.heads]

    def losses():
        return [(out - label).square().mean() for out, label in zip(outputs()[1], y, strict=True)]

    return {"losses": losses, "(features, outputs)": outputs, "labels": lambda: list(y)}[reads]


@pytest.mark.parametrize(("name", "options"), ESTIMATORS)
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "fresh_adam"])
def test_no_trace(name, options, kind):
    torch.manual_seed(0)
    model = Net()
    model.heads[2].eval()
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    }.get(kind, lambda p: torch.optim.Adam(p, lr=0.1))(model.parameters())
    losses = computes(model, "losses")
    if kind != "fresh_adam":
        sum(losses()).backward()
        optimizer.step()
    estimator = cp.grouping.create(name, 3, **options)
    compute = computes(model, estimator.reads)

    def everything():
        return copy.deepcopy(
            [
                model.state_dict(),
                [p.grad for p in model.parameters()],
                optimizer.state_dict(),
                torch.get_rng_state(),
                random.getstate(),
                [module.training for module in model.modules()],
            ]
        )

    before, held = everything(), [p.grad for p in model.parameters()]
    assert estimator.observe(compute, model, optimizer)
    same(before, everything())
    assert all(now is was for now, was in zip([p.grad for p in model.parameters()], held, strict=True))
    estimator.result()


def same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            same(left, right)
    else:
        assert a == b


def test_tag_with_adam_is_the_loss_after_adams_own_step():
    torch.manual_seed(0)
    model = Net().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = computes(model, "losses")
    sum(losses()).backward()
    optimizer.step()
    optimizer.zero_grad()
    tag = cp.grouping.TAG(3)
    tag.observe(losses, model, optimizer)
    before = [float(loss.detach()) for loss in losses()]
    losses()[1].backward()
    for head in model.heads:
        for p in head.parameters():
            p.grad = None
    optimizer.step()
    wanted = [1 - float(loss.detach()) / was for loss, was in zip(losses(), before, strict=True)]
    np.testing.assert_allclose(tag.result().values[1], wanted, atol=1e-6)


def test_absent_tasks_are_left_out_and_counted_apart():
    model = Quadratics()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tag = cp.grouping.TAG(tasks=["a", "b", "c"], every=1)
    tag.observe(lambda: dict(zip("ab", model()[:2], strict=True)), model, optimizer)
    values = tag.result().values
    assert np.isnan(values[2]).all()
    assert np.isnan(values[:, 2]).all()
    np.testing.assert_allclose(values[:2, :2], np.array(model.given["Z_source_row_target_col"])[:2, :2], atol=1e-9)


def test_bad_input_names_the_task():
    model = Quadratics()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match="loss of b is -1"):
        cp.grouping.TAG(tasks=["a", "b", "c"]).observe(
            lambda: [model()[0], model()[1] * 0 - 1, model()[2]], model, optimizer
        )
    with pytest.raises(NonFiniteError, match="loss of 2 is nan"):
        cp.grouping.TAG(3).observe(lambda: [*model()[:2], model()[2] * float("nan")], model, optimizer)
    with pytest.raises(GraphError, match="no graph"):
        cp.grouping.GradientCosine(3).observe(lambda: [loss.detach() for loss in model()], model)
    with pytest.raises(OptionError, match="pass the optimizer"):
        cp.grouping.TAG(3).observe(model, model)
    with pytest.raises(OptionError, match="nothing was observed"):
        cp.grouping.TAG(3).result()


@pytest.mark.parametrize(("name", "options"), ESTIMATORS)
def test_observes_every_few_steps_and_resumes(name, options):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    whole = cp.grouping.create(name, 3, every=2, **options)
    compute = computes(model, whole.reads)
    assert [whole.observe(compute, model, optimizer) for _ in range(3)] == [True, False, True]
    part = cp.grouping.create(name, 3, every=2, **options)
    part.observe(compute, model, optimizer)
    rest = cp.grouping.create(name, 3, every=2, **options)
    rest.load_state_dict(json.loads(json.dumps(part.state_dict())))
    rest.observe(compute, model, optimizer)
    rest.observe(compute, model, optimizer)
    np.testing.assert_array_equal(whole.result().values, rest.result().values)
    assert cp.grouping.AffinityMatrix.from_dict(json.loads(json.dumps(whole.result().to_dict()))).source
