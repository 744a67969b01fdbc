"""The engine of one machine: this process, or several that see one GPU or some cores each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from boxwright.errors import BackendError, BoxwrightError
from boxwright.fleet.engines import Errand, Report, report_of, write_done
from boxwright.fleet.worker import NOT_CHECKED, Task, Worker

__all__ = ["HERE", "InProcess", "Processes", "RefusedError"]

HERE = ""  # no GPU is given to the process
_AHEAD = 3  # shards that a process has, so that it need not wait for the next
_ATTEMPTS = 3  # of a shard whose process died


class RefusedError(BoxwrightError):
    """A worker refused, in its own words."""


class InProcess:
    """One worker, in this process."""

    def run(self, errand: Errand, tasks: Iterable[Task], count: int) -> Iterator[Report]:
        """See `Engine`."""
        job = errand.job
        with Worker(errand.artifact, job.artifact_sha256, job.settings, errand.pace) as worker:
            for number, done in enumerate(worker.run(tasks)):
                write_done(errand, done)
                yield report_of(done, NOT_CHECKED if number else worker.check)


@dataclass(slots=True, eq=False)
class _Process:
    """A worker process and the shards that it has."""

    process: subprocess.Popen[bytes]
    visible: str
    tasks: dict[int, Task] = field(default_factory=dict)
    error: str = ""
    ended: bool = False

    def send(self, message: dict[str, Any]) -> None:
        """Tell it something; one that has died is noticed by its end, not here."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return


class Processes:
    """Several workers, each a process; one that dies is replaced and its shards are done again."""

    def __init__(self, places: Sequence[str]) -> None:
        """Name the places.

        Args:
            places: One a process: what `CUDA_VISIBLE_DEVICES` is set to, or "" to leave it alone.
        """
        self._places = list(places)
        self._said: Queue[tuple[_Process, dict[str, Any] | None]] = Queue()
        self._running: list[_Process] = []
        self.restarts = 0

    def run(self, errand: Errand, tasks: Iterable[Task], count: int) -> Iterator[Report]:
        """See `Engine`."""
        source = iter(tasks)
        again: deque[Task] = deque()
        deaths: dict[int, int] = {}
        try:
            for visible in self._places[:count]:
                self._start(errand, visible)
            for one in self._running:
                self._feed(one, source, again)
            left = count
            while left:
                one, said = self._said.get()
                if said is None:
                    self._bury(one, errand, again, deaths)
                    for other in self._running:
                        self._feed(other, source, again)
                elif "error" in said:
                    one.error = said["error"]
                else:
                    one.tasks.pop(said["shard"], None)
                    self._feed(one, source, again)
                    left -= 1
                    yield Report.from_dict(said)
        finally:
            self._end()

    def _start(self, errand: Errand, visible: str) -> None:
        home = str(Path(__file__).resolve().parents[2])
        places = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        if visible:
            environment["CUDA_VISIBLE_DEVICES"] = visible
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts
        one = _Process(
            subprocess.Popen(
                [sys.executable, "-m", "boxwright.fleet.process"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # an interruption of the terminal is ours to pass on
            ),
            visible,
        )
        self._running.append(one)
        one.send(
            {
                "job": errand.job.as_dict(),
                "artifact": str(errand.artifact),
                "pace": asdict(errand.pace),
                "folder": str(errand.folder),
            }
        )
        Thread(target=self._listen, args=(one,), daemon=True).start()

    def _listen(self, one: _Process) -> None:
        assert one.process.stdout is not None
        for line in one.process.stdout:
            self._said.put((one, json.loads(line)))
        one.process.wait()
        self._said.put((one, None))

    @staticmethod
    def _feed(one: _Process, source: Iterator[Task], again: deque[Task]) -> None:
        """Give a process shards until it has enough."""
        while len(one.tasks) < _AHEAD and not one.ended:
            task = again.popleft() if again else next(source, None)
            if task is None:
                return
            one.tasks[task.shard] = task
            one.send({"shard": task.shard, "first": task.first, "addresses": list(task.addresses)})

    def _bury(
        self, one: _Process, errand: Errand, again: deque[Task], deaths: dict[int, int]
    ) -> None:
        """Replace a process that ended before its time.

        Raises:
            RefusedError: It said why.
            BackendError: A shard has ended several.
        """
        one.ended = True
        self._running.remove(one)
        if one.error:
            asked, found, do = json.loads(one.error)
            raise RefusedError(asked, found, do)
        for shard, task in one.tasks.items():
            deaths[shard] = deaths.get(shard, 0) + 1
            if deaths[shard] >= _ATTEMPTS:
                raise BackendError(
                    f"shard {shard}",
                    f"it was on its way in {_ATTEMPTS} processes that died (the last with status "
                    f"{one.process.returncode})",
                    "look at their messages above; a smaller --batch needs less memory",
                )
            again.append(task)
        self.restarts += 1
        self._start(errand, one.visible)

    def _end(self) -> None:
        for one in self._running:
            one.send({"end": True})
            assert one.process.stdin is not None
            try:
                one.process.stdin.close()
            except OSError:
                continue
        for one in self._running:
            try:
                one.process.wait(0.5 if one.tasks else 20)
            except subprocess.TimeoutExpired:
                _kill(one.process)
        self._running.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
