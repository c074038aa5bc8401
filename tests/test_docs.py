"""Every Python example that a reader can copy runs."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import counterpoint as cp

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.stem)
def test_blocks_of_a_page_in_order(page):
    scope: dict = {"__name__": "block"}
    for code in BLOCK.findall(page.read_text()):
        exec(compile(code, str(page), "exec"), scope)
        if "balancer.backward" in code:
            heads = scope["heads"]
            modules = (scope["trunk"], *(heads.values() if hasattr(heads, "values") else heads))
            assert all(parameter.grad is not None for module in modules for parameter in module.parameters())


def test_the_loop_of_the_readme_learns_and_is_short():
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    statements = [line for line in code.splitlines() if line.strip() and not line.startswith("import")]
    assert len(statements) <= 10
    totals = []
    for repeats in (1, 100):
        torch.manual_seed(0)
        scope: dict = {}
        exec(compile(code.replace("] * 10", f"] * {repeats}"), "readme", "exec"), scope)
        totals.append(float(scope["report"].losses.sum()))
    assert totals[1] < 0.8 * totals[0]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example(path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert len(path.read_text().splitlines()) <= 100


def tool(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(monkeypatch):
    docs = tool("docs", monkeypatch)
    assert not docs.stale(), "run: make docs"
    assert "| [`pcgrad`](docs/methods/pcgrad.md) |" in docs.README.read_text()


def test_a_stale_page_is_noticed(monkeypatch, tmp_path):
    docs = tool("docs", monkeypatch)
    shutil.copytree(docs.PAGES, tmp_path / "methods")
    monkeypatch.setattr(docs, "PAGES", tmp_path / "methods")
    assert not docs.stale()
    (docs.PAGES / "gone.md").write_text("of a method that is no more")
    (docs.PAGES / "mgda.md").write_text("old")
    (docs.PAGES / "equal.md").unlink()
    assert {path.name for path in docs.stale()} == {"gone.md", "mgda.md", "equal.md"}


@pytest.mark.parametrize("name", cp.balancers.names())
def test_every_balancer_says_when_not_to_use_it_and_explains_its_options(name, monkeypatch):
    found = cp.balancers.describe(name)
    avoid = found.facts.get("avoid", "")
    assert avoid.startswith("Where "), "one to three sentences"
    assert avoid.endswith(".")
    assert 40 < len(avoid) <= 320
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    for part in (avoid, found.facts["equation"], found.facts["provenance"], "## References", "```python"):
        assert part in page
    for option in found.options:
        assert f"| `{option.name}` |" in page
    leftover = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    assert not re.search(r":(func|meth|class|mod):|``|^(Args|Returns|Raises|Example):$", leftover, flags=re.MULTILINE)


def test_the_page_of_the_toy_problem_is_that_of_the_recorded_walks(monkeypatch):
    for path, text in tool("toy", monkeypatch).generated().items():
        assert path.read_text() == text, f"{path.name}: run make docs"


def test_links_between_pages_exist():
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_classes_of_the_guide_work_in_a_comparison(tmp_path):
    """The files and the first command of docs/own_problem.md, with fewer seeds and epochs."""
    page = (ROOT / "docs" / "own_problem.md").read_text()
    houses, network, balancer = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "houses.py").write_text(houses)
    (tmp_path / "rows.py").write_text(network)
    (tmp_path / "mine.py").write_text(balancer)
    command = re.findall(r"^counterpoint (compare .*)$", page, flags=re.MULTILINE)[0]
    words = [
        *shlex.split(command),
        "--balancers",
        "mine:InverseNorm",
        "--seeds",
        "0",
        "--training.epochs",
        "3",
        "--json",
    ]
    call = [sys.executable, "-m", "counterpoint.cli.main", *words]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["mine:InverseNorm"]["final"]["metrics"]["price"]["accuracy"]["values"][0] > 60
    command = re.findall(r"^counterpoint (split .*)$", page, flags=re.MULTILINE)[0]
    quick = ["--data.num_train", "256", "--data.num_val", "32", "--data.num_test", "32", "--training.epochs", "2"]
    call = [sys.executable, "-m", "counterpoint.cli.main", *shlex.split(command), "--plan-only", "--out", "split"]
    done = subprocess.run([*call, *quick], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "split" / "plan.json").exists()


def test_what_the_readme_says_that_methods_ask_of_the_loop_is_true():
    readme = (ROOT / "README.md").read_text()
    learning = {name for name in cp.balancers.names() if not required(name) and has_parameters(name)}
    named = re.findall(r"learn their weights \((.*?)\)", readme)
    assert len(named) == 1
    assert learning == set(re.findall(r"`(\w+)`", named[0])), "name them all"
    assert cp.balancers.DWA.needs == {"epochs"}
    assert "(`dwa`: `balancer.end_epoch()` after each epoch)" in readme


def required(name):
    return any(option.required for option in cp.balancers.describe(name).options)


def has_parameters(name):
    return bool(list(cp.balancers.create(name, num_tasks=2).parameters()))


def test_the_demo_is_short_enough():
    """Ten methods, the baselines and three seeds take under two minutes on two cores; all methods take longer."""
    chosen = re.findall(r"^DEMO := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[0].split()
    assert 8 <= len(chosen) <= 10
    assert set(chosen) <= set(cp.balancers.names()) - {"equal", "rlw"}


def test_links_and_pictures_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_commands_of_the_readme_are_valid():
    """Each counterpoint command of the README is understood: parsed to the end without being run."""
    from counterpoint.bench.compare import make_config
    from counterpoint.cli._arguments import read_run
    from counterpoint.cli.compare import match_methods
    from counterpoint.cli.main import _parser

    lines = re.findall(r"^(counterpoint .*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        args, rest = _parser().parse_known_args(shlex.split(line)[1:])
        if args.recipe == "run.yaml":
            args.recipe = "digits"
        config = read_run(args, rest)
        if args.verb == "compare":
            make_config(config, match_methods(args.balancers), args.seeds)
