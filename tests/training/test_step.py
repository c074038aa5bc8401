import pytest
import torch
from torch import nn

from counterpoint import architectures, balancers, losses, metrics, training
from counterpoint.errors import NonFiniteError, OptionError
from counterpoint.tasks import Task
from counterpoint.training.step import conflict_gram, forward, task_losses

TASKS = [Task(name, losses.cross_entropy, {"accuracy": metrics.accuracy(3)}, 3) for name in ("a", "b")]


class Net(architectures.MultiTaskModel):
    """A trunk, two heads, an auxiliary head of task a, and an extra loss on the trunk."""

    def __init__(self):
        super().__init__(("a", "b"))
        self.trunk = nn.Linear(4, 5)
        self.heads = nn.ModuleDict({name: nn.Linear(5, 3) for name in (*self.task_names, "aux")})

    def forward(self, x, tasks=None):
        features = self.trunk(x).tanh()
        preds = {name: self.heads[name](features) for name in self.asked(tasks)}
        aux = architectures.Auxiliary("deep", {"a": self.heads["aux"](features)}, 0.25)
        return architectures.MTLOutput(preds, (aux,), {"penalty": self.trunk.weight.square().sum()}, {}, (features,))

    def task_parameters(self, task):
        return self.heads[task].parameters()


def batch(masked=False):
    generator = torch.Generator().manual_seed(5)
    found = {"image": torch.randn(6, 4, generator=generator)}
    found |= {name: torch.randint(3, (6,), generator=generator) for name in ("a", "b")}
    if masked:
        found["b_mask"] = torch.tensor([True, False, True, False, False, True])
    return found


@pytest.mark.parametrize("level", [None, "parameters", "features"])
def test_deep_supervision_and_extra_terms_are_trained(level):
    ours, plain = Net(), Net()
    plain.load_state_dict(ours.state_dict())
    data = batch()
    training.training_step(
        ours,
        TASKS,
        data,
        balancers.create("equal", tasks=["a", "b"]),
        torch.optim.SGD(ours.parameters(), 0.1),
        level=level,
    )
    output = plain(data["image"])
    cross_entropy = nn.functional.cross_entropy
    total = cross_entropy(output.preds["a"], data["a"]) + 0.25 * cross_entropy(output.aux[0].preds["a"], data["a"])
    total = total + cross_entropy(output.preds["b"], data["b"]) + plain.trunk.weight.square().sum()
    total.backward()
    torch.optim.SGD(plain.parameters(), 0.1).step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_masks_and_missing_labels():
    net, data = Net(), batch(masked=True)
    found = task_losses(net(data["image"]), TASKS, data)
    kept = data["b_mask"]
    expected = nn.functional.cross_entropy(net(data["image"]).preds["b"][kept], data["b"][kept])
    torch.testing.assert_close(found["b"], expected)
    data["b_mask"] = torch.zeros(6, dtype=torch.bool)
    assert task_losses(net(data["image"]), TASKS, data)["b"] is None
    del data["a"]
    assert task_losses(net(data["image"]), TASKS, data) == {"a": None, "b": None}


def test_measuring_conflict_disturbs_nothing():
    net, data = Net(), batch()
    found, output = forward(net, TASKS, data)
    gram = conflict_gram(found, ["a", "b"], output)
    assert all(parameter.grad is None for parameter in net.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(found[t], list(net.trunk.parameters()), retain_graph=True)])
        for t in ("a", "b")
    ]
    dense = torch.stack(rows).double()
    torch.testing.assert_close(gram, dense @ dense.T, rtol=1e-5, atol=1e-9)
    found["a"].backward()  # the graph is still there
    assert torch.isnan(conflict_gram({"a": None, "b": None}, ["a", "b"], output)).all()


def test_a_loss_that_is_not_finite_names_step_and_task_and_keeps_the_checkpoint(make, tmp_path, monkeypatch):
    from counterpoint.training import visit

    original, calls = visit.forward, []

    def sabotage(*arguments):
        found, output = original(*arguments)
        calls.append(1)
        if len(calls) == 8:  # five steps an epoch: the third of the second
            found["b"] = found["b"] * float("nan")
        return found, output

    monkeypatch.setattr(visit, "forward", sabotage)
    run = make("pcgrad")
    with training.RunFolder(tmp_path, {}) as folder:
        with pytest.raises(
            NonFiniteError, match=r"epoch 2, step 8: PCGrad: the loss of task 'b' is not finite"
        ) as caught:
            training.fit(run.model, run.data, run.balancer, run.optimizer, folder, run.options, fabric=run.fabric)
        assert caught.value.tasks == ("b",)
        assert folder.load_checkpoint("last")["epoch"] == 1
        assert folder.result is None


def test_losses_by_instance():
    net, data = Net(), batch(masked=True)
    output = net(data["image"])
    found = task_losses(output, TASKS, data, "instance")
    assert found["a"].shape == (6,)
    assert found["b"].shape == (3,)  # of the samples with a label
    for name, scalar in task_losses(output, TASKS, data).items():
        torch.testing.assert_close(found[name].mean(), scalar)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda prediction, target, mask: prediction.mean(), r"Task 'a': .*takes no reduction=; give it an argument"),
        (lambda prediction, target, mask, **_: prediction.mean(), r"Task 'a': .*has shape \(\) with reduction='none'"),
    ],
)
def test_a_loss_of_ones_own_without_instances_is_refused(loss, message):
    task = Task("a", loss, {"accuracy": metrics.accuracy(3)}, 3)
    balancer = balancers.create("spmtl", tasks=["a"])
    net = Net()
    with pytest.raises(OptionError, match=message):
        training.training_step(net, [task], batch(), balancer, torch.optim.SGD(net.parameters(), 0.1))
