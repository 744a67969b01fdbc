"""CUDA graphs: what is started on a stream, kept, and started again by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from boxwright.errors import BackendError
from boxwright.nvidia import cuda_result

__all__ = ["captured"]


def captured(cuda: Any, stream: Any, work: Callable[[], bool]) -> Any | None:
    """Return the graph of what `work` starts on a stream, or None where it cannot be captured.

    Nothing of it runs. What is set up on a first call cannot be captured: run `work` once before.

    Args:
        cuda: The CUDA runtime's bindings.
        stream: Of this thread alone meanwhile.
        work: Starts all on the stream; False or a `BackendError` when it cannot.

    Raises:
        BackendError: The stream is in no state to be captured.
    """
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda_result(cuda.cudaStreamBeginCapture(stream, mode), "cudaStreamBeginCapture")
    started = False
    try:
        started = work()
    except BackendError:
        pass  # a call that a capture does not allow; the caller has a way without
    finally:
        status, graph = cuda.cudaStreamEndCapture(stream)
    if int(status) != 0:
        cuda.cudaGetLastError()  # or the next call that asks for it would be blamed
        return None
    try:
        if not started:
            return None
        status, *made = cuda.cudaGraphInstantiate(graph, 0)
        return made[0] if int(status) == 0 else None
    finally:
        cuda.cudaGraphDestroy(graph)
