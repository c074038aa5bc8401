"""One update: forward, losses by task, balanced gradients, optimizer step."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint import gradients
from counterpoint._checks import check_choice
from counterpoint.architectures import MTLOutput, MultiTaskModel
from counterpoint.balancers import Balancer, BalancerReport
from counterpoint.diagnostics import ConflictMonitor
from counterpoint.errors import OptionError
from counterpoint.tasks import Task


def task_losses(
    output: MTLOutput, tasks: Sequence[Task], batch: Mapping[str, Tensor], form: str = "task"
) -> dict[str, Tensor | None]:
    """Return the loss of each task, deep supervision included; ``None`` for a task without labels in the batch.

    Args:
        output: Of the model.
        tasks: The tasks.
        batch: Targets and masks.
        form: ``"task"`` for a scalar each, ``"instance"`` for the losses (N,) of the samples with a label, ``"cross"``
            for the losses (K,) of the prediction of each task against the labels of every task.

    Raises:
        OptionError: If losses of this form are not served.
    """
    check_choice("training: loss_form of the balancer", form, ("task", "instance", "cross"))
    if form == "cross":
        return _cross_losses(output, tasks, batch)
    by_instance = form == "instance"
    losses: dict[str, Tensor | None] = {}
    for task in tasks:
        loss = task.compute_loss(output.preds[task.name], batch, by_instance=by_instance)
        for extra in output.aux:
            if loss is not None and task.name in extra.preds:
                further = task.compute_loss(extra.preds[task.name], batch, by_instance=by_instance)
                loss = loss if further is None else loss + extra.weight * further
        losses[task.name] = loss
    return losses


def _cross_losses(output: MTLOutput, tasks: Sequence[Task], batch: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Return the losses of the prediction of each task against the labels of every task, 0 where there are none.

    Raises:
        OptionError: If the tasks have no common label space.
    """
    widths = {task.name: task.num_outputs for task in tasks}
    if len(set(widths.values())) > 1:
        raise OptionError(
            f"the balancer compares the prediction of each task with the labels of all, and the tasks have no common "
            f"label space: outputs {widths}; take another balancer, or tasks of one kind"
        )
    losses: dict[str, Tensor | None] = {}
    for task in tasks:
        predictions = [(output.preds[task.name], 1.0)]
        predictions += [(extra.preds[task.name], extra.weight) for extra in output.aux if task.name in extra.preds]
        rows = []
        for prediction, weight in predictions:
            found = [other.compute_loss(prediction, batch) for other in tasks]
            rows.append(weight * torch.stack([prediction.new_zeros(()) if loss is None else loss for loss in found]))
        labeled = task.compute_loss(output.preds[task.name], batch) is not None
        losses[task.name] = torch.stack(rows).sum(dim=0) if labeled else None
    return losses


def training_step(
    model: nn.Module,
    tasks: Sequence[Task],
    batch: Mapping[str, Tensor],
    balancer: Balancer,
    optimizer: Optimizer,
    *,
    level: str | None = None,
) -> BalancerReport:
    """Do one update of all parameters.

    Args:
        model: Returns a :class:`~counterpoint.architectures.MTLOutput`.
        tasks: Tasks to train; the model is asked for these only.
        batch: ``"image"`` and the targets.
        balancer: Turns the losses into gradients.
        optimizer: Takes the step; its gradients are cleared first.
        level: ``None`` balances the shared parameters' gradients, found in the graph; ``"features"`` those of the
            features where the heads begin; ``"parameters"`` the parameters' gradients, with each head walked once.
    """
    losses, output = forward(model, tasks, batch, balancer.loss_form)
    return update(losses, output, balancer, optimizer, level=level)


def forward(
    model: nn.Module, tasks: Sequence[Task], batch: Mapping[str, Tensor], form: str = "task"
) -> tuple[dict[str, Tensor | None], MTLOutput]:
    """Return the losses of a batch and the output that they were computed from."""
    output = model(batch["image"], [task.name for task in tasks])
    return task_losses(output, tasks, batch, form), output


