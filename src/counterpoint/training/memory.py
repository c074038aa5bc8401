"""Peak memory: of a run as the system sees it, and of one step, exactly."""

import contextlib
import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory since construction: of the device on CUDA, else of the resident set of the process.

    On Linux the kernel's peak counter is reset at the start, so runs in one process do not see each other; on other
    systems the peak is that of the process since it began.

    Args:
        device: Device that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._start = torch.cuda.memory_allocated(device) / 2**20
            return
        with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole process
            _CLEAR.write_text("5")  # resets VmHWM, see proc(5)
        self._start = _status("VmRSS") if _STATUS.exists() else 0.0

    def extra_mb(self) -> float:
        """Return the peak above the use at the start, in MB (2**20 bytes)."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20 - self._start
        if _STATUS.exists():
            return max(0.0, _status("VmHWM") - self._start)
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _status(field: str) -> float:
    """Read a field of /proc/self/status, given there in kB, in MB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def step_peak_mb(step: Callable[[], object], device: torch.device) -> float:
    """Run ``step`` once and return its peak memory above what was in use before, in MB (2**20 bytes).

    On CUDA the allocator's peak. Elsewhere the storage of the tensors that operations return, while it lives: the same
    number at every run; what a kernel needs within one operation and what compiled code allocates are not seen.

    Args:
        step: What to measure.
        device: Where it computes.

    Example:
        >>> step_peak_mb(lambda: torch.zeros(2**18) + torch.ones(2**18), torch.device("cpu"))
        3.0
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - start) / 2**20
    with _LiveStorage() as live:
        step()
    return live.peak / 2**20


class _LiveStorage(TorchDispatchMode):
    """Counts the bytes of the storages that were made under it and still live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._note((args, kwargs), counted=False)  # what comes in was there before, unless it is known
        result = func(*args, **kwargs)
        self._note(result, counted=True)
        self.peak = max(self.peak, self.now)
        return result

    def _note(self, values: Any, *, counted: bool) -> None:
        for tensor in _tensors(values):
            if tensor.layout != torch.strided:
                continue  # its parts come by as tensors of their own
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in self._known:
                size = storage.nbytes() if counted else 0
                self.now += size
                self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def _tensors(values: Any) -> Iterable[Tensor]:
    """Yield the tensors in nested arguments or results."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
