"""A worker process of the local engine: one JSON message a line, shards in, reports out.

It ends at once when the process that started it does, however that ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

import cv2

from boxwright.errors import BoxwrightError
from boxwright.fleet.engines import Errand, report_of, write_done
from boxwright.fleet.job import Job, Pace
from boxwright.fleet.worker import NOT_CHECKED, Task, Worker
from boxwright.freed_memory import keep_freed_memory

__all__ = ["main"]

_Inbox = SimpleQueue[Task | None]


def _errand(message: dict[str, Any]) -> Errand:
    pace = message["pace"]
    profile = pace["profile_batch"]
    pace["profile_batch"] = None if profile is None else tuple(profile)
    return Errand(
        Job.from_dict(message["job"]),
        Path(message["artifact"]),
        Pace(**pace),
        Path(message["folder"]),
    )


def _listen(source: BinaryIO, inbox: _Inbox) -> None:
    """Pass on shards; an end without a word means that the other process has died."""
    for line in source:
        message = json.loads(line)
        if "end" in message:
            inbox.put(None)
            return
        inbox.put(Task(message["shard"], message["first"], tuple(message["addresses"])))
    os._exit(3)


def _at_hand(first: Task, inbox: _Inbox, ended: list[bool]) -> Iterator[Task]:
    """Yield a shard and those that have come; never wait, since results wait behind."""
    yield first
    while True:
        try:
            task = inbox.get_nowait()
        except Empty:
            return
        if task is None:
            ended.append(True)
            return
        yield task


def _work(errand: Errand, inbox: _Inbox, out: BinaryIO) -> None:
    job = errand.job
    with Worker(errand.artifact, job.artifact_sha256, job.settings, errand.pace) as worker:
        ended: list[bool] = []
        checked = False
        while not ended and (first := inbox.get()) is not None:
            for done in worker.run(_at_hand(first, inbox, ended)):
                write_done(errand, done)
                report = report_of(done, NOT_CHECKED if checked else worker.check)
                checked = True
                out.write(json.dumps(report.as_dict()).encode() + b"\n")
                out.flush()


def main() -> None:
    """Work until told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no message
    source = sys.stdin.buffer
    errand = _errand(json.loads(source.readline()))
    keep_freed_memory()
    if errand.pace.threads:
        cv2.setNumThreads(errand.pace.threads)  # several processes share the cores
    inbox: _Inbox = SimpleQueue()
    Thread(target=_listen, args=(source, inbox), daemon=True).start()
    try:
        _work(errand, inbox, out)
    except BoxwrightError as error:
        said = json.dumps([error.asked, error.found, error.do])
        out.write(json.dumps({"error": said}).encode() + b"\n")
        out.flush()
        sys.stderr.flush()
        os._exit(error.exit_code)  # a thread waits for messages


if __name__ == "__main__":
    main()
