"""The loop: epochs of updates, evaluation, records and checkpoints; a killed run goes on to the same numbers."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, Sampler

from counterpoint._checks import check_choice, check_integer
from counterpoint.balancers import Balancer, BalancerReport
from counterpoint.data import MultiTaskData
from counterpoint.diagnostics import ConflictMonitor, pairwise_cosines
from counterpoint.errors import FileError, NonFiniteError
from counterpoint.schedules import Joint, Schedule, ScheduleReport
from counterpoint.tasks import Task
from counterpoint.training.evaluate import evaluate
from counterpoint.training.memory import PeakMemory
from counterpoint.training.run_folder import METRICS, RESULT, TIMING, RunFolder, read_records
from counterpoint.training.sampler import SeededSampler
from counterpoint.training.seed import rng_state, set_rng_state
from counterpoint.training.selection import RULES, select, validation_score
from counterpoint.training.step import sharing, transform_heads
from counterpoint.training.visit import Parts, Visit

_FORMAT = 3  # of checkpoints


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How long and how to train.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples per update.
        eval_batch_size: Samples per batch of evaluation.
        seed: Seed of the sample order. Seed the rest with :func:`~counterpoint.training.seed.seed_everything` before
            building the model.
        level: As in :func:`~counterpoint.training.step.training_step`.
        step_schedule: Step the schedule after every update instead of every epoch.
        monitor_every: Measure the cosines between task gradients every so many updates; 0 for never. Costs a backward
            pass a task where the balancer does not know them anyway, and is not counted as training time.
        checkpoint_every: Epochs between checkpoints.
        num_workers: Processes that load data; 0 loads in this one.
        selection: Which epoch's result counts: ``"last"``, ``"best"`` on validation, ``"mean_last"``.
        selection_k: Number of epochs of ``"mean_last"``.
    """

    epochs: int = 10
    batch_size: int = 128
    eval_batch_size: int = 1000
    seed: int = 0
    level: str | None = None
    step_schedule: bool = False
    monitor_every: int = 0
    checkpoint_every: int = 1
    num_workers: int = 0
    selection: str = "last"
    selection_k: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size", "checkpoint_every", "selection_k"):
            check_integer(f"training: {name}", getattr(self, name), low=1)
        for name in ("monitor_every", "num_workers"):
            check_integer(f"training: {name}", getattr(self, name), low=0)
        check_choice("training: selection", self.selection, RULES)
        if self.level is not None:
            check_choice("training: level", self.level, ("parameters", "features"))


def fit(
    model: nn.Module,
    data: MultiTaskData,
    balancer: Balancer,
    optimizer: Optimizer,
    folder: RunFolder,
    options: FitOptions,
    *,
    tasks: Sequence[Task] | None = None,
    scheduler: Any = None,
    schedule: Schedule | None = None,
    fabric: Fabric | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    watch: ConflictMonitor | None = None,
    before_batch: Callable[[Parts, Any], None] | None = None,
) -> dict[str, Any]:
    """Train a model, or go on where a killed run of the same folder stopped, and return its result.

    Args:
        model: Returns a :class:`~counterpoint.architectures.MTLOutput`.
        data: Data set; evaluated on its validation and test splits after each epoch.
        balancer: Turns losses into gradients.
        optimizer: Over the parameters of the model and of the balancer.
        folder: Where records, checkpoints and the result go.
        options: Length, batch size, monitoring, selection.
        tasks: Tasks to train; default all of the data set.
        scheduler: Learning-rate schedule, or ``None``.
        schedule: Which tasks are updated together; default all of them.
        fabric: Device and precision; default one device, chosen by Lightning Fabric, in float32.
        on_epoch: Called with the record of each epoch.
        watch: Measures the gradients of each layer, of the scalar losses of each batch before its first update; what
            the balancer knows anyway it takes from there. Its time is not counted as training time.
        before_batch: Called before the first forward pass on each batch, with what updates are made with and the batch;
            has to leave everything as it is. Its time is not counted as training time.

    Returns:
        The content of ``result.json``: nothing in it depends on a clock.

    Raises:
        NonFiniteError: If a loss or gradient is not finite; names task and step. The last checkpoint stays intact.
        FileError: If the checkpoint or the records of the folder are damaged.
    """
    if (done := folder.result) is not None:
        return done
    fabric = fabric or Fabric(devices=1)
    tasks = tasks or data.tasks
    schedule = schedule or Joint(tasks=[task.name for task in tasks])
    loop = _Loop(model, data, balancer, optimizer, folder, options, tasks, scheduler, schedule, fabric)
    loop.watch, loop.before_batch = watch, before_batch
    loop.resume()
    while loop.epoch < options.epochs:
        record = loop.run_epoch()
        if on_epoch is not None:
            on_epoch(record)
    return loop.finish()


