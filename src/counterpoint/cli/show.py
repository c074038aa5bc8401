"""Show all facts and options of a balancer, schedule, architecture, data set or backbone."""

import argparse
import inspect
import json
import textwrap
from collections.abc import Sequence

from counterpoint.cli._arguments import reject
from counterpoint.cli.list_names import registries
from counterpoint.registry import fold, unknown

HELP = "show equation, source, provenance, cost and options of one of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("name", metavar="NAME", help="key of a balancer, schedule, architecture, data set or backbone")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print the description.

    Raises:
        UnknownNameError: If nothing is called that.
    """
    reject(args.parser, rest)
    from counterpoint.balancers._needs import NEEDS

    families = registries().values()
    for registry in families:
        if fold(args.name) in map(fold, registry.names()):
            break
    else:
        raise unknown(
            "method, network or data set", args.name, [name for registry in families for name in registry.names()]
        )
    found = registry.describe(args.name)
    help_texts = _option_help(registry.get(args.name))
    if args.json:
        content = found.to_dict()
        for option in content["options"]:
            option["help"] = help_texts.get(option["name"], "")
        print(json.dumps(content, indent=2, default=str))
        return 0
    print(f"{found.key} ({found.kind}, class {found.name})")
    print(textwrap.fill(found.summary, 100, initial_indent="  ", subsequent_indent="  "))
    print()
    width = max(map(len, [*found.facts, "options"])) + 2
    for fact, value in found.facts.items():
        if fact == "needs":
            value = "; ".join(NEEDS[need] for need in value.split(", "))
        lead = f"  {fact.replace('_', ' '):<{width}}"
        print(textwrap.fill(value, 100, initial_indent=lead, subsequent_indent=" " * len(lead)))
    print("\n  options" if found.options else "\n  no options")
    for option in found.options:
        default = "required" if option.required else f"default {option.default!r}"
        print(f"    {option.name}: {option.type}, {default}")
        if option.name in help_texts:
            print(textwrap.fill(help_texts[option.name], 100, initial_indent="      ", subsequent_indent="      "))
    return 0


def _option_help(cls: type) -> dict[str, str]:
    """Return argument -> text from the docstring of a class."""
    import docstring_parser  # comes with jsonargparse[signatures]

    parsed = docstring_parser.parse(inspect.getdoc(cls) or "")
    return {param.arg_name: " ".join((param.description or "").replace("``", "").split()) for param in parsed.params}
