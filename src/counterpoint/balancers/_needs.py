"""What a balancer can ask of the training loop besides the losses of a batch."""

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from counterpoint.balancers._losses import Losses

NEEDS: dict[str, str] = {
    "epochs": "end_epoch() after each epoch",
    "metrics": "observe_metrics(values) with the primary metrics after each validation",
    "losses_after_step": "after_step(losses) with the losses of the same batch after the optimizer step",
    "look_ahead": "look_ahead(ahead) with the losses of two batches as functions, before each step",
    "transform": "transform(features, task) between the features and each head, and level='features'",
}


@dataclasses.dataclass(frozen=True)
class LookAhead:
    """What a method that tries steps before the real one is given.

    Attributes:
        train_losses: Returns the losses of the batch of the coming step, with a graph, computed anew at each call: with
            the same random numbers each time, and without a trace in the running statistics of norms.
        validation_losses: The same for a batch that the coming step does not see.
        parameters: Parameters of the model; they may be changed during the call and must be put back.
        optimizer: The optimizer of the real step, for its learning rate and momentum; it must not be stepped.
    """

    train_losses: Callable[[], Losses]
    validation_losses: Callable[[], Losses]
    parameters: Sequence[Tensor]
    optimizer: Optimizer
