"""What a balancer asks of the loop is served as it says: losses after the step, and looks ahead."""

import pytest
import torch
from torch import nn

from counterpoint import architectures, balancers, training
from counterpoint.errors import OptionError
from training.runs import train


class Noisy(nn.Module):
    """A trunk with BatchNorm and dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        return self.net(x)


class Recording(balancers.LossBalancer):
    """The plain sum; keeps the losses of a step, those after it, and the state of the norms."""

    key = "recording"
    needs = frozenset({"losses_after_step"})

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.before, self.after = [], []

    def objective(self, losses, *, present=None):
        self.before.append(losses.detach().clone())
        return losses.sum()

    def after_step(self, losses):
        assert not any(loss.requires_grad for loss in losses.values())
        self.after.append(torch.stack(list(losses.values())))


def run(make, tmp_path, balancer, *, rate, epochs=2):
    made = make(epochs=epochs)
    torch.manual_seed(0)
    heads = {task.name: nn.Linear(8, task.num_outputs) for task in made.data.tasks}
    model = architectures.HardSharing(Noisy(), heads)
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=rate)
    with training.RunFolder(tmp_path, {}) as folder:
        training.fit(model, made.data, balancer, optimizer, folder, made.options, fabric=made.fabric)
    return model


def test_losses_after_a_step_are_of_the_same_batch_and_the_same_dropout(make, tmp_path):
    still, moving = Recording(tasks=["a", "b"]), Recording(tasks=["a", "b"])
    run(make, tmp_path / "still", still, rate=0.0)
    assert len(still.before) == len(still.after) == 10
    for before, after in zip(still.before, still.after, strict=True):
        assert torch.equal(before, after)  # nothing was learned, so any difference is another batch or another dropout
    run(make, tmp_path / "moving", moving, rate=0.1)
    assert torch.equal(moving.before[0], still.before[0])
    assert all(not torch.equal(a, b) for a, b in zip(moving.before, moving.after, strict=True))


def test_losses_after_a_step_leave_no_trace(make, tmp_path):
    told = run(make, tmp_path / "told", Recording(tasks=["a", "b"]), rate=0.1)
    plain = run(make, tmp_path / "plain", balancers.Equal(tasks=["a", "b"]), rate=0.1)
    for (name, mine), theirs in zip(told.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name  # parameters: the dropout of later steps; running statistics of the norm


@pytest.mark.parametrize("update", ["adam", "sgd"])
def test_famo_learns_in_the_loop(make, tmp_path, update):
    balancer = balancers.FAMO(tasks=["a", "b"], update=update)
    run(make, tmp_path, balancer, rate=0.1)
    assert balancer.count.tolist() == ([10, 10] if update == "adam" else [0, 0])
    assert float(balancer.logits.abs().min()) > 0


def test_auto_lambda_learns_in_the_loop_and_looking_leaves_no_trace(make, tmp_path):
    learning = balancers.AutoLambda(tasks=["a", "b"], learning_rate=0.05)
    run(make, tmp_path / "learning", learning, rate=0.1)
    assert learning.count.tolist() == [10, 10]
    assert float((learning.learned - 0.1).abs().min()) > 0.01
    still = balancers.AutoLambda(tasks=["a", "b"], learning_rate=1e-300)  # looks, and learns nothing
    looked = run(make, tmp_path / "looked", still, rate=0.1)
    weights = {"a": 0.1, "b": 0.1}
    plain = run(make, tmp_path / "plain", balancers.Fixed(tasks=["a", "b"], task_weights=weights), rate=0.1)
    for (name, mine), theirs in zip(looked.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_losses_by_instance_are_given_to_a_balancer_that_reads_them(make, tmp_path):
    made = make("spmtl", monitor_every=2)
    before = [parameter.detach().clone() for parameter in made.model.parameters()]
    train(made, tmp_path)
    assert 0.5 < float(made.balancer.limit) / 1.1**3 < 2.0  # the median of cross entropies of three classes, near ln 3
    assert float(made.balancer.penalty) == pytest.approx(0.1 / 1.1**3)
    assert any(not torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_heads_read_rotated_features_in_training_and_in_evaluation(make, tmp_path):
    made = make("rotograd", epochs=2)
    rotated, hidden = {True: 0, False: 0}, []
    made.model.backbone.register_forward_hook(lambda _, __, features: hidden.append(features))

    def check(task):
        def hook(head, given):
            expected = hidden[-1] @ made.balancer.rotations[task].T
            torch.testing.assert_close(given[0], expected)
            rotated[head.training] += not torch.equal(given[0], hidden[-1])

        return hook

    def after_an_epoch(record):  # behind the hooks of the loop
        for task, head in enumerate(made.model.heads.values()):
            if record["epoch"] == 1:
                head.register_forward_pre_hook(check(task))

    train(made, tmp_path, on_epoch=after_an_epoch)
    assert rotated == {True: 2 * 5, False: 2 * 2}  # heads x batches of training, of validation and test
    difference = made.balancer.rotations @ made.balancer.rotations.mT - torch.eye(8)
    assert float(difference.abs().max()) < 1e-5


def test_a_level_that_was_asked_for_is_not_replaced(make, tmp_path):
    run = make("rotograd", epochs=1, level="parameters")
    with pytest.raises(OptionError, match=r"call backward.*level='features'"):
        train(run, tmp_path)
