"""What several verbs share: configuration from a recipe and dotted options."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from counterpoint.errors import OptionError
from counterpoint.registry import nearest

if TYPE_CHECKING:
    from counterpoint.bench import RunConfig

EPILOG = """\
Any option of the run can be set as --SECTION.OPTION VALUE, for example
  --training.epochs 20   --optimizer.lr 0.01   --optimizer SGD   --data.tasks "[left]"
  --model.backbone mlp   --balancer.c 0.2      --data.root PATH
Sections: data, model, balancer, optimizer, schedule, scheduler, training, split. The options of a
method, data set or network are those of its constructor: counterpoint show NAME."""


SECTIONS = ("data", "model", "balancer", "optimizer", "schedule", "scheduler", "training", "split")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument that names the run."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe (counterpoint list recipes) or a YAML file")


def reject(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """Raise for arguments that a verb does not know, with the nearest it does.

    Raises:
        OptionError: If there are any.
    """
    if rest:
        raise unknown_option(parser, rest[0])


def unknown_option(parser: argparse.ArgumentParser, option: str) -> OptionError:
    """Build the error for an option that does not exist."""
    from counterpoint.bench.run_config import RunConfig, option_paths

    name = option.split("=")[0].lstrip("-")
    flags = [flag for action in parser._actions for flag in action.option_strings]  # argparse offers no public list
    takes_options = any(action.dest == "recipe" for action in parser._actions)
    paths = option_paths(RunConfig) if takes_options else []
    inner = [f"--{path}" for path in paths if path.split(".")[-1] == name]
    hint = f"; did you mean {', '.join(inner)}?" if inner else nearest(option, [*flags, *(f"--{p}" for p in paths)])
    return OptionError(f"no option {option.split('=')[0]!r} in {parser.prog}{hint}")


def read_run(args: argparse.Namespace, rest: Sequence[str], *, seed: int | None = None) -> "RunConfig":
    """Return the configuration that the recipe and the dotted options make.

    Raises:
        OptionError: If an option does not exist, or lacks its value.
    """
    from counterpoint.bench.recipes import find_recipe
    from counterpoint.bench.run_config import override

    changes: list[tuple[str, str]] = []
    queue = list(rest)
    while queue:
        option = queue.pop(0)
        if not option.startswith("--"):
            raise OptionError(f"{args.parser.prog}: did not expect {option!r}")
        path, has_value, value = option[2:].partition("=")
        if "." not in path and path not in SECTIONS:
            raise unknown_option(args.parser, option)
        if not has_value:
            if not queue:
                raise OptionError(f"{option} needs a value")
            value = queue.pop(0)
        changes.append((path, value))
    if seed is not None:
        changes.append(("seed", str(seed)))
    return override(find_recipe(args.recipe), changes)
