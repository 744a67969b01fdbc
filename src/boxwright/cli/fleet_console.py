"""What `boxwright fleet` shows while it works: notes, and a bar with rate and time left."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from boxwright.fleet.predict import FleetListener

__all__ = ["FleetConsole"]


class FleetConsole(FleetListener):
    """Shows notes and a bar with rate and time left on stderr; the bar only on a terminal."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("listing", total=None, rate="")

    def __enter__(self) -> FleetConsole:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        print(f"boxwright: {text}", file=sys.stderr)

    def pictures(self, done: int, total: int, before: int) -> None:
        """Move the bar."""
        if self._bar.tasks[self._task].description == "listing" and done:
            self._bar.reset(self._task, description="pictures", total=total, completed=before)
        speed = self._bar.tasks[self._task].speed
        rate = f"{speed:.0f}/s" if speed else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)
