"""The benchmark's baselines compute what their names promise, and its tables follow the rules."""

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(f"perf_{name}", ROOT / "perf" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases, table = load("cases"), load("table")


@pytest.fixture(scope="module")
def case():
    return cases.Case("MLP 5x512", 3)


def rows_of(case):
    """The gradient of each task by itself, with the trunk and its own head only."""
    rows, heads = [], []
    for task in range(case.num_tasks):
        _, losses, _ = case.forward()
        own = list(case.heads[task].parameters())
        found = torch.autograd.grad(losses[task], [*case.parameters, *own])
        rows.append(torch.cat([g.flatten() for g in found[: len(case.parameters)]]))
        heads.append(found[len(case.parameters) :])
    return torch.stack(rows), heads


def run(case, name):
    make, cut = cases.BASELINES[name]
    step = make(case)
    case.clear()
    walks = []
    z, losses, leaves = case.forward(cut=cut)
    z.register_hook(walks.append)
    assert step(z, losses, leaves) == len(walks), "not as many passes of the trunk as it says"
    return step, len(walks)


@pytest.mark.parametrize("name", ["seqK", "seqK + gram"])
def test_seq_k_forms_the_gradient_of_every_task_and_walks_the_trunk_k_times(case, name):
    step, walks = run(case, name)
    expected, heads = rows_of(case)
    assert walks == 3
    assert not torch.allclose(expected[0], expected[1])
    torch.testing.assert_close(step.buffer, expected)
    for head, own in zip(case.heads, heads, strict=True):
        torch.testing.assert_close([p.grad for p in head.parameters()], list(own))


@pytest.mark.parametrize("name", ["summed", "feat1"])
def test_one_pass_gives_the_sum(case, name):
    _, walks = run(case, name)
    expected, heads = rows_of(case)
    assert walks == 1
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in case.parameters]), expected.sum(dim=0))
    for head, own in zip(case.heads, heads, strict=True):
        torch.testing.assert_close([p.grad for p in head.parameters()], list(own))


def made_up(pcgrad=0.5, theirs=20.0):
    def entry(kind, ms, memory, **over):
        every = dict.fromkeys(("summed", "seqK", "seqK + gram", "feat1", "summed + forward"), 1.0)
        return {"kind": kind, "backward_ms": ms, "memory_mb": memory, "over": {**every, **over}}

    runs = {
        "summed": entry("baseline", 1.0, 5.0),
        "seqK": entry("baseline", 10.0, 82.0),
        "equal": entry("losses", 1.0, 5.0, summed=1.02),
        "again": entry("losses again", 2.0, 5.0, summed=1.7),
        "pcgrad": entry("gram", 10 * pcgrad, 11.0, seqK=pcgrad, **{"seqK + gram": pcgrad}),
        "torchjd PCGrad": entry("torchjd", theirs, 160.0, seqK=2.0),
    }
    about = {"date": "2026-01-02", "commit": 40 * "a", "processor": "P", "threads": 2, "cores": 2, "python": "3.11"}
    return {
        "about": {**about, "torch": "2.14", "torchjd": "0.18", "seconds": 100},
        "cases": {"MLP 5x512 K=16": {"num_tasks": 16, "rows_mb": 80.0, "runs": runs}},
        "elementwise": {"gram + combine": {"over": 1.0}, "graddrop": {"over": 2.5}},
        "gram_error": {"linalg.gram": 3e-8, "matmul": 1e-3},
        "solvers_ms": {"min_norm": {"plain": {"K=16": 0.4, "K=40": 2.5}, "conflict": {"K=16": 0.3, "K=40": 1.0}}},
    }


def line(text, start):
    return next(row for row in text.splitlines() if row.startswith(f"| {start}"))


def test_bars_stand_beside_the_worst_value():
    text = table.bars(made_up())
    assert line(text, "methods that read losses").endswith("| 1.03 | 1.02 | equal, MLP 5x512 K=16 | yes |")
    assert line(text, "Gram methods, over seqK: MLP, K=16").endswith("| 0.55 | 0.50 | pcgrad, MLP 5x512 K=16 | yes |")
    assert line(text, "Gram methods, over seqK: ResNet-18").endswith("| 0.95 | not measured | | |")
    assert line(text, "Gram methods, over the same method of torchjd: MLP").endswith(
        "| 0.50 | 0.25 | pcgrad, MLP 5x512 K=16 | yes |"
    )
    assert line(text, "methods by coordinate").endswith("| 2.00 | 2.50 | graddrop | no: 1 of 1 above |")
    assert line(text, "error of the Gram").endswith("| 1e-06 | 3e-08 |  | yes |")
    assert line(text, "solvers, K=40").endswith("| 2.00 | 2.50 | min_norm, plain | no: 1 of 2 above |")
    worse = table.bars(made_up(pcgrad=0.7, theirs=7.0))
    assert line(worse, "Gram methods, over seqK: MLP, K=16").endswith("| no: 1 of 1 above |")
    assert "1.00 | pcgrad" in line(worse, "Gram methods, over the same method of torchjd: MLP")


def test_tables_have_a_column_for_each_case_and_a_row_for_each_method():
    text = table.tables(made_up())
    assert "Measured on 2026-01-02 at commit aaaaaaa: P, 2 threads of 2 cores" in text
    assert "| torchjd PCGrad | 2.00 |" in text
    assert "| pcgrad | 11 |" in text


def test_the_generated_page_is_current():
    assert table.updated(table.PAGE.read_text()) == table.PAGE.read_text(), "run: python perf/table.py"
