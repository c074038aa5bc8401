"""The layers of a network: what can be split."""

import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from counterpoint.splitting._copies import Copies


@dataclasses.dataclass(frozen=True)
class Layer:
    """One module that owns parameters directly.

    Attributes:
        name: As in ``network.named_modules()``; the network itself is ``""``.
        kind: Class of the module.
        num_parameters: Elements of its own parameters; a tied parameter counts for the first layer that has it.
        num_copies: Number of tasks that the layer was split for, 1 if it was not.
    """

    name: str
    kind: str
    num_parameters: int
    num_copies: int = 1


def find_layers(network: nn.Module) -> dict[str, Layer]:
    """Return the layers of a network by name, in its own order.

    A layer is one module with parameters of its own: a convolution with weight and bias, a batch normalization, an
    embedding; also a module that has children as well, without what these own: ``nn.MultiheadAttention`` with its
    ``in_proj_weight``, a vision transformer with its position embedding. What a parametrization of somebody else's
    holds (weight normalization) belongs to the layer that it is for.

    Args:
        network: Any module; split already or not.

    Returns:
        Name -> layer.

    Example:
        >>> from torch import nn
        >>> from counterpoint.splitting import find_layers
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> {name: layer.num_parameters for name, layer in find_layers(network).items()}
        {'0': 40, '1': 8}
    """
    layers: dict[str, Layer] = {}
    for name, module, owned, copies in _layers(network):
        size = sum(parameter.numel() for parameter in owned) // copies
        layers[name] = Layer(name, kind_of(module), size, copies)
    return layers


def layer_parameters(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each layer by name, all copies of a split layer included; a tied one stands once."""
    return {name: owned for name, _, owned, _ in _layers(network)}


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Parameter], int]]:
    """Yield name, module, own parameters and number of copies of each layer."""
    seen: set[Tensor] = set()
    for name, module in own_modules(network):
        owned: list[nn.Parameter] = []
        copies = 1
        for owner, _, tensor in own_tensors(module):
            holder_copies = _copies_of(owner)
            if isinstance(tensor, nn.Parameter) and tensor not in seen:
                seen.add(tensor)
                owned.append(tensor)
                copies = max(copies, holder_copies)
        if owned:
            yield name, module, owned, copies


def own_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of all modules that are not part of a parametrization."""
    hidden: set[nn.Module] = set()
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module):
            hidden.update(_parametrizations(module).modules())
        if module not in hidden:
            yield name, module


def own_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield owner, attribute and value of each parameter and buffer of a layer, those of parametrizations included."""
    owners = [module]
    if parametrize.is_parametrized(module):
        owners += list(_parametrizations(module).modules())
    for owner in owners:
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                yield owner, name, tensor


def kind_of(module: nn.Module) -> str:
    """Return the name of a module's class as it was before the module was split."""
    return parametrize.type_before_parametrizations(module).__name__


def _parametrizations(module: nn.Module) -> nn.Module:
    return module.parametrizations  # pyright: ignore[reportReturnType]


def _copies_of(owner: nn.Module) -> int:
    """Return the number of originals of one parametrized tensor, 1 for any other module."""
    first = owner._modules.get("0") if isinstance(owner, parametrize.ParametrizationList) else None
    return first.num_tasks if isinstance(first, Copies) else 1


def sizes(network: nn.Module) -> Mapping[str, int]:
    """Return the number of parameters of each layer by name."""
    return {name: layer.num_parameters for name, layer in find_layers(network).items()}
