"""A diagnosis of a run: what is written, what the page says, and what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from counterpoint import bench
from counterpoint.bench import diagnose_figures
from counterpoint.bench.diagnose_figures import MAX_COLUMNS, coarser, distribution_section, lengths_section, map_section
from counterpoint.bench.diagnose_page import worst_layers
from counterpoint.bench.page import together
from counterpoint.cli.main import main
from counterpoint.diagnostics import (
    PAPER_BINS,
    ConflictMonitor,
    ConflictRecord,
    conflict_bins,
    findings,
    reduced_mass,
)
from counterpoint.errors import CounterpointError
from diagnostics.test_findings import make

QUICK = ["--data.num_train", "256", "--data.num_val", "50", "--data.num_test", "50", "--training.batch_size", "64"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A diagnosis of four epochs out of eight, by the command."""
    path = tmp_path_factory.mktemp("diagnose") / "run"
    options = ["--share", "0.5", "--every", "2", "--balancer", "pcgrad", "--training.epochs", "8"]
    assert main(["diagnose", "digits", *QUICK, *options, "--out", str(path)]) == 0
    return path


def test_what_is_written(done):
    record = ConflictRecord.load(done / "record.npz")
    assert record.tasks == ("left", "right")
    assert record.steps.tolist() == list(range(0, 16, 2))
    assert record.exact
    assert all(name.startswith("backbone.") for name in record.layers)
    others = [name for name in record.sizes if name not in record.layers]
    assert [name.split(".")[:2] for name in others] == [["heads", "left"], ["heads", "right"]]
    assert np.isfinite(record.cosines).all()
    result = json.loads((done / "result.json").read_text())
    assert (result["epochs"], result["steps"]) == (4, 16)


