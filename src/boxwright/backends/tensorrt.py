"""TensorRT and TensorRT-RTX: runs plans, without torch.

Memory, stream, events and graphs are the CUDA runtime's own, through cuda-bindings. Inputs go
through pinned memory; the network is captured as a CUDA graph for each new shape and replayed,
which saves the launches of its kernels. A plan whose outputs depend on the data (ONNX
NonMaxSuppression) cannot be captured and runs launch by launch.

Feeds are NumPy arrays; arrays that lie on the GPU already are copied like others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends import BackendKind, BackendOptions, Feed, StepTimes
from boxwright.cuda_memory import DeviceBuffers
from boxwright.engine_record import EngineRecord, check_fits, read_plan, read_record
from boxwright.errors import BackendError, MissingExtraError
from boxwright.nvidia import (
    TITLES,
    PlanRuntime,
    allocator_class,
    cuda_result,
    cuda_runtime,
    find_gpu,
    load_tensorrt,
    logger_class,
    module_name,
)
from boxwright.types import TensorInfo

__all__ = ["BACKEND", "TensorRtBackend"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_NON_BLOCKING = 1


class TensorRtBackend:
    """An execution context with its buffers; for one thread at a time."""

    def __init__(self, model: Path | bytes, options: BackendOptions) -> None:
        """Load a plan.

        Raises:
            MissingExtraError: cuda-bindings or TensorRT-RTX is not installed.
            SourceError: The plan's description is damaged or of another plan.
            BackendError: The plan is for another TensorRT or GPU, or there is none.
        """
        what = "plan" if isinstance(model, bytes) else str(model)
        if options.device == "cpu":
            raise BackendError(what, "a plan runs on a GPU only", "drop --device cpu")
        record = None if isinstance(model, bytes) else read_record(model)
        data = model if isinstance(model, bytes) else read_plan(model, record)
        runtime: PlanRuntime = "tensorrt-rtx" if record and _is_rtx(record) else "tensorrt"
        self._trt = trt = load_tensorrt(runtime)
        cudart = cuda_runtime()
        if cudart is None:
            raise MissingExtraError("cuda-bindings", "tensorrt")
        self._cuda: Any = cudart
        gpu = find_gpu()
        if gpu is None:
            raise BackendError(what, "there is no GPU here", "run it where it was built")
        version = str(trt.__version__)
        if record is not None:
            check_fits(record, what, version, gpu)
        self.metadata: Mapping[str, str] = record.metadata if record else {}
        self._profile = record.profile if record else {}
        self._name = f"{runtime} {version} ({gpu.name}"
        self._wants_graph = options.cuda_graph
        self._graph: Any = None
        self._graph_key: tuple[Any, ...] = ()
        self._obstacle = ""
        self._stream: Any = None
        self._events: list[Any] = []
        self._open(data, what, record, TITLES[runtime])

    def _open(self, data: bytes, what: str, record: EngineRecord | None, title: str) -> None:
        trt = self._trt
        self._log = logger_class(trt)()
        if hasattr(trt, "init_libnvinfer_plugins") and title == TITLES["tensorrt"]:
            trt.init_libnvinfer_plugins(self._log, "")
        self._runtime = trt.Runtime(self._log)
        if record is not None and record.settings.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # it brings its own lean runtime
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            cause = self._log.errors[-1][:200] if self._log.errors else "it gives no reason"
            raise BackendError(
                what,
                f"{title} {trt.__version__} cannot load it ({cause})",
                f"rebuild with: {record.command}" if record else "build it here: boxwright build",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                what, "there is not enough GPU memory for it", "free some, or use a smaller --batch"
            )
        self._read_tensors(what)
        self._stream = cuda_result(
            self._cuda.cudaStreamCreateWithFlags(_NON_BLOCKING), "cudaStreamCreateWithFlags"
        )
        self._buffers = DeviceBuffers(self._cuda, self._stream)
        self._events = [
            cuda_result(self._cuda.cudaEventCreate(), "cudaEventCreate") for _ in range(4)
        ]
        self._allocators = {name: self._allocator(name) for name in self._dependent}

    def _read_tensors(self, what: str) -> None:
        engine, trt = self._engine, self._trt
        inputs: list[TensorInfo] = []
        outputs: list[TensorInfo] = []
        free_input = False
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            if kind not in _DTYPES:
                raise BackendError(
                    what, f"its tensor {name} is {kind}, which NumPy has not", "export it as FP32"
                )
            dims = tuple(int(d) for d in engine.get_tensor_shape(name))
            shape: tuple[int | str, ...] = tuple(
                d if d >= 0 else ("batch" if i == 0 else "?") for i, d in enumerate(dims)
            )
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if is_input:
                free_input |= min(dims, default=0) < 0
                shape = self._only_shape(name, shape)
            (inputs if is_input else outputs).append(TensorInfo(name, _DTYPES[kind], shape))
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        # Without a free input, a free output depends on the data; with one, the first run shows.
        self._dependent = {
            o.name for o in outputs if not free_input and any(isinstance(d, str) for d in o.shape)
        }

    def _only_shape(self, name: str, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return the shape of an input whose profile leaves no choice, else as it is."""
        low, _, high = self._profile.get(name, ((), (), (0,)))
        return tuple(high) if low == high else shape

    @property
    def description(self) -> str:
        """Runtime, version, GPU, and why there is no CUDA graph where there is none."""
        if self._obstacle:
            return f"{self._name}, no CUDA graph: {self._obstacle})"
        return f"{self._name}, CUDA graph)" if self._wants_graph else f"{self._name})"

    @property
    def largest_batch(self) -> int | None:
        """The most pictures of one call, where the plan's description says so."""
        shapes = self._profile.get(self.inputs[0].name)
        return int(shapes[2][0]) if shapes else None

    def _allocator(self, name: str) -> Any:
        """Return what gives TensorRT memory for an output whose size it alone knows."""
        allocator = allocator_class(self._trt)(
            lambda size: self._buffers.reserve(name, size).device
        )
        if not self._context.set_output_allocator(name, allocator):
            raise BackendError(
                "inference", f"TensorRT takes no allocator for {name}", "please report it"
            )
        return allocator

    # -- one inference

    def _stage(self, feed: Feed) -> None:
        """Check the feed, bind every tensor, and copy the inputs into pinned memory.

        Raises:
            BackendError: A tensor is missing, or its type or shape is not the plan's.
        """
        for info in self.inputs:
            if info.name not in feed:
                raise BackendError("inference", f"the input {info.name} is missing", "feed it")
            value = np.asarray(feed[info.name])
            if value.dtype.name != info.dtype:
                raise BackendError(
                    "inference", f"{info.name} is {value.dtype}", f"feed {info.dtype}"
                )
            if not self._context.set_input_shape(info.name, tuple(value.shape)):
                raise BackendError(
                    "inference", f"{info.name} has the shape {value.shape}", self._shapes(info)
                )
            buffer = self._buffers.reserve(info.name, value.nbytes)
            self._context.set_tensor_address(info.name, buffer.device)
            np.copyto(self._buffers.view(info.name, value.shape, info.dtype), value)
        for info in self.outputs:
            shape = tuple(int(d) for d in self._context.get_tensor_shape(info.name))
            if min(shape, default=0) < 0 and info.name not in self._dependent:
                self._dependent.add(info.name)
                self._allocators[info.name] = self._allocator(info.name)
            if info.name not in self._dependent:
                buffer = self._buffers.reserve(info.name, _size_bytes(info, shape))
                self._context.set_tensor_address(info.name, buffer.device)

    def _shapes(self, info: TensorInfo) -> str:
        if info.name in self._profile:
            low, _, high = self._profile[info.name]
            other = "another --batch" if len(high) < 4 or low[1:] == high[1:] else "other sizes"
            return f"the plan takes {list(low)} to {list(high)}; build with {other}"
        return f"the plan takes {list(info.shape)}"

    def _copy_in(self, feed: Feed) -> None:
        for info in self.inputs:
            self._buffers.copy_in(info.name, np.asarray(feed[info.name]).nbytes)

    def _copy_out(self) -> None:
        for info in self.outputs:
            self._buffers.copy_out(info.name, _size_bytes(info, self._shape_of(info)))

    def _shape_of(self, info: TensorInfo) -> tuple[int, ...]:
        if info.name in self._dependent:
            shape: tuple[int, ...] = self._allocators[info.name].shape
            return shape
        return tuple(int(d) for d in self._context.get_tensor_shape(info.name))

    def _launch(self) -> None:
        """Start the network on the stream: the captured graph, or kernel by kernel."""
        if self._graph is not None:
            self._check(self._cuda.cudaGraphLaunch(self._graph, self._stream), "cudaGraphLaunch")
        elif not self._context.execute_async_v3(int(self._stream)):
            cause = self._log.errors[-1][:200] if self._log.errors else "it gives no reason"
            raise BackendError("inference", f"TensorRT failed ({cause})", "check nvidia-smi")

    def _ready_graph(self) -> None:
        """Capture the network for the shapes and addresses that are bound, unless that was done."""
        if not self._wants_graph or self._obstacle:
            return
        key = tuple(
            (i.name, self._buffers.address(i.name), tuple(self._context.get_tensor_shape(i.name)))
            for i in (*self.inputs, *self.outputs)
            if i.name not in self._dependent
        )
        if self._graph is not None and key == self._graph_key:
            return
        self._drop_graph()
        if self._dependent:
            self._obstacle = "its outputs' sizes depend on the data"
            return
        self._launch()  # what TensorRT sets up on the first call of a shape cannot be captured
        self._synchronize()
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._cuda.cudaStreamBeginCapture(self._stream, mode), "cudaStreamBeginCapture")
        launched = self._context.execute_async_v3(int(self._stream))
        status, captured = self._cuda.cudaStreamEndCapture(self._stream)
        if not launched or int(status) != 0:
            self._obstacle = "this plan cannot be captured"
            return
        self._graph = cuda_result(
            self._cuda.cudaGraphInstantiate(captured, 0), "cudaGraphInstantiate"
        )
        self._check(self._cuda.cudaGraphDestroy(captured), "cudaGraphDestroy")
        self._graph_key = key

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.cudaGraphExecDestroy(self._graph)
        self._graph, self._graph_key = None, ()

    def _check(self, answer: tuple[Any, ...], what: str) -> None:
        cuda_result(answer, what)

    def _synchronize(self) -> None:
        self._check(self._cuda.cudaStreamSynchronize(self._stream), "the network")

    def _record(self, index: int) -> None:
        self._check(
            self._cuda.cudaEventRecord(self._events[index], self._stream), "cudaEventRecord"
        )

    def _between(self, first: int, second: int) -> float:
        """Return the milliseconds between two events that have passed."""
        return float(
            cuda_result(
                self._cuda.cudaEventElapsedTime(self._events[first], self._events[second]),
                "cudaEventElapsedTime",
            )
        )

    def _outputs(self) -> dict[str, npt.NDArray[Any]]:
        return {
            o.name: self._buffers.view(o.name, self._shape_of(o), o.dtype) for o in self.outputs
        }

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are views of pinned memory until the next call.

        Raises:
            BackendError: The feed does not fit the plan, or the run fails.
        """
        self._stage(feed)
        self._ready_graph()
        self._copy_in(feed)
        self._launch()
        if self._dependent:
            self._synchronize()  # the sizes are known only now
        self._copy_out()
        self._synchronize()
        return self._outputs()

    def infer_in_steps(self, feed: Feed) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
        """Run once; the network and the copies are timed by CUDA events.

        The copy of the feed into pinned memory counts as copying in, by the host's clock.

        Raises:
            BackendError: The feed does not fit the plan, or the run fails.
        """
        begin = perf_counter()
        self._stage(feed)
        staged_ms = (perf_counter() - begin) * 1e3
        self._ready_graph()
        self._record(0)
        self._copy_in(feed)
        self._record(1)
        self._launch()
        self._record(2)
        if self._dependent:
            self._synchronize()
        self._copy_out()
        self._record(3)
        self._synchronize()
        times = StepTimes(staged_ms + self._between(0, 1), self._between(1, 2), self._between(2, 3))
        return self._outputs(), times

    def launch_times(self, feed: Feed, count: int) -> list[float]:
        """Run the network alone so often on a feed that lies on the GPU already.

        Returns:
            Milliseconds of each run, by CUDA events around it.

        Raises:
            BackendError: The feed does not fit the plan, or a run fails.
        """
        self.infer(feed)
        times = []
        for _ in range(count):
            self._record(0)
            self._launch()
            self._record(1)
            self._synchronize()
            times.append(self._between(0, 1))
        return times

    def close(self) -> None:
        """Free the context, its buffers and the plan; a second call does nothing."""
        if self._stream is None:
            return
        self._cuda.cudaStreamSynchronize(self._stream)
        self._drop_graph()
        self._buffers.free()
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
        self._cuda.cudaStreamDestroy(self._stream)
        self._stream, self._events = None, []
        self._allocators.clear()
        del self._context, self._engine, self._runtime


def _size_bytes(info: TensorInfo, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(info.dtype).itemsize


def _is_rtx(record: EngineRecord) -> bool:
    return record.runtime == "tensorrt-rtx"


def _missing() -> str | None:
    """Return the extra to install when no plan can run here: no TensorRT, bindings or GPU."""
    found = module_name("tensorrt") or module_name("tensorrt-rtx")
    if found is None or cuda_runtime() is None or find_gpu() is None:
        return "tensorrt"
    return None


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


BACKEND = BackendKind(
    name="tensorrt",
    suffixes=(".plan", ".engine"),
    missing=_missing,
    open=TensorRtBackend,
    open_bytes=TensorRtBackend,
    versions=_versions,
)
