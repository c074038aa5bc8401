"""Data sets, networks and balancers of somebody else's, named module:Class, in every verb."""

import json
import subprocess
import sys

import pytest

from counterpoint import balancers, data
from counterpoint.errors import OptionError, UnknownNameError

MODULE = '''
import torch
from counterpoint import balancers, blocks, losses, metrics
from counterpoint.data import MultiTaskData, TensorSplit
from counterpoint.tasks import Task


class Points(MultiTaskData):
    """Two classifications of points."""

    key, source, provenance = "points", "made here", "made here"

    def __init__(self, *, size: int = 60) -> None:
        self.size = size

    @property
    def tasks(self):
        return tuple(Task(name, losses.cross_entropy, {"accuracy": metrics.accuracy(2)}, 2) for name in ("x", "y"))

    @property
    def input_shape(self):
        return (2,)

    def split(self, name):
        image = torch.randn(self.size, 2, generator=torch.Generator().manual_seed(len(name)))
        return TensorSplit({"image": image, "x": (image[:, 0] > 0).long(), "y": (image[:, 1] > 0).long()})


class Half(balancers.LossBalancer):
    """Says nothing of what it minimizes."""

    key, equation, source, provenance, scale = "half", "L = ?", "made here", "made here", "1"

    def __init__(self, num_tasks=None, *, tasks=None) -> None:
        super().__init__(num_tasks, tasks)


class Bare(blocks.Backbone):
    """Has no stages."""

    key, source = "bare", "made here"

    def __init__(self, input_shape) -> None:
        super().__init__()


class First(balancers.LossBalancer):
    """Only the first task counts."""

    key, equation, source, provenance, scale = "first", "L = c L_1", "made here", "made here", "c"

    def __init__(self, num_tasks=None, *, tasks=None, c: float = 1.0) -> None:
        super().__init__(num_tasks, tasks)
        self.c = c

    def objective(self, losses, *, present=None):
        return self.c * losses[0]
'''
CALL = ["--data", "own:Points", "--model.backbone", "mlp", "--training.epochs", "8", "--training.batch_size", "16"]


def run(folder, *arguments):
    (folder / "own.py").write_text(MODULE)
    call = [sys.executable, "-m", "counterpoint.cli.main", *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True)


def test_compare_with_own_data_and_own_balancer_in_worker_processes(tmp_path):
    words = ["--balancers", "own:First(c=2.0)", "pcgrad", "--seeds", "0", "--workers", "2", "--json", "--out", "out"]
    done = run(tmp_path, "compare", "digits", *CALL, *words)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == ["single_task", "equal", "rlw", "own:First(c=2.0)", "pcgrad"]
    assert rows["own:First(c=2.0)"]["family"] == "losses"
    left_alone = rows["own:First(c=2.0)"]["final"]["metrics"]["y"]["accuracy"]["values"][0]
    trained = rows["equal"]["final"]["metrics"]["y"]["accuracy"]["values"][0]
    assert trained > left_alone + 15, "the option c=2.0 of the own balancer, or the balancer itself, had no effect"


def test_wrong_names(tmp_path):
    done = run(tmp_path, "train", "digits", "--data", "own:Point")
    assert done.returncode == 2
    assert "data set 'own:Point': own has no 'Point'; did you mean Points?" in done.stderr
    done = run(tmp_path, "train", "digits", *CALL, "--data.sise", "3")
    assert "Points has no option 'sise'; did you mean size" in done.stderr
    with pytest.raises(UnknownNameError, match="there is no module 'nowhere'"):
        data.create("nowhere.deep:Thing")
    with pytest.raises(OptionError, match=r"must be a subclass of counterpoint\.balancers\._balancer\.Balancer"):
        balancers.create("pathlib:Path")
    done = run(tmp_path, "train", "digits", "--balancer", "own:Half")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("balancer 'own:Half': has to define objective")
    done = run(tmp_path, "train", "digits", "--model.backbone", "own:Bare")
    assert done.returncode == 2
    assert "backbone 'own:Bare': its __init__ has to set self.stages and self.channels" in done.stderr
    assert "Traceback" not in done.stderr
