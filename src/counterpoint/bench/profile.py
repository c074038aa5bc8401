"""What a step costs with each balancer, for one model and one batch, beside plain backward passes."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint import balancers, gradients
from counterpoint._checks import check_choice, check_integer
from counterpoint.balancers._losses import Losses, Step, read_losses
from counterpoint.balancers._needs import NEEDS
from counterpoint.bench.build import build, check_run
from counterpoint.bench.compare import method_name, parse_method
from counterpoint.bench.profile_result import Cost, Profile, Range
from counterpoint.bench.run_config import RunConfig
from counterpoint.errors import GraphError, OptionError
from counterpoint.training.memory import step_peak_mb
from counterpoint.training.step import forward as forward_step

DEFAULT = ("uncertainty", "mgda", "pcgrad", "cagrad", "graddrop")  # each kind, and Gram methods with different solvers
LEVELS = ("both", "parameters", "features")
ROUNDS = 15
_WARMUP = 2  # rounds that are not counted
_OWNER = "profile_balancers"
_SEED = 0

Forward = Callable[[], tuple[Losses, tuple[Tensor, ...]]]  # losses, and the tensors where the heads begin
Backward = Callable[[Step, tuple[Tensor, ...]], int]  # writes .grad and returns the number of backward passes


def profile_balancers(
    compute_losses: Callable[[], Losses],
    *,
    features: nn.Module | None = None,
    balancers: Sequence[str] = DEFAULT,
    level: str = "both",
    rounds: int = ROUNDS,
    on_round: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measure what a step of your own model costs with each balancer.

    All variants take turns in each round, each with a forward pass of its own, so that a busy moment of the machine
    falls on all; what counts are ratios within rounds. No optimizer takes a step. Parameters and what was in their
    ``.grad`` are left as they were; what a forward pass in training mode moves, such as statistics of batch
    normalization, moves.

    Args:
        compute_losses: Does the forward pass of one batch and returns the losses, as ``balancer.backward`` takes them.
        features: The module whose output the heads read, for the modes that need it; ``None`` leaves them out.
        balancers: Names, with options as in ``"cagrad(c=0.2)"``.
        level: ``"parameters"`` for the gradients of the parameters (with and without ``features=``), ``"features"``
            for ``level="features"``, ``"both"`` for what is possible of them.
        rounds: Rounds that are counted; from 5 on they support advice.
        on_round: Called with the number of rounds done and of all rounds.

    Returns:
        The costs; printing it shows a table and says which mode to take.

    Raises:
        OptionError: If a balancer does not exist, there are fewer than two tasks, or a mode is asked for that the
            model does not allow.
        GraphError: If a loss has no graph, or ``features`` was not called.

    Example:
        >>> trunk, heads = nn.Linear(4, 8), [nn.Linear(8, 1), nn.Linear(8, 1)]
        >>> x = torch.randn(16, 4)
        >>> profile = profile_balancers(
        ...     lambda: [head(trunk(x).relu()).square().mean() for head in heads],
        ...     balancers=["mgda"],
        ...     rounds=1,
        ... )
        >>> [(cost.method, cost.mode, cost.num_backward) for cost in profile.costs]
        [('summed', 'default', 1.0), ('seqK', 'default', 2.0), ('mgda', 'default', 2.0)]
    """
    seen: list[Tensor] = []

    def forward() -> tuple[Losses, tuple[Tensor, ...]]:
        seen.clear()
        losses = compute_losses()
        if features is not None and not seen:
            raise GraphError(
                f"{_OWNER}: features = {type(features).__name__} gave no tensor with a graph while compute_losses ran; "
                "pass the module whose output the heads read"
            )
        return losses, tuple(seen)

    if features is None and level == "features":
        raise OptionError(f"{_OWNER}: level='features' needs features=, the module whose output the heads read")
    remark = "without features= only the default mode was measured; pass the module whose output the heads read"
    with _watch(features, seen):
        return _profile(forward, balancers, level, rounds, on_round, "" if features is not None else remark)


