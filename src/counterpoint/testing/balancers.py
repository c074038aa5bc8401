"""The contract of a balancer as a battery of checks."""

import copy
import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from counterpoint import balancers
from counterpoint.balancers import Balancer, LookAhead
from counterpoint.linalg import gram

Factory = Callable[[int], Balancer]
_COLUMNS = 11  # more than the tasks, so that no state of a row per task looks like one of a column per task


def check_balancer(factory: Factory, *, num_tasks: Iterable[int] = range(1, 9)) -> None:
    """Check that what a factory builds keeps the contract of a balancer.

    For each number of tasks: the shape and dtype of the result for float32, float64 and bfloat16; finite results for
    zero, equal, opposed, huge and tiny gradients; arguments left as they are; the same next result after ``state_dict``
    is loaded into a new object (saved to a file and read again), after ``copy.deepcopy``, and, from the start, after
    ``reset``; ``repr`` builds the object again; a task that is absent does not move its part of the state; ``backward``
    writes the gradient that the pure call gives.

    Args:
        factory: Called with the number of tasks; returns a new balancer with the same options each time.
        num_tasks: Numbers of tasks to try.

    Raises:
        AssertionError: If something is not as it must be; the message says what and for how many tasks.

    Example:
        >>> import counterpoint as cp
        >>> check_balancer(lambda num_tasks: cp.balancers.PCGrad(num_tasks), num_tasks=[2])
    """
    for count in num_tasks:
        for check in (_results, _degenerate, _unmutated, _state, _rebuilt, _absent, _backward):
            try:
                check(factory, count)
            except AssertionError as error:
                raise AssertionError(f"{type(factory(count)).__name__}, {count} tasks: {error}") from error


def call(balancer: Balancer, jacobian: Tensor, losses: Tensor, present: tuple[int, ...] | None = None) -> Tensor:
    """Run one pure step of a balancer of any kind: task weights, or for a ``JacobianBalancer`` the direction."""
    if balancer.reads == "jacobian":
        if "transform" in balancer.needs:
            _read_features(balancer, torch.zeros(1, jacobian.shape[1], dtype=jacobian.dtype, requires_grad=True))
        return balancer.combine(jacobian, losses, present=present)  # type: ignore[attr-defined]
    if balancer.loss_form != "task":
        return _call_by_form(balancer, losses, present)
    argument = gram(jacobian).to(jacobian.dtype) if jacobian.dtype == torch.float64 else gram(jacobian)
    return balancer.weights(argument, losses, present=present)  # type: ignore[attr-defined]


def _read_features(balancer: Balancer, features: Tensor) -> list[Tensor]:
    """Return what the head of each task reads."""
    return [balancer.transform(features, task) for task in range(balancer.num_tasks)]


def in_form(balancer: Balancer, losses: Iterable[Tensor]) -> list[Tensor]:
    """Return losses of five instances for each task, or of each prediction against the labels of all tasks."""
    size = 5 if balancer.loss_form == "instance" else balancer.num_tasks
    return [loss * torch.linspace(0.2, 1.8, size).to(loss) for loss in losses]


def _call_by_form(balancer: Balancer, losses: Tensor, present: tuple[int, ...] | None) -> Tensor:
    """Return the factor of each task's loss in the objective, through losses of another form."""
    leaf = losses.detach().clone().requires_grad_()
    given: list[Tensor | None] = [None] * balancer.num_tasks
    positions = range(balancer.num_tasks) if present is None else present
    for task, loss in zip(positions, in_form(balancer, leaf), strict=True):
        given[task] = loss
    scalars = [scalar for scalar in balancer.scalars(given) if isinstance(scalar, Tensor)]
    weights = balancer.weights(None, torch.stack(scalars).detach(), present=present)  # type: ignore[attr-defined]
    return torch.autograd.grad(torch.stack(scalars) @ weights, leaf)[0]


