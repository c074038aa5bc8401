"""RotoGrad: gradients of equal length, and a rotation of the features for each task that makes them agree."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import linalg
from counterpoint._checks import check_choice, check_integer, check_range
from counterpoint.balancers._base import JacobianBalancer
from counterpoint.balancers._call import Call
from counterpoint.balancers._gradient import Balanced, Found
from counterpoint.balancers._losses import Step
from counterpoint.errors import OptionError, ShapeError
from counterpoint.registry import unknown
from counterpoint.solvers.adam import Moments, adam_step
from counterpoint.solvers.rotation import rotation_gradient, rotation_matrix

_LARGEST = 1e6  # growth of a gradient since its first step up to which it counts, so that float32 squares stay finite
_LEARNED = ("angles", "first", "second")


def rotograd_weights(lengths: Float[Tensor, " K"], initial: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return the weights that make all gradients of the features ``C`` long: ``w_k = C / |h_k|``.

    ``C = sum_k a_k |h_k|``, where ``a_k`` is proportional to ``|h_k| / |h_k^0|``: a task whose gradient has become
    shorter than it was at the start, compared with the others, has less say in the common length.

    Args:
        lengths: Lengths of the gradients, at least 0.
        initial: Lengths at the start, above 0 where ``lengths`` is.

    Returns:
        Weights; 0 for a gradient of length 0, and 1 / K if all are.

    Example:
        >>> rotograd_weights(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.0]))
        tensor([2.5000, 0.6250])

    References:
        Javaloy, Valera, "RotoGrad: Gradient Homogenization in Multitask Learning", ICLR 2022, arXiv:2103.02631; the
        part on scales.
    """
    kept = (lengths > 0) & (initial > 0)
    if not bool(kept.any()):
        return torch.full_like(lengths, 1 / len(lengths))
    progress = torch.where(kept, lengths / torch.where(kept, initial, 1.0), 0.0)
    common = (progress / progress.sum() * lengths).sum()
    return torch.where(kept, common / torch.where(kept, lengths, 1.0), 0.0)


