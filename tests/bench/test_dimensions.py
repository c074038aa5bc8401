"""Methods that are more than a balancer: schedules and several networks, in a comparison."""

import json
import math
import re

import pytest

from counterpoint.bench.compare import make_config, make_jobs, run_comparison
from counterpoint.bench.comparison import read_comparison
from counterpoint.bench.dimensions import combination_name, cross, parse_combination, parts_of
from counterpoint.bench.figures import short
from counterpoint.bench.recipes import digits
from counterpoint.bench.report import render_report
from counterpoint.bench.run_config import BalancerConfig, ScheduleConfig, override
from counterpoint.bench.tables import write_csv, write_tex
from counterpoint.cli.main import main
from counterpoint.errors import CounterpointError, OptionError, UnknownNameError

SMALL = {
    "training.epochs": "2",
    "data.num_train": "200",
    "data.num_val": "50",
    "data.num_test": "100",
    "training.monitor_every": "0",
    "training.batch_size": "100",
}
RUN = override(digits(), list(SMALL.items()))
FLAGS = [word for path, value in SMALL.items() for word in (f"--{path}", value)]
GROUPED = "pcgrad @ fixed_groups(groups=[[left], [right]])"
SEPARATE = "pcgrad # networks(groups=[[left], [right]])"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pcgrad@joint", "pcgrad"),
        ("PC-Grad @ Alternating", "pcgrad @ alternating"),
        (" pomsi @ fixed_groups( groups = [[left],[right]] ) ", "pomsi @ fixed_groups(groups=[[left], [right]])"),
        (
            "uncertainty+pcgrad(pcgrad={reduction: mean}) @ alternating(order=fixed)",
            "uncertainty+pcgrad(pcgrad={reduction: mean}) @ alternating(order=fixed)",
        ),
        ("equal#networks(groups=[[a@b, 'c # d'], [e]])", "equal # networks(groups=[[a@b, 'c # d'], [e]])"),
        ("mgda @ joint # networks(groups=[[a], [b]])", "mgda # networks(groups=[[a], [b]])"),
    ],
)
def test_names_are_read_and_written(text, name):
    assert combination_name(parse_combination(text)) == name
    assert combination_name(parse_combination(name)) == name


def test_long_options_stay_whole():
    groups = [[f"a_task_with_a_long_name_{i}"] for i in range(12)]
    name = f"equal # networks(groups={json.dumps(groups)})"
    written = combination_name(parse_combination(name))
    assert [list(group) for group in parse_combination(written)["networks"].groups] == groups


def test_methods_are_crossed_but_not_the_baselines():
    config = make_config(
        RUN, ["PCGrad", "pomsi", "mgda @ alternating"], [0], {"schedule": ["joint", "sequential-reptile"]}
    )
    assert config.methods == (
        "equal",
        "rlw",
        "pcgrad",
        "pcgrad @ sequential_reptile",
        "pomsi",
        "pomsi @ sequential_reptile",
        "mgda @ alternating",
    )
    assert cross(["pcgrad", "pcgrad"], {}) == ["pcgrad"]


def test_folder_names(tmp_path):
    """Those of before are the same; two groupings never share one."""
    methods = ["pcgrad", "cagrad(c=0.2)", GROUPED, "pcgrad @ fixed_groups(groups=[[left, right]])", SEPARATE]
    jobs = make_jobs(make_config(RUN, methods, [3]), tmp_path, ["left", "right"])
    paths = [str(job.path.relative_to(tmp_path)) for job in jobs]
    assert paths[:6] == [
        "runs/single_task-left/seed3",
        "runs/single_task-right/seed3",
        "runs/equal/seed3",
        "runs/rlw/seed3",
        "runs/pcgrad/seed3",
        "runs/cagrad-c=0.2/seed3",
    ]
    assert all(re.fullmatch(r"runs/pcgrad-[\w=.-]+-[0-9a-f]{8}(/left|/right)?/seed3", path) for path in paths[6:])
    assert len(set(paths)) == len(paths) == 10


def test_parts_hold_only_what_their_method_says():
    run = override(RUN, [("schedule", "alternating")])
    (joint,) = parts_of(run, "mgda")
    assert joint.config.schedule.name == "alternating"
    left, right = parts_of(run, SEPARATE)
    assert (left.label, left.serves, left.config.data.tasks) == ("left", ("left",), ("left",))
    assert (right.label, right.config.schedule) == ("right", ScheduleConfig())
    assert right.config.balancer == BalancerConfig("pcgrad")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dims")
    run_comparison(make_config(RUN, ["pcgrad", GROUPED, SEPARATE], [0, 1]), folder, workers=1, listener=lambda _: None)
    return folder


def test_costs_count_every_update(finished):
    rows = {row.method: row for row in read_comparison(finished).rows}
    assert rows["pcgrad"].num_updates.values == (1, 1)
    assert rows[GROUPED].num_updates.values == (2, 2)
    assert rows[SEPARATE].num_updates.values == (2, 2)
    assert rows["single_task"].num_updates.values == (2, 2)
    assert rows[GROUPED].num_backward.values == (8, 8), "2 epochs of 2 batches, 2 groups of one task"
    assert rows[SEPARATE].num_parameters.mean == rows["single_task"].num_parameters.mean
    assert rows[GROUPED].num_parameters.mean == rows["pcgrad"].num_parameters.mean < rows[SEPARATE].num_parameters.mean
    assert [rows[method].family for method in ("pcgrad", GROUPED, SEPARATE)] == ["gram"] * 3


