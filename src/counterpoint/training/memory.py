"""Peak memory of a run."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

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
