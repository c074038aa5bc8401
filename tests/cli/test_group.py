"""counterpoint group: what it measures, what it writes, and that compare and train take it."""

import json
import re

import numpy as np
import pytest

from counterpoint.bench.build import build
from counterpoint.bench.compare import load_compare
from counterpoint.bench.dimensions import parse_combination
from counterpoint.bench.group_page import write_page
from counterpoint.bench.group_plan import GroupPlan, resolve_plan
from counterpoint.bench.group_run import GroupOptions, measure_and_group, propose
from counterpoint.bench.recipes import digits
from counterpoint.bench.run_config import override
from counterpoint.bench.runner import run_one
from counterpoint.cli.main import main
from counterpoint.errors import FileError, OptionError
from counterpoint.grouping import AffinityMatrix, Grouping

SMALL = {
    "training.epochs": "2",
    "data.num_train": "200",
    "data.num_val": "50",
    "data.num_test": "50",
    "training.monitor_every": "0",
    "training.batch_size": "100",
}
RUN = override(digits(), list(SMALL.items()))
FLAGS = [word for path, value in SMALL.items() for word in (f"--{path}", value)]


def matrix(values, tasks="abc"):
    return AffinityMatrix(tuple(tasks), np.array(values, dtype=float), directed=True)


@pytest.fixture
def plan():
    """Tasks a and b help each other, c harms both and is harmed."""
    affinity = matrix([[0, 0.4, -0.2], [0.2, 0, -0.4], [-0.1, -0.3, 0]])
    proposals = propose(affinity, "branch_and_bound(overlap=false, singleton=0.0)", 3)
    return GroupPlan("made_up", affinity, ((1, affinity),), proposals)


def test_proposals_by_hand(plan):
    assert plan.proposals[0].groups == (("a", "b", "c"),)
    together = np.mean([(0.2 - 0.1) / 2, (0.4 - 0.3) / 2, (-0.2 - 0.4) / 2])
    assert plan.proposals[0].score == pytest.approx(together)
    assert plan.proposals[1].groups == (("a", "b"), ("c",))
    assert plan.gain(2) == pytest.approx((0.2 + 0.4 + 0) / 3 - together)
    assert plan.gain(3) == plan.gain(2)
    assert plan.best == 2


def test_training_is_what_it_is_without_measuring(tmp_path):
    plan = measure_and_group("digits", RUN, GroupOptions(every=2), tmp_path / "a")
    plain = run_one(RUN, tmp_path / "b")
    measured = json.loads((tmp_path / "a" / "result.json").read_text())
    assert measured == plain
    assert [epoch for epoch, _ in plan.over_time] == [1, 2]
    mean = np.mean([own.values for _, own in plan.over_time], axis=0)
    np.testing.assert_allclose(plan.affinity.values, mean)
    assert "2 observations in 2 epochs" in plan.affinity.source


def test_first_observation_by_hand(tmp_path):
    """TAG on the first batch: a step of the shared parameters along one loss, in a network built alike."""
    import torch

    from counterpoint.training.sampler import SeededSampler

    run = override(RUN, [("training.epochs", "1"), ("optimizer", "SGD"), ("optimizer.lr", "0.1")])
    plan = measure_and_group("digits", run, GroupOptions(every=1000), tmp_path / "a")
    built = build(run)
    split = built.data.split("train")
    batch = split.__getitems__(list(SeededSampler(split, run.seed))[:100])

    def losses():
        output = built.model(batch["image"], ["left", "right"])
        return [torch.nn.functional.cross_entropy(output.preds[name], batch[name]) for name in ("left", "right")]

    first = losses()
    shared = [p for name, p in built.model.named_parameters() if "head" not in name]
    with torch.no_grad():
        for parameter, grad in zip(shared, torch.autograd.grad(first[0], shared), strict=True):
            parameter -= 0.1 * grad
        expected = 1 - float(losses()[1]) / float(first[1].detach())
    assert plan.affinity.values[0, 1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "affinity", ["cosine", "label_correlation", "saliency", "tag(use_optimizer_state=false)", "proximal"]
)
def test_every_estimator_runs(affinity, tmp_path):
    options = GroupOptions(affinity=affinity, max_networks=2, share=0.5)
    plan = measure_and_group("digits", RUN, options, tmp_path / "a")
    assert np.isfinite(plan.affinity.values[0, 1])
    assert len(plan.over_time) == 1


def test_a_folder_that_is_no_run_is_not_deleted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileError, match=r"holds files of something else"):
        measure_and_group("digits", RUN, GroupOptions(affinity="label_correlation", max_networks=2), tmp_path / "a")
    assert (tmp_path / "a" / "thesis.tex").exists()


def test_plan_survives_the_file(plan, tmp_path):
    (tmp_path / "group.json").write_text(plan.to_json())
    again = GroupPlan.load(tmp_path / "group.json")
    assert again.to_dict() == plan.to_dict()
    assert resolve_plan("fixed_groups", {"plan": tmp_path / "group.json", "order": "random"}) == {
        "groups": [["a", "b"], ["c"]],
        "order": "random",
    }
    assert resolve_plan("networks", {"plan": tmp_path / "group.json", "num": 1}) == {"groups": [["a", "b", "c"]]}
    values = parse_combination(f"equal # networks(plan={str(tmp_path / 'group.json')!r})")
    assert values["networks"].groups == (("a", "b"), ("c",))


