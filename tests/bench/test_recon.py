"""Search, choice and comparison of split networks, against plain recomputation from gradients and from the files."""

import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from counterpoint.bench import recon
from counterpoint.bench.build import build
from counterpoint.bench.compare import load_compare, make_config, make_jobs, run_comparison
from counterpoint.bench.comparison import read_comparison
from counterpoint.bench.dimensions import part_split
from counterpoint.bench.recipes import digits
from counterpoint.bench.run_config import SplitConfig, override, parse_run
from counterpoint.bench.runner import run_one
from counterpoint.bench.tables import write_csv
from counterpoint.diagnostics import ConflictRecord
from counterpoint.errors import FileError, OptionError, UnknownNameError
from counterpoint.splitting import SplitPlan, find_layers, sizes
from counterpoint.training.sampler import SeededSampler
from counterpoint.training.step import task_losses

SMALL = [
    ("training.epochs", "2"),
    ("training.batch_size", "64"),
    ("data.num_train", "200"),
    ("data.num_val", "60"),
    ("data.num_test", "60"),
    ("training.monitor_every", "1"),
]
LAYERS = ("backbone.stages.0.0", "backbone.stages.0.1")


def small(*changes):
    return override(digits(), [*SMALL, *changes])


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return recon.record_run(small(), folder / "run"), folder / "run"


def test_the_search_counts_what_gradients_one_by_one_say(searched):
    record, _ = searched
    built = build(small())
    modules = {name: module for name, module in built.model.named_modules() if name.startswith("backbone")}
    layers = [name for name in find_layers(built.model) if name in modules]
    assert record.layers == tuple(layers)
    assert record.num_measurements == 2 * 4
    # the first batch, before anything was updated, in the order of the run's sampler
    split = built.data.split("train")
    sampler = SeededSampler(split, 0, 0)
    sampler.epoch = 0
    batch = next(iter(DataLoader(split, 64, sampler=sampler, collate_fn=getattr(split, "collate", None))))
    built.model.train()
    losses = task_losses(built.model(batch["image"]), built.tasks, batch)
    for place, name in enumerate(layers):
        own = list(modules[name].parameters(recurse=False))
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, own, retain_graph=True)]).double()
            for loss in losses.values()
        ]
        expected = nn.functional.cosine_similarity(*rows, dim=0)
        assert record.cosines[0, place, 0] == pytest.approx(float(expected), abs=2e-5)


def test_a_finished_search_is_read_again_and_a_stopped_one_begins_anew(searched, tmp_path):
    record, folder = searched
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    before = (again / "metrics.jsonl").stat().st_mtime_ns
    assert recon.record_run(small(), again).scores(-0.1) == record.scores(-0.1)
    assert (again / "metrics.jsonl").stat().st_mtime_ns == before
    stopped = tmp_path / "stopped"

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recon.record_run(small(), stopped, on_epoch=stop)
    again = recon.record_run(small(), stopped)
    assert again.scores(-0.1) == record.scores(-0.1)
    assert again.num_measurements == record.num_measurements
    with pytest.raises(FileError, match=r"every=1, not every=2"):
        recon.record_run(small(), stopped, every=2)


def test_observing_changes_nothing_of_a_run(searched, tmp_path):
    _, folder = searched
    plain = run_one(small(), tmp_path / "plain")
    assert plain == json.loads((folder / "result.json").read_text())


def test_one_task_has_no_conflict(tmp_path):
    with pytest.raises(OptionError, match=r"between tasks.*left"):
        recon.record_run(small(("data.tasks", "[left]")), tmp_path / "one")


def test_the_search_is_the_beginning_of_the_unsplit_run():
    config = small(("training.epochs", "12"), ("split.layers", "[backbone.stages.0.0]"))
    found = recon.search_config(config, 0.25)
    assert found.training.epochs == 3
    assert found.split == SplitConfig()
    assert recon.search_config(config, 0.001).training.epochs == 1
    with pytest.raises(OptionError, match="share of the epochs"):
        recon.search_config(config, 0.0)


