"""A small data set with everything that training has to cope with, and a way to build a run on it."""

from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric

from counterpoint import architectures, balancers, blocks, losses, metrics
from counterpoint.data import MultiTaskData, TensorSplit
from counterpoint.tasks import Task
from counterpoint.training import FitOptions, seed_everything


class Toy(MultiTaskData):
    """Two classification tasks on noisy 4 x 4 images."""

    key = "toy"
    source = provenance = "made here"

    def __init__(self, num_train: int = 70, *, masked: bool = False) -> None:
        self.sizes = {"train": num_train, "val": 30, "test": 30}
        self.masked = masked

    @property
    def tasks(self):
        accuracy = {"accuracy": metrics.accuracy(3)}
        return tuple(Task(name, losses.cross_entropy, accuracy, 3) for name in ("a", "b"))

    @property
    def input_shape(self):
        return (1, 4, 4)

    def split(self, name):
        generator = torch.Generator().manual_seed(["train", "val", "test"].index(name))
        size = self.sizes[name]
        first, second = (torch.randint(3, (size,), generator=generator) for _ in range(2))
        image = torch.randn(size, 1, 4, 4, generator=generator)
        image[:, 0, 0] += first[:, None]
        image[:, 0, 3] += second[:, None]
        tensors = {"image": image, "a": first, "b": second}
        if self.masked:
            tensors["b_mask"] = torch.rand(size, generator=generator) < 0.5
        return TensorSplit(tensors)


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def make():
    """Build the objects of a run on the toy data, seeded."""

    def build(balancer="equal", *, optimizer="SGD", dropout=0.2, data=None, schedule=None, seed=3, **options):
        data = data or Toy()
        seed_everything(seed)
        backbone = blocks.SmallConv(data.input_shape, widths=(4,), hidden=8, dropout=dropout)
        heads = {task.name: blocks.Classifier(8, task.num_outputs) for task in data.tasks}
        model = architectures.HardSharing(backbone, heads)
        method = balancers.create(balancer, tasks=["a", "b"])
        parameters = [*model.parameters(), *method.parameters()]
        optim = getattr(torch.optim, optimizer)(
            parameters, lr=0.05, **({"momentum": 0.9} if optimizer == "SGD" else {})
        )
        scheduler = None if schedule is None else torch.optim.lr_scheduler.StepLR(optim, **schedule)
        return SimpleNamespace(
            data=data,
            model=model,
            balancer=method,
            optimizer=optim,
            scheduler=scheduler,
            fabric=Fabric(accelerator="cpu", devices=1),
            options=FitOptions(**{"epochs": 3, "batch_size": 16, "seed": seed, **options}),
        )

    return build