def _serve(balancer: Balancer, jacobian: Tensor, losses: Tensor, present: tuple[int, ...] | None = None) -> None:
    """Do after a step what a training loop would: give the losses again, look ahead of the next step, end the epoch."""
    positions = range(len(losses)) if present is None else present

    def spread(values: Tensor) -> list[Tensor | None]:
        by_task = dict(zip(positions, values, strict=True))
        return [by_task.get(task) for task in range(balancer.num_tasks)]

    balancer.after_step(spread(losses * torch.linspace(0.5, 1.1, len(losses)).to(losses)))
    x = torch.zeros(jacobian.shape[1], dtype=jacobian.dtype, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def ahead() -> list[Tensor | None]:
        return spread(jacobian @ x + x.square().sum() + losses)

    balancer.look_ahead(LookAhead(ahead, ahead, [x], optimizer))
    balancer.end_epoch()


def _problem(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(count, _COLUMNS, generator=generator, dtype=torch.float64)
    scales = torch.exp(torch.randn(count, 1, generator=generator, dtype=torch.float64))
    losses = 0.1 + torch.rand(count, generator=generator, dtype=torch.float64)
    return (jacobian * scales).to(dtype), losses.to(dtype)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _same(first: Tensor, second: Tensor, message: str) -> None:
    _expect(torch.equal(first, second), f"{message}: {first.tolist()} and {second.tolist()}")


def _paired(factory: Factory, count: int) -> tuple[Balancer, Balancer]:
    """Build two equal objects."""
    first, second = factory(count), factory(count)
    _same_randomness(first, second)
    return first, second


def _same_randomness(first: Balancer, second: Balancer) -> None:
    """Let the second draw what the first will draw, and the balancers that they hold as well."""
    for one, other in zip(first.modules(), second.modules(), strict=True):
        if isinstance(one, Balancer) and isinstance(other, Balancer) and one.generator is not None:
            assert other.generator is not None
            other.generator.set_state(one.generator.get_state())


def _results(factory: Factory, count: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        balancer = factory(count)
        jacobian, losses = _problem(count, dtype)
        if balancer.reads == "jacobian":
            found, shape = call(balancer, jacobian, losses), (_COLUMNS,)
        else:
            argument = (jacobian.double() @ jacobian.double().T).to(dtype)
            found, shape = balancer.weights(argument, losses), (count,)  # type: ignore[attr-defined]
        _expect(tuple(found.shape) == shape, f"result must have shape {shape}, got {tuple(found.shape)}")
        _expect(found.dtype == dtype, f"result must have dtype {dtype}, got {found.dtype}")
        _expect(bool(torch.isfinite(found).all()), f"result must be finite, got {found.tolist()}")


def _degenerate(factory: Factory, count: int) -> None:
    jacobian, losses = _problem(count)
    one_zero, opposed = jacobian.clone(), jacobian.clone()
    one_zero[0] = 0
    opposed[-1] = -2 * opposed[0]
    mixed = jacobian * torch.logspace(-12, 12, count, dtype=torch.float64)[:, None]
    inputs = {
        "all zero": torch.zeros_like(jacobian),
        "one zero": one_zero,
        "equal": jacobian[:1].expand(count, -1).clone(),
        "opposed": opposed,
        "huge": jacobian * 1e15,
        "tiny": jacobian * 1e-15,
        "from 1e-12 to 1e12": mixed,
    }
    for name, rows in inputs.items():
        balancer = factory(count)
        for step in range(3):
            found = call(balancer, rows, losses)
            _expect(bool(torch.isfinite(found).all()), f"{name} gradients, step {step}: got {found.tolist()}")
            if name == "all zero" and balancer.reads == "jacobian":
                _expect(not bool(found.any()), f"zero gradients must give a zero direction, got {found.tolist()}")


def _unmutated(factory: Factory, count: int) -> None:
    jacobian, losses = _problem(count)
    before = jacobian.clone(), losses.clone()
    balancer = factory(count)
    if balancer.reads == "gram":
        products = gram(jacobian)
        kept = products.clone()
        balancer.weights(products, losses)  # type: ignore[attr-defined]
        _same(products, kept, "the Gram matrix was changed in place")
    call(balancer, jacobian, losses)
    _same(jacobian, before[0], "the gradients were changed in place")
    _same(losses, before[1], "the losses were changed in place")


def _state(factory: Factory, count: int) -> None:
    first, second = _paired(factory, count)
    steps = [_problem(count, seed=seed) for seed in range(4)]
    results = []
    for step in steps[:3]:
        results.append(call(first, *step))
        _serve(first, *step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    third = copy.deepcopy(first)
    expected = call(first, *steps[3])
    _same(call(second, *steps[3]), expected, "after load_state_dict into a new object the next result differs")
    _same(call(third, *steps[3]), expected, "after copy.deepcopy the next result differs")
    first.reset()
    for step, result in zip(steps, results, strict=False):
        _same(call(first, *step), result, "after reset() the results differ from those of a new object")
        _serve(first, *step)


def _rebuilt(factory: Factory, count: int) -> None:
    first = factory(count)
    known = {name: value for name, value in vars(balancers).items() if isinstance(value, type)}
    second = eval(repr(first), {**known, type(first).__name__: type(first)})
    _same_randomness(first, second)
    _expect(repr(second) == repr(first), f"repr does not rebuild the object: {first!r} and {second!r}")
    step = _problem(count)
    _same(call(second, *step), call(first, *step), "the object built from repr gives another result")


def _absent(factory: Factory, count: int) -> None:
    if count < 2:
        return
    balancer = factory(count)
    call(balancer, *_problem(count))
    _serve(balancer, *_problem(count))
    before = {name: value.clone() for name, value in balancer.named_buffers()}
    jacobian, losses = _problem(count, seed=1)
    present = tuple(range(1, count))
    found = call(balancer, jacobian[1:], losses[1:], present)
    _serve(balancer, jacobian[1:], losses[1:], present)
    length = _COLUMNS if balancer.reads == "jacobian" else count - 1
    _expect(len(found) == length, f"with one task absent: expected length {length}, got {len(found)}")
    for name, value in balancer.named_buffers():
        if value.ndim and value.shape[0] == count:
            _same(value[0].nan_to_num(), before[name][0].nan_to_num(), f"the absent task's {name} moved")
        if value.ndim > 1 and value.shape[1] == count:
            _same(value[:, 0].nan_to_num(), before[name][:, 0].nan_to_num(), f"the absent task's {name} moved")


def _backward(factory: Factory, count: int) -> None:
    first, second = _paired(factory, count)
    jacobian, offsets = _problem(count)
    leaf = torch.zeros(_COLUMNS, dtype=torch.float64, requires_grad=True)
    features = leaf[None, :] * 1.0
    heads = torch.cat(_read_features(first, features))  # (K, columns)
    more = [jacobian @ leaf + offsets for _ in range(first.num_batches - 1)]
    losses = (jacobian * heads).sum(dim=1) + offsets
    given = losses if first.loss_form == "task" else in_form(first, losses)
    cut: dict[str, Any] = {"features": features, "level": "features"} if "transform" in first.needs else {}
    first.backward(given, shared=[leaf], more=more, **cut)
    found = call(second, jacobian, offsets)
    expected = found if second.reads == "jacobian" else found.to(jacobian) @ jacobian
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    close = torch.allclose(gradient, expected, rtol=1e-9, atol=1e-9 * float(jacobian.abs().max()))
    _expect(close, f"backward() wrote {gradient.tolist()}, the pure call gives {expected.tolist()}")
