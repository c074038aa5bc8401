"""The typed tree that describes a run; YAML is only its written form."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from counterpoint._checks import check_range
from counterpoint.bench.options import one_line
from counterpoint.errors import FileError, OptionError
from counterpoint.registry import closest, nearest
from counterpoint.splitting import SplitPlan
from counterpoint.training import FitOptions
from counterpoint.training.run_folder import read_yaml

Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data set.

    Attributes:
        name: Key of the data set.
        options: Arguments of its constructor.
        tasks: Tasks to train; ``None`` for all.
    """

    name: str = "digits"
    options: Options = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Network.

    Attributes:
        name: Key of the architecture.
        options: Arguments of its constructor, without backbone and heads.
        backbone: Key of the backbone.
        backbone_options: Arguments of its constructor.
        head: Key of the head that every task gets.
        head_options: Arguments of its constructor.
    """

    name: str = "hard_sharing"
    options: Options = dataclasses.field(default_factory=dict)
    backbone: str = "small_conv"
    backbone_options: Options = dataclasses.field(default_factory=dict)
    head: str = "classifier"
    head_options: Options = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class BalancerConfig:
    """Balancer.

    Attributes:
        name: Key of the balancer, or a loss balancer and a gradient balancer with a plus sign between.
        options: Arguments of its constructor, without the tasks; of two, a mapping for each.
        wrap: Options of :class:`~counterpoint.balancers.Wrapped` around it.
    """

    name: str = "equal"
    options: Options = dataclasses.field(default_factory=dict)
    wrap: Options = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Which tasks are updated together.

    Attributes:
        name: Key of the schedule.
        options: Arguments of its constructor, without the tasks.
    """

    name: str = "joint"
    options: Options = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """Options of some parameters.

    Attributes:
        match: Regular expression on parameter names.
        options: Arguments of the optimizer for these.
    """

    match: str
    options: Options = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer.

    Attributes:
        name: Class of ``torch.optim``.
        options: Its arguments.
        groups: Parameter groups with options of their own.
    """

    name: str = "Adam"
    options: Options = dataclasses.field(default_factory=dict)
    groups: tuple[GroupConfig, ...] = ()


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """Learning-rate schedule.

    Attributes:
        name: Class of ``torch.optim.lr_scheduler``; ``None`` for a constant rate.
        options: Its arguments.
        every_step: Step it after every update instead of every epoch.
    """

    name: str | None = None
    options: Options = dataclasses.field(default_factory=dict)
    every_step: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length, batches, measurements and device.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples per update.
        eval_batch_size: Samples per batch of evaluation.
        level: ``None``, or ``"parameters"`` or ``"features"``: hand the features to the balancer, and what to balance.
        monitor_every: Updates between measurements of the cosines between task gradients; 0 for never.
        checkpoint_every: Epochs between checkpoints.
        num_workers: Processes that load data.
        selection: ``"last"``, ``"best"`` (on the validation split) or ``"mean_last"``.
        selection_k: Number of epochs of ``"mean_last"``.
        accelerator: As Lightning Fabric names it: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
        engine: How methods that read the Gram matrix make it: ``"auto"``, ``"rows"`` or ``"low_memory"``; ``None`` for
            the balancer's own.
        precision: ``"32-true"``, ``"64-true"``, ``"bf16-mixed"`` or ``"bf16-true"``.
        threads: Threads of torch on the CPU; 0 leaves torch's default. Results can differ in the last bits between
            numbers of threads.
    """

    epochs: int = 10
    batch_size: int = 128
    eval_batch_size: int = 1000
    level: str | None = None
    monitor_every: int = 10
    checkpoint_every: int = 1
    num_workers: int = 0
    selection: str = "last"
    selection_k: int = 5
    accelerator: str = "auto"
    engine: str | None = None
    precision: str = "32-true"
    threads: int = 1

    def fit_options(self, seed: int, *, step_schedule: bool) -> FitOptions:
        """Return what the loop needs of this."""
        names = {field.name for field in dataclasses.fields(FitOptions)}
        own = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        return FitOptions(seed=seed, step_schedule=step_schedule, **own)


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Layers of which every task gets its own copy.

    Attributes:
        layers: Their names, as in ``counterpoint.splitting.find_layers``; none splits nothing.
        plan: File of a plan. Its layers and sizes are taken over at once, so that a run's own configuration is whole.
        init: ``"same"`` or ``"independent"``, as in :func:`counterpoint.splitting.split`.
        dropout: ``"own"`` or ``"same"``.
        sizes: Number of parameters of each layer of the network that the plan was made for, to be checked.
        rule: How the layers were chosen, as text.
    """

    layers: tuple[str, ...] = ()
    plan: str | None = None
    init: str = "same"
    dropout: str = "own"
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    rule: str = ""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run.

    Attributes:
        data: Data set.
        model: Network.
        balancer: Balancer.
        optimizer: Optimizer.
        schedule: Which tasks are updated together.
        scheduler: Schedule of the learning rate.
        training: Length, measurements, device.
        split: Layers of which every task gets its own copy.
        seed: Seed of initialization, sample order and everything random.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    balancer: BalancerConfig = dataclasses.field(default_factory=BalancerConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    scheduler: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    seed: int = 0

    def shortened(self, share: float) -> "RunConfig":
        """Return the beginning of this run: a share of the epochs, rounded, at least one; schedules stay as they are.

        Raises:
            OptionError: If the share is not in (0, 1].
        """
        check_range("share of the epochs", share, low=0.0, low_open=True, high=1.0)
        epochs = max(1, round(share * self.training.epochs))
        return dataclasses.replace(self, training=dataclasses.replace(self.training, epochs=epochs))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as it is written to YAML; without a split or an engine where none is asked for."""
        content = plain(dataclasses.asdict(self))
        if self.split == SplitConfig():
            del content["split"]
        if self.training.engine is None:
            del content["training"]["engine"]
        return content


