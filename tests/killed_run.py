"""A program for test_pipeline: runs the command line, and dies at a moment that is asked for.

It loads everything once and then forks a child for each run, so that hundreds of runs take
seconds. A moment is a number of file operations: the child counts what Python audits (files that
are opened for writing, renamed, removed; folders made and removed) and, just before the n-th,
kills itself as `kill -9` does, or is interrupted as Ctrl-C does. Reads one JSON request a line from
stdin, answers with one JSON line on stdout. Has no `test_` name, so that pytest leaves it alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import cv2
import onnx
import onnxruntime
import onnxslim
import rich.table

import boxwright.detector
import boxwright.graph.end2end
import boxwright.pipeline
import boxwright.proof
import boxwright.report
from boxwright import catalog
from boxwright.cli import export, main, run

LOADED = (cv2, onnx, onnxruntime, onnxslim, rich.table, boxwright.detector, export, run)
LOADED += (*catalog.families(), *catalog.sources(), catalog.backend("onnxruntime"))
_COUNTED = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir"})


def _arm(moment: int, kind: str) -> list[int]:
    """Count file operations, and end the process before the one that is asked for."""
    count = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes or "/dev/" in str(args[0]):
                return
        elif event not in _COUNTED:
            return
        count[0] += 1
        if count[0] == moment:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                signal.raise_signal(signal.SIGINT)

    sys.addaudithook(hook)
    return count


def _child(request: dict[str, Any], answer: int) -> None:
    os.chdir(request["folder"])
    errors = os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if request.get("delay_s"):
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, request["delay_s"])
    count = _arm(request.get("moment", 0), request.get("kind", "kill"))
    code = 0
    try:
        main(request["words"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    os.write(answer, json.dumps([code, count[0]]).encode())


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        began = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                _child(request, writing)
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.close(writing)
        said = os.read(reading, 1000)
        os.close(reading)
        _, status = os.waitpid(child, 0)
        code, count = json.loads(said) if said else (None, 0)
        print(
            json.dumps(
                {
                    "killed": os.WIFSIGNALED(status),
                    "code": code,
                    "operations": count,
                    "seconds": time.perf_counter() - began,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    serve()
