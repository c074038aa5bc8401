"""Entry point: finds the verb, prints errors as one line."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from counterpoint._optional import missing_extra
from counterpoint._version import __version__
from counterpoint.cli import compare, diagnose, group, list_names, profile, report, show, split, train
from counterpoint.errors import CounterpointError, GraphError, NonFiniteError, RunError, SolverError
from counterpoint.registry import nearest

VERBS = {
    "list": list_names,
    "show": show,
    "train": train,
    "compare": compare,
    "diagnose": diagnose,
    "split": split,
    "group": group,
    "profile": profile,
    "report": report,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 1 a run failed, 2 the call was wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        parser.error(f"no verb is called {arguments[0]!r}{nearest(arguments[0], VERBS)}")
    known, rest = parser.parse_known_args(arguments)
    if known.verb is None and rest:
        parser.error(f"no option {rest[0]!r}{nearest(rest[0], ('--help', '--version'))}")
    if known.verb is None:
        parser.print_help()
        return 0
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # classes named module:Class are looked for beside the recipe's user
    return _answer(known, rest)


def _answer(known: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run a verb; print what goes wrong as one line."""
    try:
        return VERBS[known.verb].run(known, rest)
    except (NonFiniteError, GraphError, SolverError, RunError) as error:
        return _fail(error, 1)
    except CounterpointError as error:
        return _fail(error, 2)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        return _fail(missing, 2)
    except KeyboardInterrupt:
        print("counterpoint: stopped; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _fail(error: Exception, code: int) -> int:
    print(f"counterpoint: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of the command are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="counterpoint",
        description="Multi-task learning on PyTorch: compare methods that keep tasks from fighting in one network.",
        epilog="counterpoint VERB --help tells more. A first try: counterpoint compare digits",
    )
    parser.add_argument("--version", action="version", version=f"counterpoint {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, module in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog=getattr(module, "EPILOG", None),
        )
        module.add_arguments(sub)
        sub.set_defaults(parser=sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