def profile_recipe(
    config: RunConfig,
    *,
    balancers: Sequence[str] = DEFAULT,
    level: str = "both",
    rounds: int = ROUNDS,
    on_round: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measure what a step of a run costs with each balancer, on a batch from the beginning of its training split.

    Args:
        config: The run; its balancer is replaced by each of ``balancers``.
        balancers: As in :func:`profile_balancers`.
        level: The same.
        rounds: The same.
        on_round: The same.

    Raises:
        OptionError: As :func:`profile_balancers` does.
    """
    for text in balancers:
        parse_method(text)
    check_run(config)
    built = build(config)
    split = built.data.split("train")
    loader = torch.utils.data.DataLoader(split, config.training.batch_size, collate_fn=getattr(split, "collate", None))
    batch = built.fabric.to_device(next(iter(loader)))
    model, _ = built.fabric.setup(built.model, built.optimizer)
    model.train()

    def forward() -> tuple[Losses, tuple[Tensor, ...]]:
        losses, output = forward_step(model, built.tasks, batch)
        return losses, tuple(output.features)

    network = config.model.name
    if not forward()[1]:
        if level == "features":
            raise OptionError(
                f"counterpoint profile: the network {network!r} returns no features (MTLOutput.features is empty), so "
                "there is no level='features'; set them in its forward, or take --level parameters"
            )
        remark = f"the network {network!r} returns no features, so only the default mode was measured"
    else:
        remark = ""
    return _profile(forward, balancers, level, rounds, on_round, remark)


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


class _Bench:
    """The model and its batch: forward passes, and the leaves that get gradients."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        losses, self.features = forward()
        self.names = tuple(losses) if isinstance(losses, Mapping) else None
        self.num_tasks = len(losses)
        step = self._read(losses)
        if len(step.present) < 2:
            named = [step.names[position] for position in step.present]
            raise OptionError(
                f"{_OWNER}: needs the losses of at least two tasks in the batch, got {len(named)}: {named}; with one "
                "task there is nothing to balance"
            )
        self.present = len(step.present)
        self.device = step.values.device
        self.scope = gradients.find_scope(step.losses, features=self.features)
        self.leaves = [*self.scope.shared, *(leaf for own in self.scope.private for leaf in own)]
        if not self.scope.shared:
            raise GraphError(f"{_OWNER}: no parameter is reached by two tasks, so there is nothing to balance")

    def _read(self, losses: Losses) -> Step:
        return read_losses(_OWNER, self.num_tasks, self.names, losses)

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


def _profile(
    forward: Forward,
    methods: Sequence[str],
    level: str,
    rounds: int,
    on_round: Callable[[int, int], None] | None,
    remark: str,
) -> Profile:
    check_choice(f"{_OWNER}: level", level, LEVELS)
    check_integer(f"{_OWNER}: rounds", rounds, low=1)
    if isinstance(methods, str) or not methods:
        raise OptionError(f"{_OWNER}: balancers must be a list of at least one name, got {methods!r}")
    parsed = {method_name(method): method for method in map(parse_method, methods)}
    bench = _Bench(forward)
    variants = [_Variant("summed", "default", "", lambda: _summed), _Variant("seqK", "default", "", _sequential(bench))]
    notes = [remark] if remark else []
    for name, method in parsed.items():
        cls = balancers.BALANCERS.get(method.name)
        if cls.needs:
            asks = "; ".join(NEEDS[need] for need in sorted(cls.needs))
            notes.append(f"{name} asks more of the loop ({asks}); that is not in its cost")
        makers = {
            mode: _balanced(bench, method.name, method.options, mode)
            for mode in _modes(cls.reads, level, has_features=bool(bench.features))
        }
        variants += [_Variant(name, mode, cls.reads, make) for mode, make in makers.items()]
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


def _modes(reads: str, level: str, *, has_features: bool) -> list[str]:
    """Return how a method can be called; one that reads losses only has one way."""
    if reads == "losses" or not has_features:
        return ["default"]
    wanted = {"both": ["features=", "level=features"], "parameters": ["features="], "features": ["level=features"]}
    return ["default", *wanted[level]]


def _balanced(bench: _Bench, name: str, options: Mapping[str, Any], mode: str) -> Callable[[], Backward]:
    """Return what builds the balancer and its call."""

    def make() -> Backward:
        who = {"tasks": list(bench.names)} if bench.names else {"num_tasks": bench.num_tasks}
        balancer = balancers.create(name, **who, **options).to(bench.device)

        def backward(step: Step, features: tuple[Tensor, ...]) -> int:
            losses: list[Tensor | None] = [None] * len(step.names)
            for position, loss in zip(step.present, step.losses, strict=True):
                losses[position] = loss
            given = losses if not bench.names else dict(zip(bench.names, losses, strict=True))
            how: dict[str, Any] = {} if mode == "default" else {"features": features}
            if mode == "level=features":
                how["level"] = "features"
            return balancer.backward(given, **how).num_backward

        return backward

    return make


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
            except GraphError as error:
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
    references = {v.method: v.update for v in variants if v.mode == "default"}
    for variant in variants:
        steps = [f + b for f, b in zip(variant.forward_s, variant.backward_s, strict=True)]
        plain = [f + b for f, b in zip(summed.forward_s, summed.backward_s, strict=True)]
        yield Cost(
            method=variant.method,
            mode=variant.mode,
            reads=variant.reads,
            num_backward=sum(variant.passes) / len(variant.passes),
            step_ms=Range.of([1000 * step for step in steps]),
            step_ratio=Range.of([step / base for step, base in zip(steps, plain, strict=True)]),
            backward_ratio=Range.of([b / base for b, base in zip(variant.backward_s, summed.backward_s, strict=True)]),
            peak_memory_mb=variant.peak_memory_mb,
            cosine=None if variant.update is None else _cosine(variant.update, references[variant.method]),
        )


def _cosine(update: Tensor, reference: Tensor | None) -> float | None:
    """Return the cosine between two updates, ``None`` if one is zero."""
    if reference is None or not (length := float(update.norm() * reference.norm())):
        return None
    return float(update @ reference) / length


@contextmanager
def _watch(module: nn.Module | None, seen: list[Tensor]) -> Iterator[None]:
    """Collect the tensors with a graph that a module returns."""
    if module is None:
        yield
        return
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.extend(_with_graph(output)))
    try:
        yield
    finally:
        hook.remove()


def _with_graph(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.grad_fn is not None:
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _with_graph(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _with_graph(value)
