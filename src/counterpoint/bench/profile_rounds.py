"""Rounds of steps in which baselines and balancers take turns."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from counterpoint import gradients
from counterpoint._checks import check_choice, check_integer
from counterpoint.balancers import Balancer
from counterpoint.balancers._losses import Losses, Step, read_losses
from counterpoint.balancers._needs import NEEDS
from counterpoint.bench.compare import method_name, parse_method
from counterpoint.bench.method import build_balancer
from counterpoint.bench.profile_result import Cost, Profile, Range
from counterpoint.bench.run_config import BalancerConfig
from counterpoint.errors import GraphError, OptionError
from counterpoint.training.memory import step_peak_mb

OWNER = "profile_balancers"
LEVELS = ("both", "parameters", "features")
_MODES = {"both": ["features=", "level=features"], "parameters": ["features="], "features": ["level=features"]}
_SERVED = frozenset({"epochs", "metrics", "losses_after_step"})  # of what a method can ask of the loop
_FREE = frozenset({"epochs", "metrics"})  # asked too rarely for the cost of a step
_WARMUP = 2  # rounds that are not counted
_SEED = 0

Forward = Callable[[], tuple[Losses, tuple[Tensor, ...]]]  # losses, and the tensors where the heads begin
Backward = Callable[[Step, tuple[Tensor, ...]], int]  # writes .grad and returns the number of backward passes


@dataclasses.dataclass
class _Variant:
    """A balancer in one mode, or a baseline.

    Attributes:
        method: Its name.
        mode: How it is called.
        reads: What it reads, ``""`` for a baseline.
        make: Makes it ready for its first step.
    """

    method: str
    mode: str
    reads: str
    make: Callable[[], Backward]
    backward: Backward | None = None
    peak_memory_mb: float = 0.0
    update: Tensor | None = None
    forward_s: list[float] = dataclasses.field(default_factory=list)
    backward_s: list[float] = dataclasses.field(default_factory=list)
    passes: list[int] = dataclasses.field(default_factory=list)

    def steps_s(self) -> list[float]:
        """Return the seconds of each step."""
        return [sum(pair) for pair in zip(self.forward_s, self.backward_s, strict=True)]


class _Bench:
    """The model and its batch: forward passes, and the leaves that get gradients."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        losses, self.features = forward()
        self.names: tuple[str, ...] = tuple(losses if isinstance(losses, Mapping) else map(str, range(len(losses))))
        step = self._read(losses)
        if len(step.present) < 2:
            named = [step.names[position] for position in step.present]
            raise OptionError(
                f"{OWNER}: needs the losses of at least two tasks in the batch, got {len(named)}: {named}; with one "
                "task there is nothing to balance"
            )
        self.present = len(step.present)
        self.device = step.values.device
        self.scope = gradients.find_scope(step.losses, features=self.features)
        self.leaves = [*self.scope.shared, *(leaf for own in self.scope.private for leaf in own)]
        if not self.scope.shared:
            raise GraphError(f"{OWNER}: no parameter is reached by two tasks, so there is nothing to balance")

    def _read(self, losses: Losses) -> Step:
        return read_losses(OWNER, len(self.names), self.names, losses)

    def losses(self) -> Losses:
        """Return the losses of a new forward pass as they are."""
        return self._forward()[0]

    def forward(self) -> tuple[Step, tuple[Tensor, ...]]:
        """Return checked losses and features of a new forward pass."""
        losses, features = self._forward()
        return self._read(losses), features

    def clear(self) -> None:
        """Drop all gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def update(self) -> Tensor:
        """Return the gradients of the shared leaves as one vector."""
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.scope.shared]
        return torch.cat([part.to_dense().detach().flatten().to("cpu", torch.float64) for part in parts])

    @contextmanager
    def gradients_kept(self) -> Iterator[None]:
        """Put back what was in ``.grad``."""
        before = [leaf.grad for leaf in self.leaves]
        try:
            yield
        finally:
            for leaf, gradient in zip(self.leaves, before, strict=True):
                leaf.grad = gradient


def run_profile(
    forward: Forward,
    methods: Sequence[str],
    level: str,
    rounds: int,
    on_round: Callable[[int, int], None] | None,
    remark: str,
) -> Profile:
    """Measure; see :func:`~counterpoint.bench.profile.profile_balancers`.

    Args:
        forward: Does a forward pass; returns the losses and the features.
        methods: Names of balancers, with their options.
        level: Which modes to measure.
        rounds: Rounds that are counted.
        on_round: Called with the number of rounds done and of all rounds.
        remark: What a reader has to know beside, if anything.

    Raises:
        OptionError: If an argument is wrong.
    """
    check_choice(f"{OWNER}: level", level, LEVELS)
    check_integer(f"{OWNER}: rounds", rounds, low=1)
    if isinstance(methods, str) or not methods:
        raise OptionError(f"{OWNER}: balancers must be a list of at least one name, got {methods!r}")
    parsed = {method_name(method): method for method in map(parse_method, methods)}
    bench = _Bench(forward)
    variants = [_Variant("summed", "default", "", lambda: _summed), _Variant("seqK", "default", "", _sequential(bench))]
    notes = [remark] if remark else []
    for name, method in parsed.items():
        probe = build_balancer(method, bench.names)
        if refusal := _refusal(probe):
            notes.append(f"{name}: not measured, as {refusal}")
            continue
        notes += _asks(name, probe)
        modes = ["default", *_MODES[level]] if bench.features and probe.reads != "losses" else ["default"]
        variants += [_Variant(name, mode, probe.reads, _balanced(bench, method, mode)) for mode in modes]
    with bench.gradients_kept():
        variants, refused = _first_steps(bench, variants)
        _time(bench, variants, rounds, on_round)
    return Profile(
        costs=tuple(_costs(variants)),
        notes=(*notes, *refused),
        num_tasks=bench.present,
        num_shared=sum(leaf.numel() for leaf in bench.scope.shared),
        rounds=rounds,
        device=str(bench.device),
        threads=torch.get_num_threads(),
    )


def _refusal(balancer: Balancer) -> str:
    """Say why a step of a method cannot be made of one batch's scalar losses, or nothing."""
    if balancer.loss_form != "task":
        return "it reads other losses than one scalar a task"
    asked = sorted(balancer.needs - _SERVED)
    return f"it asks for {'; '.join(NEEDS[need] for need in asked)}" if asked else ""


