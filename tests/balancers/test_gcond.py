"""GCond against a slow transcription on vectors, its closed forms, its arbiter, and its options."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balancers.test_columns_methods import close, some_present
from counterpoint.balancers import BALANCERS, GCond
from counterpoint.balancers.gcond import conflict_factors, gcond_rows
from counterpoint.errors import OptionError
from counterpoint.linalg import gram

seeds = st.integers(0, 10_000)
ZONES = (-0.8, -0.5, 0.0)


def first_wins(rows, first, second):
    return first


def pair(cosine, lengths=(1.0, 1.0)):
    return torch.tensor(
        [[lengths[0], 0.0], [lengths[1] * cosine, lengths[1] * (1 - cosine**2) ** 0.5]], dtype=torch.float64
    )


def unit(vector):
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


class Slow:
    """The method on plain vectors, one loop inside the other."""

    def __init__(self, count, columns, *, zones, released, window=3, momentum=0.85):
        self.zones, self.released, self.window, self.momentum = zones, released, window, momentum
        self.previous = np.zeros((count, columns))
        self.mean = np.full(count, 1.0 if released else np.nan)
        self.update, self.steps, self.won = np.zeros(columns), 0, []

    def winner(self, grads, i, j):
        recent = self.won[-self.window :]
        for this, other in ((i, j), (j, i)):
            if self.window and len(recent) == self.window and set(recent) == {this}:
                return other
        scores = []
        relative = {k: np.linalg.norm(grads[k]) / self.mean[k] for k in (i, j)}
        for k in (i, j):
            stable = max(0.0, unit(grads[k]) @ unit(self.previous[k]))
            scores.append(0.8 * stable + 0.2 * relative[k] / (relative[i] + relative[j]))
        return j if scores[1] > scores[0] + 1e-6 else i

    def resolve(self, grads, i, j, c):
        if self.zones and c >= -0.5:
            parts = 1.0, 1.0
            w, loser = i, j
        else:
            w = self.winner(grads, i, j)
            loser = i + j - w
            self.won.append(w)
            if self.zones and c < -0.8:
                grads[loser] = np.zeros_like(grads[loser])
                return
            if c >= -0.5:
                angle = np.pi / 2 * (1 - (c + 0.5) / 0.5)
            elif c > -0.8:
                angle = np.pi / 2 * (1 + ((c + 0.5) / -0.3) ** 2)
            else:
                angle = np.pi
            parts = (0.0, 1.0) if self.zones else (np.sin(angle), np.sin(min(angle, np.pi / 2)))
        dot = grads[w] @ grads[loser]
        new_winner = grads[w] - parts[0] * dot / (grads[loser] @ grads[loser]) * grads[loser]
        grads[loser] = grads[loser] - parts[1] * dot / (grads[w] @ grads[w]) * grads[w]
        grads[w] = new_winner

    def step(self, rows, present):
        grads = dict(zip(present, rows, strict=True))
        lengths = {k: np.linalg.norm(row) for k, row in grads.items()}
        for k, length in lengths.items():
            self.mean[k] = length if np.isnan(self.mean[k]) else 0.95 * self.mean[k] + 0.05 * length
        for _ in range(2 * len(present)):
            worst, chosen = -1e-6, None
            for i in present:
                for j in present:
                    if i < j and min(np.linalg.norm(grads[k]) / lengths[k] for k in (i, j)) > 1e-3:
                        c = unit(grads[i]) @ unit(grads[j])
                        if c < worst:
                            worst, chosen = c, (i, j)
            if chosen is None:
                break
            self.resolve(grads, *chosen, worst)
        for k, row in zip(present, rows, strict=True):
            self.previous[k] = grads[k] if self.released else row
        self.steps += 1
        self.update = self.momentum * self.update + (1 - self.momentum) * sum(grads.values())
        return self.update / (1 - self.momentum**self.steps)


@pytest.mark.parametrize("surgery", ["smooth", "zones"])
@pytest.mark.parametrize("variant", ["plain", "released"])
@settings(max_examples=60)
@given(seed=seeds)
def test_it_is_its_formula_also_with_tasks_absent(surgery, variant, seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(2, 6, (), generator=generator))
    columns = int(torch.randint(3, 7, (), generator=generator))  # few: strong conflicts; in a plane all projections tie
    rows = torch.randn(9, count, columns, generator=generator, dtype=torch.float64)
    rows = rows + 2 * torch.randn(1, count, columns, generator=generator, dtype=torch.float64)  # steady in part
    rows = rows * torch.exp(torch.randn(1, count, 1, generator=generator, dtype=torch.float64))
    balancer = GCond(count, surgery=surgery, variant=variant)
    slow = Slow(count, columns, zones=surgery == "zones", released=variant == "released")
    for number, present in enumerate(some_present(seed, count, len(rows))):
        now = rows[number, list(present)]
        close(balancer.combine(now, present=present), slow.step(now.numpy(), present), 1e-8)
    close(balancer.mean_length, slow.mean, 1e-12)
    assert int(balancer.winner) == (slow.won[-1] if slow.won else -1)


def test_the_shares_at_the_thresholds():
    for c, expected in [(-1e-15, (0, 0)), (-0.25, (0.5**0.5,) * 2), (-0.5, (1, 1)), (-0.65, (np.cos(np.pi / 8), 1))]:
        assert conflict_factors(c) == pytest.approx(expected, abs=1e-12)
    assert conflict_factors(-0.8) == conflict_factors(-1.0) == (0.0, 1.0)
    for edge in ZONES[:2]:  # no jump
        assert conflict_factors(edge - 1e-9) == pytest.approx(conflict_factors(edge + 1e-9), abs=1e-6)
    assert conflict_factors(-0.65, power=1.0)[0] == pytest.approx(0.5**0.5)
    assert conflict_factors(-0.3, surgery="zones") == (1.0, 1.0)
    assert conflict_factors(-0.6, surgery="zones") == (0.0, 1.0)
    assert conflict_factors(-0.6, thresholds=(-0.5, -0.5, -0.5)) == (0.0, 1.0)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (1e-6, 1e3), (40.0, 2.0)])
def test_two_gradients_in_each_zone(lengths):
    for c, winner_part, loser_part in [(-0.3, 1, 1), (-0.6, 0, 1)]:
        rows = pair(c, lengths)
        found = gcond_rows(gram(rows), first_wins, surgery="zones") @ rows
        one, two = rows
        close(found[0], one - winner_part * (one @ two) / (two @ two) * two, 1e-9)
        close(found[1], two - loser_part * (one @ two) / (one @ one) * one, 1e-9)
    coefficients = gcond_rows(gram(pair(-0.9, lengths)), lambda *_: 1, surgery="zones")
    assert coefficients.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    rows = pair(-0.9, lengths)
    smooth = gcond_rows(gram(rows), first_wins)
    assert smooth[0].tolist() == [1.0, 0.0]  # the winner of a critical conflict gives up nothing
    assert abs(float((smooth @ rows)[1] @ rows[0])) < 1e-9 * lengths[0] * lengths[1]


@given(seed=seeds, surgery=st.sampled_from(["smooth", "zones"]))
def test_gradients_without_conflict_stay(seed, surgery):
    rows = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    close(gcond_rows(gram(rows), first_wins, surgery=surgery), torch.eye(4))


@given(seed=seeds)
def test_zones_leave_no_conflict_of_two_and_keep_lengths_out(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    factors = torch.exp(8 * torch.rand(2, 1, generator=generator, dtype=torch.float64))
    resolved = gcond_rows(gram(rows), first_wins, surgery="zones") @ rows
    assert float(resolved[0] @ resolved[1]) >= -1e-6
    scaled = rows * factors
    close(gcond_rows(gram(scaled), first_wins, surgery="zones") @ scaled / factors, resolved, 1e-7)


def test_zero_and_opposed_gradients():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    for surgery in ("smooth", "zones"):
        resolved = gcond_rows(gram(rows), first_wins, surgery=surgery) @ rows
        close(resolved, [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        assert GCond(3, surgery=surgery).combine(rows).tolist() == [1.0, 0.0]
    assert GCond(2).combine(torch.zeros(2, 3)).tolist() == [0.0] * 3


# --- who wins ---------------------------------------------------------------------------------------------------------


def winners(balancer, steps):
    found = []
    for rows in steps:
        balancer.combine(rows)
        found.append(int(balancer.winner))
    return found


@pytest.mark.parametrize("surgery", ["smooth", "zones"])
def test_a_dominant_task_loses_or_wins(surgery):
    steps = [pair(-0.9)] * 9
    assert winners(GCond(2, surgery=surgery), steps) == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert winners(GCond(2, surgery=surgery, window=1), steps) == [0, 1] * 4 + [0]
    assert winners(GCond(2, surgery=surgery, window=0), steps) == [0] * 9
    steady = [pair(-0.9) * torch.tensor([[1.0], [1.0]])] * 3 + [pair(-0.9) * torch.tensor([[0.1], [1.0]])] * 2
    assert winners(GCond(2, surgery=surgery, dominant="wins"), steady) == [0] * 5  # the second is stronger by then
    assert winners(GCond(2, surgery=surgery, window=0), steady)[3] == 1


def test_the_steadier_gradient_wins_and_then_the_stronger_one():
    turned = torch.tensor([[1.0, 0.1], [-1.0, 0.1]], dtype=torch.float64)
    start = torch.tensor([[0.0, 1.0], [-1.0, 0.1]], dtype=torch.float64)  # the second stays as it is
    assert winners(GCond(2), [start, turned])[1] == 1
    assert winners(GCond(2, stability=0.0), [start, turned])[1] == 0
    grown = turned * torch.tensor([[1.0], [2.0]])  # both steady; the second twice as long as it was
    assert winners(GCond(2), [turned, grown])[1] == 1
    assert winners(GCond(2, strength=0.0), [turned, grown])[1] == 0
    assert winners(GCond(2, strength=0.0), [-turned, turned])[1] == 0  # a flip counts as 0, not below


def test_mild_conflicts_have_no_winner_in_zones():
    assert winners(GCond(2, surgery="zones"), [pair(-0.3)] * 2) == [-1, -1]
    assert winners(GCond(2), [pair(-0.3)] * 2) == [0, 0]  # one round a step is enough
    assert winners(GCond(2), [pair(-0.1)] * 2) == [1, 1]  # four rounds a step: three won, the fourth lost


@given(seed=seeds)
def test_what_rounding_leaves_is_no_conflict(seed):
    """The second loses to the first, the third to what is left of the second; then all are orthogonal but for rounding.

    A conflict of 1e-17 must not decide who is dominant.
    """
    rows = torch.tensor([[1.0, 0.0, 0.0], [-0.95, 0.3, 0.0], [0.0, -0.95, 0.3]], dtype=torch.float64)
    turn = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    asked = []

    def judge(rows, first, second):
        asked.append((first, second))
        return first

    gcond_rows(gram(rows @ torch.linalg.qr(turn)[0][:3]), judge)
    assert asked == [(0, 1), (1, 2)]


def test_variants_differ_as_they_say():
    rows = torch.tensor([[1.0, 0.0], [-20.0, 2.0]], dtype=torch.float64)
    plain, released = GCond(2), GCond(2, variant="released")
    plain.combine(rows)
    released.combine(rows)
    assert (int(plain.winner), int(released.winner)) == (0, 1)  # only there a long gradient is a strong one
    lengths = rows.norm(dim=1)
    close(plain.mean_length, lengths)
    close(released.mean_length, 0.95 + 0.05 * lengths)
    close(plain.previous, rows / lengths[:, None])
    close(released.previous[1], rows[1] / lengths[1])
    assert abs(float(released.previous[0] @ rows[1])) < 1e-12  # the loser's, as it was resolved


# --- the update over steps --------------------------------------------------------------------------------------------


def test_the_update_is_a_running_mean_corrected_at_the_start():
    balancer, total = GCond(2, momentum=0.7), 0.0
    for step in range(1, 5):
        rows = torch.eye(2, dtype=torch.float64) * step
        total = 0.7 * total + 0.3 * rows.sum(dim=0)
        close(balancer.combine(rows), total / (1 - 0.7**step))
    found = balancer.combine(torch.ones(1, 2, dtype=torch.float64), present=(1,))
    close(found, (0.7 * total + 0.3) / (1 - 0.7**5))  # an absent task's past stays in it


def test_without_a_past_it_needs_no_state_and_gives_weights():
    rows = pair(-0.6, (2.0, 1.0))
    balancer = GCond(2, stability=0.0, momentum=0.0)
    assert not balancer.keeps_columns
    direction, weights = balancer.aggregate(rows, None, (0, 1))
    close(weights @ rows, direction)
    assert not {"previous", "mean"} & {name for name, _ in balancer.named_buffers()}
    trunk = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    z = trunk * 1.0
    balancer.backward([(row * z).sum() for row in rows], features=z, level="features")
    close(trunk.grad, direction)
    assert {name for name, _ in GCond(2, stability=0.0).named_buffers()} & {"previous", "mean"} == {"mean"}
    assert {name for name, _ in GCond(2, momentum=0.0).named_buffers()} & {"previous", "mean"} == {"previous"}


def test_narrow_gradients_and_heads():
    balancer = GCond(2)
    for _ in range(2):
        assert balancer.combine(pair(-0.6).bfloat16()).dtype == torch.bfloat16
    assert balancer.previous.dtype == balancer.mean.dtype == torch.float32
    trunk, heads = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    GCond(2).backward([trunk[0] * heads[0] * 3 - trunk[1], trunk[1] * heads[1] - 3 * trunk[0]], shared=[trunk])
    assert heads.grad.tolist() == [3.0, 1.0]  # of their own losses, as they are


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surgery": "hard"}, "zones"),
        ({"thresholds": [-0.5, 0.0]}, "three cosines"),
        ({"thresholds": "abc"}, "three cosines"),
        ({"thresholds": [-0.5, -0.8, 0.0]}, "must not decrease"),
        ({"thresholds": [-1.5, -0.8, 0.0]}, r"\[-1, 1\]"),
        ({"power": 0.0}, "power"),
        ({"stability": -0.1}, "stability"),
        ({"strength": float("nan")}, "strength"),
        ({"stability": 0.0, "strength": 0.0}, "one of them must be positive"),
        ({"window": -1}, "window"),
        ({"dominant": "draws"}, "loses"),
        ({"norm_beta": 1.0}, "norm_beta"),
        ({"momentum": 1.0}, "momentum"),
        ({"variant": "code"}, "released"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message) as found:
        BALANCERS.create("gcond", 2, **options)
    assert str(found.value).startswith("GCond: ")
