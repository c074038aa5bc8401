"""Schedules on the command line and in the configuration of a run."""

import json

import pytest
import yaml

from counterpoint.bench.build import build
from counterpoint.bench.compare import make_config, make_jobs
from counterpoint.bench.recipes import digits
from counterpoint.bench.run_config import ScheduleConfig, override, parse_run
from counterpoint.cli.main import main

QUICK = ["--training.epochs", "1", "--data.num_train", "200", "--data.num_val", "100", "--data.num_test", "100"]
GROUPS = ["--schedule", "fixed_groups", "--schedule.groups", "[[right], [left]]"]


def train(capsys, tmp_path, *arguments):
    out = tmp_path / str(len(list(tmp_path.iterdir())))
    assert main(["train", "digits", *QUICK, "--json", "--out", str(out), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    return {key: value for key, value in result.items() if key != "folder"}, yaml.safe_load(
        (out / "config.yaml").read_text()
    )


def test_train_takes_a_schedule(capsys, tmp_path, monkeypatch):
    joint, config = train(capsys, tmp_path)
    assert config["schedule"] == {"name": "joint", "options": {}}
    assert train(capsys, tmp_path, "--schedule", "joint")[0] == joint
    alternating, config = train(capsys, tmp_path, "--schedule", "alternating", "--schedule.order", "fixed")
    assert config["schedule"] == {"name": "alternating", "options": {"order": "fixed"}}
    assert alternating["steps"] == joint["steps"]
    assert alternating["num_backward"] == 2 * joint["num_backward"]
    assert alternating["test"] != joint["test"]
    grouped, config = train(capsys, tmp_path, *GROUPS)
    assert config["schedule"]["options"] == {"groups": [["right"], ["left"]]}
    assert grouped["num_backward"] == alternating["num_backward"]
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "again.yaml", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.pop("folder") == "runs/again-equal-fixed_groups-seed0"
    assert again == grouped


def test_old_configurations_are_joint():
    content = digits().to_dict()
    del content["schedule"]
    assert parse_run(content, "old") == digits()


def test_single_task_networks_have_no_groups_of_others(tmp_path):
    run = override(digits(), [("schedule", "fixed_groups"), ("schedule.groups", "[[left], [right]]")])
    jobs = make_jobs(make_config(run, ["equal"], [0]), tmp_path, ["left", "right"])
    alone = [job.config for job in jobs if job.task]
    assert len(alone) == 2
    assert all(config.schedule == ScheduleConfig() for config in alone)
    assert all(job.config.schedule == run.schedule for job in jobs if not job.task)
    build(alone[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "alternate"], "no schedule is called 'alternate'; did you mean alternating?"),
        (["--schedule", "fixed_groups"], "FixedGroups needs groups; give it with --schedule.groups VALUE"),
        (["--schedule", "joint", "--schedule.order", "fixed"], "Joint has no option 'order'"),
        (["--schedule", "random_groups", "--schedule.num_groups", "3"], "num_groups must be at most num_tasks = 2"),
        (["--schedule", "random_groups", "--schedule.num_groups", "x"], 'option "num_groups"'),
        (["--schedule", "fixed_groups", "--schedule.groups", "[[left]]"], "task 'right' is in no group"),
        (["--schedule", "fixed_groups", "--schedule.groups", "[[left, rigth]]"], "did you mean right?"),
        (["--schedule", "joint", "--schedule.tasks", "[a]"], "tasks is set by the run"),
        (["--schedul", "joint"], "did you mean --schedule"),
    ],
)
def test_bad_calls(arguments, message, capsys, tmp_path):
    try:
        code = main(["train", "digits", *QUICK, *arguments, "--out", str(tmp_path / "run")])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_show(capsys):
    assert main(["show", "sequential_reptile"]) == 0
    printed = capsys.readouterr().out
    assert "arXiv:2110.02600" in printed
    assert "inner_steps: int | None, default None" in printed
    assert "probabilities" in printed


def test_groups_are_recorded_at_each_epoch(capsys, tmp_path):
    options = ["--schedule", "selective", "--schedule.warm_up", "0", "--schedule.beta", "0.5"]
    train(capsys, tmp_path, *options, "--training.epochs", "2")
    (folder,) = tmp_path.iterdir()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [record["schedule"] for record in records if record["kind"] == "epoch"]
    assert len(found) == 2
    for record in found:
        assert sorted(task for group in record["groups"] for task in group) == ["left", "right"]
        assert 1 <= record["num_groups"] <= 2
        assert len(record["affinity"]) == 2
    plain, _ = train(capsys, tmp_path)
    assert "schedule" not in plain
