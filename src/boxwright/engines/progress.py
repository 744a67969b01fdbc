"""What a build tells while it goes on: phases where TensorRT reports them, otherwise the time."""

from __future__ import annotations

import threading
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol

__all__ = ["Progress", "Watcher", "monitor_for"]

_EVERY_SECONDS = 20.0


class Watcher(Protocol):
    """Told what happens; `boxwright.outcome.Listener` is one."""

    def note(self, text: str) -> None: ...

    def count(self, label: str, done: int, total: int) -> None: ...


class Progress:
    """Tells the watcher every 20 seconds that a build goes on; a context manager.

    Args:
        what: The file.
        watcher: Told.

    Attributes:
        phase: The outermost phase that TensorRT is in, or "".
        interrupted: The user wants it to end.
    """

    def __init__(self, what: str, watcher: Watcher) -> None:
        self._what, self._watcher = what, watcher
        self._over = threading.Event()
        self._begin = perf_counter()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._steps: dict[str, tuple[int, str | None]] = {}
        self.phase = ""
        self.interrupted = False

    @property
    def seconds(self) -> float:
        """Time since the build began."""
        return perf_counter() - self._begin

    def __enter__(self) -> Progress:
        self._begin = perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            phase = f" ({self.phase})" if self.phase else ": measuring kernels"
            self._watcher.note(f"still building {self._what} after {self.seconds:.0f} s{phase}")

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._steps[phase] = (steps, parent)
        if parent is None:
            self.phase = phase
            self._watcher.count(f"build: {phase}", 0, steps)

    def step(self, phase: str, step: int) -> None:
        """A step of a phase is done."""
        steps, parent = self._steps.get(phase, (0, ""))
        if parent is None:
            self._watcher.count(f"build: {phase}", step + 1, steps)

    def end(self, phase: str) -> None:
        """A phase is over, perhaps before its last step."""
        steps, parent = self._steps.pop(phase, (0, ""))
        if parent is None:
            self._watcher.count(f"build: {phase}", steps, steps)
            self.phase = ""


def monitor_for(trt: Any, progress: Progress) -> Any | None:
    """Return TensorRT's progress monitor, or None where it has none (8.6).

    Its methods are called from TensorRT's threads; an exception there would end the process.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.begin(phase_name, parent_phase or None, int(num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress.step(phase_name, int(step))
            except KeyboardInterrupt:
                progress.interrupted = True
            return not progress.interrupted

        def phase_finish(self, phase_name: str) -> None:
            progress.end(phase_name)

    return Monitor()
