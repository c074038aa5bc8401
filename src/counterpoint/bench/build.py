"""From a configuration to objects."""

import dataclasses
import functools
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from lightning_fabric import Fabric

from counterpoint import architectures, blocks, data, schedules, splitting
from counterpoint._checks import check_choice, check_integer
from counterpoint._version import __version__
from counterpoint.balancers import Balancer
from counterpoint.bench.method import build_balancer, check_balancer, set_engine
from counterpoint.bench.options import check_component
from counterpoint.bench.run_config import RunConfig, SplitConfig, TrainingConfig
from counterpoint.data import MultiTaskData
from counterpoint.errors import OptionError
from counterpoint.splitting.plan import check_sizes
from counterpoint.tasks import Task
from counterpoint.training import seed_everything
from counterpoint.training.optimizers import build_optimizer, build_scheduler, rehearse
from counterpoint.training.seed import check_seed

_ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")


@dataclasses.dataclass
class Built:
    """Everything that a run needs."""

    data: MultiTaskData
    tasks: tuple[Task, ...]
    model: torch.nn.Module
    balancer: Balancer
    optimizer: torch.optim.Optimizer
    scheduler: Any
    schedule: schedules.Schedule
    fabric: Fabric


def check_run(config: RunConfig) -> None:
    """Check every name and option of a configuration without building anything or reading any data.

    Raises:
        OptionError: If an option does not exist, has the wrong type or is missing.
    """
    model, balancer = config.model, config.balancer
    check_component(data.DATASETS, config.data.name, config.data.options, where="--data.{} VALUE")
    check_component(architectures.ARCHITECTURES, model.name, model.options, where="--model.options.{} VALUE")
    check_component(blocks.BACKBONES, model.backbone, model.backbone_options, where="--model.backbone_options.{} VALUE")
    check_component(blocks.HEADS, model.head, model.head_options, where="--model.head_options.{} VALUE")
    check_balancer(balancer, where="--balancer.{} VALUE")
    check_component(schedules.SCHEDULES, config.schedule.name, config.schedule.options, where="--schedule.{} VALUE")
    check_choice("training: precision", config.training.precision, _PRECISIONS)
    check_choice("training: accelerator", config.training.accelerator, _ACCELERATORS)
    check_choice("split: init", config.split.init, ("same", "independent"))
    check_choice("split: dropout", config.split.dropout, ("own", "same"))
    if config.split.layers and config.training.level == "features":
        raise OptionError(
            "training: level 'features' balances the gradients where the heads begin, and after a split each task has "
            "features of its own there; leave out --training.level, or use parameters"
        )
    check_integer("training: threads", config.training.threads, low=0)
    check_seed(config.seed)
    config.training.fit_options(config.seed, step_schedule=config.scheduler.every_step)
    probe = torch.nn.Linear(1, 1)
    optimizer = build_optimizer(config.optimizer.name, config.optimizer.options, (), probe)
    scheduler = build_scheduler(config.scheduler.name, config.scheduler.options, optimizer)
    rehearse(optimizer, scheduler, every_step=config.scheduler.every_step)


def load_data(config: RunConfig) -> MultiTaskData:
    """Read the data set of a configuration; the one read last in this process is kept."""
    return _load_data(config.data.name, json.dumps(config.data.options, sort_keys=True))


@functools.lru_cache(maxsize=1)
def _load_data(name: str, options: str) -> MultiTaskData:
    return data.create(name, **_tuples(json.loads(options)))


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with tuples where YAML has lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def build(config: RunConfig) -> Built:
    """Seed everything and build the objects of a run; sets the number of threads of torch."""
    training = config.training
    if training.threads > 0:
        torch.set_num_threads(training.threads)
    dataset = load_data(config)
    tasks = dataset.select_tasks(config.data.tasks)
    fabric = _fabric(training)
    seed_everything(config.seed)
    with fabric.init_module():
        model = _model(config, dataset, tasks)
        split_model(model, config.split, len(tasks))
    names = [task.name for task in tasks]
    balancer = build_balancer(config.balancer, names)
    if len(names) > 1:
        set_engine(balancer, training.engine)
    optimizer_config = config.optimizer
    groups = [(group.match, group.options) for group in optimizer_config.groups]
    optimizer = build_optimizer(optimizer_config.name, optimizer_config.options, groups, model, balancer)
    scheduler = build_scheduler(config.scheduler.name, config.scheduler.options, optimizer)
    schedule = schedules.create(config.schedule.name, tasks=names, **config.schedule.options)
    return Built(dataset, tasks, model, balancer, optimizer, scheduler, schedule, fabric)


def split_model(model: torch.nn.Module, split: SplitConfig, num_tasks: int) -> None:
    """Give each task its own copy of some layers, in place.

    Raises:
        UnknownNameError: If there is no such layer.
        OptionError: If there is one task, the plan is of another network, or the heads cannot be found.
    """
    if not split.layers:
        return
    if num_tasks < 2:
        raise OptionError("split: a network for one task has nothing to split; leave out --split")
    check_sizes(split.sizes, splitting.sizes(model), whole=False)
    if not hasattr(model, "heads"):
        raise OptionError(f"split: {type(model).__name__} has no container 'heads', so its heads cannot be found")
    splitting.split(
        model,
        list(split.layers),
        num_tasks,
        init=split.init,  # type: ignore[arg-type] - checked
        dropout=split.dropout,  # type: ignore[arg-type] - checked
        heads="heads",
    )


def _fabric(training: TrainingConfig) -> Fabric:
    """Return device and precision.

    Raises:
        OptionError: If this machine has no such device.
    """
    try:
        return Fabric(accelerator=training.accelerator, devices=1, precision=training.precision)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"training: accelerator {training.accelerator!r} cannot be used on this machine ({error}); take auto or cpu"
        ) from error


def _model(config: RunConfig, dataset: MultiTaskData, tasks: tuple[Task, ...]) -> torch.nn.Module:
    own = config.model
    backbone = blocks.BACKBONES.create(own.backbone, dataset.input_shape, **_tuples(own.backbone_options))
    if missing := [name for name in ("stages", "channels") if not hasattr(backbone, name)]:
        raise OptionError(
            f"backbone {own.backbone!r}: its __init__ has to set {' and '.join(f'self.{name}' for name in missing)}; "
            "docs/own_problem.md has an example"
        )
    heads = {
        task.name: blocks.HEADS.create(own.head, backbone.channels[-1], task.num_outputs, **own.head_options)
        for task in tasks
    }
    return architectures.create(own.name, backbone, heads, **own.options)


def environment() -> dict[str, Any]:
    """Return versions and machine, for the run folder and the report."""
    packages = ("torch", "numpy", "lightning-fabric", "torchmetrics", "scikit-learn")
    return {
        "counterpoint": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
