"""Write the tables and the report of a comparison anew from its runs, finished or not."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from counterpoint.cli._arguments import reject
from counterpoint.cli._json import plain

HELP = "write report.html, table.csv and table.tex of a comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a comparison")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the files and print the table."""
    reject(args.parser, rest)
    write_all(args.folder, as_json=args.json)
    return 0


def write_all(folder: Path, *, as_json: bool) -> None:
    """Write ``report.html``, ``table.csv`` and ``table.tex`` and print the table."""
    from rich.console import Console

    from counterpoint.bench.comparison import read_comparison
    from counterpoint.bench.report import write_report
    from counterpoint.bench.tables import print_table, write_csv, write_tex

    comparison = read_comparison(folder)
    write_csv(comparison, folder / "table.csv")
    write_tex(comparison, folder / "table.tex")
    write_report(comparison, folder / "report.html")
    if as_json:
        content = {"report": str(folder / "report.html"), "rows": [plain(row) for row in comparison.rows]}
        print(json.dumps(content, indent=2, allow_nan=False))
        return
    print_table(comparison, Console())
    print(f"report: {folder / 'report.html'}")