@final
class RotoGrad(JacobianBalancer):
    """RotoGrad: task gradients of the features made equally long, and rotated towards each other.

    The head of task k reads ``R_k z`` instead of the features z, through :meth:`transform`. The rotation R_k is a
    constant there; it follows its own loss (:func:`rotation_loss`) with Adam, inside the step, so no optimizer has to
    know it. With ``h_k = dL_k/dz = R_k^T h~_k`` the gradients of the rotated features are ``h~_k = R_k h_k``, so
    nothing is differentiated twice. The trunk gets ``sum_k w_k h_k`` (:func:`rotograd_weights`).

    It balances gradients of one tensor of features: call ``backward(features=z, level="features")``. A task that is
    absent, or whose gradient is zero, moves nothing of its state. A rotation costs time that grows with the cube of
    the number of channels, and memory with its square; ``size`` bounds both.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks; needed if :meth:`transform` is called with names.
        mode: ``"rotograd"`` for both parts, ``"rotate_only"`` for rotations and the plain sum of the gradients,
            ``"scale_only"`` for equal lengths without rotations.
        variant: Loss of the rotations: that of the ``"paper"``, or of the ``"released"`` code, whose reference has
            the length of the mean gradient. With Adam they differ only in how steps of different length are averaged.
        learning_rate: Step size of the rotations, in radians and above 0; keep it below that of the network.
        burn_in: Step of a task at which its initial length is taken anew, at least 1; at 1 only the first one counts.
        size: Number of leading channels that are rotated, at least 1; ``None`` for all.

    References:
        Javaloy, Valera, "RotoGrad: Gradient Homogenization in Multitask Learning", ICLR 2022, arXiv:2103.02631, and
        the released code. Differences: Adam inside the step instead of an optimizer of the user's choice, on gradients
        measured in units of the task's first one, so that no constant has a unit; the reference of a part of the
        channels is made with the lengths of the whole gradients.
    """

    key = "rotograd"
    equation = "v = C sum_k h_k / |h_k|,  C = sum_k a_k |h_k|,  a_k ~ |h_k| / |h_k^0|;  head k reads R_k z"
    source = "Javaloy and Valera, RotoGrad: Gradient Homogenization in Multitask Learning, ICLR 2022, arXiv:2103.02631"
    provenance = "released code; the loss of the paper not checked against its text; Adam and absent tasks are ours"
    scale = "sum"
    avoid = (
        "Where the features are wide, since rotating p channels takes time of order p^3 a task and step (set size); or "
        "where the heads must read the features themselves, as in a network that is deployed without its rotations."
    )
    cost = "1 backward pass of the trunk and K of the heads; K matrix exponentials (p x p) and their derivatives"
    needs = frozenset({"transform"})

    steps: Tensor
    initial_lengths: Tensor
    initial_units: Tensor
    rotations: Tensor
    angles: Tensor
    first: Tensor
    second: Tensor
    turns: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        mode: str = "rotograd",
        variant: str = "paper",
        learning_rate: float = 5e-4,
        burn_in: int = 20,
        size: int | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.mode = check_choice("RotoGrad: mode", mode, ("rotograd", "rotate_only", "scale_only"))
        self.variant = check_choice("RotoGrad: variant", variant, ("paper", "released"))
        self.learning_rate = check_range("RotoGrad: learning_rate", learning_rate, low=0.0, low_open=True, high=1.0)
        self.burn_in = check_integer("RotoGrad: burn_in", burn_in, low=1)
        self.size = None if size is None else check_integer("RotoGrad: size", size, low=1)
        self.add_state("steps", torch.zeros(self.num_tasks, dtype=torch.long))
        self.add_state("turns", torch.zeros(self.num_tasks, dtype=torch.long))
        self.add_state("initial_lengths", torch.zeros(self.num_tasks, dtype=torch.float64))
        self.add_state("initial_units", torch.zeros(self.num_tasks, dtype=torch.float64))
        for name in (*_LEARNED, "rotations"):
            self.add_lazy_state(name)
        self._shapes: dict[int, tuple[int, ...]] = {}  # of one sample that each head read last in training

    def transform(self, features: Tensor, task: str | int) -> Tensor:
        """Return the features as the head of a task has to read them, in training and in evaluation.

        Args:
            features: (B, p), or (B, C, H, W), whose channels are rotated.
            task: Name or position of the task.

        Raises:
            ShapeError: If the features have another shape, or too few channels.
            OptionError: If the task has a name and the balancer does not know the names, or the rotations are of
                another number of channels.
            UnknownNameError: If there is no such task.
        """
        position = self._position(task)
        if features.ndim not in (2, 4) or features.shape[1] < (self.size or 1):
            least, shown = self.size or 1, tuple(features.shape)
            raise ShapeError(f"RotoGrad: features must be (B, p) or (B, p, H, W) with p at least {least}, got {shown}")
        if features.requires_grad and torch.is_grad_enabled() and self.training:
            self._shapes[position] = tuple(features.shape[1:])
        if not self.rotations.numel():
            return features
        rotation = self._rotations(features.shape[1])[position].to(features)
        turned = torch.einsum("ij,bj...->bi...", rotation, features[:, : len(rotation)])
        return torch.cat([turned, features[:, len(rotation) :]], dim=1)

    def _position(self, task: str | int) -> int:
        if isinstance(task, str):
            if self._names is None:
                raise OptionError(f"RotoGrad: transform got the task {task!r}; build the balancer with tasks=[...]")
            if task not in self._names:
                raise unknown("task of RotoGrad", task, self._names)
            return self._names.index(task)
        return self._positions(1, [task])[0]

    def _rotations(self, channels: int) -> Tensor:
        """Return the rotations (K, p, p) for this number of channels."""
        count = self.size or channels
        if not self.rotations.numel():
            return torch.eye(count).expand(self.num_tasks, -1, -1)
        if self.rotations.shape[1] != count:
            raise OptionError(
                f"RotoGrad: the rotations are of {self.rotations.shape[1]} channels, the features have {channels}; "
                "give every head the same features, or call reset() to start over"
            )
        return self.rotations

    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:
        if call.level != "features":
            raise OptionError("RotoGrad: balances the features; call backward(features=z, level='features')")
        read = {self._shapes.get(task) for task in step.present}
        if self.mode != "scale_only" and (len(call.features) != 1 or read != {tuple(call.features[0].shape[1:])}):
            raise ShapeError(
                "RotoGrad: features= must be the one tensor that every head reads through transform(features, task), "
                f"got {[tuple(part.shape) for part in call.features]}; transform saw samples {sorted(map(str, read))}"
            )
        return super()._balance(found, gram, step, call)

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the direction and the weights of one step, and turn the rotations."""
        gram = linalg.gram(jacobian).cpu()
        lengths = torch.where(linalg.nonzero_rows(gram), linalg.norms(gram), 0.0)
        weights = torch.ones_like(lengths)
        for length, task in zip(lengths.tolist(), present, strict=True):
            self.steps[task] += int(length > 0)
            if length > 0 and int(self.steps[task]) in (1, self.burn_in):
                self.initial_lengths[task] = length
        if self.mode != "rotate_only" or not bool(lengths.any()):
            weights = rotograd_weights(lengths, self.initial_lengths[list(present)].cpu())
        if self.mode != "scale_only" and bool(lengths.any()):
            self._turn(jacobian, gram, lengths, present)
        dtype = torch.promote_types(torch.float32, jacobian.dtype)
        direction = weights.to(jacobian.device, dtype) @ jacobian.to(dtype)
        return direction.to(jacobian.dtype), weights.to(jacobian)

    def _shape(self, present: Sequence[int], columns: int) -> tuple[int, ...]:
        """Return the shape of a sample of the features whose gradients are the rows.

        Raises:
            OptionError: If the heads did not all read such a tensor.
        """
        found = {self._shapes.get(task) for task in present}
        shape = next(iter(found))
        if len(found) > 1 or shape is None or columns % math.prod(shape):
            raise OptionError(
                f"RotoGrad: gradients of {columns} numbers do not fit the features that transform(features, task) saw "
                f"last in training, samples of {sorted(map(str, found))}; call it for the head of every task"
            )
        return shape

    def _turn(self, jacobian: Tensor, gram: Tensor, lengths: Tensor, present: tuple[int, ...]) -> None:
        """Take one step of every rotation whose task has a gradient."""
        shape, dtype = self._shape(present, jacobian.shape[1]), torch.promote_types(torch.float32, jacobian.dtype)
        rotations = self._rotations(shape[0]).to(jacobian.device, dtype).clone()
        count = rotations.shape[1]
        none = rotations.new_zeros(self.num_tasks, count * (count - 1) // 2)
        old = [getattr(self, name).to(none) if self.rotations.numel() else none for name in _LEARNED]
        new = [values.clone() for values in old]

        def samples(row: Tensor) -> Tensor:
            block = row.view(-1, shape[0], math.prod(shape[1:]))[:, :count]
            return block.transpose(1, 2).reshape(-1, count)  # (N, p)

        rows = jacobian.to(dtype) / torch.where(lengths > 0, lengths, math.inf).to(jacobian.device, dtype)[:, None]
        reference = samples(rows.sum(dim=0) / int((lengths > 0).sum()))
        if self.variant == "released":  # its reference is this one times the length of the mean
            mean = linalg.combination_norms(gram, torch.full_like(lengths, 1 / len(lengths))[None, :])
            lengths = lengths * mean * (2 / len(reference))
        for row, task, length in zip(rows, present, lengths.tolist(), strict=True):
            if length > 0:
                first = float(self.initial_units[task]) or length
                self.initial_units[task], self.turns[task] = first, self.turns[task] + 1
                factor = min(length / first, _LARGEST)
                gradient = rotation_gradient(old[0][task], samples(row) @ rotations[task].mT, reference) * factor
                moments = Moments(old[1][task], old[2][task], self.turns[task].to(none) - 1)
                moved, moments = adam_step(old[0][task], gradient, moments, learning_rate=self.learning_rate)
                for values, value in zip(new, (moved, moments.first, moments.second), strict=True):
                    values[task] = value
                rotations[task] = rotation_matrix(moved, count)
        for name, values in zip((*_LEARNED, "rotations"), (*new, rotations), strict=True):
            setattr(self, name, values)
