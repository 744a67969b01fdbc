"""Runs an ONNX Runtime session on a GPU with tensors that stay where they are.

For each shape of the inputs there is one set of device tensors, bound once: a call copies its
inputs into them, runs, and copies the outputs out. Fixed addresses are what a CUDA graph needs;
ONNX Runtime captures one for each shape (run option `gpu_graph_id`) and replays it. Sizes that
depend on the data are left to ONNX Runtime on every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.nvidia import cuda_result

__all__ = ["Bound", "CaptureError", "GpuRunner", "Stream", "preload_libraries"]

_SKIP = -1  # gpu_graph_id of a run that is neither captured nor replayed
_MOST_GRAPHS = 16  # each holds memory for good; later shapes run launch by launch
_NON_BLOCKING = 1

Key = tuple[tuple[str, tuple[int, ...], str], ...]


def preload_libraries(ort: Any) -> None:
    """Load CUDA's libraries from pip's wheels, where ONNX Runtime itself would not find them.

    ONNX Runtime looks in the wheels beside itself; those of another place, torch's for instance,
    are shown to it. What is missing shows when its provider starts.
    """
    if not hasattr(ort, "preload_dlls"):  # before 1.21
        return
    own = Path(ort.__file__).resolve().parent.parent
    with redirect_stdout(StringIO()):  # it prints there
        ort.preload_dlls()
        for folder in _wheel_folders():
            if own not in folder.parents:
                ort.preload_dlls(directory=str(folder))


def _wheel_folders() -> list[Path]:
    """Return the folders of libraries in NVIDIA's wheels, wherever Python finds them."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return sorted({lib.parent for place in places for lib in Path(place).glob("*/lib/lib*.so.*")})


class CaptureError(Exception):
    """A capture failed; the session cannot be used any more."""


class Stream:
    """A CUDA stream of ours with two events, by the CUDA runtime's bindings.

    Args:
        cuda: The bindings.
        device: Index of the GPU.
    """

    def __init__(self, cuda: Any, device: int) -> None:
        self._cuda = cuda
        cuda_result(cuda.cudaSetDevice(device), "cudaSetDevice")
        self._stream = cuda_result(
            cuda.cudaStreamCreateWithFlags(_NON_BLOCKING), "cudaStreamCreateWithFlags"
        )
        self._events = [cuda_result(cuda.cudaEventCreate(), "cudaEventCreate") for _ in range(2)]

    @property
    def address(self) -> int:
        """What ONNX Runtime takes as `user_compute_stream`."""
        return int(self._stream)

    def record(self, index: int) -> None:
        """Put event 0 or 1 behind what was started so far."""
        cuda_result(
            self._cuda.cudaEventRecord(self._events[index], self._stream), "cudaEventRecord"
        )

    def between_ms(self) -> float:
        """Wait for all, and return the milliseconds from event 0 to event 1."""
        cuda_result(self._cuda.cudaStreamSynchronize(self._stream), "cudaStreamSynchronize")
        return float(cuda_result(self._cuda.cudaEventElapsedTime(*self._events), "elapsed time"))

    def end_capture(self) -> None:
        """Leave a capture that failed; a session that ends while it goes on ends the process."""
        self._cuda.cudaStreamEndCapture(self._stream)

    def close(self) -> None:
        """Free it; nothing may run on it any more."""
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
        self._cuda.cudaStreamDestroy(self._stream)
        self._events = []


@dataclass(slots=True)
class Bound:
    """The tensors of one shape.

    Attributes:
        binding: ONNX Runtime's, with all of them bound.
        inputs: On the device, by name.
        outputs: On the device, by name; None where their sizes depend on the data.
        graph: Number of the CUDA graph; -1 where there is none.
    """

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any] | None
    graph: int = _SKIP