def test_monitoring_changes_nothing(done, tmp_path):
    arguments = ["train", "digits", *QUICK, "--training.epochs", "4", "--balancer", "pcgrad"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    plain, watched = (json.loads((path / "result.json").read_text()) for path in (tmp_path / "run", done))
    assert plain == watched


def test_page_is_whole_without_a_network(done):
    page = (done / "diagnose.html").read_text()
    assert "pcgrad on digits" in page
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:|#)', page)
    record = ConflictRecord.load(done / "record.npz")
    for finding in findings(record, recipe="digits"):
        assert finding.text in page
    for line in worst_layers(record):
        assert line["name"] in page


def test_a_second_call_reads_what_is_there(done, capsys):
    (done / "diagnose.html").unlink()
    options = ["--share", "0.5", "--every", "2", "--balancer", "pcgrad", "--training.epochs", "8"]
    assert main(["diagnose", "digits", *QUICK, *options, "--out", str(done), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["findings"][0]["text"].startswith("Only 8 measurements")
    assert (done / "diagnose.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "0"], "diagnose: every must be in"),
        (["--share", "1.5"], "share of the epochs must be in"),
        (["--threshold", "-2"], "diagnose: threshold must be in"),
        (["--bins", "cityscape"], "did you mean cityscapes"),
        (["--bins", "0", "0.1"], "edges must fall"),
        (["--evry", "3"], "did you mean --every"),
        (["--balancer", "pcgrd"], "pcgrad"),
        (["--data.tasks", "[left]"], "conflict is between tasks"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, tmp_path, capsys):
    assert main(["diagnose", "digits", *QUICK, *arguments, "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_bins_that_a_long_run_cannot_count_are_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["counterpoint.bench.diagnose"], "_MOST_COSINES", 0)
    path = tmp_path / "run"
    assert main(["diagnose", "digits", *QUICK, "--bins", "0", "-0.015", "--out", str(path)]) == 2
    assert "no bin can end at -0.015; give multiples of 0.01" in capsys.readouterr().err
    assert not list(path.glob("metrics.jsonl"))


def test_another_diagnosis_in_the_folder(done, capsys):
    assert main(["diagnose", "digits", *QUICK, "--every", "3", "--out", str(done)]) == 2
    assert "was measured with" in capsys.readouterr().err


def test_a_stopped_diagnosis_starts_from_the_beginning(tmp_path, monkeypatch):
    path, seen = tmp_path / "run", []
    config = bench.find_recipe("digits")
    options = {"num_train": 128, "num_val": 20, "num_test": 20}
    config = replace(
        config,
        data=replace(config.data, options=options),
        training=replace(config.training, epochs=3, batch_size=64),
    )

    def stop(record):
        seen.append(record["epoch"])
        if seen == [1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.diagnose(config, path, every=1, on_epoch=stop)
    record = bench.diagnose(config, path, every=1, on_epoch=stop)
    assert seen == [1, 2, 1, 2, 3]
    assert record.steps.tolist() == list(range(6))


def test_map_has_the_mean_cosines():
    record = make([0.3, 0.9, 0.5], 0.5, entries=256)
    (figure,) = map_section(record).figures
    (trace,) = figure.data
    shown = np.array(trace["z"], dtype=float)
    assert shown.shape == (3, MAX_COLUMNS)
    np.testing.assert_allclose(shown, record.cosines[:, :, 0].reshape(64, 4, 3).mean(axis=1).T, atol=1e-6)
    assert trace["x"] == list(range(0, 256, 4))
    assert trace["zmin"] == -trace["zmax"]


def test_coarser_weighs_by_counts_and_leaves_out_what_is_missing():
    values = np.array([1.0, np.nan, 3.0, 9.0] * 32)
    counts = np.array([1, 7, 3, 1] * 32)
    found = coarser(values, counts)
    np.testing.assert_allclose(found[:2], [1.0, (3 * 3 + 9) / 4])


def test_many_pairs_and_nothing_measured(tmp_path):
    record = make([0.5, 0.5], 0.5, tasks=("a", "b", "c", "d", "<b>", "f"), norms=(1,) * 6)
    section = map_section(record)
    assert len(section.figures) == 6
    assert "9 are left out" in section.caption
    page = bench.diagnose_page(record, tmp_path / "many.html").read_text()
    assert "<b> and" not in page
    empty = ConflictMonitor(torch.nn.Linear(2, 1), num_tasks=2).record()
    assert "No layer was reached" in bench.diagnose_page(empty, tmp_path / "empty.html").read_text()
    one = ConflictMonitor(torch.nn.Linear(2, 1), num_tasks=1).record()
    assert "There is one task" in bench.diagnose_page(one, tmp_path / "one.html").read_text()


def test_bins_add_up_and_lengths_are_those_of_the_record():
    record = make([0.3], 0.25, norms=(4.0, 2.0))
    bins, _ = distribution_section(record).figures
    assert sum(bins.data[0]["y"]) == pytest.approx(100)
    assert bins.data[0]["y"] == pytest.approx([75, 0, 0, 0, 25])
    lengths, rank = lengths_section(record).figures
    assert set(lengths.data[0]["y"]) == {4.0}
    assert set(lengths.data[1]["y"]) == {2.0}
    assert set(rank.data[0]["y"]) == {1.0}


def test_bins_of_other_data_sets():
    record = make([0.3], 0.25)
    wide = PAPER_BINS["nyuv2"]
    bins, _ = distribution_section(record, wide).figures
    assert bins.data[0]["y"] == pytest.approx([100 * share for share in record.distribution(wide.edges)])
    assert bins.data[0]["x"] == [
        "\u2265 0",
        "-0.02 to 0",
        "-0.04 to -0.02",
        "-0.06 to -0.04",
        "-0.08 to -0.06",
        "< -0.08",
    ]
    assert "below -0.04, what the paper calls severe (nyuv2)" in distribution_section(record, wide).caption
    own = conflict_bins([0.1, -0.3])
    assert distribution_section(record, own).figures[0].data[0]["y"] == pytest.approx([75, 0, 25])
    assert "below -0.3, the severe ones" in distribution_section(record, own).caption


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cityscape", "no set of conflict bins is called 'cityscape'; did you mean cityscapes"),
        ([], "edges must fall"),
        ([0.0, 0.1], "edges must fall"),
        ([0.0, 0.0], "edges must fall"),
        ([2.0], r"in \[-1, 1\]"),
        ([float("nan")], r"in \[-1, 1\]"),
    ],
)
def test_bins_that_are_none(given, message):
    with pytest.raises((CounterpointError, LookupError), match=message):
        conflict_bins(given)


def test_printed_reductions_come_out_of_the_bins():
    """Shares of joint training and of Recon in the paper's tables; what is below the threshold gives its reduction."""
    printed = {
        "mnist": ([56.56, 31.25, 9.26, 2.05, 1.25], [58.53, 37.67, 3.04, 0.5, 0.25], 69.82),
        "cityscapes": ([59.55, 10.14, 8.52, 6.45, 4.79, 10.54], [73.62, 20.13, 5.13, 0.94, 0.14, 0.03], 79.41),
        "nyuv2": ([61.96, 3.85, 3.63, 3.39, 3.11, 24.05], [73.99, 14.17, 7.07, 2.89, 1.13, 0.76], 84.35),
        "pascal": ([61.26, 9.66, 7.90, 5.85, 4.16, 11.16], [63.99, 23.57, 7.65, 2.59, 1.07, 1.13], 57.21),
    }
    for name, (joint, recon, reduced) in printed.items():
        bins = PAPER_BINS[name]
        first = 1 + bins.edges.index(bins.severe)
        assert len(joint) == len(bins.edges) + 1
        assert 100 * reduced_mass(sum(recon[first:]), sum(joint[first:])) == pytest.approx(reduced, abs=0.011)


def test_labels_of_layers_do_not_look_like_numbers():
    label = diagnose_figures._common_part
    assert label(["net.a.conv", "net.a.norm"]) == "net.a."
    assert label(["net.stages.0.0", "net.stages.0.1"]) == "net."
    assert label(["net.stages.0.conv", "net.stages.1.conv"]) == "net."
    assert label(["0", "2"]) == ""


def test_numbers_and_their_signs_stay_together():
    assert together("27 % to 42 %, 0.1 \u00b1 0.2 %, < -0.03, \u2265 0; a < b, 3 of 4") == (
        "27\xa0% to 42\xa0%, 0.1 \u00b1\xa00.2\xa0%, <\xa0-0.03, \u2265\xa00; a < b, 3 of 4"
    )


def test_worst_layers_are_ranked_by_score():
    lines = worst_layers(make([0.2, 0.9, 0.5], 0.5), count=2)
    assert [(line["name"], line["score"]) for line in lines] == [("stage1.bn", 90), ("stage2.conv", 50)]
    assert lines[0]["rate"] == pytest.approx(90)
    assert lines[0]["share"] == pytest.approx(100 * 90 / 160)
    assert lines[0]["cosine"] == pytest.approx(-0.4)


def test_import_needs_no_plotly():
    code = "import sys, counterpoint.bench.diagnose; print({'plotly', 'jinja2', 'rich'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
