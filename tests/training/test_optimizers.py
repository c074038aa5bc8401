import pytest
import torch
from torch import nn

from counterpoint import balancers
from counterpoint.errors import OptionError, UnknownNameError
from counterpoint.training.optimizers import build_optimizer, build_scheduler, rehearse

MODEL = nn.ModuleDict({"trunk": nn.Linear(2, 3), "head": nn.Linear(3, 1)})


def names_by_group(optimizer):
    names = {parameter: name for name, parameter in MODEL.named_parameters()}
    return [sorted(names.get(p, "balancer") for p in group["params"]) for group in optimizer.param_groups]


def test_groups_by_name_and_the_rest():
    optimizer = build_optimizer("adamw", {"lr": 0.1}, [("head", {"lr": 0.5, "weight_decay": 0.0})], MODEL)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert names_by_group(optimizer) == [["head.bias", "head.weight"], ["trunk.bias", "trunk.weight"]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def test_the_first_fitting_group_counts():
    optimizer = build_optimizer("SGD", {"lr": 1.0}, [("bias", {"lr": 2.0}), ("head", {"lr": 3.0})], MODEL)
    assert names_by_group(optimizer) == [["head.bias", "trunk.bias"], ["head.weight"], ["trunk.weight"]]


def test_learnable_weights_of_a_balancer_have_no_weight_decay():
    balancer = balancers.create("uncertainty", 2)
    optimizer = build_optimizer("AdamW", {"lr": 0.1, "weight_decay": 0.3}, [], MODEL, balancer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert names_by_group(optimizer)[1] == ["balancer"] * 2


def test_frozen_parameters_are_left_out():
    model = nn.ModuleDict({"trunk": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    model["trunk"].requires_grad_(False)
    optimizer = build_optimizer("SGD", {"lr": 0.1}, [], model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("name", "options", "groups", "error", "message"),
    [
        ("Adm", {}, [], UnknownNameError, "did you mean .*Adam"),
        ("SGD", {"momentm": 0.9}, [], OptionError, "SGD has no option 'momentm'; did you mean momentum"),
        ("SGD", {"lr": -1.0}, [], OptionError, r"SGD does not take {'lr': -1.0}: Invalid learning rate"),
        ("SGD", {"lr": 0.1}, [("had", {})], OptionError, "'had' fits no parameter"),
        ("SGD", {"lr": 0.1}, [("(", {})], OptionError, r"'\(' is no regular expression"),
        ("Adam", {"betas": [0.9]}, [], OptionError, "Adam does not take"),
        ("LBFGS", {}, [], OptionError, "evaluates the loss several times"),
    ],
)
def test_bad_input(name, options, groups, error, message):
    with pytest.raises(error, match=message):
        build_optimizer(name, options, groups, MODEL)


def test_schedules():
    optimizer = build_optimizer("SGD", {"lr": 1.0}, [], MODEL)
    assert build_scheduler(None, {}, optimizer) is None
    step = build_scheduler("step_lr", {"step_size": 2, "gamma": 0.1}, optimizer)
    assert isinstance(step, torch.optim.lr_scheduler.StepLR)
    plateau = build_scheduler("ReduceLROnPlateau", {"patience": 0, "factor": 0.5}, optimizer)
    for score in (1.0, 2.0, 1.5):  # higher is better: the rate falls after the third score
        plateau.step(score)
    assert optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(OptionError, match="StepLR has no option 'gama'; did you mean gamma"):
        build_scheduler("StepLR", {"gama": 0.1}, optimizer)
    with pytest.raises(OptionError, match=r"StepLR needs step_size; give it as scheduler\.options\.step_size"):
        build_scheduler("StepLR", {}, optimizer)
    with pytest.raises(UnknownNameError, match=r"did you mean .*MultiStepLR"):
        build_scheduler("MultistepL", {}, optimizer)


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "options", "every_step", "message"),
    [
        ("SparseAdam", None, {}, False, "SparseAdam cannot take a step with these options"),
        ("SGD", "StepLR", {"step_size": 0}, False, "StepLR cannot take a step with these options"),
        ("SGD", "ReduceLROnPlateau", {}, True, "set scheduler.every_step to false"),
    ],
)
def test_what_only_a_step_finds(optimizer, scheduler, options, every_step, message):
    built = build_optimizer(optimizer, {}, [], nn.Linear(1, 1))
    with pytest.raises(OptionError, match=message):
        rehearse(built, build_scheduler(scheduler, options, built), every_step=every_step)


def test_sound_options_pass_the_rehearsal():
    for optimizer, options in (("Adam", {"capturable": True}), ("SGD", {"lr": 0.1}), ("Adafactor", {})):
        rehearse(build_optimizer(optimizer, options, [], nn.Linear(1, 1)), None, every_step=False)
    schedules = {"StepLR": {"step_size": 3}, "ReduceLROnPlateau": {}, "CosineAnnealingLR": {"T_max": 3}}
    for scheduler, options in schedules.items():
        built = build_optimizer("SGD", {"lr": 0.1}, [], nn.Linear(1, 1))
        rehearse(built, build_scheduler(scheduler, options, built), every_step=False)