def update(
    losses: Mapping[str, Tensor | None],
    output: MTLOutput,
    balancer: Balancer,
    optimizer: Optimizer,
    *,
    level: str | None = None,
    shared: Iterable[Tensor] | None = None,
    more: Sequence[Mapping[str, Tensor | None]] = (),
    monitor: ConflictMonitor | None = None,
) -> BalancerReport:
    """Take the optimizer step for losses that were computed already; the arguments are those of ``backward``."""
    if level == "features" and not output.features:
        raise OptionError(
            "level='features' balances the gradients of the one tensor that all heads read, and this network has none: "
            "after a split each task has features of its own; leave level out, or use level='parameters'"
        )
    optimizer.zero_grad()
    cut: dict[str, Any] = {} if level is None else {"features": output.features, "level": level}
    if output.losses:
        extra = torch.stack(list(output.losses.values())).sum()
        leaves = gradients.find_scope([extra]).private[0]
        gradients.backward_into([extra], [None], leaves, lambda _: None, retain_graph=True)
    report = balancer.backward(losses, shared=shared, more=more, monitor=monitor, **cut)
    optimizer.step()
    return report


def conflict_gram(
    losses: Mapping[str, Tensor | None], names: Sequence[str], output: MTLOutput, form: str = "task"
) -> Tensor:
    """Return the Gram matrix of the tasks' gradients of the shared parameters, (K, K), NaN for absent tasks.

    Of losses by instance it is that of their means, of cross losses that of each task's own. Writes nothing and keeps
    the graph; costs one backward pass a task.
    """
    scalars = scalar_losses(losses, names, form)
    present = [index for index, name in enumerate(names) if scalars[name] is not None]
    found = [loss for loss in scalars.values() if loss is not None]
    gram = torch.full((len(names), len(names)), float("nan"), dtype=torch.float64)
    if found:
        at = torch.tensor(present)
        gram[at[:, None], at[None, :]] = gradients.measure_gram(found, features=output.features).cpu()
    return gram


def scalar_losses(
    losses: Mapping[str, Tensor | None], names: Sequence[str], form: str = "task"
) -> dict[str, Tensor | None]:
    """Return one scalar a task: of losses by instance their mean, of cross losses each task's own."""
    return {
        name: None if (loss := losses[name]) is None else loss[index] if form == "cross" else loss.mean()
        for index, name in enumerate(names)
    }


def sharing(model: nn.Module, balancer: Balancer) -> Iterator[Tensor]:
    """Return the parameters that a model says its tasks share.

    Raises:
        OptionError: If it cannot say.
    """
    if not isinstance(model, MultiTaskModel):
        raise OptionError(
            f"{type(balancer).__name__} has a state for each shared parameter, and {type(model).__name__} does not say "
            "which those are; derive it from counterpoint.architectures.MultiTaskModel"
        )
    return (parameter for parameter in model.shared_parameters() if parameter.requires_grad)


def transform_heads(model: nn.Module, balancer: Balancer, names: Sequence[str]) -> None:
    """Make every head read what the balancer makes of the features, in training and in evaluation.

    It stays so after training, since the heads have learned it; another balancer takes the place of this one.

    Raises:
        OptionError: If the model has no heads by task name.
    """
    heads = getattr(model, "heads", None)
    if not isinstance(heads, nn.ModuleDict) or any(name not in heads for name in names):
        raise OptionError(
            f"{type(balancer).__name__} changes what each head reads, and {type(model).__name__} has no ModuleDict "
            f"'heads' with one for each of {list(names)}"
        )
    for name in names:
        before = heads[name]._forward_pre_hooks
        for key in [key for key, hook in before.items() if getattr(hook, "func", None) is _transformed]:
            del before[key]
        heads[name].register_forward_pre_hook(functools.partial(_transformed, balancer, name))


def _transformed(balancer: Balancer, task: str, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return balancer.transform(arguments[0], task), *arguments[1:]
