"""Pages of docs/results: a generated part, and remarks behind it that generation keeps."""

from collections.abc import Sequence
from pathlib import Path

REMARKS = "<!-- what follows is kept -->"


def write_page(page: Path, lines: Sequence[str]) -> None:
    """Write the generated part anew; what stands behind the mark stays."""
    page.parent.mkdir(parents=True, exist_ok=True)
    remarks = page.read_text(encoding="utf-8").partition(REMARKS)[2] if page.exists() else "\n"
    page.write_text("\n".join([*lines, "", REMARKS]) + remarks, encoding="utf-8")