def test_numbers_of_several_networks_are_joined(finished):
    comparison = read_comparison(finished)
    row = next(row for row in comparison.rows if row.method == SEPARATE)
    seconds = []
    for seed in range(2):
        total = 0.0
        for task in ("left", "right"):
            (run,) = (r for r in comparison.runs if (r.method, r.task, r.seed) == (SEPARATE, task, seed))
            assert row.final.metrics[task]["accuracy"].values[seed] == run.result["test"][task]["accuracy"]
            total += run.timing["train_seconds"]
        seconds.append(total)
    assert row.train_seconds.values == pytest.approx(seconds)
    alone = next(row for row in comparison.rows if row.method == "single_task")
    assert row.final.metrics == alone.final.metrics, "a network for each task is a single-task network"


def test_equal_time_counts_the_networks_together(finished, monkeypatch):
    from counterpoint.bench import comparison as module

    original = module._read_run

    def timed(job):
        run = original(job)
        for record in run.history:
            record["train_seconds"] = record["epoch"] * (1.0 if job.method == "equal" else 0.9)
        return run

    monkeypatch.setattr(module, "_read_run", timed)
    rows = {row.method: row for row in read_comparison(finished).rows}
    assert rows["pcgrad"].equal_time.epochs.values == (2, 2)
    assert rows[SEPARATE].equal_time.epochs.values == (1, 1), "1.8 s for an epoch of both, and 2 s are there"


def test_a_network_that_fails_takes_only_its_method(finished, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (path,) = folder.glob("runs/pcgrad-networks*/right/seed1/result.json")
    path.unlink()
    rows = {row.method: row for row in read_comparison(folder).rows}
    assert rows[SEPARATE].errors == {1: "not finished"}
    assert math.isnan(rows[SEPARATE].final.delta["tasks"].values[1])
    assert rows[GROUPED].errors == {}


def test_outputs_name_the_methods(finished, tmp_path):
    comparison = read_comparison(finished)
    assert comparison.title.startswith("5 methods on digits")
    text = write_csv(comparison, tmp_path / "a.csv").read_text()
    assert SEPARATE in text
    assert "cost/num_updates/mean" in text
    assert r"\# networks(groups=[[left], [right]])" in write_tex(comparison, tmp_path / "a.tex").read_text()
    page = render_report(comparison)
    assert GROUPED in page
    assert "Updates" in page
    first, second = short(GROUPED), short("pcgrad @ fixed_groups(groups=[[left, right]])")
    assert first != second
    assert max(map(len, first.split("<br>"))) <= 20


def test_command(tmp_path, capsys):
    call = ["compare", "digits", *FLAGS, "--balancers", "mgda", "--seeds", "0", "--workers", "1", "--json"]
    call += ["--schedules", "joint", "alternating", "--networks", "[[left], [right]]", "--out", str(tmp_path)]
    assert main(call) == 0
    names = set(re.findall(r'"method": "(.*?)"', capsys.readouterr().out))
    assert names >= {
        "single_task",
        "equal",
        "rlw",
        "mgda",
        "mgda @ alternating",
        "mgda # networks(groups=[[left], [right]])",
    }
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert main(call) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == stamps, "nothing ran again"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--schedules", "alternatng"], "no schedule is called 'alternatng'; did you mean alternating?"),
        (["--schedules", "fixed_groups"], "FixedGroups needs groups; give it with 'fixed_groups(groups=VALUE)'"),
        (["--schedules", "alternating(ordr=fixed)"], "did you mean order?"),
        (["--schedules", "fixed_groups(groups=[[left],[rigth]])"], "did you mean right?"),
        (["--schedules", "joint", "--schedule", "alternating"], "--schedules: the run sets schedule 'alternating'"),
        (["--networks", "[[left], [rigth]]"], "no task of this recipe is called 'rigth'; did you mean right?"),
        (["--networks", "[[left]]"], "task 'right' is in no network"),
        (["--networks", "[[left, right], [right]]"], "task 'right' is in several networks; say which"),
        (["--networks", "[left, right]"], "groups must be lists of names of tasks"),
        (["--networks", "[[left], []]"], "none of them empty"),
    ],
)
def test_bad_calls(flags, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", "digits", *FLAGS, "--balancers", "mgda", "--out", str(out), *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not out.exists()


def test_networks_may_overlap_if_they_say_who_serves(tmp_path):
    name = "mgda # networks(groups=[[left, right], [right]], serves=[[left], [right]])"
    jobs = [job for job in make_jobs(make_config(RUN, [name], [0]), tmp_path, ["left", "right"]) if job.method == name]
    assert [(job.task, job.serves) for job in jobs] == [("left+right", ("left",)), ("right", ("right",))]
    with pytest.raises(OptionError, match="cannot be served by a network that trains"):
        parse_combination("mgda # networks(groups=[[left], [right]], serves=[[right], [left]])")
    with pytest.raises(OptionError, match="more than one schedule"):
        parse_combination("mgda @ joint @ alternating")
    with pytest.raises(UnknownNameError, match="pcgrad"):
        parse_combination("pcgrda @ joint")
    with pytest.raises(CounterpointError, match="no option 'group'; did you mean groups"):
        parse_combination("mgda # networks(group=[[a]])")