# Sections whose options may be written without ``options.``: ``balancer.c=0.2`` is ``balancer.options.c=0.2``.
_OPEN = {"data", "balancer", "optimizer", "schedule", "scheduler"}

# Paths that name a class, and where the options of that class stand in the section: another class forgets them.
_NAMES = {
    **dict.fromkeys(("data", "model", "balancer", "optimizer", "schedule", "scheduler"), "options"),
    "model.backbone": "backbone_options",
    "model.head": "head_options",
}


def parse_run(content: Any, origin: str) -> RunConfig:
    """Turn plain data into a configuration.

    Args:
        content: Nested mappings, as from YAML.
        origin: File or recipe, for messages.

    Raises:
        OptionError: If a key is unknown (with the nearest one) or a value has the wrong type.
    """
    if not isinstance(content, Mapping):
        raise OptionError(f"{origin}: a configuration is a mapping of sections, got {type(content).__name__}")
    _check_keys(content, RunConfig, origin, "")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig, "run")
    try:
        parsed = parser.parse_object({"run": content})
        run = parser.instantiate(parsed).run
    except ArgumentError as error:
        raise OptionError(f"{origin}: {one_line(error)}") from error
    return dataclasses.replace(run, split=_with_plan(run.split))


def _with_plan(split: SplitConfig) -> SplitConfig:
    """Return what a plan's file says in place of its name.

    Raises:
        OptionError: If layers are given as well.
        FileError: If the file is not there or is no plan.
    """
    if split.plan is None:
        return split
    if split.layers:
        raise OptionError("split: give a plan or layers, not both")
    plan = SplitPlan.load(split.plan)
    return dataclasses.replace(split, plan=None, layers=plan.layers, sizes=dict(plan.required), rule=plan.rule)


