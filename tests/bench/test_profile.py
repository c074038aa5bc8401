"""Profiles: their counts against a hook that counts, their memory, what they leave behind, and their advice."""

import itertools
import json
import sys
from typing import ClassVar

import pytest
import torch
from torch import nn

from counterpoint import balancers, bench
from counterpoint.bench.profile_result import Cost, Profile, Range
from counterpoint.bench.profile_rounds import _costs, _Variant
from counterpoint.errors import GraphError, OptionError, UnknownNameError


class Net(nn.Module):
    """A trunk whose backward passes are counted, a neck whose output the heads read, and the heads."""

    def __init__(self, num_tasks=3, width=16):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width))
        self.neck = nn.Identity()
        self.heads = nn.ModuleDict({f"t{k}": nn.Linear(width, 1) for k in range(num_tasks)})
        self.x = torch.randn(8, 8)
        self.walked = 0

    def losses(self):
        z = self.trunk[:2](self.x)
        if z.requires_grad:
            z.register_hook(self._count)
        z = self.neck(self.trunk[2](z))
        return {name: (head(z) - k).square().mean() for k, (name, head) in enumerate(self.heads.items())}

    def _count(self, gradient):
        self.walked += 1


def test_counts_are_those_of_a_hook_in_the_trunk():
    net = Net(num_tasks=3)
    expected = {
        ("summed", "default"): 1,
        ("seqK", "default"): 3,
        ("uncertainty", "default"): 1,
        ("pcgrad", "default"): 3,
        ("pcgrad", "features="): 3,
        ("pcgrad", "level=features"): 1,
        ("graddrop", "default"): 3,
        ("graddrop", "features="): 3,
        ("graddrop", "level=features"): 1,
    }
    walked = []
    found = bench.profile_balancers(
        net.losses,
        features=net.neck,
        balancers=["uncertainty", "pcgrad", "graddrop"],
        rounds=2,
        on_round=lambda done, total: walked.append((done, total, net.walked)),
    )
    assert {(cost.method, cost.mode): cost.num_backward for cost in found.costs} == expected
    assert [(done, total) for done, total, _ in walked] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rounds = {later - before for (_, _, before), (_, _, later) in itertools.pairwise(walked)}
    batched = 2 * (3 - 1)  # pcgrad's three passes through the parameters are one for the hook, in two modes
    assert rounds == {sum(expected.values()) - batched}, "the hook saw another number of passes"


def test_cosines_are_those_of_the_updates():
    net = Net(num_tasks=4)
    found = bench.profile_balancers(net.losses, features=net.neck, balancers=["mgda"], rounds=1)
    updates = []
    for level in ("parameters", "features"):
        net.zero_grad()
        kept = []
        hook = net.neck.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output))
        losses = net.losses()
        hook.remove()
        balancers.MGDA(4).backward(losses, features=kept, level=level)
        updates.append(torch.cat([p.grad.flatten() for p in net.trunk.parameters()]))
    expected = float(torch.cosine_similarity(*updates, dim=0))
    assert expected < 0.99999
    cosines = {cost.mode: cost.cosine for cost in found.costs if cost.reads}
    assert cosines["default"] == pytest.approx(1.0, abs=1e-12)
    assert cosines["features="] == pytest.approx(1.0, abs=1e-6)
    assert cosines["level=features"] == pytest.approx(expected, abs=1e-6)


def test_memory_of_rows_and_of_one_pass():
    net = Net(num_tasks=8, width=256)
    net.trunk[2] = nn.Linear(256, 256)
    found = bench.profile_balancers(net.losses, features=net.neck, balancers=["graddrop"], rounds=1)
    memory = {(cost.method, cost.mode): cost.peak_memory_mb for cost in found.costs}
    rows = 8 * sum(p.numel() for p in net.trunk.parameters()) * 4 / 2**20
    for key in (("seqK", "default"), ("graddrop", "default"), ("graddrop", "features=")):
        assert rows <= memory[key] < 2.5 * rows, key
    assert memory["summed", "default"] < 0.5 * rows
    assert memory["graddrop", "level=features"] < 0.5 * rows


def test_parameters_gradients_and_generator_are_left_alone():
    net = Net()
    net.trunk[0].weight.grad = torch.ones_like(net.trunk[0].weight)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    random = torch.get_rng_state()
    found = bench.profile_balancers(net.losses, features=net.neck, balancers=["cagrad(c=0.2)", "cagrad"], rounds=1)
    assert [cost.method for cost in found.costs[2:]] == ["cagrad(c=0.2)"] * 3 + ["cagrad"] * 3
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert torch.equal(net.trunk[0].weight.grad, torch.ones_like(net.trunk[0].weight))
    assert all(p.grad is None for name, p in net.named_parameters() if name != "trunk.0.weight")
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.neck._forward_hooks, "the hook stayed"


