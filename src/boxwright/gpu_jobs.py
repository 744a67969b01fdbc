"""The same verb over several GPUs: one process for each piece of work, which sees one GPU.

A process gets `CUDA_VISIBLE_DEVICES` before it starts, so that nothing of it can touch another
GPU; this process loads no CUDA. A piece that fails does not stop the others. An interruption ends
them all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from boxwright.outcome import Listener

__all__ = ["Finished", "Gate", "Job", "run_jobs"]

_POLL_S = 0.05
_PATIENCE_S = 10.0  # for an interrupted process, before it is killed
_PROGRAM = (sys.executable, "-m", "boxwright")
_OWN = "boxwright: "
_ERROR = "boxwright: error: "


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work.

    Attributes:
        label: Of it, for messages.
        words: Its command line, after the program.
        device: Number of the GPU that it must run on; None takes the next that is free.
    """

    label: str
    words: tuple[str, ...]
    device: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a piece of work.

    Attributes:
        job: The piece.
        device: Number of the GPU that it ran on.
        code: Exit status; that of a process ended by signal N is 128 + N.
        out: What it printed.
        error: Its error line, or its last line; empty when it did not fail.
    """

    job: Job
    device: int
    code: int
    out: str
    error: str = ""


class Gate:
    """Lets processes begin each of their measurements at the same moment.

    Each process says that it is ready by a file, and goes on when the process that started all of
    them says so, which is when every one that still runs is ready.

    Args:
        folder: That all of them know.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = 0
        self._parent = os.getppid()

    def wait(self) -> None:
        """Say that this process is ready, and wait for the others, or for the parent's end."""
        self._turn += 1
        (self._folder / f"ready.{os.getpid()}.{self._turn}").touch()
        go = self._folder / f"go.{self._turn}"
        while not go.exists() and os.getppid() == self._parent:
            sleep(0.001)

    def open_for(self, processes: Sequence[int]) -> None:
        """Let processes go on, when all of them wait for the next turn."""
        ready = f"{self._turn + 1}"
        if processes and all((self._folder / f"ready.{pid}.{ready}").exists() for pid in processes):
            self._turn += 1
            (self._folder / f"go.{self._turn}").touch()


class _Running:
    """A process and the files that it prints to."""

    def __init__(self, job: Job, device: int, visible: str, program: Sequence[str]) -> None:
        self.job, self.device = job, device
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._read, self._rest = 0, ""
        self.last = self.error = ""
        home = str(Path(__file__).resolve().parents[1])
        places = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "CUDA_VISIBLE_DEVICES": visible,
        }
        if "CUDA_VISIBLE_DEVICES" not in os.environ:  # else its numbers are the user's own
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts
        self.process = subprocess.Popen(
            [*program, *job.words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,  # an interruption of the terminal is ours to pass on
        )

    def tell(self, listener: Listener) -> None:
        """Pass on what it has printed on stderr since the last time."""
        self._err.seek(self._read)
        data = self._err.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            self._take(line, listener)

    def _take(self, line: str, listener: Listener) -> None:
        self.last = line.strip() or self.last
        if line.startswith(_ERROR):
            self.error = line.removeprefix(_ERROR)
        elif line.strip():
            listener.note(f"GPU {self.device}: {line.removeprefix(_OWN)}")

    def finish(self, listener: Listener) -> Finished:
        """Return what became of it; it has ended."""
        self.tell(listener)
        if self._rest:
            self._take(self._rest, listener)
        self._out.seek(0)
        out = self._out.read().decode(errors="replace")
        self._out.close()
        self._err.close()
        code = self.process.returncode
        code = 128 - code if code < 0 else code
        error = self.error
        if code and not error:
            ended = f"it ended with status {code}"
            error = f"{ended} ({self.last[:160]})" if self.last else ended
        return Finished(self.job, self.device, code, out, error)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and those that it started."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return


def run_jobs(
    jobs: Sequence[Job],
    devices: Sequence[tuple[int, str]],
    *,
    listener: Listener,
    gate: Gate | None = None,
    program: Sequence[str] = _PROGRAM,
) -> list[Finished]:
    """Run pieces of work, one at a time on each GPU.

    Args:
        jobs: Begun in this order, as GPUs become free.
        devices: Of each GPU its number, and what `CUDA_VISIBLE_DEVICES` calls it.
        listener: Told what the processes print on stderr, and of each that fails.
        gate: That they wait at; all of them must run at once.
        program: What the words of a piece follow.

    Returns:
        What became of each, in the order of `jobs`.

    Raises:
        KeyboardInterrupt: After all processes were ended.
    """
    waiting = list(jobs)
    running: list[_Running] = []
    finished: list[Finished] = []
    try:
        while waiting or running:
            _begin(waiting, running, devices, program)
            sleep(_POLL_S)
            for one in list(running):
                one.tell(listener)
                if one.process.poll() is None:
                    continue
                running.remove(one)
                done = one.finish(listener)
                finished.append(done)
                if done.code:
                    listener.note(f"GPU {done.device}: {done.job.label} failed: {done.error}")
                listener.count("work", len(finished), len(jobs))
            if gate is not None:
                gate.open_for([one.process.pid for one in running])
    finally:
        _end(running)
    return sorted(finished, key=lambda f: jobs.index(f.job))


def _begin(
    waiting: list[Job],
    running: list[_Running],
    devices: Sequence[tuple[int, str]],
    program: Sequence[str],
) -> None:
    """Give every free GPU the first piece that may run on it."""
    for number, visible in devices:
        if any(one.device == number for one in running):
            continue
        job = next((j for j in waiting if j.device in (None, number)), None)
        if job is not None:
            waiting.remove(job)
            running.append(_Running(job, number, visible, program))


def _end(running: Sequence[_Running]) -> None:
    """Interrupt what still runs, and kill what does not end soon."""
    for one in running:
        one.send(signal.SIGINT)
    until = monotonic() + _PATIENCE_S
    for one in running:
        try:
            one.process.wait(max(until - monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            one.send(signal.SIGKILL)
            one.process.wait()
