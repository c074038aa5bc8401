"""Rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "counterpoint").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_source_file(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert path.stem.strip("_") not in {"utils", "helpers", "common", "misc", "core"}
    lines = text.count("\n")
    assert lines <= 400, f"{lines} lines: split it by noun"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            documented = len((ast.get_docstring(node) or "").splitlines())
            assert length - documented <= 60, f"{node.name} has {length - documented} lines of code"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    assert not re.search(r"\bTODO\b(?! \(#\d+\))", text)


def test_importing_the_package_imports_no_torch():
    script = (
        "import sys, counterpoint; assert not {'torch', 'numpy'} & set(sys.modules); counterpoint.balancers.names()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_core_needs_no_extra():
    """Balancers, their engine and the blocks import with torch, numpy and jaxtyping alone."""
    blocked = ["lightning_fabric", "jsonargparse", "rich", "torchmetrics", "sklearn", "plotly", "jinja2", "yaml"]
    script = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import counterpoint as cp\n"
        "for family in (cp.balancers, cp.architectures, cp.blocks, cp.data, cp.diagnostics, cp.linalg, cp.losses):\n"
        "    pass\n"
        "cp.metrics.accuracy(3); cp.testing; assert cp.balancers.create('mgda', 2)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_is_there():
    import counterpoint

    for name in counterpoint.__all__:
        module = getattr(counterpoint, name)
        assert module.__doc__, name
        assert name in dir(counterpoint)
    with pytest.raises(AttributeError, match="no attribute 'balancer'"):
        counterpoint.balancer  # noqa: B018


def test_nothing_names_the_machine():
    """No committed file has an absolute path of somebody's machine."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    pattern = re.compile(r"(?<![\w.$~])/(?:work|home|root|Users)/\w")
    found = []
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".jinja", ".cfg", ""} and path.is_file():
            found += [
                f"{name}: {line}" for line in path.read_text(errors="ignore").splitlines() if pattern.search(line)
            ]
    assert not found
