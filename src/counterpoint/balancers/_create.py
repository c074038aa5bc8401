"""Building balancers by name, chains and wrapped ones included."""

from collections.abc import Iterator, Mapping
from typing import Any

from counterpoint.balancers._balancer import Balancer
from counterpoint.balancers.chain import Chain
from counterpoint.balancers.wrapped import Wrapped
from counterpoint.errors import OptionError
from counterpoint.registry import Registry, nearest


def stages(
    registry: Registry[Balancer], name: str, options: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and options of each balancer that a name stands for; ``"uncertainty+pcgrad"`` stands for two.

    Args:
        registry: The balancers.
        name: Key of a balancer, or two of them with a plus sign between.
        options: Options of the one, or a mapping from the name of each to its options.

    Raises:
        OptionError: If there are more than two, or the options are not given by balancer.
    """
    names = [part.strip() for part in name.split("+")]
    if len(names) == 1:
        yield name, options
        return
    if len(names) > 2:
        raise OptionError(f"balancer {name!r}: a chain is a loss balancer and a gradient balancer, got {len(names)}")
    for key, value in options.items():
        if key not in names or not isinstance(value, Mapping):
            first = names[0]
            raise OptionError(
                f"balancer {name!r}: options are given by balancer, as {{{first!r}: {{...}}}}, got {key!r}"
                f"{nearest(key, names)}"
            )
    for part in names:
        registry.get(part)
        yield part, options.get(part, {})


def create(
    registry: Registry[Balancer],
    name: str,
    *args: object,
    wrap: Mapping[str, Any] | None = None,
    **options: Any,
) -> Balancer:
    """Build a balancer by name.

    Args:
        registry: The balancers.
        name: Key, or two with a plus sign between for a :class:`~counterpoint.balancers.Chain`.
        args: ``num_tasks``.
        wrap: Options of :class:`~counterpoint.balancers.Wrapped` around it.
        options: ``num_tasks``, ``tasks``, ``generator``, and the options of the balancer; for a chain a mapping for
            each part.

    Raises:
        UnknownNameError: If there is no such balancer; the message has the nearest names.
        OptionError: If an option does not exist; the message has the nearest ones.
    """
    given = {key: options.pop(key) for key in registry.given if key in options}
    parts = []
    for part, own in stages(registry, name, options):
        parts.append(registry.create(part, *args, **given, **own))
    balancer = Chain(*parts) if len(parts) == 2 else parts[0]  # type: ignore[arg-type]
    if not wrap:
        return balancer
    check_wrap(wrap)
    return Wrapped(balancer, **wrap)


def check_wrap(wrap: Mapping[str, Any]) -> None:
    """Raise unless every key is an option of ``Wrapped``.

    Raises:
        OptionError: If one is not; the message has the nearest one.
    """
    valid = list(Wrapped.__init__.__kwdefaults__ or {})
    for option in wrap:
        if option not in valid:
            raise OptionError(f"Wrapped has no option {option!r}{nearest(option, valid) or ': ' + ', '.join(valid)}")
