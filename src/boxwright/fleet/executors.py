"""Where the nodes of a graph of builds are done: in processes of this machine, or on Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from boxwright.fleet.node import do_node
from boxwright.fleet.on_ray import connect

__all__ = ["LocalExecutor", "RayExecutor"]


class LocalExecutor:
    """Processes of this machine, so many at a time."""

    def __init__(self, jobs: int) -> None:
        """Say how many.

        Args:
            jobs: At a time.
        """
        self._jobs = jobs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._done: Queue[tuple[str, dict[str, Any]]] = Queue()

    def free(self) -> bool:
        """See `Executor`."""
        return len(self._running) < self._jobs

    def begin(self, key: str, message: Mapping[str, Any]) -> None:
        """See `Executor`."""
        home = str(Path(__file__).resolve().parents[2])
        places = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", "boxwright.fleet.node"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interruption of the terminal is ours to pass on
        )
        self._running[key] = process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()  # and it stays open: its end is this process's
        except OSError:
            pass  # it has died, and its end will tell
        Thread(target=self._listen, args=(key, process, message["label"]), daemon=True).start()

    def _listen(self, key: str, process: subprocess.Popen[bytes], label: str) -> None:
        assert process.stdout is not None
        said = process.stdout.read()
        code = process.wait()
        if said.endswith(b"\n"):
            self._done.put((key, json.loads(said)))
            return
        ended = f"its process ended with status {code}"
        self._done.put((key, {"error": [label, ended, "look at its messages above"]}))

    def next_done(self) -> tuple[str, dict[str, Any]]:
        """See `Executor`."""
        key, answer = self._done.get()
        process = self._running.pop(key)
        if process.stdin is not None:
            process.stdin.close()
        return key, answer

    def close(self) -> None:
        """See `Executor`."""
        for process in self._running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()
        self._running.clear()


class RayExecutor:
    """Tasks of a Ray cluster; all nodes share the folders that a recipe names, and --out."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float = 0.0) -> None:
        """Connect.

        Args:
            address: Of the cluster; None takes RAY_ADDRESS, or starts one on this machine.
            num_cpus, num_gpus: Of each task.

        Raises:
            BackendError: There is no cluster.
        """
        self._ray = connect(address)
        # A task that dies with its node is begun again; what it leaves is the same.
        remote = self._ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=3)
        self._num_cpus = num_cpus
        self._task: Any = remote(do_node)
        self._running: dict[Any, tuple[str, str]] = {}

    def room(self) -> int:
        """Return how many tasks the cluster has CPUs for."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1) / self._num_cpus))

    def free(self) -> bool:
        """See `Executor`: Ray has a queue of its own."""
        return True

    def begin(self, key: str, message: Mapping[str, Any]) -> None:
        """See `Executor`."""
        self._running[self._task.remote(dict(message))] = (key, message["label"])

    def next_done(self) -> tuple[str, dict[str, Any]]:
        """See `Executor`."""
        (reference,), _ = self._ray.wait(list(self._running), num_returns=1)
        key, label = self._running.pop(reference)
        try:
            answer: dict[str, Any] = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found = f"its task failed ({lines[-1][:200]})"
            return key, {"error": [label, found, "look at Ray's log"]}
        return key, answer

    def close(self) -> None:
        """See `Executor`."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
