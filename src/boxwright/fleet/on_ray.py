"""The engine of a Ray cluster: Ray Data hands shards to a pool of actors, one detector each.

An actor or a node that dies is replaced by Ray and its shards are done again, by whom ever; a shard
that is done twice is the same file twice. The results of a shard come back through this process,
which writes them, unless all nodes share the folder.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwright.errors import BackendError, BoxwrightError
from boxwright.fleet.engines import Errand, Report, report_of
from boxwright.fleet.extras import ray_module
from boxwright.fleet.local import RefusedError
from boxwright.fleet.shard_files import bytes_from_rows, shard_name, write_shard
from boxwright.fleet.worker import NOT_CHECKED, Task, Worker
from boxwright.freed_memory import keep_freed_memory
from boxwright.machine import usable_cores
from boxwright.store import sha256_of_file

__all__ = ["OnRay", "ShardActor", "connect"]

_TOKEN = ".shared"
_STORE_BYTES = 512 << 20  # of a Ray of our own
_KNOCK_S = 10.0
_AHEAD = 2  # shards that wait at an actor


class ShardActor:
    """What Ray Data calls with one shard after the other."""

    def __init__(self, errand: bytes, files: Any, token: str) -> None:
        """Open the artefact; a refusal is told with the first shard, in its own words.

        Args:
            errand: Pickled `Errand`.
            files: Reference to the bytes of the artefact's files, by name.
            token: What the file in the shared folder says; "" where it is not shared.
        """
        import cv2

        self._errand: Errand = pickle.loads(errand)
        self._refusal = ""
        self._worker: Worker | None = None
        self._reported = False
        self._shared = bool(token)
        keep_freed_memory()
        if self._errand.pace.threads:
            cv2.setNumThreads(self._errand.pace.threads)
        try:
            if token:
                _check_shared(self._errand.folder, token)
            job = self._errand.job
            artifact = _artifact_here(self._errand, files)
            self._worker = Worker(artifact, job.artifact_sha256, job.settings, self._errand.pace)
        except BoxwrightError as error:
            self._refusal = json.dumps([error.asked, error.found, error.do])

    def __call__(self, table: Any) -> dict[str, list[Any]]:
        """Do the shards of a table of shard, first and addresses."""
        answers: dict[str, list[Any]] = {"report": [], "data": []}
        rows = table.to_pylist()
        if self._worker is None:
            return {"report": [json.dumps({"refusal": self._refusal})], "data": [b""]}
        tasks = [Task(r["shard"], r["first"], r["addresses"]) for r in rows]
        try:
            for done in self._worker.run(tasks):
                check = NOT_CHECKED if self._reported else self._worker.check
                self._reported = True
                data = bytes_from_rows(self._errand.job, done.rows)
                if self._shared:
                    name = shard_name(self._errand.job, done.task.shard)
                    write_shard(self._errand.folder, name, data)
                    data = b""
                answers["report"].append(json.dumps(report_of(done, check).as_dict()))
                answers["data"].append(data)
        except BoxwrightError as error:
            refusal = json.dumps([error.asked, error.found, error.do])
            return {"report": [json.dumps({"refusal": refusal})], "data": [b""]}
        return answers


def _check_shared(folder: Path, token: str) -> None:
    try:
        there = (folder / _TOKEN).read_text(encoding="utf-8")
    except OSError:
        there = ""
    if there != token:
        raise BackendError(
            f"--shared-out {folder}",
            f"node {os.uname().nodename} does not see what was written there",
            "mount it on every node, or drop --shared-out",
        )


def _artifact_here(errand: Errand, files: Any) -> Path:
    """Return the artefact on this node; written from its bytes where it is not there."""
    sha256 = errand.job.artifact_sha256
    if errand.artifact.is_file() and sha256_of_file(errand.artifact) == sha256:
        return errand.artifact
    ray = ray_module("--engine ray")
    folder = Path(tempfile.gettempdir()) / f"boxwright-{os.getuid()}-{sha256[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, data in ray.get(files).items():
        write_shard(folder, name, data)
    return folder / errand.artifact.name


def _knock(address: str) -> None:
    """Try whether anything listens at HOST:PORT; Ray itself would wait for minutes.

    Raises:
        OSError: Nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