def _asks(name: str, balancer: Balancer) -> Iterator[str]:
    """Say what of a method's cost is counted beside its backward passes, and what is not."""
    free = sorted(balancer.needs & _FREE)
    if free:
        yield f"{name} asks more of the loop ({'; '.join(NEEDS[need] for need in free)}), which is not counted"
    if balancer.num_batches > 1:
        yield f"{name} reads {balancer.num_batches} batches a step; the forward passes of the others count as backward"
    if "losses_after_step" in balancer.needs:
        yield f"{name} needs the losses once more after each step; that forward pass counts as backward"


def _balanced(bench: "_Bench", method: BalancerConfig, mode: str) -> Callable[[], Backward]:
    """Return what builds the balancer and its step."""

    def make() -> Backward:
        balancer = build_balancer(method, bench.names).to(bench.device)
        how: dict[str, Any] = {"level": "features"} if mode == "level=features" else {}
        if balancer.keeps_columns:
            how["shared"] = bench.scope.shared

        def backward(step: Step, features: tuple[Tensor, ...]) -> int:
            cut = {} if mode == "default" else {"features": features}
            others = [_by_task(bench.forward()[0]) for _ in range(balancer.num_batches - 1)]
            report = balancer.backward(_by_task(step), more=others, **cut, **how)
            if "losses_after_step" in balancer.needs:
                with torch.no_grad():
                    balancer.after_step(bench.losses())
            return report.num_backward

        return backward

    return make


def _by_task(step: Step) -> dict[str, Tensor]:
    return dict(zip(step.names_of(range(len(step.losses))), step.losses, strict=True))


