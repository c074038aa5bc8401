"""What a balancer can ask of the training loop besides the losses of a batch."""

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from counterpoint.balancers._losses import Losses

NEEDS: dict[str, str] = {
    "epochs": "end_epoch() after each epoch",
    "losses_after_step": "after_step(losses) with the losses of the same batch after the optimizer step",
    "metrics": "observe_metrics(values) with the primary metrics after each validation",
    "look_ahead": "look_ahead(...) with the training and validation losses as functions, before each step",
    "transform": "transform(features, task) between the features and each head",
}


@dataclasses.dataclass(frozen=True)
class LookAhead:
    """What a method that tries steps before the real one is given.

    Attributes:
        train_losses: Returns the losses of the batch of this step, with a graph, computed anew at each call.
        validation_losses: The same for one batch of the validation split.
        parameters: Parameters of the model; they may be changed during the call and must be put back.
        optimizer: The optimizer of the real step, for its learning rate and momentum; it must not be stepped.
    """

    train_losses: Callable[[], Losses]
    validation_losses: Callable[[], Losses]
    parameters: Sequence[Tensor]
    optimizer: Optimizer