def test_overlapping_groups_say_who_serves(plan, tmp_path):
    shared = Grouping(("a", "b", "c"), (("a", "b"), ("b", "c")), (0, 1, 1), score=1.0)
    overlapping = GroupPlan("x", plan.affinity, (), (shared,))
    (tmp_path / "group.json").write_text(overlapping.to_json())
    found = resolve_plan("networks", {"plan": tmp_path / "group.json"})
    assert found == {"groups": [["a", "b"], ["b", "c"]], "serves": [["a"], ["b", "c"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON .*make it again"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format 1, got 9|damaged"),
        (
            lambda text: text.replace('"recipe"', '"recipes"'),
            "no GroupPlan .*no field of GroupPlan is called 'recipes'; did you mean recipe",
        ),
        (
            lambda text: re.sub(r'"proposals": \[.*\]', '"proposals": []', text, flags=re.DOTALL),
            "proposals are .* missing",
        ),
        (lambda text: text.replace('"b"', '"z"', 1), "damaged, or no GroupPlan .*make it again"),
    ],
)
def test_damaged_plans(plan, change, message, tmp_path):
    (tmp_path / "group.json").write_text(change(plan.to_json()))
    with pytest.raises(FileError, match=message):
        GroupPlan.load(tmp_path / "group.json")


def test_from_recipe_to_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["group", "digits", *FLAGS, "--max-networks", "2", "--every", "1"]) == 0
    printed = capsys.readouterr().out
    assert "at most 2: " in printed
    assert "predicted gain" in printed
    page = (tmp_path / "runs/group-digits/group.html").read_text()
    assert "http-equiv" in page
    assert "Task groups of digits" in page
    content = json.loads((tmp_path / "runs/group-digits/group.json").read_text())
    content["proposals"][1] |= {"groups": [["left"], ["right"]], "serves": [0, 1], "score": 9.0}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    call = ["compare", "digits", *FLAGS, "--balancers", "mgda", "--seeds", "0", "--workers", "1", "--out", "c"]
    call += ["--plan", "plan.json", "--schedules", "joint", "fixed_groups(plan=plan.json)"]
    assert main(call) == 0
    config, _ = load_compare(tmp_path / "c")
    assert config.methods[2:] == (
        "mgda",
        "mgda @ fixed_groups(groups=[[left], [right]])",
        "mgda # networks(groups=[[left], [right]])",
    )
    (tmp_path / "plan.json").unlink()
    assert main(["report", "c"]) == 0, "a comparison does not need the plan any more"


def test_train_takes_a_plan(plan, tmp_path, capsys):
    two = AffinityMatrix(("left", "right"), np.array([[0, -1.0], [-1, 0]]), directed=False)
    own = GroupPlan("digits", two, (), propose(two, "branch_and_bound(overlap=false, singleton=0.0)", 2))
    (tmp_path / "good.json").write_text(own.to_json())
    assert main(["train", "digits", *FLAGS, "--plan", str(tmp_path / "good.json"), "--out", str(tmp_path / "r")]) == 0
    assert "groups:" in (tmp_path / "r" / "config.yaml").read_text()
    (tmp_path / "other.json").write_text(plan.to_json())
    capsys.readouterr()
    assert main(["train", "digits", *FLAGS, "--plan", str(tmp_path / "other.json"), "--out", str(tmp_path / "s")]) == 2
    assert "no task is called 'a'" in capsys.readouterr().err
    call = ["compare", "digits", *FLAGS, "--balancers", "mgda", "--plan", str(tmp_path / "other.json")]
    assert main([*call, "--out", str(tmp_path / "t")]) == 2
    assert "no task of this recipe is called 'a'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--affinity", "tagg"], "no estimator is called 'tagg'; did you mean tag"),
        (["--affinity", "branch_and_bound"], "no estimator is called 'branch_and_bound'"),
        (["--affinity", "tag(evry=3)"], "did you mean every?"),
        (["--solver", "branch-bound"], "did you mean branch_and_bound"),
        (["--max-networks", "3"], "--max-networks must be from 1 to 2, the number of tasks"),
        (["--max-networks", "0"], "--max-networks must be from 1 to 2"),
        (["--share", "0"], "--share must be in (0, 1]"),
        (["--every", "0"], "--every must be at least 1"),
        (["--data.tasks", "[left]"], "groups need at least two tasks"),
    ],
)
def test_bad_calls(flags, message, tmp_path, capsys):
    assert main(["group", "digits", *FLAGS, *flags, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_bad_plans(plan, tmp_path):
    with pytest.raises(FileError, match="no such plan; make one with: counterpoint group RECIPE"):
        GroupPlan.load(tmp_path / "nothing.json")
    with pytest.raises(OptionError, match="num must be from 1 to 3"):
        plan.proposal(4)
    with pytest.raises(OptionError, match="plan or groups, not both"):
        resolve_plan("networks", {"plan": "x", "groups": []})


def test_page_of_hostile_names(tmp_path):
    names = ("<script>alert(1)</script>", "b", "c")
    affinity = AffinityMatrix(names, np.array([[0, np.nan, 1], [1, 0, 1], [1, 1, 0]], dtype=float), directed=True)
    grouping = Grouping(names, ((names[0], "b"), ("b", "c")), (0, 1, 1), score=0.5)
    page = write_page(GroupPlan(names[0], affinity, ((1, affinity),), (grouping,)), tmp_path / "p.html").read_text()
    assert "<script>alert" not in page
    assert "(b)" in page, "it helps in the group that does not serve it"
