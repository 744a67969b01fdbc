"""Starts the workers of a comparison and talks with them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from measure import HERE, our_variables, ultralytics_variables

__all__ = ["Worker"]


class Worker:
    """A process that detects with one library; see `worker.py` for the protocol."""

    def __init__(
        self,
        side: str,
        model: Path,
        pictures: list[Path],
        settings_folder: Path,
        *,
        threads: int | None,
        score: float = 0.25,
        iou: float = 0.7,
        decode: bool = True,
    ) -> None:
        """Start it.

        Args:
            side: `auto`, `onnxruntime`, `openvino` (all ours) or `ultralytics`.
            model: The file to detect with.
            pictures: Known to it by position.
            settings_folder: For the settings file of Ultralytics.
            threads: Of torch, ONNX Runtime and OpenVINO each; None leaves the defaults.
            score, iou: Thresholds.
            decode: Read all pictures at the start, and hand arrays to the detector; without,
                it gets the paths.
        """
        settings = {
            "pictures": [str(p) for p in pictures],
            "threads": threads,
            "score": score,
            "iou": iou,
            "decode": decode,
        }
        variables = our_variables(threads)
        if side == "ultralytics":
            variables = ultralytics_variables(settings_folder, threads)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), side, str(model), json.dumps(settings)],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            RuntimeError: The process ended; its last words are the message.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"worker ended with status {status}: {self._log.read()[-600:]}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._log.close()
