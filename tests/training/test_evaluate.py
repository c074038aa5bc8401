import pytest
import torch

from counterpoint import training


@pytest.mark.parametrize("masked", [False, True])
def test_counts_over_the_whole_split(make, toy, masked):
    data = toy(masked=masked)
    run = make(data=data)
    run.model.train()
    split = data.split("val").tensors
    batches = [{name: tensor[at] for name, tensor in split.items()} for at in torch.arange(30).split(7)]
    found = training.evaluate(run.model, data.tasks, batches)
    assert run.model.training, "the mode was not put back"
    run.model.eval()
    with torch.no_grad():
        predicted = {name: scores.argmax(1) for name, scores in run.model(split["image"]).preds.items()}
    for name in ("a", "b"):
        kept = split.get(f"{name}_mask", torch.ones(30, dtype=torch.bool))
        correct = int((predicted[name] == split[name])[kept].sum())
        assert found[name]["accuracy"] == pytest.approx(100 * correct / int(kept.sum()), abs=1e-4)


def test_a_task_without_labels_has_no_value(make, toy):
    run = make()
    batch = run.data.split("val").tensors
    found = training.evaluate(run.model, run.data.tasks, [{"image": batch["image"], "a": batch["a"]}])
    assert found["b"]["accuracy"] != found["b"]["accuracy"]
    assert 0 <= found["a"]["accuracy"] <= 100


def test_dense_targets_with_masks():
    from types import SimpleNamespace

    from counterpoint import losses, metrics
    from counterpoint.tasks import Task

    scores = torch.zeros(2, 3, 2, 2)
    scores[:, 1] = 1.0  # class 1 everywhere
    target = torch.tensor([[[1, 1], [0, 2]], [[1, 0], [1, 1]]])
    mask = torch.tensor([[[True, False], [True, True]], [[True, True], [False, True]]])
    task = Task("seg", losses.cross_entropy, {"accuracy": metrics.accuracy(3)}, 3)

    class Model(torch.nn.Module):
        def forward(self, x, tasks):
            return SimpleNamespace(preds={"seg": scores})

    found = training.evaluate(Model(), [task], [{"image": torch.zeros(2), "seg": target, "seg_mask": mask}])
    assert found == {"seg": {"accuracy": pytest.approx(50.0)}}  # 3 of the 6 labelled pixels
