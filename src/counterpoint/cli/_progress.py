"""Progress on the terminal: runs, epochs, remaining time; silent when not on one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.bench.runner import Event


class RunProgress:
    """Bars on stderr for one or many runs.

    Args:
        runs: Label and number of epochs of each run.
    """

    def __init__(self, runs: Sequence[tuple[str, int]]) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.runs = list(runs)
        self.console = Console(stderr=True)
        self.seen = [0] * len(self.runs)
        self.failed: list[tuple[str, str]] = []
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
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
