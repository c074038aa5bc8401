"""What a method of a comparison is made of: a balancer, a schedule, a number of networks; each is one dimension."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from counterpoint import schedules
from counterpoint.bench.group_plan import resolve_plan
from counterpoint.bench.method import canonical_name, check_balancer
from counterpoint.bench.networks import Networks
from counterpoint.bench.options import check_component, parse_call
from counterpoint.bench.run_config import BalancerConfig, RunConfig, ScheduleConfig, SplitConfig
from counterpoint.errors import OptionError
from counterpoint.schedules import FixedGroups


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the runs that a method is made of.

    Attributes:
        label: What tells it from the others of the method; ``None`` if it is alone.
        config: What to run.
        serves: Tasks whose numbers are read from it; ``None`` for all of its own.
    """

    label: str | None
    config: RunConfig
    serves: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One thing in which methods of a comparison differ.

    Attributes:
        key: What it is called, and a spec of it in messages.
        mark: Stands before its spec in the name of a method, as in ``"pcgrad @ alternating"``; the first has none.
        default: Name of the spec that adds nothing to the name of a method.
        parse: Reads name and options of a spec; raises if they are wrong.
        format: Returns name and options again, as the tables write them.
        apply: Puts a value into a part of a run: returns one part, or several.
    """

    key: str
    mark: str
    default: str | None
    parse: Callable[[str, Mapping[str, Any]], Any]
    format: Callable[[Any], tuple[str, Mapping[str, Any]]]
    apply: Callable[[RunConfig, Any], Sequence[Part]]


def _parse_balancer(name: str, options: Mapping[str, Any]) -> BalancerConfig:
    key = canonical_name(name)
    own = {option: value for option, value in options.items() if option != "wrap"}
    config = BalancerConfig(key, own, options.get("wrap") or {})
    check_balancer(config, where=f"'{key}({{}}=VALUE)'")
    return config


def _parse_schedule(name: str, options: Mapping[str, Any]) -> ScheduleConfig:
    key = name if ":" in name else schedules.SCHEDULES.get(name).key
    if key == FixedGroups.key:
        options = resolve_plan(key, dict(options))
    check_component(schedules.SCHEDULES, key, options, where=f"'{key}({{}}=VALUE)'")
    return ScheduleConfig(key, dict(options))


def _format_balancer(config: BalancerConfig) -> tuple[str, Mapping[str, Any]]:
    return config.name, config.options | ({"wrap": config.wrap} if config.wrap else {})


def _replace(section: str) -> Callable[[RunConfig, Any], Sequence[Part]]:
    """Return the function that puts a section into the configuration of a run."""
    return lambda run, value: [Part(None, dataclasses.replace(run, **{section: value}))]


def _apply_networks(run: RunConfig, networks: Networks) -> Sequence[Part]:
    parts = []
    for group, serves in zip(networks.groups, networks.served, strict=True):
        config = dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=group))
        if len(group) == 1:  # nothing to split
            config = dataclasses.replace(config, split=SplitConfig())
        parts.append(Part("+".join(group), config, serves))
    return parts


DIMENSIONS = (
    Dimension("balancer", "", None, _parse_balancer, _format_balancer, _replace("balancer")),
    Dimension(
        "schedule",
        "@",
        ScheduleConfig().name,
        _parse_schedule,
        lambda config: (config.name, config.options),
        _replace("schedule"),
    ),
    Dimension("networks", "#", None, Networks.parse, Networks.format, _apply_networks),
)
"""In the order in which they stand in a name. The first one is always there."""

Values = dict[str, Any]


def parse_spec(dimension: Dimension, text: str) -> Any:
    """Read ``"name"`` or ``"name(option=value, ...)"``; values are written as in YAML.

    Raises:
        OptionError: If it is not of that form, or an option does not exist.
        UnknownNameError: If nothing is called that; names the nearest.
    """
    kind = "method" if dimension.key == "balancer" else dimension.key
    return dimension.parse(*parse_call(text, kind))


def format_spec(dimension: Dimension, value: Any) -> str:
    """Return a spec as the tables write it: its name, with its options where there are any."""
    name, options = dimension.format(value)
    written = ", ".join(
        f"{key}={yaml.safe_dump(option, default_flow_style=True, width=10**9).split(chr(10))[0]}"
        for key, option in options.items()
    )
    return f"{name}({written})" if written else name


SPLIT_NAME = r"[\w.-]+"


def part_split(method: str) -> tuple[str, str | None]:
    """Return a method without the name of a split in brackets behind it, and that name, if there is one."""
    match = re.fullmatch(rf"(.*\S)\s+\[({SPLIT_NAME})\]\s*", method, flags=re.DOTALL)
    return (method, None) if match is None else (match[1], match[2])


def parse_combination(text: str) -> Values:
    """Read the name of a method: a balancer, and after their marks what it has of the other dimensions.

    The name of a split in brackets at its end is left out; see :func:`part_split`.

    Returns:
        Key of the dimension -> value; a dimension that is not written is absent.

    Example:
        >>> sorted(parse_combination("pcgrad @ alternating(order=fixed)"))
        ['balancer', 'schedule']

    Raises:
        OptionError: If a dimension is there twice, or its spec is wrong.
    """
    text, _ = part_split(text)
    marks = {dimension.mark: dimension for dimension in DIMENSIONS if dimension.mark}
    pieces: list[tuple[Dimension, str]] = [(DIMENSIONS[0], "")]
    depth, quote = 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif depth and character in "'\"":
            quote = character
        elif not depth and character in marks:
            pieces.append((marks[character], ""))
            continue
        else:
            depth += (character in "([{") - (character in ")]}")
        pieces[-1] = (pieces[-1][0], pieces[-1][1] + character)
    values: Values = {}
    for dimension, spec in pieces:
        if dimension.key in values:
            raise OptionError(f"method {text!r} has more than one {dimension.key}")
        values[dimension.key] = parse_spec(dimension, spec)
    return values


def combination_name(values: Values) -> str:
    """Return the name of a method; what is the default of its dimension is left out."""
    written: list[str] = []
    for dimension in DIMENSIONS:
        if dimension.key not in values:
            continue
        spec = format_spec(dimension, values[dimension.key])
        if spec != dimension.default:
            written.append(f"{dimension.mark} {spec}".strip())
    return " ".join(written)


def cross(first: Sequence[str], others: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of all combinations: each of the first with one spec of each other dimension.

    Args:
        first: Names of methods, as :func:`parse_combination` reads them.
        others: Key of a dimension -> its specs. What a method already says of a dimension is not replaced.
    """
    methods = [parse_combination(text) for text in first]
    for dimension in DIMENSIONS:
        specs = others.get(dimension.key)
        if not specs:
            continue
        parsed = [parse_spec(dimension, text) for text in specs]
        methods = [
            own if dimension.key in own else {**own, dimension.key: value}
            for own in methods
            for value in (parsed if dimension.key not in own else [None])
        ]
    return list(dict.fromkeys(combination_name(method) for method in methods))


def parts_of(run: RunConfig, method: str) -> list[Part]:
    """Return the runs that a method is made of, for the seed of a configuration."""
    values = parse_combination(method)
    if "networks" in values:
        run = dataclasses.replace(
            run, schedule=ScheduleConfig()
        )  # groups of the whole run mean nothing in each network
    parts = [Part(None, run)]
    for dimension in DIMENSIONS:
        if dimension.key in values:
            parts = [
                Part(new.label or part.label, new.config, new.serves or part.serves)
                for part in parts
                for new in dimension.apply(part.config, values[dimension.key])
            ]
    return parts