def record_with(scores, layer_sizes):
    """A record of one pair whose scores below 0 are the given ones."""
    import numpy as np

    steps = max(scores.values()) + 1
    cosines = np.ones((steps, len(scores), 1), dtype=np.float32)
    for place, score in enumerate(scores.values()):
        cosines[:score, place] = -0.5
    fake = np.zeros((steps, 1), dtype=np.float32)
    return ConflictRecord(
        tasks=("a", "b"),
        layers=tuple(scores),
        sizes=layer_sizes,
        steps=np.arange(steps),
        counts=np.ones(steps, dtype=int),
        cosines=cosines,
        measured=np.ones_like(cosines, dtype=int),
        norms=np.ones((steps, len(scores), 2), dtype=np.float32),
        whole_cosines=fake,
        whole_measured=np.ones_like(fake, dtype=int),
        whole_norms=np.ones((steps, 2), dtype=np.float32),
        effective_rank=np.ones(steps),
        whole_below=np.zeros((1, 201), dtype=int),
        thresholds=(),
        below=np.zeros((0, steps, len(scores), 1), dtype=int),
        exact=True,
    )


def test_choices():
    record = record_with({"x": 1, "y": 6, "z": 3}, {"x": 10, "y": 1000, "z": 100, "head": 7})
    assert recon.choose(record, 0.0, recon.Choice(layers=2)).layers == ("y", "z")
    assert recon.choose(record, 0.0, recon.Choice(share=0.6)).layers == ("y",)
    assert recon.choose(record, 0.0, recon.Choice(budget_mb=0.00045)).layers == ("z", "x")
    assert recon.choose(record, -0.6, recon.Choice(layers=2)).layers == ()
    plan = recon.choose(record, 0.0, recon.Choice(layers=3))
    assert plan.sizes == record.sizes
    with pytest.raises(OptionError, match="exactly one"):
        recon.Choice()
    with pytest.raises(OptionError, match=r"exactly one.*layers.*share"):
        recon.Choice(layers=1, share=0.5)


def test_other_choices_take_shared_layers_only():
    record = record_with({"x": 1, "y": 6, "z": 3}, {"x": 10, "y": 1000, "z": 100, "head": 7})
    plan = recon.choose(record, 0.0, recon.Choice(layers=2))
    assert recon.other_plan(plan, "first", seed=0).layers == ("x", "y")
    assert recon.other_plan(plan, "last", seed=0).layers == ("y", "z")
    drawn = {name: {recon.other_plan(plan, name, seed=s).layers for s in range(20)} for name in ("rsl", "rsp")}
    assert all(len(layers) == 2 for layers in drawn["rsl"])
    assert all(sum(plan.sizes[layer] for layer in layers) <= plan.num_parameters for layers in drawn["rsp"])
    assert {layer for found in drawn.values() for layers in found for layer in layers} == {"x", "y", "z"}


def test_what_a_plan_says():
    record = record_with({"x": 1, "y": 6, "z": 3}, {"x": 10, "y": 1000, "z": 100})
    text = recon.describe(recon.choose(record, 0.0, recon.Choice(layers=1)), small())
    assert "1 of 3 layers adds 1,000 parameters" in text
    assert "60% of the conflict" in text
    assert "No conflict" in recon.describe(recon.choose(record, -0.9, recon.Choice(layers=1)), small())
    assert "no layer" in recon.describe(recon.choose(record, 0.0, recon.Choice(layers=0)), small())


def test_a_run_of_a_split_network(tmp_path):
    config = small(("split.layers", f"[{', '.join(LAYERS)}]"))
    result = run_one(config, tmp_path / "split")
    added = sum(sizes(build(small()).model)[name] for name in LAYERS)
    assert result["num_parameters"] == run_one(small(), tmp_path / "whole")["num_parameters"] + added
    assert run_one(config, tmp_path / "again") == result
    shutil.rmtree(tmp_path / "again")
    interrupted = dataclasses.replace(config, training=dataclasses.replace(config.training, checkpoint_every=1))

    class StopError(Exception):
        pass

    def stop(_):
        raise StopError

    with pytest.raises(Exception, match="Stop"):
        run_one(interrupted, tmp_path / "resumed", stop)
    assert run_one(interrupted, tmp_path / "resumed") == result, "bit for bit after it was stopped"


def test_splitting_nothing_is_the_run_as_it_was(tmp_path):
    assert "split" not in small().to_dict()
    none = small(("split.init", "independent"))
    assert run_one(none, tmp_path / "none") == run_one(small(), tmp_path / "whole")


