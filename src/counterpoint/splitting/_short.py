"""Short ways for layers of PyTorch: the operation itself on the copies, without the calls of modules around it.

Only for layers that are exactly of a class here, as PyTorch made it; every other one runs its own ``forward``.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from counterpoint.splitting._copies import Copies
from counterpoint.splitting.streams import Streams, check_history, count_tasks, draws_alike, gather

Short = Callable[[nn.Module, Any], Streams | None]


def short_way(kind: type[nn.Module]) -> Short | None:
    """Return what runs a layer once per task on the one input that it gets.

    Args:
        kind: Class of the layer as it was before it was split.

    Returns:
        A function of the layer and its input; it returns ``None`` where the layer has to go the long way. Or ``None``
        if there is no short way for this class.
    """
    if kind not in _KINDS or not kind.forward.__module__.startswith("torch.nn.modules."):
        return None  # the second: somebody replaced its forward
    names, apply, trains = _KINDS[kind]
    forward = kind.forward

    def run(layer: nn.Module, x: Any) -> Streams | None:
        found = [x] if type(x) is Streams else []
        if not (found or type(x) is Tensor) or kind.forward is not forward or (layer.training and not trains):
            return None
        own: list[tuple[dict[str, Tensor], str | None]] = []
        copies: list[Copies] = []
        if not _find(layer, names, own, copies) or not (found or copies):
            return None
        count = count_tasks(found, [one.num_tasks for one in copies])
        check_history(found)
        made = []
        inputs = found[0]._parts if found else (x,) * count
        for task in range(count):
            key = f"original{task}"
            tensors = [values[key if name is None else name] for values, name in own]
            made.append(apply(layer, inputs[task], *tensors))
        return gather(made, same_noise=draws_alike(found) or True in [one.same_noise for one in copies])

    return run


def _find(layer: nn.Module, names: tuple[str, ...], own: list, copies: list[Copies]) -> bool:
    """Find where a layer has its tensors: in which dict, and under which name (``None`` for originals, one per task).

    Returns:
        Whether nothing but our copies makes any of them.
    """
    modules: Any = layer._modules
    holders = modules["parametrizations"]._modules if modules else modules
    for name in names:
        holder = holders.get(name)
        if holder is None:
            values = layer._parameters if name in layer._parameters else layer._buffers
            if name not in values:
                return False
            own.append((values, name))
        else:
            steps = holder._modules
            if len(steps) != 1 or type(steps["0"]) is not Copies:
                return False
            copies.append(steps["0"])
            own.append((holder._parameters or holder._buffers, None))
    return True


def _linear(_layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _convolution(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return layer._conv_forward(x, weight, bias)


def _norm(layer: Any, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Any, bias: Any) -> Tensor:
    """Normalize as at evaluation: by running statistics where there are any."""
    layer._check_input_dim(x)
    return F.batch_norm(x, mean, var, weight, bias, mean is None and var is None, 0.0, layer.eps)


_AFFINE = ("weight", "bias")
_RUNNING = ("running_mean", "running_var", *_AFFINE)
# names of the tensors, in the order of the function's arguments; the function; whether it is right in training as well
_KINDS: dict[type[nn.Module], tuple[tuple[str, ...], Callable[..., Tensor], bool]] = {
    nn.Linear: (_AFFINE, _linear, True),
    nn.Conv1d: (_AFFINE, _convolution, True),
    nn.Conv2d: (_AFFINE, _convolution, True),
    nn.Conv3d: (_AFFINE, _convolution, True),
    nn.BatchNorm1d: (_RUNNING, _norm, False),
    nn.BatchNorm2d: (_RUNNING, _norm, False),
    nn.BatchNorm3d: (_RUNNING, _norm, False),
}
