"""A TensorRT and a CUDA runtime of NumPy: enough to see in which order a backend calls them.

"Device" memory is host memory at another address; the network doubles its input, or is whatever
ONNX Runtime computes of a file. While a stream is captured nothing runs: the calls are kept, and a
launch of the graph makes them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime


class Status(int):
    """A status with a name, as CUDA's enumerations have."""

    name = "cudaErrorMemoryAllocation"


class FakeCuda:
    """The part of `cuda.bindings.runtime` that the backend calls; `calls` says in which order."""

    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.freed: list[Any] = []  # a block comes again where one of its size is asked for
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: list[list[Callable[[], None]]] = []
        self.places: dict[int, int] = {}  # address -> GPU, where that is not 0
        self.full = False
        self.free_bytes = 1 << 34
        self.broken: set[int] = set()  # graphs whose launch fails
        self.capture_limit: int | None = None  # how many calls a capture may hold
        self.refuses = ""  # a kind of copy

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*_: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            return (0, 7) if "Create" in name else (0,)

        return call

    def _allocate(self, size: int) -> tuple[Any, ...]:
        assert self.capturing is None, "memory is not taken while a stream is captured"
        if self.full:
            return (Status(2), 0)
        same = [block for block in self.freed if len(block) == size]
        block = same[-1] if same else ctypes.create_string_buffer(size)
        self.freed = [other for other in self.freed if other is not block]
        address = ctypes.addressof(block)
        self.memory[address] = block
        return (0, address)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        self.calls.append("cudaMalloc")
        return self._allocate(size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        return self._allocate(size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self.freed.append(self.memory.pop(address))
        return (0,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(self, to: int, of: int, size: int, kind: int, _: Any) -> tuple[Any, ...]:  # noqa: N802
        name = {1: "copy_in", 2: "copy_out", 3: "copy_across"}[kind]
        if self.refuses == name:
            return (Status(1),)

        def copy() -> None:
            assert min(self.room(to), self.room(of)) >= size > 0, "memory that is not there"
            ctypes.memmove(to, of, size)

        self.do(name, copy)
        return (0,)

    def room(self, address: int) -> int:
        """Return how many bytes are there from an address on; 0 where the memory was freed."""
        for start, block in self.memory.items():
            if start <= address < start + len(block):
                return start + len(block) - address
        return 0

    def do(self, name: str, work: Callable[[], None]) -> None:
        """Do something on the stream, or keep it where that is captured."""
        if self.capturing is not None:
            self.capturing.append(work)
            return
        self.calls.append(name)
        work()

    def cudaStreamSynchronize(self, _: Any) -> tuple[Any, ...]:  # noqa: N802
        self.calls.append("cudaStreamSynchronize")
        assert self.capturing is None, "that ends a capture"
        return (0,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        return (0, self.free_bytes, 1 << 35)

    def cudaGetDevice(self) -> tuple[Any, ...]:  # noqa: N802
        return (0, 0)

    def cudaPointerGetAttributes(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        return (0, SimpleNamespace(device=self.places.get(address, 0)))

    def cudaStreamBeginCapture(self, *_: Any) -> tuple[Any, ...]:  # noqa: N802
        self.calls.append("capture")
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, _: Any) -> tuple[Any, ...]:  # noqa: N802
        kept, self.capturing = self.capturing or [], None
        if self.capture_limit is not None and len(kept) > self.capture_limit:
            return (Status(900), None)
        self.graphs.append(kept)
        return (0, len(self.graphs))

    def cudaGraphInstantiate(self, graph: int, _: int) -> tuple[Any, ...]:  # noqa: N802
        return (0, graph)

    def cudaGraphLaunch(self, graph: int, _: Any) -> tuple[Any, ...]:  # noqa: N802
        self.calls.append("replay")
        if graph in self.broken:
            return (Status(700),)
        for work in self.graphs[graph - 1]:
            work()
        return (0,)

    def cudaEventElapsedTime(self, *_: Any) -> tuple[Any, ...]:  # noqa: N802
        return (0, 1.5)


class _Context:
    def __init__(self, cuda: FakeCuda, engine: _Engine) -> None:
        self._cuda, self._engine = cuda, engine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.allocator: Any = None

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        rest = self._engine.network.input_shape
        sizes = len(shape) == len(rest) + 1 and all(
            b in (a, -1) for a, b in zip(shape[1:], rest, strict=True)
        )
        fits = sizes and 1 <= shape[0] <= self._engine.most
        self.shape = shape if fits else self.shape
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        network = self._engine.network
        if name == network.input_name:
            return self.shape
        sizes = [b if b >= 0 else self.shape[i] for i, b in enumerate(network.output_shape, 1)]
        return (-1 if self._engine.dependent else self.shape[0], *sizes)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_output_allocator(self, _: str, allocator: Any) -> bool:
        self.allocator = allocator
        return True

    def execute_async_v3(self, _: int) -> bool:
        self._cuda.do("launch", self._work(dict(self.addresses), self.shape))
        return True

    def _work(self, addresses: dict[str, int], shape: tuple[int, ...]) -> Callable[[], None]:
        def work() -> None:
            network = self._engine.network
            memory = self._cuda.memory[addresses[network.input_name]]
            data = np.frombuffer(memory, network.input_dtype, int(np.prod(shape)))
            result = network.compute(data.reshape(shape))
            target = addresses.get(network.output_name)
            if self.allocator is not None:
                result = result[result[:, 0] > 0]  # rows depend on the data
                target = self.allocator.reallocate_output("out", 0, result.nbytes, 256)
                self.allocator.notify_shape("out", result.shape)
            ctypes.memmove(target, np.ascontiguousarray(result).ctypes.data, result.nbytes)

        return work


@dataclass
class Network:
    """One input, one float32 output, and what lies between; shapes without the batch.

    A size of -1 is free; of the output it is that of the input.
    """

    input_name: str = "in"
    output_name: str = "out"
    input_shape: tuple[int, ...] = (3,)
    output_shape: tuple[int, ...] = (3,)
    compute: Callable[[Any], Any] = lambda data: data * 2
    input_dtype: str = "float32"


def network_of(onnx: Path) -> Network:
    """Return a network that is computed by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    return Network(
        given.name,
        found.name,
        tuple(d if isinstance(d, int) else -1 for d in given.shape[1:]),
        tuple(found.shape[1:]),
        lambda data: session.run(None, {given.name: data})[0],
        {"tensor(float)": "float32", "tensor(uint8)": "uint8"}[given.type],
    )


class _Engine:
    num_io_tensors = 2

    def __init__(
        self, cuda: FakeCuda, network: Network, *, most: int, free: bool, dependent: bool
    ) -> None:
        self._cuda, self.network = cuda, network
        self.most, self._free, self.dependent = most, free, dependent
        self.contexts, self.before_10 = 0, False

    def get_tensor_name(self, index: int) -> str:
        return (self.network.input_name, self.network.output_name)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == self.network.input_name else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self.network.input_dtype if name == self.network.input_name else "float32"
        return SimpleNamespace(name={"float32": "FLOAT", "uint8": "UINT8"}[kind])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        is_input = name == self.network.input_name
        free = self._free or (self.dependent and not is_input)
        rest = self.network.input_shape if is_input else self.network.output_shape
        return (-1 if free else 2, *rest)

    def create_execution_context(self) -> _Context | None:
        if self._cuda.full:
            return None
        self.contexts += 1
        if self._free and self.contexts > 1 and self.before_10:
            raise AssertionError("profile 0 has been chosen for another IExecutionContext")
        return _Context(self._cuda, self)


def fake_tensorrt(
    cuda: FakeCuda,
    *,
    version: str = "8.6.0",
    most: int = 2,
    free: bool = False,
    dependent: bool = False,
    loads: bool = True,
    network: Network | None = None,
) -> Any:
    """Return a module whose every plan is the same network.

    Args:
        cuda: Its memory.
        version: Of itself.
        most: Rows that the input may have.
        free: Whether their number is free.
        dependent: Only rows that begin with a positive number come out.
        loads: Whether a plan can be deserialised.
        network: By default it doubles a tensor (N, 3).
    """

    engines: list[_Engine] = []

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class IOutputAllocator:
        pass

    class Runtime:
        def __init__(self, log: Any) -> None:
            self._log = log

        def deserialize_cuda_engine(self, _: bytes) -> _Engine | None:
            if loads:
                engine = _Engine(
                    cuda, network or Network(), most=most, free=free, dependent=dependent
                )
                engine.before_10 = int(version.split(".")[0]) < 10
                engines.append(engine)
                return engine
            self._log.log(ILogger.Severity.ERROR, "magic tag does not match")
            return None

    return SimpleNamespace(
        __version__=version,
        engines=engines,
        ILogger=ILogger,
        IOutputAllocator=IOutputAllocator,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="INPUT"),
    )