class GpuRunner:
    """Binds, copies and runs; for one thread at a time.

    Args:
        ort: ONNX Runtime's module.
        session: On a GPU.
        outputs: NumPy type by name, in the graph's order.
        device: Index of the GPU.
        dependent: Output sizes may depend on the data.
        capture: The session was opened to capture CUDA graphs.
        stream: That it runs on; None where ONNX Runtime has its own.
        failures: What the session raises.
    """

    def __init__(
        self,
        ort: Any,
        session: Any,
        outputs: Mapping[str, str],
        *,
        device: int,
        dependent: bool,
        capture: bool,
        stream: Stream | None,
        failures: tuple[type[Exception], ...],
    ) -> None:
        self._ort, self._session, self._types = ort, session, dict(outputs)
        self._device, self._dependent, self._capture = device, dependent, capture
        self._stream, self._failures = stream, failures
        self._bound: dict[Key, Bound] = {}
        self._graphs = 0

    @property
    def graphs_full(self) -> bool:
        """Whether later shapes are not captured any more."""
        return self._graphs >= _MOST_GRAPHS

    def stage(self, feed: Mapping[str, npt.NDArray[Any]]) -> Bound:
        """Copy a feed to the device, into the tensors of its shape; new ones for a new shape.

        Raises:
            CaptureError: The new shape's CUDA graph cannot be captured.
        """
        arrays = {name: np.ascontiguousarray(value) for name, value in feed.items()}
        key = tuple((n, a.shape, a.dtype.name) for n, a in sorted(arrays.items()))
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(arrays)
            return bound
        for name, array in arrays.items():
            bound.inputs[name].update_inplace(array)
        return bound

    def _bind(self, arrays: dict[str, npt.NDArray[Any]]) -> Bound:
        values = self._ort.OrtValue
        binding = self._session.io_binding()
        inputs = {
            name: values.ortvalue_from_numpy(array, "cuda", self._device)
            for name, array in arrays.items()
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        bound = Bound(binding, inputs, None)
        if self._dependent:
            return bound
        self.run(bound)  # its outputs tell their sizes; memory is allocated now, not in a capture
        shapes = [tuple(int(d) for d in value.shape()) for value in binding.get_outputs()]
        binding.clear_binding_outputs()
        bound.outputs = {}
        for (name, dtype), shape in zip(self._types.items(), shapes, strict=True):
            value = values.ortvalue_from_shape_and_type(
                shape, np.dtype(dtype).type, "cuda", self._device
            )
            binding.bind_ortvalue_output(name, value)
            bound.outputs[name] = value
        if self._capture and not self.graphs_full:
            self._graphs += 1
            bound.graph = self._graphs
            self._capture_graph(bound)
        return bound

    def _capture_graph(self, bound: Bound) -> None:
        try:
            self.run(bound)
        except self._failures as error:
            if self._stream is not None:
                self._stream.end_capture()
            raise CaptureError(" ".join(str(error).split())[:160]) from None

    def run(self, bound: Bound, *, wait: bool = True) -> None:
        """Run the network on what is staged.

        Args:
            bound: What `stage` returned.
            wait: Until it is done; a replayed CUDA graph is always waited for.
        """
        if bound.outputs is None:
            bound.binding.clear_binding_outputs()
            for name in self._types:
                bound.binding.bind_output(name, "cuda", self._device)
        options = self._ort.RunOptions()
        if self._capture:
            options.add_run_config_entry("gpu_graph_id", str(bound.graph))
        if not wait:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(bound.binding, options)

    def fetch(self, bound: Bound) -> dict[str, npt.NDArray[Any]]:
        """Copy the outputs of the last run to the host."""
        if bound.outputs is not None:
            return {name: value.numpy() for name, value in bound.outputs.items()}
        arrays: Sequence[npt.NDArray[Any]] = bound.binding.copy_outputs_to_cpu()
        return dict(zip(self._types, arrays, strict=True))

    def launch_times(self, bound: Bound, count: int) -> list[float]:
        """Run the network so often on what is staged; return the milliseconds of each run.

        By CUDA events where the stream is ours, otherwise by the host's clock around a run that is
        waited for.
        """
        times = []
        for _ in range(count):
            if self._stream is None:
                begin = perf_counter()
                self.run(bound)
                times.append((perf_counter() - begin) * 1e3)
                continue
            self._stream.record(0)
            self.run(bound, wait=False)
            self._stream.record(1)
            times.append(self._stream.between_ms())
        return times

    def close(self) -> None:
        """Free the tensors."""
        self._bound.clear()
        del self._session