def _summed(step: Step, features: tuple[Tensor, ...]) -> int:  # noqa: ARG001
    """Do what a plain loop does."""
    torch.stack([loss.to(step.values) for loss in step.losses]).sum().backward()
    return 1


def _sequential(bench: _Bench) -> Callable[[], Backward]:
    """Return what makes the buffer of K gradients and fills it by one backward pass a task."""

    def make() -> Backward:
        shared, private = bench.scope.shared, bench.scope.private
        buffers = [leaf.new_empty(bench.present, *leaf.shape) for leaf in shared]

        def backward(step: Step, features: tuple[Tensor, ...]) -> int:  # noqa: ARG001
            for task, (loss, own) in enumerate(zip(step.losses, private, strict=True)):
                for leaf, buffer in zip(shared, buffers, strict=True):
                    leaf.grad = buffer[task].zero_()
                last = task == len(private) - 1
                torch.autograd.backward([loss], inputs=[*shared, *own], retain_graph=not last)
            return len(private)

        return backward

    return make


def _first_steps(bench: _Bench, variants: Sequence[_Variant]) -> tuple[list[_Variant], list[str]]:
    """Do the first step of each variant with one and the same randomness: its memory and its update.

    Returns:
        The variants that can be called, and a note for each one that the model does not allow.
    """
    found, notes = [], []
    for variant in variants:
        bench.clear()
        devices = [bench.device] if bench.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_SEED)
            try:
                variant.peak_memory_mb = step_peak_mb(lambda v=variant: _first_step(bench, v), bench.device)
            except (GraphError, OptionError) as error:
                if variant.mode == "default":
                    raise
                notes.append(f"{variant.method}, {variant.mode}: not possible here ({error})")
                continue
        if variant.reads:
            variant.update = bench.update()
        found.append(variant)
    return found, notes


def _first_step(bench: _Bench, variant: _Variant) -> None:
    variant.backward = variant.make()  # what it keeps from step to step is made in its first step, and counts
    variant.backward(*bench.forward())


def _time(
    bench: _Bench, variants: Sequence[_Variant], rounds: int, on_round: Callable[[int, int], None] | None
) -> None:
    """Let all variants take turns; each begins a round equally often, as far as the rounds go."""
    for number in range(-_WARMUP, rounds):
        start = number % len(variants)
        for variant in [*variants[start:], *variants[:start]]:
            assert variant.backward is not None
            bench.clear()
            bench.wait()
            begin = time.perf_counter()
            step, features = bench.forward()
            bench.wait()
            middle = time.perf_counter()
            passes = variant.backward(step, features)
            bench.wait()
            end = time.perf_counter()
            if number >= 0:
                variant.forward_s.append(middle - begin)
                variant.backward_s.append(end - middle)
                variant.passes.append(passes)
        if on_round is not None:
            on_round(number + _WARMUP + 1, rounds + _WARMUP)


def _costs(variants: Sequence[_Variant]) -> Iterator[Cost]:
    """Turn measured times into ratios to the summed backward pass of the same round."""
    summed = variants[0]
    plain = summed.steps_s()
    defaults = {variant.method: variant for variant in variants if variant.mode == "default"}
    for variant in variants:
        steps, default = variant.steps_s(), defaults[variant.method]
        yield Cost(
            method=variant.method,
            mode=variant.mode,
            reads=variant.reads,
            num_backward=sum(variant.passes) / len(variant.passes),
            step_ms=Range.of([1000 * step for step in steps]),
            step_ratio=Range.of([step / base for step, base in zip(steps, plain, strict=True)]),
            backward_ratio=Range.of([b / base for b, base in zip(variant.backward_s, summed.backward_s, strict=True)]),
            default_ratio=Range.of([step / base for step, base in zip(steps, default.steps_s(), strict=True)]),
            peak_memory_mb=variant.peak_memory_mb,
            cosine=None if variant.update is None else _cosine(variant.update, default.update),
        )


def _cosine(update: Tensor, reference: Tensor | None) -> float | None:
    """Return the cosine between two updates, ``None`` if one is zero."""
    if reference is None or not (length := float(update.norm() * reference.norm())):
        return None
    return float(update @ reference) / length
