"""RotoGrad: its formula, what heads read, the state, and what it does to the angles between gradients."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from torch import nn

from counterpoint.balancers import Chain, RotoGrad, Uncertainty, Wrapped
from counterpoint.errors import NonFiniteError, OptionError, ShapeError, UnknownNameError

seeds = st.integers(0, 10_000)


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def show(balancer, *shape):
    """Let every head read features of this shape."""
    z = features(*shape)
    for task in range(balancer.num_tasks):
        balancer.transform(z, task)


def is_orthogonal(rotations, tolerance=1e-12):
    eye = torch.eye(rotations.shape[-1]).to(rotations)
    return float((rotations @ rotations.mT - eye).abs().max()) <= tolerance


# --- the formula ------------------------------------------------------------------------------------------------------


class Slow:
    """The method once more, in NumPy and by the letter: derivatives of the rotation loss by differences."""

    def __init__(self, count, size, rate, variant):
        self.skew, self.first, self.second = (np.zeros((count, size, size)) for _ in range(3))
        self.start, self.steps = np.zeros(count), np.zeros(count)
        self.initial = np.zeros(count)
        self.size, self.rate, self.variant = size, rate, variant

    def loss(self, rotation, rotated, reference):
        if self.variant == "paper":
            return -sum(float((rotation.T @ h) @ v) for h, v in zip(rotated, reference, strict=True))
        return np.mean([np.sum((rotation @ v - h) ** 2) for h, v in zip(rotated, reference, strict=True)])

    def step(self, samples, present):
        """Take the gradients (k, N, p); return the direction (N, p)."""
        lengths = np.sqrt((samples**2).sum(axis=(1, 2)))
        reference = (samples / lengths[:, None, None]).mean(axis=0)
        mean = np.sqrt((samples.mean(axis=0) ** 2).sum())
        if self.variant == "released":
            reference = reference * mean
        for rows, length, task in zip(samples, lengths, present, strict=True):
            self.steps[task] += 1
            if self.steps[task] in (1, 3):
                self.initial[task] = length
            rotation = expm(self.skew[task])
            rotated = rows @ rotation.T
            gradient = np.zeros_like(rotation)
            for i in range(self.size):
                for j in range(i):
                    d = np.zeros_like(rotation)
                    d[i, j], d[j, i] = 1e-6, -1e-6
                    up, down = expm(self.skew[task] + d), expm(self.skew[task] - d)
                    slope = self.loss(up, rotated, reference) - self.loss(down, rotated, reference)
                    gradient[i, j], gradient[j, i] = slope / 2e-6, -slope / 2e-6
            unit = length if self.variant == "paper" else 2 * length * mean / len(rows)
            self.start[task] = self.start[task] or unit
            gradient = gradient / self.start[task]
            self.first[task] = 0.9 * self.first[task] + 0.1 * gradient
            self.second[task] = 0.999 * self.second[task] + 0.001 * gradient**2
            t = self.steps[task]
            root = np.sqrt(self.second[task] / (1 - 0.999**t)) + 1e-8
            self.skew[task] = self.skew[task] - self.rate * self.first[task] / (1 - 0.9**t) / root
        share = lengths / self.initial[list(present)]
        common = (share / share.sum()) @ lengths
        return sum(common * rows / length for rows, length in zip(samples, lengths, strict=True))


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_tasks_absent_it_is_its_formula(variant, seed):
    generator = torch.Generator().manual_seed(seed)
    balancer, slow = RotoGrad(3, variant=variant, learning_rate=0.05, burn_in=3), Slow(3, 4, 0.05, variant)
    show(balancer, 5, 4)
    for present in ((0, 1, 2), (1, 2), (0, 1, 2), (0, 2), (0, 1, 2), (2, 1)):
        scale = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)[list(present), None, None]
        rows = torch.randn(len(present), 5, 4, generator=generator, dtype=torch.float64) * scale
        found = balancer.combine(rows.flatten(1), present=present)
        expected = slow.step(rows.numpy(), present)
        torch.testing.assert_close(found, torch.tensor(expected).flatten(), rtol=1e-9, atol=1e-9)
        expected = torch.tensor(np.stack([expm(skew) for skew in slow.skew]))
        torch.testing.assert_close(balancer.rotations, expected, rtol=0, atol=1e-6)  # differences, through Adam's root
    assert is_orthogonal(balancer.rotations)
    assert float((balancer.rotations - torch.eye(4)).abs().max()) > 0.05


@given(seeds, st.integers(1, 3))
def test_channels_of_images_are_rotated_at_every_position(seed, size):
    """(B, C, H, W) is (B * H * W, C), and the channels behind the first ``size`` are left alone."""
    rows = torch.randn(2, 2, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    images, flat = (RotoGrad(2, learning_rate=0.1, size=size) for _ in range(2))
    z = features(2, 3, 2, 2, seed=seed)
    show(images, 2, 3, 2, 2)
    show(flat, 8, 3)
    for step in range(3):
        images.combine((rows * (1 + step)).flatten(1))
        flat.combine((rows * (1 + step)).permute(0, 1, 3, 4, 2).flatten(1))
    torch.testing.assert_close(images.rotations, flat.rotations)
    found = images.transform(z, 1)
    expected = flat.transform(z.permute(0, 2, 3, 1).reshape(-1, 3), 1).view(2, 2, 2, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:, size:], z[:, size:])
    assert size == 1 or not torch.allclose(found[:, :size], z[:, :size])


def test_a_block_of_channels_is_rotated_by_its_own_gradients():
    """With zero gradients in the last channel it is the method on the first two."""
    rows = torch.randn(3, 2, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = torch.cat([rows, torch.zeros(3, 2, 5, 1).double()], dim=3)
    block, whole = RotoGrad(2, learning_rate=0.1, size=2), RotoGrad(2, learning_rate=0.1)
    show(block, 5, 3)
    show(whole, 5, 2)
    for now, more in zip(rows, padded, strict=True):
        whole.combine(now.flatten(1))
        block.combine(more.flatten(1))
    torch.testing.assert_close(block.rotations, whole.rotations)
    assert float((block.rotations - torch.eye(2)).abs().max()) > 0.1


def test_one_task_and_tasks_that_agree_are_not_rotated():
    rows = torch.randn(1, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for count in (1, 3):
        balancer = RotoGrad(count, learning_rate=0.1)
        show(balancer, 4, 5)
        for step in range(5):
            balancer.combine(rows.expand(count, -1) * torch.arange(1, count + 1)[:, None] * (step + 1))
        torch.testing.assert_close(balancer.rotations, torch.eye(5).double().expand(count, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("exponent", [-40, -15, 15, 30])
def test_rotations_do_not_see_the_unit_of_the_losses(exponent):
    rows = torch.randn(4, 2, 20, generator=torch.Generator().manual_seed(1))
    for variant in ("paper", "released"):
        plain, scaled = (RotoGrad(2, learning_rate=0.1, variant=variant) for _ in range(2))
        for balancer, factor in ((plain, 1.0), (scaled, 10.0**exponent)):
            show(balancer, 4, 5)
            for now in rows:
                balancer.combine(now * factor)
        # subnormal numbers of float32 have few digits
        tolerance = 1e-4 if exponent > -40 else 0.05
        torch.testing.assert_close(scaled.rotations, plain.rotations, rtol=0, atol=tolerance)
        assert is_orthogonal(scaled.rotations, 1e-5)


def test_modes():
    rows = torch.tensor([[3.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.1, 0.0]], dtype=torch.float64)
    both, rotate, scale = (RotoGrad(2, mode=mode) for mode in ("rotograd", "rotate_only", "scale_only"))
    show(both, 2, 2)
    show(rotate, 2, 2)
    found = {name: balancer.combine(rows) for name, balancer in (("both", both), ("rotate", rotate), ("scale", scale))}
    assert torch.equal(found["both"], found["scale"])
    torch.testing.assert_close(found["rotate"], rows.sum(dim=0))
    assert torch.equal(both.rotations, rotate.rotations)
    assert not scale.rotations.numel()
    z = features(2, 2)
    assert scale.transform(z, 0) is z


def test_initial_lengths_are_taken_twice_and_zero_gradients_move_nothing():
    balancer = RotoGrad(2, burn_in=3)
    show(balancer, 1, 2)
    rows = torch.eye(2, dtype=torch.float64)
    for step in range(1, 6):
        balancer.combine(rows * step)
        assert balancer.initial_lengths.tolist() == [1.0 if step < 3 else 3.0] * 2
    before = {name: value.clone() for name, value in balancer.state_dict().items() if isinstance(value, torch.Tensor)}
    direction, weights = balancer.aggregate(torch.zeros_like(rows), None, (0, 1))
    assert direction.tolist() == [0.0, 0.0]
    assert weights.tolist() == [0.5, 0.5]
    balancer.aggregate(torch.zeros_like(rows[:1]), None, (0,))
    assert all(torch.equal(value, before[name]) for name, value in balancer.named_buffers())
    _, weights = balancer.aggregate(rows * torch.tensor([[0.0], [2.0]]), None, (0, 1))
    assert weights.tolist() == [0.0, 1.0]
    assert torch.equal(balancer.rotations[0], before["rotations"][0])


# --- angles -----------------------------------------------------------------------------------------------------------


def test_rotated_copies_of_one_task_come_to_agree():
    """L_k = |M_k z - y|^2 with M_k a rotation by 0 and by 2 radians: with R_k = M_k^-1 the gradients would be equal."""
    torch.manual_seed(0)
    c, s = np.cos(2.0), np.sin(2.0)
    turns = [torch.eye(2).double(), torch.tensor([[c, s], [-s, c]])]
    z, y = torch.randn(8, 2).double(), torch.randn(8, 2).double()
    balancer = RotoGrad(2, learning_rate=0.02)
    cosines = []
    for _ in range(120):
        leaf = z.clone().requires_grad_()
        losses = [(balancer.transform(leaf, k) @ turn.T - y).square().sum() for k, turn in enumerate(turns)]
        rows = [torch.autograd.grad(loss, leaf, retain_graph=True)[0].flatten() for loss in losses]
        cosines.append(float(torch.cosine_similarity(*rows, dim=0)))
        leaf = z.clone().requires_grad_()
        cut = leaf * 1.0
        losses = [(balancer.transform(cut, k) @ turn.T - y).square().sum() for k, turn in enumerate(turns)]
        balancer.backward(losses, features=cut, level="features")
    assert cosines[0] < 0.5
    assert cosines[-1] > 0.99
    assert is_orthogonal(balancer.rotations)


# --- a step -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads = nn.Linear(3, 4), nn.ModuleList([nn.Linear(4, 2) for _ in range(2)])
        self.double()

    def forward(self, balancer, seed=0):
        h = torch.tanh(self.trunk(features(6, 3, seed=seed)))
        return h, [(head(balancer.transform(h, k)) - k).square().mean() for k, head in enumerate(self.heads)]


def step(net, balancer, seed=0, change=lambda losses: losses, **options):
    net.zero_grad()
    h, losses = net(balancer, seed)
    return balancer.backward(change(losses), features=h, level="features", **options)


def test_gradients_of_a_step():
    """The trunk gets the weighted sum through its rotated features, each head its own gradient."""
    net, balancer = Net(), RotoGrad(2, learning_rate=0.3)
    for seed in range(3):
        step(net, balancer, seed)
    h, losses = net(balancer, 3)
    rows = [torch.autograd.grad(loss, h, retain_graph=True)[0] for loss in losses]
    pairs = zip(losses, net.heads, strict=True)
    own = [torch.autograd.grad(loss, head.weight, retain_graph=True)[0] for loss, head in pairs]
    report = step(net, balancer, 3)
    combined = sum(weight * row for weight, row in zip(report.weights, rows, strict=True))
    expected = torch.autograd.grad(h, net.trunk.weight, combined)[0]
    torch.testing.assert_close(net.trunk.weight.grad, expected)
    torch.testing.assert_close([head.weight.grad for head in net.heads], own)
    lengths = torch.stack([row.norm() * weight for weight, row in zip(report.weights, rows, strict=True)])
    torch.testing.assert_close(lengths[0], lengths[1])


def test_a_refused_or_skipped_step_puts_everything_back():
    net, balancer = Net(), RotoGrad(2)
    for first in (True, False):  # before the first step the large states are empty
        before = copy.deepcopy(balancer.state_dict())

        def same(before=before):
            now = balancer.state_dict()
            return all(torch.equal(now[name], value) for name, value in before.items() if torch.is_tensor(value))

        def spoil(losses):
            return [losses[0], losses[1] * 1e200 * 1e200]

        with pytest.raises(NonFiniteError):
            step(net, balancer, change=spoil)
        assert same()

        def bad(losses):
            return [losses[0], losses[1] + (net.trunk.weight * 0).sum().sqrt()]

        report = step(net, balancer, change=bad, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
        assert report.skipped
        assert same()
        step(net, balancer)
        assert first is False or not same()


def test_copies_and_state_dicts():
    net, balancer = Net(), RotoGrad(2)
    for seed in range(3):
        step(net, balancer, seed)
    copied, loaded = copy.deepcopy(balancer), RotoGrad(2)
    loaded.load_state_dict(balancer.state_dict())
    z = features(6, 4)
    results = []
    for other in (balancer, copied, loaded):
        step(net, other, 5)
        results.append((other.transform(z, 1), net.trunk.weight.grad.clone()))
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))
    balancer.reset()
    assert balancer.transform(z, 1) is z


def test_what_is_read_in_evaluation_is_not_what_a_step_is_of():
    net, balancer, other = Net(), RotoGrad(2), RotoGrad(2)
    rows = torch.randn(2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for each in (balancer, other):
        show(each, 6, 4)
    with torch.no_grad():
        show(balancer, 2, 3)
    balancer.eval()
    show(balancer, 2, 3)
    balancer.train()
    balancer.combine(rows)
    other.combine(rows)
    assert torch.equal(balancer.rotations, other.rotations)
    with torch.no_grad():  # and the rotation is there in evaluation
        z = features(2, 4)
        torch.testing.assert_close(balancer.transform(z, 0), z @ balancer.rotations[0].T)
    step(net, balancer)


def test_what_it_refuses():
    net, balancer = Net(), RotoGrad(2)
    h, losses = net(balancer)
    with pytest.raises(OptionError, match=r"call backward\(features=z, level='features'\)"):
        balancer.backward(losses)
    h, losses = net(RotoGrad(2))
    with pytest.raises(ShapeError, match="the one tensor that every head reads"):
        RotoGrad(2).backward(losses, features=h, level="features")
    with pytest.raises(OptionError, match="call it for the head of every task"):
        RotoGrad(2).combine(torch.ones(2, 4))
    with pytest.raises(ShapeError, match="p at least 5"):
        RotoGrad(2, size=5).transform(h, 0)
    with pytest.raises(ShapeError, match="features must be"):
        RotoGrad(2).transform(h[None], 0)
    with pytest.raises(OptionError, match="build the balancer with tasks="):
        RotoGrad(2).transform(h, "a")
    with pytest.raises(UnknownNameError, match="no task of RotoGrad is called 'bb'"):
        RotoGrad(tasks=["a", "b"]).transform(h, "bb")
    with pytest.raises(ShapeError, match="below 2"):
        RotoGrad(2).transform(h, 2)
    step(net, balancer)
    with pytest.raises(OptionError, match="rotations are of 4 channels, the features have 3"):
        balancer.transform(features(2, 3), 0)


@pytest.mark.parametrize("level", ["parameters", "features"])
@pytest.mark.parametrize("build", [lambda r: Chain(Uncertainty(2), r), lambda r: Wrapped(r, rescale="unit")])
def test_inside_others(build, level):
    net, inner = Net(), RotoGrad(2)
    outer = build(inner)
    if level == "parameters":
        h, losses = net(outer)
        with pytest.raises(OptionError, match="level='features'"):
            outer.backward(losses, features=h, level=level)
        return
    step(net, outer)
    assert is_orthogonal(inner.rotations)
    assert not torch.equal(outer.transform(features(2, 4), 0), features(2, 4))