def connect(address: str | None) -> Any:
    """Return `ray`, connected: to a cluster, to the one it is connected to, or to a new one here.

    Raises:
        BackendError: There is no cluster at the address.
    """
    ray = ray_module("--engine ray")
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    named = address or os.environ.get("RAY_ADDRESS")
    if named:
        try:
            _knock(named)
            ray.init(address=named, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise BackendError(
                f"--ray-address {named}",
                f"there is no cluster ({reason})",
                "start one with: ray start --head",
            ) from None
        return ray
    ray.init(
        num_cpus=usable_cores(),
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        **quiet,
    )
    return ray


class OnRay:
    """Does shards on a Ray cluster."""

    def __init__(
        self,
        *,
        actors: tuple[int, int] | None = None,
        num_gpus: float = 0.0,
        num_cpus: float = 1.0,
        address: str | None = None,
        shared_out: bool = False,
    ) -> None:
        """Say how; nothing is started yet.

        Args:
            actors: Fewest and most workers; None takes as many as the cluster has room for now.
            num_gpus, num_cpus: Of each.
            address: Of the cluster; None takes RAY_ADDRESS, or starts one on this machine.
            shared_out: Workers write their shards themselves.
        """
        self._actors, self._address, self._shared = actors, address, shared_out
        self._num_gpus, self._num_cpus = num_gpus, num_cpus

    def run(self, errand: Errand, tasks: Iterable[Task], count: int) -> Iterator[Report]:
        """See `Engine`."""
        ray = connect(self._address)
        low, high = self._size(ray, count)
        errand = replace(errand, artifact=errand.artifact.resolve(), folder=errand.folder.resolve())
        token = uuid.uuid4().hex if self._shared else ""
        if token:
            write_shard(errand.folder, _TOKEN, token.encode())
        table = self._dataset(ray, tasks, count).map_batches(
            ShardActor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(pickle.dumps(errand), ray.put(_files(errand.artifact)), token),
            compute=ray.data.ActorPoolStrategy(
                min_size=low, max_size=high, max_tasks_in_flight_per_actor=_AHEAD
            ),
            num_cpus=self._num_cpus,
            num_gpus=self._num_gpus or None,
        )
        try:
            for batch in table.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in batch.to_pylist():
                    yield self._take(errand, json.loads(row["report"]), row["data"])
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise BackendError(
                "--engine ray", f"the cluster fails ({lines[-1][:200]})", "start it again"
            ) from None
        finally:
            if token:
                (errand.folder / _TOKEN).unlink(missing_ok=True)

    def _size(self, ray: Any, count: int) -> tuple[int, int]:
        """Return how many actors at least and at most."""
        if self._actors is not None:
            return self._actors
        there = ray.cluster_resources()
        room = int(there.get("CPU", 1) / self._num_cpus)
        if self._num_gpus:
            room = min(room, int(there.get("GPU", 0) / self._num_gpus))
        if room < 1:
            raise BackendError(
                f"--num-cpus {self._num_cpus:g} --num-gpus {self._num_gpus:g}",
                f"the cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs",
                "ask for less",
            )
        most = max(1, min(room, count))
        return most, most

    @staticmethod
    def _dataset(ray: Any, tasks: Iterable[Task], count: int) -> Any:
        """Return a data set of one block a shard."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        items = [
            {"shard": t.shard, "first": t.first, "addresses": list(t.addresses)} for t in tasks
        ]
        return ray.data.from_items(items, override_num_blocks=count)

    @staticmethod
    def _take(errand: Errand, said: dict[str, Any], data: bytes) -> Report:
        if "refusal" in said:
            asked, found, do = json.loads(said["refusal"])
            raise RefusedError(asked, found, do)
        report = Report.from_dict(said)
        if data:
            write_shard(errand.folder, shard_name(errand.job, report.shard), data)
        return report


def _files(artifact: Path) -> dict[str, bytes]:
    """Return the artefact, and what lies beside a plan to describe it."""
    beside = artifact.with_name(f"{artifact.name}.json")
    return {p.name: p.read_bytes() for p in (artifact, beside) if p.is_file()}
