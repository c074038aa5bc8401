"""Named runs: each recipe is a function that returns a configuration."""

from collections.abc import Callable
from pathlib import Path

from counterpoint.bench.run_config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SchedulerConfig,
    TrainingConfig,
    load_run,
)
from counterpoint.errors import FileError
from counterpoint.registry import nearest


def digits() -> RunConfig:
    """Pairs of scanned digits, a small convolutional net, ten epochs: seconds on one core."""
    return RunConfig(
        data=DataConfig("digits"),
        model=ModelConfig(backbone="small_conv", backbone_options={"widths": [16, 32], "hidden": 64}),
        optimizer=OptimizerConfig("Adam", {"lr": 3e-3}),
        training=TrainingConfig(epochs=10, batch_size=128, monitor_every=10, accelerator="cpu"),
    )


def multi_fashion_mnist() -> RunConfig:
    """Multi-(Fashion+MNIST) from IDX files (give ``--data.root``), ResNet-18, SGD as in Recon's protocol.

    Batch 256, learning rate 0.1, momentum 0.9, 120 epochs with rate x 0.1 after 60 and 90, accuracy of the last epoch.
    Differs from the protocol: pairs are made by our generator, a sixth of the training scans is kept for validation,
    and the last batch of an epoch is not dropped.
    """
    return RunConfig(
        data=DataConfig("multi_fashion_mnist"),
        model=ModelConfig(backbone="resnet18", backbone_options={"small_images": False}),
        optimizer=OptimizerConfig("SGD", {"lr": 0.1, "momentum": 0.9}),
        scheduler=SchedulerConfig("MultiStepLR", {"milestones": [60, 90], "gamma": 0.1}),
        training=TrainingConfig(epochs=120, batch_size=256, monitor_every=50, threads=0),
    )


def multi_fashion_mnist_small() -> RunConfig:
    """Multi-(Fashion+MNIST) from IDX files (give ``--data.root``), small net, five epochs: minutes on two cores."""
    return RunConfig(
        data=DataConfig("multi_fashion_mnist", {"num_train": 20000, "num_val": 4000, "num_test": 4000}),
        model=ModelConfig(backbone="small_conv", backbone_options={"widths": [16, 32], "hidden": 128}),
        optimizer=OptimizerConfig("Adam", {"lr": 2e-3}),
        training=TrainingConfig(epochs=5, batch_size=256, monitor_every=20),
    )


def multi_fashion_mnist_narrow() -> RunConfig:
    """Multi-(Fashion+MNIST) from IDX files (give ``--data.root``), ResNet-18 of width 16, ten epochs: a minute a run.

    The protocol of :func:`multi_fashion_mnist` made small: 8,000 training pairs, a quarter of the width, and the
    learning rate x 0.1 after epochs 5 and 8.
    """
    return RunConfig(
        data=DataConfig("multi_fashion_mnist", {"num_train": 8000, "num_val": 500, "num_test": 3332}),
        model=ModelConfig(backbone="resnet18", backbone_options={"width": 16}),
        optimizer=OptimizerConfig("SGD", {"lr": 0.1, "momentum": 0.9}),
        scheduler=SchedulerConfig("MultiStepLR", {"milestones": [5, 8], "gamma": 0.1}),
        training=TrainingConfig(epochs=10, batch_size=256, monitor_every=4),
    )


def fashion_attributes() -> RunConfig:
    """Six attributes of FashionMNIST's images (give ``--data.root``), small net, six epochs: a minute on one core."""
    return RunConfig(
        data=DataConfig("fashion_attributes", {"num_train": 6000, "num_val": 1000, "num_test": 5000}),
        model=ModelConfig(backbone="small_conv", backbone_options={"widths": [8, 16], "hidden": 64}),
        optimizer=OptimizerConfig("Adam", {"lr": 2e-3}),
        training=TrainingConfig(epochs=6, batch_size=128, monitor_every=20, accelerator="cpu"),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        fashion_attributes,
        multi_fashion_mnist,
        multi_fashion_mnist_small,
        multi_fashion_mnist_narrow,
    )
}


def find_recipe(name: str) -> RunConfig:
    """Return the configuration of a recipe, or of a YAML file.

    Raises:
        FileError: If there is neither a recipe nor a file of that name.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return load_run(path)
    hint = nearest(name, RECIPES) or f"; recipes: {', '.join(RECIPES)}"
    raise FileError(f"no recipe and no file is called {name!r}{hint}")
