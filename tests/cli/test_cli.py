import json
import subprocess
import sys

import pytest

from counterpoint import architectures, balancers, blocks, data, schedules
from counterpoint.cli.main import VERBS, main

QUICK = ["--training.epochs", "1", "--data.num_train", "200", "--data.num_val", "100", "--data.num_test", "100"]


def failing(arguments, capsys):
    """Return the exit code and the message of a call that is wrong."""
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.err, captured.out


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom counterpoint.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'lightning_fabric', 'jsonargparse', 'rich', 'sklearn', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help_fits_on_a_screen(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("balancers", balancers.BALANCERS),
        ("schedules", schedules.SCHEDULES),
        ("architectures", architectures.ARCHITECTURES),
        ("datasets", data.DATASETS),
        ("backbones", blocks.BACKBONES),
    ],
)
def test_list(kind, family, capsys):
    assert main(["list", kind]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == family.names()
    assert ":func:" not in printed
    assert main(["list", kind, "--json"]) == 0
    assert [entry["key"] for entry in json.loads(capsys.readouterr().out)] == family.names()


def test_list_takes_a_pattern(capsys):
    assert main(["list", "balancers", "pc*"]) == 0
    assert capsys.readouterr().out.startswith("pcgrad ")
    assert main(["list", "recipes"]) == 0
    assert "digits" in capsys.readouterr().out


@pytest.mark.parametrize("name", balancers.names())
def test_show_has_all_facts_and_every_option_explained(name, capsys):
    assert main(["show", name]) == 0
    printed = capsys.readouterr().out
    for fact in ("equation", "source", "provenance", "cost"):
        assert fact in printed
    assert main(["show", name, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["key"] == name
    assert all(option["help"] for option in content["options"]), "an option without a text in the docstring"


def test_show_tells_what_a_method_asks_of_the_loop(capsys):
    assert main(["show", "dwa"]) == 0
    assert "end_epoch() after each epoch" in capsys.readouterr().out
    assert main(["show", "pcgrad"]) == 0
    assert "needs" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [*architectures.names(), *data.names(), *blocks.BACKBONES.names()])
def test_show_other_families(name, capsys):
    assert main(["show", name.upper()]) == 0
    assert capsys.readouterr().out.startswith(f"{name} (")


def test_train_prints_and_repeats_the_result(capsys, tmp_path):
    call = [
        "train",
        "digits",
        "--balancer",
        "cagrad",
        "--balancer.c",
        "0.2",
        "--seed",
        "4",
        *QUICK,
        "--out",
        str(tmp_path / "r"),
    ]
    assert main([*call, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == "", "progress must be silent when not on a terminal"
    assert result["folder"] == str(tmp_path / "r")
    assert 0 <= result["test"]["left"]["accuracy"] <= 100
    saved = (tmp_path / "r" / "config.yaml").read_text()
    assert "name: cagrad\n  options:\n    c: 0.2\n" in saved
    assert "seed: 4" in saved
    assert main(call) == 0
    assert "left: accuracy" in capsys.readouterr().out


def test_profile_prints_the_table_and_writes_everything(capsys, tmp_path):
    path = tmp_path / "profile.json"
    call = ["profile", "digits", *QUICK, "--balancers", "dwa", "pcgra*", "--rounds", "5", "--json", str(path)]
    assert main(call) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "progress must be silent when not on a terminal"
    assert all(word in captured.out for word in ("summed", "seqK", "pcgrad", "level=features", "dwa: one mode"))
    content = json.loads(path.read_text())
    counts = {(cost["method"], cost["mode"]): cost["num_backward"] for cost in content["costs"]}
    assert counts == {
        ("summed", "default"): 1,
        ("seqK", "default"): 2,
        ("dwa", "default"): 1,
        ("pcgrad", "default"): 2,
        ("pcgrad", "features="): 2,
        ("pcgrad", "level=features"): 1,
    }
    assert content["run"]["data"]["options"]["num_train"] == 200
    assert content["num_tasks"] == 2
    assert main([*call[:-1], "-", "--level", "parameters", "--rounds", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [cost["mode"] for cost in printed["costs"]] == ["default"] * 4 + ["features="]
    assert printed["advice"] == ["no advice on 1 rounds: take at least 5"]


def test_profile_of_a_network_without_features(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_features.py").write_text(
        "from counterpoint.architectures import MTLOutput, MultiTaskModel\n"
        "from torch import nn\n"
        "class Plain(MultiTaskModel):\n"
        "    key = 'plain'\n"
        "    def __init__(self, backbone, heads):\n"
        "        super().__init__(tuple(heads))\n"
        "        self.backbone, self.heads = backbone, nn.ModuleDict(dict(heads))\n"
        "    def forward(self, x, tasks=None):\n"
        "        z = self.backbone(x)\n"
        "        return MTLOutput({task: self.heads[task](z) for task in self.asked(tasks)})\n"
        "    def task_parameters(self, task):\n"
        "        return self.heads[task].parameters()\n"
    )
    call = ["profile", "digits", *QUICK, "--model", "no_features:Plain", "--balancers", "mgda", "--rounds", "1"]
    assert main(call) == 0
    assert "the network 'no_features:Plain' returns no features" in " ".join(capsys.readouterr().out.split())
    code, err, out = failing([*call, "--level", "features"], capsys)
    assert (code, out) == (2, "")
    assert "returns no features (MTLOutput.features is empty)" in err
    assert "take --level parameters" in err


def test_a_saved_configuration_is_a_recipe(capsys, tmp_path):
    assert main(["train", "digits", *QUICK, "--out", str(tmp_path / "first"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    recipe = str(tmp_path / "first" / "config.yaml")
    assert main(["train", recipe, "--out", str(tmp_path / "second"), "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert {**first, "folder": None} == {**second, "folder": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no verb is called 'trian'; did you mean train?"),
        (["list", "balancer"], "no list is called 'balancer'; did you mean balancers?"),
        (["show", "pcgrd"], "did you mean pcgrad"),
        (["train", "digts"], "no recipe and no file is called 'digts'; did you mean digits?"),
        (["train", "none.yaml"], "none.yaml: cannot be read (No such file or directory)"),
        (["train", "digits", "--balancer", "nashmlt"], "no balancer is called 'nashmlt'"),
        (["train", "digits", "--balancer", "cagrd"], "did you mean cagrad"),
        (
            ["train", "digits", "--balancer", "cagrad", "--balancer.cc", "1"],
            "CAGrad has no option 'cc'; did you mean c",
        ),
        (["train", "digits", "--balancer", "cagrad", "--balancer.c", "much"], 'option "c"'),
        (["train", "digits", "--balancer", "cagrad", "--balancer.c", "-1"], "CAGrad: c must be"),
        (["train", "digits", "--balancer.tasks", "[left]"], "tasks is set by the run"),
        (["train", "digits", "--training.epoch", "3"], "no key 'training.epoch'; did you mean training.epochs"),
        (
            ["train", "digits", "--epochs", "3"],
            "no option '--epochs' in counterpoint train; did you mean --training.epochs?",
        ),
        (["train", "digits", "--trainin.epochs", "3"], "did you mean training.epochs"),
        (["train", "digits", "--training.epochs", "three"], 'key "training.epochs"'),
        (["train", "digits", "--training.epochs", "0"], "training: epochs must be"),
        (["train", "digits", "--training.epochs"], "--training.epochs needs a value"),
        (["train", "digits", "--training", "3"], "--training is a section; its options: training.epochs"),
        (["train", "digits", "--training.threads", "-1"], "training: threads must be in [0"),
        (["train", "digits", "--training.accelerator", "gpuu"], "did you mean gpu"),
        (["train", "digits", "--seed", "-1"], "a seed must be a whole number from 0 to 4294967295, got -1"),
        (["train", "digits", "--seed", str(10**20)], "a seed must be"),
        (["train", "digits", "--seed", "x"], "invalid int value: 'x'; see counterpoint train --help"),
        (["train", "digits", "--data.tasks", "[left, left]"], "tasks must be different names"),
        (["train", "digits", "--data.tasks", "left"], "got left; a list is written [a, b]"),
        (["train", "digits", "--balancer", ":Mine"], "is named package.module:Class"),
        (["train", "digits", "--balancer", ".mine:Mine"], "is named package.module:Class"),
        (["train", "digits", "--scheduler", "StepLR"], "StepLR needs step_size"),
        (["train", "digits", "--scheduler", "StepLR", "--scheduler.step_size", "0"], "StepLR cannot take a step"),
        (["train", "digits", "--scheduler", "StepLR", "--scheduler.step_size", "x"], "StepLR cannot take a step"),
        (
            ["train", "digits", "--scheduler", "ReduceLROnPlateau", "--scheduler.every_step", "true"],
            "set scheduler.every_step to false",
        ),
        (["train", "digits", "--optimizer", "SparseAdam"], "SparseAdam cannot take a step"),
        (["train", "digits", "--optimizer.betas", "[0.9]"], "Adam does not take"),
        (["train", "digits", "--optimizer.lr", "much"], "Adam does not take"),
        (["train", "digits", "--optimizer.groups", "[{match: '('}]"], "'(' is no regular expression"),
        (["train", "digits", "--model.backbone_options.hidden", "-3"], "SmallConv: hidden must be in [1"),
        (["train", "digits", "--model.backbone_options.widths", "[0]"], "SmallConv: each of widths"),
        (["train", "digits", "--model.head_options.hidden", "0"], "Classifier: hidden must be in [1"),
        (["--jso"], "no option '--jso'"),
        (["--versoin"], "did you mean --version"),
        (["train", "digits", "--training.precision", "16-mixed"], "precision must be one of"),
        (["train", "digits", "--optimizer", "Adamm"], "did you mean"),
        (["train", "digits", "--optimizer.lrr", "0.1"], "Adam has no option 'lrr'; did you mean lr"),
        (["train", "digits", "--data.tasks", "[lefft]"], "no task of digits is called 'lefft'; did you mean left"),
        (["train", "digits", "--data.num_trains", "3"], "Digits has no option 'num_trains'; did you mean num_train"),
        (["train", "multi_fashion_mnist"], "needs root; give it with --data.root VALUE"),
        (["train", "digits", "extra"], "did not expect 'extra'"),
        (["train", "digits", "--sed", "3"], "did you mean --seed"),
        (["compare", "digits", "--balancers", "grad_van"], "did you mean gradvac"),
        (["compare", "digits", "--balancers", "nothing*"], "no balancer fits the pattern"),
        (["compare", "digits", "--balancers", "cagrad(c=0.2"], "is not of the form"),
        (["compare", "digits", "--balancers", "cagrad(k=0.2)"], "CAGrad has no option 'k'"),
        (["compare", "digits", "--balancers", "cagrad(c=-3)"], "CAGrad: c must be"),
        (
            ["compare", "digits", "--balancers", "fixed"],
            "Fixed needs task_weights; give it with 'fixed(task_weights=VALUE)'",
        ),
        (
            ["train", "digits", "--balancer", "fixed"],
            "Fixed needs task_weights; give it with --balancer.task_weights VALUE",
        ),
        (["compare", "digits", "--seeds", "1", "1"], "seeds must be different"),
        (["compare", "digits", "--seeds", "x"], "invalid int value: 'x'"),
        (["compare", "digits", "--seeds", "0", "-1"], "a seed must be"),
        (["compare", "digits", "--model.backbone_options.hidden", "0"], "SmallConv: hidden must be in [1"),
        (["compare", "digits", "--optimizer.groups", "[{match: zzz}]"], "'zzz' fits no parameter"),
        (["compare", "digits", "--workers", "0"], "--workers must be at least 1"),
        (["compare", "digits", "--data.tasks", "[left]"], "at least two tasks"),
        (["profile", "digits", "--balancers", "pcgrd"], "no balancer is called 'pcgrd'; did you mean pcgrad"),
        (["profile", "digits", "--balancers", "nothing*"], "no balancer fits the pattern"),
        (["profile", "digits", "--balancers", "fixed"], "Fixed needs task_weights; give it with 'fixed(task_weights"),
        (["profile", "digits", "--level", "feature"], "--level must be one of"),
        (["profile", "digits", "--rounds", "0"], "--rounds must be in [1"),
        (["profile", "digits", "--data.tasks", "[left]"], "at least two tasks in the batch, got 1: ['left']"),
        (["profile", "digits", "--round", "3"], "no option '--round' in counterpoint profile; did you mean --rounds"),
        (["report", "nowhere"], "nowhere: no comparison there"),
        (["report", "nowhere", "--jsn"], "did you mean --json"),
    ],
)
def test_bad_calls_get_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err, out = failing(arguments, capsys)
    assert code == 2
    assert message in err
    assert err.startswith("counterpoint")
    assert err.count("\n") == 1, "not one line"
    assert out == ""
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_bad_yaml_files(capsys, tmp_path):
    for content, message in [
        ("training:\n\tepochs: 1\n", "line 2, column 1"),
        ("trainin: {}\n", "no key 'trainin'; did you mean training?"),
        (
            "optimizer:\n  groups:\n    - {mach: head}\n",
            "did you mean optimizer.groups.match?",
        ),
        ("- 1\n", "a configuration is a mapping of sections, got list"),
        ("", "empty"),
        ("seed: hello\n", 'key "seed"'),
        ("seed: 1\nseed: 2\n", "line 2, column 1: the key 'seed' is given twice"),
        ("data:\n", "data must be a section of its own, got None; write data: {name: ...}"),
        ("data: digits\n", "data must be a section of its own, got 'digits'"),
        ("training: 3\n", "training must be a section of its own, got 3"),
        ("optimizer: {lr: 0.1}\n", "no key 'optimizer.lr'"),
        ("optimizer: {lr: 0.1}\n", "goes under optimizer.options"),
    ]:
        path = tmp_path / "run.yaml"
        path.write_text(content)
        code, err, _ = failing(["train", str(path), "--out", str(tmp_path / "run")], capsys)
        assert code == 2
        assert message in err
        assert "run.yaml" in err
        assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_and_one_that_cannot_be_written(capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["train", "digits", *QUICK, "--out", str(out)]) == 0
    code, err, _ = failing(["train", "digits", *QUICK, "--optimizer.lr", "0.5", "--out", str(out)], capsys)
    assert code == 2
    assert "optimizer.options.lr is 0.003 there and 0.5 now" in err
    (tmp_path / "file").write_text("")
    code, err, _ = failing(["train", "digits", *QUICK, "--out", str(tmp_path / "file" / "run")], capsys)
    assert code == 2
    assert "cannot be written" in err


def test_a_class_that_raises_gets_one_line_and_leaves_its_traceback(capsys, tmp_path):
    call = ["train", "digits", *QUICK, "--scheduler", "OneCycleLR", "--scheduler.max_lr", "0.1", "--out", str(tmp_path)]
    call += ["--scheduler.total_steps", "1", "--scheduler.every_step", "true"]
    code, err, _ = failing(call, capsys)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith("counterpoint: error: ValueError: Tried to step 2 times")
    assert err.endswith(f"the traceback is in {tmp_path / 'error.json'}\n")
    left = json.loads((tmp_path / "error.json").read_text())
    assert left["type"] == "ValueError"
    assert "Traceback" in left["traceback"]


def test_a_missing_package_is_named_with_its_extra(tmp_path):
    script = """
import sys
for name in ("yaml", "rich", "jsonargparse", "lightning_fabric", "docstring_parser"):
    sys.modules[name] = None
import counterpoint
from counterpoint.cli.main import main
codes = [main(call.split()) for call in ("show pcgrad", "train digits", "compare digits", "report x")]
try:
    counterpoint.training
except counterpoint.errors.MissingExtraError as error:
    codes.append(str(error))
print(codes)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("[2, 2, 2, 2, ")
    lines = [*done.stderr.splitlines(), done.stdout]
    assert len(lines) == 5
    assert all("is not installed; install it with: pip install 'counterpoint[bench]'" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_has_exit_code_1_and_leaves_its_error(capsys, tmp_path):
    call = ["train", "digits", *QUICK, "--optimizer", "SGD", "--optimizer.lr", "1e30", "--out", str(tmp_path / "run")]
    code, err, _ = failing(call, capsys)
    assert code == 1
    assert "epoch 1, step 2" in err
    assert "is not finite" in err
    assert json.loads((tmp_path / "run" / "error.json").read_text())["type"] == "NonFiniteError"
