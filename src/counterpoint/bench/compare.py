"""A comparison: methods x seeds with their baselines, in one folder that can be gone on with at any time."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from counterpoint import schedules
from counterpoint._files import write_atomically
from counterpoint.bench.build import build, check_run
from counterpoint.bench.dimensions import (
    DIMENSIONS,
    SPLIT_NAME,
    cross,
    format_spec,
    parse_combination,
    parse_spec,
    part_split,
    parts_of,
)
from counterpoint.bench.method import build_balancer
from counterpoint.bench.results import TaskInfo
from counterpoint.bench.run_config import BalancerConfig, RunConfig, ScheduleConfig, SplitConfig, parse_run, plain
from counterpoint.bench.runner import Job, Listener, run_many
from counterpoint.errors import FileError, OptionError
from counterpoint.tasks import Task
from counterpoint.training.run_folder import first_difference, read_yaml
from counterpoint.training.seed import check_seed

Splits = Mapping[str, Mapping[int, SplitConfig]]

SINGLE_TASK = "single_task"
BASELINES = ("equal", "rlw")  # in every comparison, beside the single-task networks
COMPARE = "compare.yaml"


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What a comparison runs.

    Attributes:
        run: Configuration that all runs have in common; its balancer, tasks and seed are replaced.
        methods: Keys of balancers, with options as in ``"cagrad(c=0.2)"``, and what they have of the other
            dimensions, as in ``"pcgrad @ alternating"``; the baselines are always there.
        seeds: Seeds of every method.
        splits: Name -> seed -> layers that are split. A method with such a name in brackets, ``"pcgrad [recon]"``, is
            trained on the split network.
    """

    run: RunConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    splits: Splits = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as it is written to ``compare.yaml``."""
        content = {"methods": list(self.methods), "seeds": list(self.seeds), "run": self.run.to_dict()}
        if self.splits:
            content["splits"] = {
                name: {seed: plain(dataclasses.asdict(split)) for seed, split in by_seed.items()}
                for name, by_seed in self.splits.items()
            }
        return content

    def base(self, method: str, seed: int) -> RunConfig:
        """Return the configuration that a method starts from with one seed: with its split, if it has one."""
        _, split = part_split(method)
        config = dataclasses.replace(self.run, seed=seed)
        return config if split is None else dataclasses.replace(config, split=self.splits[split][seed])


def make_config(
    run: RunConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    others: Mapping[str, Sequence[str]] | None = None,
    splits: Splits | None = None,
) -> CompareConfig:
    """Check methods and seeds and put the baselines first.

    Args:
        run: Configuration that all runs have in common.
        methods: Balancers, or whole methods such as ``"pcgrad @ alternating"``.
        seeds: Seeds of every method.
        others: Key of a further dimension, such as ``"schedule"`` -> its specs: every method is run with each of them.
            The baselines are not.
        splits: Name -> seed -> layers to split: every method, and equal weighting, is run on each split network as
            well.

    Raises:
        OptionError: If a method or one of its options does not exist, or a seed is given twice, or the run sets a
            dimension for all methods that ``others`` varies.
    """
    for key, specs in (others or {}).items():
        if specs and getattr(run, key, None) != getattr(RunConfig(), key, None):
            raise OptionError(
                f"--{key}s: the run sets {key} {getattr(run, key).name!r} for all methods, the baselines too; leave "
                f"that out, or list it among --{key}s"
            )
    if not seeds or len(set(seeds)) != len(seeds):
        raise OptionError(f"seeds must be different whole numbers, at least one, got {list(seeds)}")
    for seed in seeds:
        check_seed(seed)
    crossed = cross(methods, others or {})
    ordered = dict.fromkeys([*BASELINES, *crossed])
    for name in splits or {}:
        if not re.fullmatch(SPLIT_NAME, name):
            raise OptionError(f"split {name!r}: a name is of letters, digits, '.', '_' and '-'")
        ordered |= dict.fromkeys(f"{method} [{name}]" for method in dict.fromkeys(["equal", *crossed]))
    return CompareConfig(run, tuple(ordered), tuple(seeds), dict(splits or {}))


def parse_method(text: str) -> BalancerConfig:
    """Read a balancer: ``"cagrad"`` or ``"cagrad(c=0.2, rescale=1)"``; values are written as in YAML.

    ``"uncertainty+pcgrad"`` is a chain, ``"uncertainty+pcgrad(pcgrad={reduction: mean})"`` one with options, and
    ``wrap={every: 4}`` among the options wraps the balancer.

    A split in brackets behind it is left out; see :func:`counterpoint.bench.dimensions.part_split`.

    Raises:
        OptionError: If it is not of that form, or an option does not exist.
    """
    return parse_spec(DIMENSIONS[0], part_split(text)[0])


def method_name(balancer: BalancerConfig) -> str:
    """Return the name of a balancer in tables: its key, with its options where they are not the defaults."""
    return format_spec(DIMENSIONS[0], balancer)


def check_comparison(config: CompareConfig) -> tuple[TaskInfo, ...]:
    """Read the data and build network and balancers once, so that a comparison fails before it begins.

    Args:
        config: What to compare.

    Returns:
        The tasks.

    Raises:
        OptionError: If there are fewer than two tasks, or an option is out of range.
    """
    check_run(config.run)
    tasks = tuple(describe_task(task) for task in build(config.run).tasks)
    if len(tasks) < 2:
        raise OptionError(f"a comparison needs at least two tasks, got {[task.name for task in tasks]}")
    names = [task.name for task in tasks]
    for method in config.methods:
        networks = parse_combination(method).get("networks")
        if networks is not None:
            networks.check_tasks(names)
        for part in parts_of(config.run, method):
            own = names if part.label is None else list(part.config.data.tasks or names)
            build_balancer(part.config.balancer, own)
            schedules.create(part.config.schedule.name, tasks=own, **part.config.schedule.options)
    for name in config.splits:
        for seed in config.seeds:
            build(config.base(f"equal [{name}]", seed))
    return tasks


def make_jobs(config: CompareConfig, folder: Path, tasks: Sequence[str]) -> list[Job]:
    """Return all runs of a comparison, seed by seed."""
    jobs: list[Job] = []
    for seed in config.seeds:
        base = dataclasses.replace(config.run, seed=seed)
        for task in tasks:
            data = dataclasses.replace(base.data, tasks=(task,))
            only = dataclasses.replace(
                base, data=data, balancer=BalancerConfig(), schedule=ScheduleConfig(), split=SplitConfig()
            )
            jobs.append(Job(SINGLE_TASK, task, only, folder / "runs" / f"{SINGLE_TASK}-{task}" / f"seed{seed}"))
        for method in config.methods:
            for part in parts_of(config.base(method, seed), method):
                place = (
                    folder / "runs" / _folder_name(method) / ("" if part.label is None else _folder_name(part.label))
                )
                jobs.append(Job(method, part.label, part.config, place / f"seed{seed}", part.serves))
    return jobs


def run_comparison(config: CompareConfig, folder: Path, *, workers: int, listener: Listener) -> None:
    """Do what is not done yet of a comparison.

    Args:
        config: What to compare.
        folder: Where everything goes; may hold a comparison that was stopped, or one with other methods or seeds.
        workers: Number of processes.
        listener: Called with the news of the jobs.

    Raises:
        FileError: If the folder holds a comparison of another configuration, or cannot be written.
    """
    tasks = check_comparison(config)
    check_folder(config, folder)
    content = {**config.to_dict(), "tasks": [dataclasses.asdict(task) for task in tasks]}
    write_atomically(folder / COMPARE, yaml.safe_dump(content, sort_keys=False).encode())
    run_many(make_jobs(config, folder, [task.name for task in tasks]), workers=workers, listener=listener)


def check_folder(config: CompareConfig, folder: Path) -> None:
    """Check that a folder is new, or holds a comparison that this one goes on with.

    Raises:
        FileError: If it holds a comparison of another configuration, or of other layers to split.
    """
    if (folder / COMPARE).exists():
        before, _ = load_compare(folder)
        difference = first_difference(config.run.to_dict(), before.run.to_dict())
        if difference:
            raise FileError(f"{folder}: holds another comparison ({difference}); choose another folder with --out")
        changed = [name for name, own in before.splits.items() if not _goes_on(own, config.splits.get(name))]
        if changed:
            raise FileError(
                f"{folder}: holds a comparison with another choice of layers for {', '.join(changed)}; choose another "
                "folder with --out"
            )


def _goes_on(before: Mapping[int, SplitConfig], now: Mapping[int, SplitConfig] | None) -> bool:
    """Return whether the seeds that both have split the same layers."""
    return now is None or all(now[seed] == split for seed, split in before.items() if seed in now)


def load_compare(folder: Path) -> tuple[CompareConfig, tuple[TaskInfo, ...]]:
    """Read ``compare.yaml`` of a folder: what is compared, and the tasks.

    Raises:
        FileError: If there is none or it is damaged.
    """
    path = folder / COMPARE
    if not path.exists():
        raise FileError(f"{folder}: no comparison there ({COMPARE} is missing); make one with: counterpoint compare")
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) - {"splits"} != {"methods", "seeds", "run", "tasks"}:
        raise FileError(f"{path}: must have methods, seeds, run and tasks; delete it and run the comparison again")
    run = parse_run(content["run"], str(path))
    try:
        splits = {
            name: {int(seed): parse_run({"split": split}, str(path)).split for seed, split in by_seed.items()}
            for name, by_seed in content.get("splits", {}).items()
        }
        config = CompareConfig(run, tuple(content["methods"]), tuple(content["seeds"]), splits)
        return config, tuple(TaskInfo(**task) for task in content["tasks"])
    except (TypeError, AttributeError, ValueError) as error:
        raise FileError(f"{path}: damaged ({error}); delete it and run the comparison again") from error


def describe_task(task: Task) -> TaskInfo:
    """Return what the tables need to know of a task."""
    units = {name: spec.unit for name, spec in task.metrics.items()}
    return TaskInfo(task.name, units, {name: spec.higher_is_better for name, spec in task.metrics.items()})


_LONGEST = 120  # characters of a folder name; file systems allow 255 bytes


def _folder_name(method: str) -> str:
    """Return a method as a folder name.

    Brackets and marks are lost in it, so a method of several dimensions gets a digest: ``[[a, b]]`` and ``[[a], [b]]``
    are two methods.
    """
    written = re.sub(r"[^A-Za-z0-9_.=-]+", "-", method).strip("-")
    digest = hashlib.sha256(method.encode()).hexdigest()[:8]
    marked = any(f" {dimension.mark} " in method for dimension in DIMENSIONS[1:])
    return f"{written[:_LONGEST]}-{digest}" if marked or len(written) > _LONGEST else written