def load_run(path: Path) -> RunConfig:
    """Read a configuration from a YAML file.

    Raises:
        FileError: If the file cannot be read or is not YAML.
    """
    content = read_yaml(path)
    if content is None:
        raise FileError(f"{path}: empty")
    return parse_run(content, str(path))


def override(config: RunConfig, changes: Sequence[tuple[str, str]]) -> RunConfig:
    """Return a configuration with some values replaced.

    Args:
        config: What to start from.
        changes: Pairs of a dotted path (``"optimizer.lr"``) and a value written as in YAML. A path of one section alone
            (``"balancer"``) means its name, and forgets the options of the one before.

    Raises:
        OptionError: If a path does not exist (with the nearest one) or a value has the wrong type.
    """
    content = {**config.to_dict(), "split": plain(dataclasses.asdict(config.split))}
    for path, text in sorted(changes, key=lambda change: change[0] not in _NAMES):  # names first, then their options
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or one_line(error)
            raise OptionError(
                f"--{path}: {text!r} cannot be read ({problem}); write it as in YAML, in quotes"
            ) from error
        _set(content, path, value)
    return parse_run(content, "command line")


def _set(content: dict[str, Any], path: str, value: Any) -> None:
    keys = path.split(".")
    section = keys[0]
    if section not in content:
        valid = option_paths(RunConfig)
        raise OptionError(
            f"no option --{path}{nearest(path, valid) or '; see the resolved config.yaml of a run for all'}"
        )
    if len(keys) == 1 and isinstance(content[section], dict):
        if "name" not in content[section]:
            raise OptionError(
                f"--{path} is a section; its options: {', '.join(f'{path}.{key}' for key in content[section])}"
            )
        keys = [section, "name"]
    if path in _NAMES and content[section][keys[1]] != value:
        content[section][_NAMES[path]] = {}
    inner = content
    for depth, key in enumerate(keys[:-1]):
        if key not in inner and depth == 1 and section in _OPEN:
            inner = inner.setdefault("options", {})
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise OptionError(f"no option --{path}: {'.'.join(keys[: depth + 1])} has no parts")
    if len(keys) == 2 and section in _OPEN and keys[1] not in inner:
        inner = inner["options"]
    inner[keys[-1]] = value


def option_paths(cls: Any, prefix: str = "") -> list[str]:
    """Return all dotted paths of a configuration class."""
    found: list[str] = []
    for field in dataclasses.fields(cls):
        found.append(prefix + field.name)
        if dataclasses.is_dataclass(field.type):
            found += option_paths(field.type, f"{prefix}{field.name}.")
    return found


def _check_keys(content: Any, cls: Any, origin: str, path: str) -> None:
    """Raise for the first key that the configuration class does not have."""
    if not isinstance(content, Mapping):
        return
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key, value in content.items():
        if key not in fields:
            near = [path + name for name in closest(str(key), fields)]
            hint = f"; did you mean {', '.join(near)}?" if near else f"; there are: {', '.join(fields)}"
            inner = f"; what the class takes goes under {path}options" if path[:-1] in _OPEN else ""
            raise OptionError(f"{origin}: no key {path + str(key)!r}{hint}{inner}")
        kind = fields[key]
        if dataclasses.is_dataclass(kind) and not isinstance(value, Mapping):
            example = "name: ..." if "name" in {field.name for field in dataclasses.fields(kind)} else "..."
            raise OptionError(
                f"{origin}: {path}{key} must be a section of its own, got {value!r}; write {key}: {{{example}}}"
            )
        if dataclasses.is_dataclass(kind):
            _check_keys(value, kind, origin, f"{path}{key}.")
        elif typing.get_origin(kind) is tuple and dataclasses.is_dataclass(typing.get_args(kind)[0]):
            for entry in value if isinstance(value, list | tuple) else ():
                _check_keys(entry, typing.get_args(kind)[0], origin, f"{path}{key}.")


def plain(content: Any) -> Any:
    """Replace tuples by lists, as YAML has no tuples."""
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content
