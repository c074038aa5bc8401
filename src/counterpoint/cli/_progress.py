"""Progress on the terminal: runs, epochs, remaining time; silent when not on one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.bench.runner import Event


def _progress() -> Any:
    """Return bars on stderr with count and times, which show nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    return Progress(*columns, console=console, disable=not console.is_terminal)


class RunProgress:
    """Bars on stderr for one or many runs.

    Args:
        runs: Label and number of epochs of each run.
    """

    def __init__(self, runs: Sequence[tuple[str, int]]) -> None:
        self.runs = list(runs)
        self.seen = [0] * len(self.runs)
        self.failed: list[tuple[str, str]] = []
        self.progress = _progress()
        self.console = self.progress.console
        total = sum(epochs for _, epochs in self.runs)
        self.run_bar = self.progress.add_task("runs  ", total=len(self.runs)) if len(self.runs) > 1 else None
        self.epoch_bar = self.progress.add_task("epochs", total=total)

    def __enter__(self) -> "RunProgress":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def epoch(self, index: int, epoch: int) -> None:
        """Note that an epoch of a run ended."""
        self.progress.advance(self.epoch_bar, epoch - self.seen[index])
        self.seen[index] = epoch

    def listen(self, event: "Event") -> None:
        """Note news of a run."""
        if event.kind == "epoch":
            self.epoch(event.index, event.epoch)
        elif event.kind in ("done", "failed"):
            self.epoch(event.index, self.runs[event.index][1])
            if self.run_bar is not None:
                self.progress.advance(self.run_bar)
        if event.kind == "failed":
            label = self.runs[event.index][0]
            self.failed.append((label, event.message))
            self.console.print(f"failed: {label}: {event.message}", markup=False, highlight=False, soft_wrap=True)


class RoundProgress:
    """A bar on stderr for the rounds of a measurement."""

    def __init__(self) -> None:
        self.progress = _progress()
        self.bar = self.progress.add_task("rounds", total=None)

    def __enter__(self) -> "RoundProgress":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def note(self, done: int, total: int) -> None:
        """Note that a round ended."""
        self.progress.update(self.bar, completed=done, total=total)
