"""One execution context of a plan: its stream, its memory and its CUDA graphs.

Several contexts share one engine, so that the copy in of one batch, the network of another and the
copy out of a third overlap. Inputs come from the host, through pinned memory, or lie on the GPU
already. A CUDA graph has the addresses of its inputs in it: an address on the GPU that has come
twice is captured for itself and bound without a copy, for at most eight of them; before that, and
beyond, it is copied across the device into the buffer that has a graph. Capturing costs
milliseconds and such a copy microseconds, so that a producer with a pool of buffers gets graphs
and one whose addresses never come back pays no capture for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.cuda_capture import captured
from boxwright.cuda_memory import DeviceBuffers
from boxwright.device_arrays import DeviceArray, device_array, is_on_device
from boxwright.errors import BackendError
from boxwright.nvidia import allocator_class, cuda_result
from boxwright.types import TensorInfo

__all__ = ["Plan", "PlanContext"]

_NON_BLOCKING = 1
_BLOCKING_WITHOUT_TIME = 3  # cudaEventBlockingSync | cudaEventDisableTiming
_OUTPUTS = "outputs"  # all outputs of known size share a block, so that one copy brings them
_ALIGNMENT = 256
_MOST_GRAPHS = 8
_SEEN_BEFORE_CAPTURE = 2
_MOST_SEEN = 1024

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(slots=True)
class Plan:
    """What the contexts of an engine share.

    Attributes:
        trt, cuda: TensorRT's and the CUDA runtime's modules.
        log: TensorRT's logger.
        inputs, outputs: Its tensors.
        profile: Smallest, best and largest shape by input; empty when nobody says.
        device: Number of the GPU.
        wants_graph: Capture and replay CUDA graphs.
        dependent: Outputs whose size depends on the data.
        obstacle: Why there is no CUDA graph, or "".
        frames_obstacle: Why pictures have a graph of the network alone, or "".
    """

    trt: Any
    cuda: Any
    log: Any
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profile: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    device: int
    wants_graph: bool
    dependent: set[str] = field(default_factory=set)
    obstacle: str = ""
    frames_obstacle: str = ""

    def cause(self) -> str:
        """Return the last error of TensorRT, for a message."""
        return self.log.errors[-1][:200] if self.log.errors else "it gives no reason"

    def shapes_of(self, info: TensorInfo) -> str:
        """Say which shapes of an input the plan takes."""
        if info.name in self.profile:
            low, _, high = self.profile[info.name]
            other = "another --batch" if len(high) < 4 or low[1:] == high[1:] else "other sizes"
            return f"the plan takes {list(low)} to {list(high)}; build with {other}"
        return f"the plan takes {list(info.shape)}"


class PlanContext:
    """A context with its own stream; for one thread at a time.

    Attributes:
        stream: That it runs on.
        graphs: Whether runs that follow are captured and replayed.
    """

    def __init__(self, plan: Plan, engine: Any, what: str, graphs: bool | None = None) -> None:
        """Make a context.

        Args:
            plan: What it shares with others.
            engine: The deserialised plan.
            what: The file, for errors.
            graphs: Capture and replay CUDA graphs; None: as the plan wants.

        Raises:
            BackendError: There is not enough memory on the GPU.
        """
        self._plan, self._cuda = plan, plan.cuda
        self.graphs = plan.wants_graph if graphs is None else graphs
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                what, "there is not enough GPU memory for it", "free some, or use a smaller --batch"
            )
        self.stream: Any = cuda_result(
            self._cuda.cudaStreamCreateWithFlags(_NON_BLOCKING), "cudaStreamCreateWithFlags"
        )
        self._buffers = DeviceBuffers(self._cuda, self.stream)
        self._events = [
            cuda_result(self._cuda.cudaEventCreate(), "cudaEventCreate") for _ in range(5)
        ]
        self._done = cuda_result(
            self._cuda.cudaEventCreateWithFlags(_BLOCKING_WITHOUT_TIME), "cudaEventCreateWithFlags"
        )
        self._allocators = {name: self._allocator(name) for name in plan.dependent}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of all tensors, as they are bound
        self._bound: dict[str, int] = {}  # addresses of the inputs, as they are bound
        self._offsets: dict[str, int] = {}  # of the outputs in their block
        self._block_bytes = 0
        self._views: Arrays = {}  # of the outputs' pinned memory, while their shapes stay
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._frames_graph: Any = None  # from the pictures to the outputs on the host
        self._frames_key: tuple[int, ...] = ()  # addresses of the last such run
        self._seen: dict[tuple[str, int], int] = {}
        self._held: list[DeviceArray] = []

    def _allocator(self, name: str) -> Any:
        """Return what gives TensorRT memory for an output whose size it alone knows."""
        allocator = allocator_class(self._plan.trt)(
            lambda size: self._buffers.reserve(name, size).device
        )
        if not self._context.set_output_allocator(name, allocator):
            raise BackendError(
                "inference", f"TensorRT takes no allocator for {name}", "please report it"
            )
        return allocator

    def attach_thread(self) -> None:
        """Make the plan's GPU the one of the calling thread.

        Raises:
            BackendError: CUDA refuses.
        """
        cuda_result(self._cuda.cudaSetDevice(self._plan.device), "cudaSetDevice")

    # -- binding

    def input_view(self, name: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return an input's pinned memory; fed as it is, it is not copied on the host again.

        Raises:
            BackendError: There is no memory left.
        """
        self._buffers.reserve(name, math.prod(shape) * np.dtype(dtype).itemsize)
        return self._buffers.view(name, shape, dtype)

    def input_address(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        """Return where an input's own buffer lies on the device, for a kernel that fills it.

        Raises:
            BackendError: There is no memory left.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self._buffers.reserve(name, size, pinned=False).device

    def _values(self, feed: Any) -> dict[str, Any]:
        """Return the inputs, checked: arrays of the host, and of the device as `DeviceArray`.

        Raises:
            BackendError: A tensor is missing, or its type or place is not the plan's.
        """
        values: dict[str, Any] = {}
        for info in self._plan.inputs:
            if info.name not in feed:
                raise BackendError("inference", f"the input {info.name} is missing", "feed it")
            value = feed[info.name]
            if is_on_device(value):
                value = device_array(value, self._cuda, self.stream, info.name)
                self._held.append(value)
                value.check_device(self._cuda, self._plan.device, info.name)
                if not value.is_contiguous:
                    raise BackendError(
                        "inference", f"{info.name} has gaps", "make it contiguous first"
                    )
            else:
                value = np.asarray(value)
            dtype = value.dtype if isinstance(value, DeviceArray) else value.dtype.name
            if dtype != info.dtype:
                raise BackendError("inference", f"{info.name} is {dtype}", f"feed {info.dtype}")
            values[info.name] = value
        return values

    def bind(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        """Tell TensorRT shapes and addresses of the inputs and outputs, where they are new.

        Args:
            shapes: By input.
            addresses: By input; those that are missing have their own buffers.

        Raises:
            BackendError: A shape is not the plan's, or there is no memory left.
        """
        plan = self._plan
        if any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            self._drop_graphs()
            self._shapes, self._bound, self._views = {}, {}, {}
            for info in plan.inputs:
                shape = shapes[info.name]
                if not self._context.set_input_shape(info.name, shape):
                    raise BackendError(
                        "inference", f"{info.name} has the shape {shape}", plan.shapes_of(info)
                    )
            self._bind_outputs()
            self._shapes.update(shapes)
        for info in plan.inputs:
            address = addresses.get(info.name)
            if address is None:
                size = _size_bytes(info, shapes[info.name])
                address = self._buffers.reserve(info.name, size).device
            if self._bound.get(info.name) != address:
                self._context.set_tensor_address(info.name, address)
                self._bound[info.name] = address

    def bind_own(self, shape: tuple[int, ...]) -> int:
        """Bind the only input to its own buffer, for a kernel that fills it.

        Returns:
            Its address on the device.

        Raises:
            BackendError: The shape is not the plan's, or there is no memory left.
        """
        info = self._plan.inputs[0]
        bound = self._bound.get(info.name)
        if self._shapes.get(info.name) == shape and bound == self._buffers.address(info.name):
            return self._buffers.address(info.name)
        address = self.input_address(info.name, shape, info.dtype)
        self.bind({info.name: shape}, {info.name: address})
        return address

    def _bind_outputs(self) -> None:
        """Lay the outputs of known size out in one block."""
        known: dict[str, int] = {}
        end = 0
        for info in self._plan.outputs:
            shape = tuple(int(d) for d in self._context.get_tensor_shape(info.name))
            if min(shape, default=0) < 0:
                self._plan.dependent.add(info.name)
            if info.name in self._plan.dependent:
                if info.name not in self._allocators:
                    self._allocators[info.name] = self._allocator(info.name)
                continue
            self._shapes[info.name] = shape
            known[info.name] = end
            end += -(-max(_size_bytes(info, shape), 1) // _ALIGNMENT) * _ALIGNMENT
        if known:
            block = self._buffers.reserve(_OUTPUTS, end).device
            for name, offset in known.items():
                self._context.set_tensor_address(name, block + offset)
        self._offsets, self._block_bytes = known, end

    def _addresses(self, values: dict[str, Any]) -> dict[str, int]:
        """Return the inputs that are bound where they lie; the others go through own buffers."""
        direct: dict[str, int] = {}
        capturing = self.graphs and not self._plan.obstacle
        for name, value in values.items():
            if not isinstance(value, DeviceArray):
                continue
            if not capturing:
                direct[name] = value.pointer
                continue
            if len(self._seen) > _MOST_SEEN:
                self._seen.clear()
            key = (name, value.pointer)
            count = self._seen[key] = self._seen.get(key, 0) + 1
            known = any(value.pointer in graph for graph in self._graphs)
            if known or (count > _SEEN_BEFORE_CAPTURE and len(self._graphs) < _MOST_GRAPHS):
                direct[name] = value.pointer
        return direct

    # -- one inference

    def start(self, feed: Any) -> None:
        """Start one inference; `finish` waits for it.

        Raises:
            BackendError: The feed does not fit the plan, or the run fails.
        """
        try:
            values = self.stage(feed)
            self.ready_graph()
            self.copy_in(values)
            self.launch()
            self.copy_out()
        except BackendError:
            self._release()
            raise

    def start_frames(self, kernel: Callable[[], None], pictures: int) -> None:
        """Start a kernel that fills the bound input, the network, and the copy of the outputs.

        The second run in a row on the same addresses is captured whole, so that from then on each
        is one launch. A first run is not: buffers grow, and a batch of another size may stay the
        only one.

        Args:
            kernel: Launches it on the stream, with the same arguments for the same `pictures`.
            pictures: Address of what it reads.

        Raises:
            BackendError: A launch fails.
        """
        plan = self._plan
        if plan.dependent or plan.obstacle or plan.frames_obstacle or not plan.wants_graph:
            kernel()
            self.ready_graph()
            self.launch()
            self.copy_out()
            return
        key = (pictures, *self._graph_key())
        if key != self._frames_key:
            self._drop_frames_graph()
            self._start_singly(kernel)
            self._frames_key = key
            return
        if self._frames_graph is None:
            self._frames_graph = captured(
                self._cuda, self.stream, lambda: self._start_singly(kernel)
            )
            if self._frames_graph is None:
                plan.frames_obstacle = "letterbox and copies cannot be captured"
                self.start_frames(kernel, pictures)
                return
        cuda_result(self._cuda.cudaGraphLaunch(self._frames_graph, self.stream), "cudaGraphLaunch")

    def _start_singly(self, kernel: Callable[[], None]) -> bool:
        """Start what a graph of pictures holds."""
        kernel()
        self._execute()
        self.copy_out()
        return True

    def stage(self, feed: Any) -> dict[str, Any]:
        """Check the feed, bind every tensor, and copy what lies on the host into pinned memory.

        Raises:
            BackendError: The feed does not fit the plan.
        """
        values = self._values(feed)
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        self.bind(shapes, self._addresses(values))
        for name, value in values.items():
            if isinstance(value, DeviceArray):
                continue
            if value.ctypes.data != self._buffers.host_address(name):
                np.copyto(self._buffers.view(name, value.shape, value.dtype.name), value)
        return values

    def copy_in(self, values: dict[str, Any]) -> None:
        """Start copying the inputs that are not bound where they lie."""
        for name, value in values.items():
            if not isinstance(value, DeviceArray):
                self._buffers.copy_in(name, value.nbytes)
            elif self._bound[name] != value.pointer:
                self._buffers.copy_across(name, value.pointer, value.nbytes)

    def launch(self) -> None:
        """Start the network on the stream: the captured graph, or kernel by kernel.

        Raises:
            BackendError: It does not start.
        """
        graph = self._graphs.get(self._graph_key())
        if graph is not None:
            cuda_result(self._cuda.cudaGraphLaunch(graph, self.stream), "cudaGraphLaunch")
        else:
            self._execute()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self.stream)):
            raise BackendError(
                "inference", f"TensorRT failed ({self._plan.cause()})", "check nvidia-smi"
            )

    def _graph_key(self) -> tuple[int, ...]:
        return tuple(self._bound.values())

    def ready_graph(self) -> None:
        """Capture the network for the shapes and addresses that are bound, unless that was done.

        Raises:
            BackendError: The network fails.
        """
        plan = self._plan
        if not self.graphs or plan.obstacle or self._graph_key() in self._graphs:
            return
        if plan.dependent:
            plan.obstacle = "its outputs' sizes depend on the data"
            return
        self.launch()  # what TensorRT sets up on the first call of a shape cannot be captured
        self.synchronize()
        graph = captured(
            self._cuda,
            self.stream,
            lambda: bool(self._context.execute_async_v3(int(self.stream))),
        )
        if graph is None:
            plan.obstacle = "this plan cannot be captured"
            return
        self._graphs[self._graph_key()] = graph

    def copy_out(self) -> None:
        """Start copying the outputs; a run whose sizes depend on the data is waited for first."""
        plan = self._plan
        if plan.dependent:
            self.synchronize()
        for info in plan.outputs:
            if info.name in plan.dependent:
                self._buffers.copy_out(info.name, _size_bytes(info, self._shape_of(info)))
        if self._offsets:
            self._buffers.copy_out(_OUTPUTS, self._block_bytes)

    def finish(self, *, patient: bool = False) -> Arrays:
        """Wait for the inference; the outputs are views of pinned memory until the next one.

        Args:
            patient: Sleep while waiting, which leaves the core to others and costs some latency.

        Raises:
            BackendError: The run failed.
        """
        try:
            if patient:
                done = self._done
                cuda_result(self._cuda.cudaEventRecord(done, self.stream), "cudaEventRecord")
                cuda_result(self._cuda.cudaEventSynchronize(done), "the network")
            else:
                self.synchronize()
        finally:
            self._release()
        return self.outputs()

    def outputs(self) -> Arrays:
        """Return the outputs as views of pinned memory."""
        if self._views:
            return dict(self._views)
        found: Arrays = {}
        for info in self._plan.outputs:
            own = info.name in self._plan.dependent
            name, offset = (info.name, 0) if own else (_OUTPUTS, self._offsets[info.name])
            found[info.name] = self._buffers.view(name, self._shape_of(info), info.dtype, offset)
        self._views = {} if self._plan.dependent else dict(found)
        return found

    def _shape_of(self, info: TensorInfo) -> tuple[int, ...]:
        if info.name in self._plan.dependent:
            shape: tuple[int, ...] = self._allocators[info.name].shape
            return shape
        return self._shapes[info.name]

    def synchronize(self) -> None:
        """Wait for the stream, without giving the core away."""
        cuda_result(self._cuda.cudaStreamSynchronize(self.stream), "the network")

    # -- timing

    def run_timed(self, feed: Any) -> tuple[float, float, float]:
        """Run once and return the milliseconds of copy in, network and copy out.

        The copy of the feed into pinned memory counts as copying in, by the host's clock.

        Raises:
            BackendError: The feed does not fit the plan, or the run fails.
        """
        try:
            begin = perf_counter()
            values = self.stage(feed)
            staged_ms = (perf_counter() - begin) * 1e3
            self.ready_graph()
            self.mark(0)
            self.copy_in(values)
            self.mark(1)
            self.launch()
            self.mark(2)
            self.copy_out()
            self.mark(3)
            self.synchronize()
        finally:
            self._release()
        return staged_ms + self.between_ms(0, 1), self.between_ms(1, 2), self.between_ms(2, 3)

    def launch_timed(self) -> float:
        """Run the network alone on what is bound and return its milliseconds.

        Raises:
            BackendError: The run fails.
        """
        self.mark(0)
        self.launch()
        self.mark(1)
        self.synchronize()
        return self.between_ms(0, 1)

    def mark(self, index: int) -> None:
        """Let the stream record one of five events."""
        cuda_result(self._cuda.cudaEventRecord(self._events[index], self.stream), "cudaEventRecord")

    def between_ms(self, first: int, second: int) -> float:
        """Return the milliseconds between two events that have passed."""
        return float(
            cuda_result(
                self._cuda.cudaEventElapsedTime(self._events[first], self._events[second]),
                "cudaEventElapsedTime",
            )
        )

    # -- the end

    def _release(self) -> None:
        """Give the arrays of others back."""
        for array in self._held:
            array.release()
        self._held.clear()

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            self._cuda.cudaGraphExecDestroy(graph)
        self._graphs.clear()
        self._drop_frames_graph()

    def _drop_frames_graph(self) -> None:
        graph, self._frames_graph, self._frames_key = self._frames_graph, None, ()
        if graph is not None:
            self._cuda.cudaGraphExecDestroy(graph)

    def close(self) -> None:
        """Free the context and its buffers; a second call does nothing."""
        if self.stream is None:
            return
        self._cuda.cudaStreamSynchronize(self.stream)
        self._release()
        self._drop_graphs()
        self._buffers.free()
        for event in (*self._events, self._done):
            self._cuda.cudaEventDestroy(event)
        self._cuda.cudaStreamDestroy(self.stream)
        self.stream = None
        self._allocators.clear()
        self._context = None


def _size_bytes(info: TensorInfo, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(info.dtype).itemsize