def test_splitting_everything_is_single_task_networks_beside_each_other():
    """With all layers of the trunk split no parameter is shared, so no gradient of one task reaches another's."""
    trunk = [name for name in find_layers(build(small()).model) if name.startswith("backbone")]
    model = build(small(("split.layers", f"[{', '.join(trunk)}]"))).model
    left, right = model(torch.randn(3, *build(small()).data.input_shape)).preds.values()
    reached = [
        {name for (name, p), g in zip(model.named_parameters(), grads, strict=True) if g is not None}
        for grads in (
            torch.autograd.grad(out.sum(), list(model.parameters()), allow_unused=True, retain_graph=True)
            for out in (left, right)
        )
    ]
    assert reached[0].isdisjoint(reached[1])
    assert reached[0] | reached[1] == {name for name, _ in model.named_parameters()}


def test_plans_in_configurations(tmp_path):
    network = build(small()).model
    plan = SplitPlan(LAYERS, sizes(network))
    plan.save(tmp_path / "plan.json")
    config = small(("split.plan", str(tmp_path / "plan.json")))
    assert config.split.plan is None
    assert config.split.layers == LAYERS
    assert parse_run(config.to_dict(), "again") == config
    (tmp_path / "plan.json").unlink()
    assert build(config).model is not None, "the configuration is whole without the file"
    with pytest.raises(OptionError, match=r"another network.*backbone\.stages\.0\.0"):
        build(override(config, [("model.backbone_options.widths", "[8, 16]")]))
    with pytest.raises(FileError, match=r"plan\.json"):
        small(("split.plan", str(tmp_path / "plan.json")))
    with pytest.raises(OptionError, match="plan or layers"):
        small(("split.plan", "x.json"), ("split.layers", "[a]"))


def test_bad_splits():
    with pytest.raises(UnknownNameError, match=r"backbone\.stages\.0\.0"):
        build(small(("split.layers", "[backbone.stage.0.0]")))
    with pytest.raises(OptionError, match="head of task"):
        build(small(("split.layers", "[heads.left.layers]")))
    with pytest.raises(OptionError, match=r"features.*split"):
        run_one(small(("split.layers", "[backbone.stages.0.0]"), ("training.level", "features")), None)
    with pytest.raises(OptionError, match="independent"):
        run_one(small(("split.init", "other")), None)


def test_names_of_methods():
    assert part_split("pcgrad [recon]") == ("pcgrad", "recon")
    assert part_split("cagrad(c=0.2) [rsl]") == ("cagrad(c=0.2)", "rsl")
    assert part_split("fixed(task_weights=[1, 2])") == ("fixed(task_weights=[1, 2])", None)
    assert part_split("pcgrad") == ("pcgrad", None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    plan = SplitPlan(LAYERS, sizes(build(small()).model), scores=dict.fromkeys(LAYERS, 1.0))
    splits = {"recon": dict.fromkeys((0, 1), recon.split_config(plan))}
    splits["rsl"] = {seed: recon.split_config(recon.other_plan(plan, "rsl", seed=seed)) for seed in (0, 1)}
    config = make_config(small(), ["pcgrad"], (0, 1), splits=splits)
    run_comparison(config, folder, workers=1, listener=lambda event: None)
    return folder


def test_splits_in_a_comparison(compared, tmp_path):
    config, tasks = load_compare(compared)
    assert config.methods == (
        "equal",
        "rlw",
        "pcgrad",
        "equal [recon]",
        "pcgrad [recon]",
        "equal [rsl]",
        "pcgrad [rsl]",
    )
    jobs = make_jobs(config, compared, [task.name for task in tasks])
    assert all(job.config.split == SplitConfig() for job in jobs if job.task or "[" not in job.method)
    comparison = read_comparison(compared)
    rows = {row.method: row for row in comparison.rows}
    added = sum(sizes(build(small()).model)[name] for name in LAYERS)
    assert rows["pcgrad [recon]"].num_parameters.mean == rows["pcgrad"].num_parameters.mean + added
    for method in ("equal", "pcgrad [recon]"):
        path = next(job.path for job in jobs if job.method == method and job.config.seed == 1)
        records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        cosines = [record["cosine"]["left|right"] for record in records if record["kind"] == "conflict"]
        assert len(cosines) == 8
        assert rows[method].severe.values[1] == sum(cosine < -0.01 for cosine in cosines) / len(cosines)
    equal, split = rows["equal"].severe.values, rows["equal [recon]"].severe.values
    for own, base, found in zip(split, equal, rows["equal [recon]"].reduced.values, strict=True):
        assert found == pytest.approx(1 - own / base) if base else found != found
    write_csv(comparison, tmp_path / "table.csv")
    assert "conflict/reduced/mean" in (tmp_path / "table.csv").read_text().splitlines()[0]
