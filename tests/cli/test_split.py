"""The whole of Recon as one command."""

import json

import pytest

from counterpoint.cli.main import main
from counterpoint.splitting import SplitPlan

QUICK = ["--training.epochs", "1", "--data.num_train", "130", "--data.num_val", "60", "--data.num_test", "60"]
QUICK += ["--training.batch_size", "64", "--training.monitor_every", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a search."""
    out = tmp_path_factory.mktemp("split") / "out"
    assert main(["split", "digits", *QUICK, "--layers", "2", "--seeds", "0", "--plan-only", "--out", str(out)]) == 0
    return out


def failing(arguments, capsys):
    code = main(["split", "digits", *QUICK, *arguments])
    captured = capsys.readouterr()
    return code, captured.err


def test_search_plan_and_comparison(folder, capsys):
    arguments = ["--layers", "2", "--seeds", "0", "--baselines", "first", "--workers", "1", "--json"]
    assert main(["split", "digits", *QUICK, *arguments, "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(printed)["rows"]
    assert [row["method"] for row in rows] == ["single_task", "equal", "rlw", "equal [recon]", "equal [first]"]
    assert (folder / "report.html").exists()
    plan = SplitPlan.load(folder / "plan.json")
    assert len(plan.layers) == 2
    assert plan.added_parameters(2) == plan.num_parameters
    assert main(["split", "digits", *QUICK, *arguments, "--out", str(folder)]) == 0, "again, nothing to do"


def test_a_plan_of_another_run(folder, tmp_path, capsys):
    plan = str(folder / "plan.json")
    arguments = ["--plan", plan, "--balancers", "pcgrad", "--seeds", "1", "--workers", "1", "--json"]
    assert main(["split", "digits", *QUICK, *arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(printed)["rows"]
    assert "pcgrad [plan]" in {row["method"] for row in rows}
    assert not (tmp_path / "search").exists()
    code, message = failing(["--plan", plan, "--model.backbone_options.widths", "[4, 4]"], capsys)
    assert code == 2
    assert "another network" in message
    assert main(["train", "digits", *QUICK, "--split.plan", plan, "--out", str(tmp_path / "train")]) == 0


def test_another_choice_or_run_in_the_folder_is_refused(folder, tmp_path, capsys):
    arguments = ["--layers", "2", "--seeds", "0", "--workers", "1", "--out", str(folder)]
    assert main(["split", "digits", *QUICK, *arguments]) == 0
    code, message = failing([*arguments[2:], "--layers", "3"], capsys)
    assert code == 2
    assert "another choice of layers for recon" in message
    assert len(SplitPlan.load(folder / "plan.json").layers) == 2
    code, message = failing([*arguments, "--every", "3"], capsys)
    assert code == 2
    assert "measured with every=1, not every=3" in message
    assert main(["train", "digits", *QUICK, "--out", str(tmp_path / "search")]) == 0
    code, message = failing(["--layers", "2", "--seeds", "0", "--out", str(tmp_path)], capsys)
    assert code == 2
    assert "made by another configuration" in message
    assert (tmp_path / "search" / "result.json").exists()


def test_a_plan_fits_networks_with_other_heads(folder, capsys):
    plan = str(folder / "plan.json")
    arguments = [
        "--plan",
        plan,
        "--plan-only",
        "--model.head_options.hidden",
        "16",
        "--out",
        str(folder.parent / "heads"),
    ]
    assert main(["split", "digits", *QUICK, *arguments]) == 0
    code, message = failing(["--plan", plan, "--layers", "2"], capsys)
    assert code == 2
    assert "leave out --layers" in message


def test_no_conflict_is_said_and_ends_well(folder, capsys):
    arguments = ["--layers", "2", "--threshold", "-1", "--seeds", "0", "--out", str(folder)]
    assert main(["split", "digits", *QUICK, *arguments]) == 0
    assert "No conflict was found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "exactly one of --layers, --share, --budget-mb"),
        (["--layers", "2", "--share", "0.5"], "exactly one"),
        (["--layers", "2", "--balancers", "pcgradd"], "did you mean pcgrad"),
        (["--layers", "2", "--init", "sane"], "did you mean same"),
        (["--layers", "-1"], "layers"),
        (["--layers", "2", "--baselines", "rls"], "did you mean rsp, rsl"),
        (["--layers", "2", "--search-share", "2"], "share of the epochs"),
        (["--layers", "2", "--threshold", "3"], "threshold"),
        (["--layers", "2", "--split.layers", "[backbone.stages.0.0]"], "leave out --split.layers"),
        (["--layers", "2", "--data.tasks", "[left]"], "between tasks"),
        (["--plan", "nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes(arguments, expected, capsys, tmp_path):
    code, message = failing([*arguments, "--out", str(tmp_path / "out")], capsys)
    assert code == 2
    assert expected in message
    assert len(message.splitlines()) == 1