def test_losses_as_list_tensor_and_with_an_absent_task():
    net = Net(num_tasks=3)
    for losses in (
        lambda: list(net.losses().values()),
        lambda: torch.stack(list(net.losses().values())),
        lambda: {**net.losses(), "absent": None},
    ):
        found = bench.profile_balancers(losses, balancers=["mgda", "gradvac"], rounds=1)
        assert [cost.num_backward for cost in found.costs] == [1, 3, 3, 3]
        assert found.num_tasks == 3
        assert "without features=" in found.notes[0]


def test_what_a_method_asks_of_the_loop_is_said():
    found = bench.profile_balancers(Net().losses, balancers=["dwa"], rounds=1)
    assert "dwa asks more of the loop (end_epoch() after each epoch)" in found.notes[1]


class Again(balancers.LossBalancer):
    """Needs a second forward pass."""

    key, equation, source, provenance, scale = "again", "sum", "here", "here", "sum"
    needs = frozenset({"losses_after_step"})
    seen: ClassVar[list] = []

    def objective(self, losses, *, present=None):
        return losses.sum()

    def after_step(self, losses):
        assert not next(iter(losses.values())).requires_grad, "a graph was made"
        self.seen.append(losses)


class Ahead(Again):
    """Needs what a profile cannot serve."""

    needs = frozenset({"look_ahead"})


class ByInstance(Again):
    """Wants other losses."""

    needs, loss_form = frozenset(), "instance"


def test_a_second_forward_pass_is_made_and_what_cannot_be_served_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "again_for_test", sys.modules[__name__])
    names = [f"again_for_test:{name}" for name in ("Again", "Ahead", "ByInstance")]
    Again.seen.clear()
    found = bench.profile_balancers(Net().losses, balancers=names, rounds=3)
    assert len(Again.seen) == 1 + 2 + 3, "once for memory, twice to warm up, thrice for the time"
    assert [cost.method for cost in found.costs] == ["summed", "seqK", names[0]]
    assert any("that forward pass counts as backward" in note for note in found.notes)
    assert any(note.startswith(f"{names[1]}: not measured, as it asks for look_ahead") for note in found.notes)
    assert any(note.startswith(f"{names[2]}: not measured, as it reads other losses") for note in found.notes)


def test_a_mode_that_the_model_does_not_allow_is_a_note():
    net = Net()
    extra = nn.Parameter(torch.ones(8))

    def losses():  # a shared parameter that is reached past the features
        return {name: loss + extra.square().sum() * (k + 1) for k, (name, loss) in enumerate(net.losses().items())}

    found = bench.profile_balancers(losses, features=net.neck, balancers=["graddrop"], rounds=1)
    assert [cost.mode for cost in found.costs[2:]] == ["default", "features="]
    assert "graddrop, level=features: not possible here" in found.notes[0]


NET = Net()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"balancers": ["pcgrd"]}, UnknownNameError, "did you mean pcgrad"),
        ({"balancers": ["cagrad(k=1)"]}, OptionError, "CAGrad has no option 'k'"),
        ({"balancers": "pcgrad"}, OptionError, "must be a list of at least one name, got 'pcgrad'"),
        ({"balancers": []}, OptionError, "must be a list of at least one name"),
        ({"rounds": 0}, OptionError, "rounds must be"),
        ({"level": "feature"}, OptionError, "did you mean features"),
        ({"level": "features"}, OptionError, "needs features=, the module whose output the heads read"),
        ({"features": nn.Linear(2, 2)}, GraphError, "features = Linear gave no tensor"),
        ({"compute_losses": lambda: {"a": NET.losses()["t0"]}}, OptionError, r"at least two tasks .* got 1: \['a'\]"),
        ({"compute_losses": lambda: {"a": NET.losses()["t0"], "b": None}}, OptionError, "at least two tasks"),
        ({"compute_losses": lambda: [NET.losses()["t0"], torch.tensor(1.0)]}, GraphError, "task '1' has no graph"),
        (
            {"compute_losses": lambda: [nn.Linear(1, 1)(torch.ones(1)).sum() for _ in range(2)]},
            GraphError,
            "no parameter is reached by two tasks",
        ),
    ],
)
def test_errors_name_the_culprit_and_the_cure(change, error, message):
    arguments = {"compute_losses": NET.losses, "balancers": ["mgda"], "rounds": 1, **change}
    compute_losses = arguments.pop("compute_losses")
    with pytest.raises(error, match=message):
        bench.profile_balancers(compute_losses, **arguments)


