"""Options of registered classes: checked by name and type before anything is built, with messages of one line."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from counterpoint.errors import OptionError
from counterpoint.registry import Registry, nearest


def parse_call(text: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Read ``"name"`` or ``"name(option=value, ...)"``; values are written as in YAML.

    Args:
        text: What was written.
        kind: What it names, for messages.

    Raises:
        OptionError: If it is not of that form.
    """
    match = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    if match is None:
        raise OptionError(f"{kind} {text!r} is not of the form name or name(option=value, ...)")
    try:
        written = re.sub(r"(^|,)\s*(\w+)\s*=", r"\1 \2: ", match[2] or "")
        return match[1], yaml.safe_load("{" + written + "}") or {}
    except yaml.YAMLError as error:
        raise OptionError(f"{kind} {text!r}: {one_line(error)}") from error


def check_component(registry: Registry, name: str, options: Mapping[str, Any], *, where: str) -> None:
    """Check name, options and their types of a registered class without building it.

    Args:
        registry: Family of the class.
        name: Its key.
        options: Arguments of its constructor.
        where: How an option is given, with its name for ``{}``; for the message about one that is missing.

    Raises:
        OptionError: If an option does not exist, has the wrong type or is missing.
    """
    registry.check_options(name, options)
    cls = registry.get(name)
    given = [argument for argument in registry.given if argument in options]
    if given:
        raise OptionError(f"{cls.__name__}: {given[0]} is set by the run and cannot be an option")
    for option in registry.describe(name).options:
        if option.required and option.name not in options:
            raise OptionError(f"{cls.__name__} needs {option.name}; give it with {where.format(option.name)}")
    check_arguments(cls, options, given=registry.given)


def check_arguments(cls: type, options: Mapping[str, Any], *, given: Sequence[str]) -> None:
    """Check names and types of constructor arguments.

    Args:
        cls: The class.
        options: Its arguments.
        given: Arguments that the run sets.

    Raises:
        OptionError: If an argument does not exist or has the wrong type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "options", skip=set(given), fail_untyped=False)
    valid = [name for name in inspect.signature(cls).parameters if name not in given]
    for option in options:
        if option not in valid:
            raise OptionError(f"{cls.__name__} has no option {option!r}{nearest(option, valid)}")
    try:
        parser.parse_object({"options": dict(options)})
    except ArgumentError as error:
        raise OptionError(f"{cls.__name__}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return the message of an error as one line."""
    text = " ".join(str(error).split())
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: (.*)",
        r"must be one of \1, got \2",
        text,
    )
    text = re.sub(r"(one of tuple\S.*)", r"\1; a list is written [a, b]", text)
    return (
        text.replace('Parser key "run.', 'key "')
        .replace('Parser key "options.', 'option "')
        .replace("NoneType", "null")
        .replace("<class '", "")
        .replace("'>", "")
        .replace("Expected a int", "Expected a whole number")
    )