class _Loop:
    """State of one run between epochs."""

    def __init__(
        self,
        model: nn.Module,
        data: MultiTaskData,
        balancer: Balancer,
        optimizer: Optimizer,
        folder: RunFolder,
        options: FitOptions,
        tasks: Sequence[Task],
        scheduler: Any,
        schedule: Schedule,
        fabric: Fabric,
    ) -> None:
        self.raw_model, self.raw_optimizer = model, optimizer
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.balancer, self.schedule = balancer.to(fabric.device), schedule
        self.folder, self.options, self.scheduler, self.fabric = folder, options, scheduler, fabric
        self.tasks = tuple(tasks)
        self.names = [task.name for task in self.tasks]
        self.directions = {
            task.name: {name: spec.higher_is_better for name, spec in task.metrics.items()} for task in self.tasks
        }
        train = data.split("train")
        self.loader_generator = torch.Generator()  # so that loading never draws from the global one
        others = max(balancer.num_batches - 1, int("look_ahead" in balancer.needs))
        self.samplers = [SeededSampler(train, options.seed, stream) for stream in range(1 + others)]
        self.train, *self.others = (self._loader(train, options.batch_size, sampler) for sampler in self.samplers)
        level = options.level
        if level is None and "transform" in balancer.needs:
            level = "features"
        shared = list(sharing(model, balancer)) if balancer.keeps_columns else None
        self.parts = Parts(self.model, model, self.optimizer, optimizer, self.balancer, self.tasks, level, shared)
        if "transform" in balancer.needs:
            transform_heads(model, balancer, self.names)
        self.evals = {
            split: self._loader(data.split(split), options.eval_batch_size, None) for split in ("val", "test")
        }
        self.memory = PeakMemory(fabric.device)
        self.epoch = self.step = self.num_backward = self.num_updates = self.resumed = 0
        self.train_seconds = 0.0
        self.watch: ConflictMonitor | None = None
        self.before_batch: Callable[[Parts, Any], None] | None = None
        self.best_score = float("-inf")

    def _loader(self, dataset: Dataset, batch_size: int, sampler: Sampler | None) -> Any:
        loader = DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            collate_fn=getattr(dataset, "collate", None),  # data held in memory comes in whole batches
            num_workers=self.options.num_workers,
            generator=self.loader_generator,
        )
        return self.fabric.setup_dataloaders(loader)

    def resume(self) -> None:
        """Load the last checkpoint, if there is one, and drop records that were made after it.

        Raises:
            FileError: If the checkpoint is damaged or of another version.
        """
        state = self.folder.load_checkpoint("last")
        if state is None:
            self.folder.truncate(0)
            return
        if state.get("format") != _FORMAT:
            raise FileError(f"{self.folder.path}: checkpoint of another version; delete the folder and run again")
        self.raw_model.load_state_dict(state["model"])
        self.raw_optimizer.load_state_dict(state["optimizer"])
        self.balancer.load_state_dict(state["balancer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for name in ("epoch", "step", "num_backward", "num_updates", "train_seconds", "best_score"):
            setattr(self, name, state[name])
        self.resumed = state["resumed"] + 1
        self.folder.truncate(state["records_bytes"])
        set_rng_state(state["rng"])

    def run_epoch(self) -> dict[str, Any]:
        """Train one epoch, evaluate, write the record and the checkpoint."""
        means = _Means(len(self.names), self.fabric.device)
        step_times: list[float] = []
        for sampler in self.samplers:
            sampler.epoch = self.epoch
        self.loader_generator.manual_seed(self.options.seed + self.epoch)
        self.model.train()
        started, monitored = time.perf_counter(), 0.0
        for batch, *others in zip(self.train, *self.others, strict=True):
            begin = time.perf_counter()
            report, spent = self._update(batch, others)
            monitored += spent
            step_times.append(time.perf_counter() - begin - spent)
            self.num_backward += report.num_backward
            self.num_updates += len(report.reports)
            for part in report.reports:
                means.add(part)
            if self.options.step_schedule and self.scheduler is not None:
                self.scheduler.step()
        self.schedule.end_epoch(self.raw_optimizer, model=self.raw_model)
        self.train_seconds += time.perf_counter() - started - monitored
        self.epoch += 1
        self.balancer.end_epoch()
        record = self._evaluate(means, step_times)
        if found := self.schedule.record():
            record["schedule"] = found
        self.folder.append(record)
        if self.epoch % self.options.checkpoint_every == 0 or self.epoch == self.options.epochs:
            self.folder.save_checkpoint("last", self._state())
        return record

    def _update(self, batch: Any, others: Sequence[Any]) -> tuple[ScheduleReport, float]:
        """Take one batch through the schedule; return its report and the seconds that monitoring took.

        Args:
            batch: What the steps are taken on.
            others: Further batches of the training split, for methods that read them.

        Raises:
            NonFiniteError: Names epoch, step and task.
        """
        self.step += 1
        every = self.options.monitor_every
        monitor = every > 0 and (self.step - 1) % every == 0 and len(self.names) > 1
        begin = time.perf_counter()
        if self.before_batch is not None:
            self.before_batch(self.parts, batch)
        observed = time.perf_counter() - begin
        if self.watch is not None:
            self.watch.next_step(self.step - 1)
        visit = Visit(self.parts, batch, others, monitor=monitor, watch=self.watch)
        try:
            report = self.schedule.step(
                visit.losses, self.raw_optimizer, self.balancer, model=self.raw_model, update=visit.update
            )
        except NonFiniteError as error:
            where = f"epoch {self.epoch + 1}, step {self.step}"
            raise NonFiniteError(f"{where}: {error}", error.tasks) from error
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        spent = visit.seconds + observed
        if visit.gram is not None:
            begin = time.perf_counter()
            cosines = pairwise_cosines(visit.gram, self.names)
            epoch = self.epoch + (self.step - 1 - self.epoch * len(self.train)) / len(self.train)
            self.folder.append({"kind": "conflict", "step": self.step, "epoch": round(epoch, 6), "cosine": cosines})
            spent += time.perf_counter() - begin
        return report, spent

    def _evaluate(self, means: "_Means", step_times: list[float]) -> dict[str, Any]:
        """Evaluate, step the schedule and return the record of the epoch; keep the best model."""
        metrics = {split: evaluate(self.model, self.tasks, loader) for split, loader in self.evals.items()}
        score = None if self.options.selection != "best" else validation_score(metrics["val"], self.directions)
        rate = self.raw_optimizer.param_groups[0]["lr"]
        self._tell_metrics(metrics["val"])
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(validation_score(metrics["val"], self.directions))
        elif self.scheduler is not None and not self.options.step_schedule:
            self.scheduler.step()
        if score is not None and score > self.best_score:
            self.best_score = score
            self.folder.save_checkpoint("best", {"epoch": self.epoch, "model": self.raw_model.state_dict()})
        losses, weights = means.by_task(self.names)
        return {
            "kind": "epoch",
            "epoch": self.epoch,
            "step": self.step,
            "train_seconds": self.train_seconds,
            "step_ms": statistics.median(step_times) * 1000,
            "lr": float(rate),
            "train_loss": losses,
            "weights": weights,
            **metrics,
        }

    def _tell_metrics(self, metrics: dict[str, dict[str, float]]) -> None:
        """Give the primary validation metrics to a balancer that asks for them."""
        if "metrics" in self.balancer.needs:
            primary = {task.name: task.primary_metric for task in self.tasks}
            self.balancer.observe_metrics(
                {task: metrics[task][name] for task, name in primary.items()},
                higher_is_better={task: self.directions[task][name] for task, name in primary.items()},
            )

    def _state(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "model": self.raw_model.state_dict(),
            "optimizer": self.raw_optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "balancer": self.balancer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": rng_state(),
            "records_bytes": self.folder.size(),
            **{
                name: getattr(self, name)
                for name in ("epoch", "step", "num_backward", "num_updates", "train_seconds", "best_score", "resumed")
            },
        }

    def finish(self) -> dict[str, Any]:
        """Write what was measured, then the result."""
        records = read_records(self.folder.path / METRICS)
        history = [record for record in records if record["kind"] == "epoch"]
        epoch, metrics = select(history, self.options.selection, self.options.selection_k, self.directions)
        result = {
            "selection": self.options.selection,
            "selected_epoch": epoch,
            **metrics,
            "epochs": self.epoch,
            "steps": self.step,
            "num_backward": self.num_backward,
            "num_updates": self.num_updates,
            "num_parameters": sum(parameter.numel() for parameter in self.raw_model.parameters()),
        }
        timing = {
            "train_seconds": self.train_seconds,
            "step_ms": statistics.median(record["step_ms"] for record in history),
            "peak_memory_mb": self.memory.extra_mb(),
            "device": str(self.fabric.device),
            "threads": torch.get_num_threads(),
            "resumed": self.resumed,
        }
        self.folder.write_json(TIMING, timing)
        self.folder.write_json(RESULT, result)
        return result


class _Means:
    """Means over an epoch of losses and weights by task, summed on the device."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.losses = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.weights = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.weighted = False

    def add(self, report: BalancerReport) -> None:
        self.losses += report.losses.nan_to_num().to(self.losses)
        self.counts += report.present.to(self.counts)
        if report.weights is not None:
            self.weights += report.weights.to(self.weights)
            self.weighted = True

    def by_task(self, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float] | None]:
        losses = dict(zip(names, (self.losses / self.counts).tolist(), strict=True))
        weights = dict(zip(names, (self.weights / self.counts).tolist(), strict=True)) if self.weighted else None
        return losses, weights