def cost(method, mode, backward, step, *, reads="gram", spread=0.01, cosine=None, against=0.5):
    def around(value):
        return Range(value, value * (1 - spread), value * (1 + spread))

    ratios = around(step), around(step), around(backward), around(1.0 if mode == "default" else against)
    return Cost(method, mode, reads, 1.0, *ratios, 1.0, cosine)


def made_up(*costs, rounds=9, spread=0.01):
    baselines = cost("summed", "default", 1.0, 1.0, reads="", spread=spread), cost("seqK", "default", 3, 2, reads="")
    return Profile((*baselines, *costs), (), 3, 1000, rounds, "cpu", 1)


def test_advice_takes_the_level_that_pays_and_says_what_differs():
    found = made_up(cost("m", "default", 3.2, 2.4), cost("m", "level=features", 1.05, 1.02, cosine=0.9))
    (line,) = found.advice()
    assert line.startswith("m: take level=features if it trains as well (its weights differ")
    assert "0.900" in line
    assert "backward 1.05 of the summed one against 3.20, step 1.02 against 2.40" in line
    same = made_up(cost("m", "default", 3.2, 2.4), cost("m", "level=features", 1.05, 1.02, cosine=1.0))
    assert "its update is the same" in same.advice()[0]


def test_advice_prefers_features_without_other_weights_where_that_is_as_good():
    found = made_up(
        cost("m", "default", 5.0, 4.0), cost("m", "features=", 2.0, 1.5), cost("m", "level=features", 1.9, 1.45)
    )
    (line,) = found.advice()
    assert line.startswith("m: pass features=: backward 2.00 of the summed one against 5.00")
    assert "level=features is not worth its other weights: backward 1.90 of the summed one against 2.00" in line


def test_advice_is_held_back_where_the_data_do_not_support_it():
    wide = made_up(
        cost("m", "default", 3.0, 2.0), cost("m", "level=features", 2.0, 1.5, spread=0.5, against=0.75), spread=0.5
    )
    busy, line = wide.advice()
    assert busy.startswith("the machine was busy")
    assert line.startswith("m: keep the default; level=features may be faster, but not in three quarters")
    few = made_up(cost("m", "default", 3.2, 2.4), cost("m", "level=features", 1.05, 1.02), rounds=4)
    assert few.advice() == ["no advice on 4 rounds: take at least 5"]
    small = made_up(cost("m", "default", 1.1, 1.02), cost("m", "level=features", 1.0, 1.0))
    assert small.advice()[0].startswith("m: keep the default; level=features is not worth")


def test_advice_on_methods_with_one_mode():
    found = made_up(cost("u", "default", 1.1, 1.05, reads="losses"), cost("m", "default", 3.0, 2.0))
    assert found.advice()[0].startswith("u: one mode, as it reads losses only; its step costs 1.05")
    assert found.advice()[1].startswith("m: only the default was measured")


def test_printed_and_plain():
    found = made_up(cost("m", "default", 3.2, 2.4), cost("m", "level=features", 12.5, 11.2, cosine=0.9))
    printed = str(found)
    assert "3 tasks, 1,000 shared parameters; cpu, 1 thread\n" in printed
    assert "12.5 (12.4-12.6)" in printed
    assert max(map(len, printed.splitlines())) <= 100
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["costs"][3]["backward_ratio"] == {"median": 12.5, "low": 12.375, "high": 12.625}
    assert content["advice"] == found.advice()


def test_ratios_are_taken_within_rounds():
    """A machine that is twice as slow in every other round changes no ratio."""
    plain, mode = _Variant("summed", "default", "", None), _Variant("m", "level=features", "gram", None)
    default = _Variant("m", "default", "gram", None)
    for variant, backward in ((plain, 1.0), (default, 4.0), (mode, 1.5)):
        variant.forward_s, variant.passes = [1.0, 2.0] * 4, [1] * 8
        variant.backward_s = [backward, 2 * backward] * 4
    *_, found = _costs([plain, default, mode])
    assert found.step_ms == Range(3750.0, 2500.0, 5000.0)
    assert found.backward_ratio == Range(1.5, 1.5, 1.5)
    assert found.step_ratio == Range(1.25, 1.25, 1.25)
    assert found.default_ratio == Range(0.5, 0.5, 0.5)


def test_range_of_rounds():
    assert Range.of([3.0]) == Range(3.0, 3.0, 3.0)
    assert Range.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Range(3.0, 2.0, 4.0)
