"""Equal weighting through the library is the plain PyTorch loop, bit for bit."""

import pytest
import torch
from torch.nn import functional

from counterpoint import training
from counterpoint.training.seed import epoch_generator


def plain_loop(run):
    """What anybody would write; shares with the library only the initial network and the order of the samples."""
    split = run.data.split("train").tensors
    run.model.train()
    for epoch in range(run.options.epochs):
        order = torch.randperm(len(split["image"]), generator=epoch_generator(run.options.seed, epoch))
        for chosen in order.split(run.options.batch_size):
            features = run.model.backbone(split["image"][chosen])
            total = sum(functional.cross_entropy(run.model.heads[t](features), split[t][chosen]) for t in ("a", "b"))
            run.optimizer.zero_grad()
            total.backward()
            run.optimizer.step()
        if run.scheduler is not None:
            run.scheduler.step()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("schedule", [None, {"step_size": 1, "gamma": 0.5}])
def test_equal_weighting_is_the_plain_loop(make, tmp_path, optimizer, schedule):
    ours, plain = make(optimizer=optimizer, schedule=schedule), make(optimizer=optimizer, schedule=schedule)
    start = {name: value.clone() for name, value in ours.model.state_dict().items()}

    make(optimizer=optimizer, schedule=schedule)  # seeds the global generator as before, for dropout
    plain_loop(plain)

    ours = make(optimizer=optimizer, schedule=schedule, monitor_every=2)
    with training.RunFolder(tmp_path / "run", {}) as folder:
        training.fit(
            ours.model,
            ours.data,
            ours.balancer,
            ours.optimizer,
            folder,
            ours.options,
            scheduler=ours.scheduler,
            fabric=ours.fabric,
        )

    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
        assert name.endswith("num_batches_tracked") or not torch.equal(value, start[name]), f"{name} was not trained"
