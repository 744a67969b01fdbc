"""TensorRT and TensorRT-RTX: runs plans, without torch.

Memory, streams, events and graphs are the CUDA runtime's own, through cuda-bindings. Inputs on the
host go through pinned memory; inputs that lie on the GPU already are read where they are. The
network is captured as a CUDA graph for each new shape and replayed, which saves the launches of its
kernels. A plan whose outputs depend on the data (ONNX NonMaxSuppression) cannot be captured and
runs launch by launch. Several contexts of one plan keep several batches in flight. A plan whose
pictures may have any size keeps a context and a graph for each of the sizes that come often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy.typing as npt

from boxwright.backends import BackendKind, BackendOptions, Feed, StepTimes
from boxwright.devices import device_from_text
from boxwright.engine_record import EngineRecord, check_fits, read_plan, read_record
from boxwright.errors import BackendError, MissingExtraError, RequestError
from boxwright.frame_lane import FrameLane
from boxwright.gpu_preprocess import Letterbox
from boxwright.kept_shapes import KeptShapes, OpenedContext
from boxwright.nvidia import (
    TITLES,
    PlanRuntime,
    cuda_result,
    cuda_runtime,
    find_gpu,
    load_tensorrt,
    logger_class,
    module_name,
    version_numbers,
)
from boxwright.plan_context import Plan, PlanContext
from boxwright.shape_policy import DEFAULT_PLACES, MOST_PLACES, SEEN_BEFORE_PLACE
from boxwright.types import Preprocess, TensorInfo

__all__ = ["BACKEND", "TensorRtBackend", "Ticket"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_Found = TypeVar("_Found")
_LEAVE_SHARE = 0.25  # of the GPU's memory, to what is not a context of a kept shape


@dataclass(frozen=True, slots=True)
class Ticket:
    """An inference that was submitted.

    Attributes:
        number: Counts from 0.
        context: Which context it runs in.
    """

    number: int
    context: int


class TensorRtBackend:
    """A plan with one or more execution contexts.

    `infer` is for one thread at a time; `submit` and `collect` may be called by several.
    """

    def __init__(self, model: Path | bytes, options: BackendOptions, contexts: int = 1) -> None:
        """Load a plan.

        Args:
            model: The plan, or its path.
            options: As for every runtime.
            contexts: Inferences that `submit` keeps in flight; `infer` uses the first.

        Raises:
            MissingExtraError: cuda-bindings or TensorRT-RTX is not installed.
            SourceError: The plan's description is damaged or of another plan.
            BackendError: The plan is for another TensorRT or GPU, or there is none.
        """
        what = "plan" if isinstance(model, bytes) else str(model)
        choice = device_from_text(options.device)
        if choice.kind == "cpu":
            raise BackendError(what, "a plan runs on a GPU only", "drop --device cpu")
        record = None if isinstance(model, bytes) else read_record(model)
        data = model if isinstance(model, bytes) else read_plan(model, record)
        runtime: PlanRuntime = "tensorrt-rtx" if record and _is_rtx(record) else "tensorrt"
        self._trt = trt = load_tensorrt(runtime)
        cudart = cuda_runtime()
        if cudart is None:
            raise MissingExtraError("cuda-bindings", "tensorrt")
        self._cuda: Any = cudart
        self._device = choice.index
        self._select_device()
        gpu = find_gpu()
        if gpu is None:
            raise BackendError(what, "there is no GPU here", "run it where it was built")
        version = str(trt.__version__)
        if record is not None:
            check_fits(record, what, version, gpu)
        self.metadata: Mapping[str, str] = record.metadata if record else {}
        self._profile = record.profile if record else {}
        self._name = f"{runtime} {version} ({gpu.name}"
        self._compute_capability = gpu.compute_capability
        self._what = what
        self._title, self._record = TITLES[runtime], record
        self._log = logger_class(trt)()
        self._runtime = self._open_runtime(record)
        self._engines = [self._deserialize(data)]
        self.inputs, self.outputs, dependent = self._read_tensors(what)
        # Before TensorRT 10 contexts of one engine cannot share a profile: each has its own engine.
        shares = runtime == "tensorrt-rtx" or version_numbers(version) >= (10,)
        self._data = b"" if shares or not self._is_free else data
        self._plan = Plan(
            trt=trt,
            cuda=cudart,
            log=self._log,
            inputs=self.inputs,
            outputs=self.outputs,
            profile=self._profile,
            device=int(cuda_result(cudart.cudaGetDevice(), "cudaGetDevice")),
            wants_graph=options.cuda_graph,
            dependent=dependent,
        )
        self._letterbox: Letterbox | None = None
        self._lock = Lock()
        self._contexts: list[PlanContext] = []
        self._free: deque[int] = deque()
        self._in_flight: dict[int, int] = {}  # number of a ticket -> context
        self._count = 0
        self._kept: KeptShapes | None = None
        self._last: PlanContext | None = None  # in which `infer` ran
        self.reserve_contexts(contexts)
        if options.cuda_graph and self.has_free_sizes:
            self.keep_shapes(DEFAULT_PLACES)

    def _open_runtime(self, record: EngineRecord | None) -> Any:
        trt = self._trt
        if hasattr(trt, "init_libnvinfer_plugins") and self._title == TITLES["tensorrt"]:
            trt.init_libnvinfer_plugins(self._log, "")
        runtime = trt.Runtime(self._log)
        if record is not None and record.settings.get("version_compatible"):
            runtime.engine_host_code_allowed = True  # it brings its own lean runtime
        return runtime

    def _deserialize(self, data: bytes) -> Any:
        trt, what, title, record = self._trt, self._what, self._title, self._record
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            cause = self._log.errors[-1][:200] if self._log.errors else "it gives no reason"
            raise BackendError(
                what,
                f"{title} {trt.__version__} cannot load it ({cause})",
                f"rebuild with: {record.command}" if record else "build it here: boxwright build",
            )
        return engine

    def reserve_contexts(self, count: int) -> None:
        """Make so many contexts in all; those that are there stay.

        Contexts share the engine's weights, but for plans of a free batch before TensorRT 10.

        Raises:
            BackendError: There is not enough memory on the GPU.
        """
        self._select_device()
        while len(self._contexts) < count:
            if self._contexts and self._data:
                self._engines.append(self._deserialize(self._data))
            context = PlanContext(self._plan, self._engines[-1], self._what)
            with self._lock:
                self._free.append(len(self._contexts))
                self._contexts.append(context)

    def keep_shapes(self, count: int) -> None:
        """Let up to `count` shapes of the inputs have a context and a CUDA graph of their own.

        A shape gets one when it has come a few times (`ShapePolicy`); all others run in the first
        context, without a graph. A plan that has other free sizes than the batch, opened with
        graphs, keeps 8. Each takes the memory of a context on the GPU, and before TensorRT 10 of an
        engine; where that is short (a quarter of the GPU's stays free), the shape runs in the
        first context, and it is not tried again. What was kept before is freed.

        Args:
            count: 0 for none: then the first context captures each new shape, if graphs are wanted.

        Raises:
            RequestError: The number is not within 0 and 64, or the plan takes one shape only.
        """
        what = f"shapes {count}"
        if not 0 <= count <= MOST_PLACES:
            raise RequestError(what, f"it is not within 0 and {MOST_PLACES}", "give e.g. 8")
        if count and not any(isinstance(d, str) for i in self.inputs for d in i.shape):
            raise RequestError(what, "the plan takes one shape only", "drop it")
        self._select_device()
        if self._kept is not None:
            self._kept.close()
        self._last = None
        self._kept = None
        if count:
            self._kept = KeptShapes(self.inputs, count, self._open_kept, self._check_room)

    def _open_kept(self) -> OpenedContext:
        engine = self._deserialize(self._data) if self._data else self._engines[0]
        return OpenedContext(PlanContext(self._plan, engine, self._what, graphs=True), engine)

    def _check_room(self) -> None:
        """Refuse to take memory of the GPU that larger pictures, or others, will ask for.

        Raises:
            BackendError: Less than a quarter is free.
        """
        free, total = cuda_result(self._cuda.cudaMemGetInfo(), "cudaMemGetInfo")
        if free < total * _LEAVE_SHARE:
            raise BackendError("kept shapes", f"{free >> 20} MiB are left", "keep fewer")

    @property
    def kept_shapes(self) -> KeptShapes | None:
        """The shapes that have a context of their own; None where none may have."""
        return self._kept

    @property
    def has_free_sizes(self) -> bool:
        """Whether an input has other free sizes than the batch: pictures of any size."""
        return any(isinstance(d, str) for i in self.inputs for d in i.shape[1:])

    @property
    def contexts(self) -> int:
        """How many inferences `submit` keeps in flight."""
        return len(self._contexts)

    def _read_tensors(
        self, what: str
    ) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...], set[str]]:
        engine, trt = self._engines[0], self._trt
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
        # Without a free input, a free output depends on the data; with one, the first run shows.
        dependent = {
            o.name for o in outputs if not free_input and any(isinstance(d, str) for d in o.shape)
        }
        self._is_free = free_input
        return tuple(inputs), tuple(outputs), dependent

    def _only_shape(self, name: str, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return the shape of an input whose profile leaves no choice, else as it is."""
        low, _, high = self._profile.get(name, ((), (), (0,)))
        return tuple(high) if low == high else shape

    @property
    def description(self) -> str:
        """Runtime, version, GPU, and why there is no CUDA graph where there is none."""
        if self._plan.obstacle:
            return f"{self._name}, no CUDA graph: {self._plan.obstacle})"
        if self._kept is not None:
            return f"{self._name}, CUDA graphs of up to {self._kept.places} shapes)"
        if not self._plan.wants_graph:
            return f"{self._name})"
        alone = self._plan.frames_obstacle
        return f"{self._name}, CUDA graph{' of the network alone: ' if alone else ''}{alone})"

    @property
    def largest_batch(self) -> int | None:
        """The most pictures of one call, where the plan's description says so."""
        shapes = self._profile.get(self.inputs[0].name)
        return int(shapes[2][0]) if shapes else None

    # -- one inference at a time

    def input_view(self, name: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return an input's pinned memory, to be filled and fed to `infer` as it is.

        That saves the copy of the feed. It is valid until the next call for that input, and it is
        not to be written while `infer` runs.

        Args:
            name: Of the input.
            shape: With the batch.
            dtype: NumPy's name.

        Raises:
            BackendError: The plan has no such input, or there is no memory left.
        """
        if name not in {i.name for i in self.inputs}:
            raise BackendError("inference", f"the plan has no input {name}", "check the name")
        first = self._first()
        if self._kept is not None:
            return self._kept.input_view(first, name, shape, dtype)
        return first.input_view(name, shape, dtype)

    def infer(self, feed: Feed | Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are views of pinned memory until the next call.

        Args:
            feed: NumPy arrays, or arrays on the GPU by `__cuda_array_interface__` or DLPack, which
                are read where they lie.

        Raises:
            BackendError: The feed does not fit the plan, or the run fails.
        """

        def call(context: PlanContext) -> dict[str, npt.NDArray[Any]]:
            context.start(feed)
            return context.finish()

        return self._run(feed, call)

    def _run(self, feed: Mapping[str, Any], call: Callable[[PlanContext], _Found]) -> _Found:
        """Run one inference in the context of its shape, or in the first."""
        first = self._first()
        if self._kept is None:
            self._last = first
            return call(first)
        first.graphs = False  # a shape that is seldom here is not worth a capture
        try:
            self._last, found = self._kept.run(feed, first, call)
        finally:
            first.graphs = self._plan.wants_graph
        return found

    def _select_device(self) -> None:
        """Make the plan's GPU the current one of this thread, where it is not the first."""
        if self._device:
            cuda_result(self._cuda.cudaSetDevice(self._device), f"cudaSetDevice({self._device})")

    def _first(self) -> PlanContext:
        self._select_device()
        with self._lock:
            if 0 in self._in_flight.values():
                raise BackendError(
                    "inference", "the first context is in flight", "collect what was submitted"
                )
        return self._contexts[0]

    def infer_in_steps(self, feed: Feed) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
        """Run once; the network and the copies are timed by CUDA events.

        The copy of the feed into pinned memory counts as copying in, by the host's clock.

        Raises:
            BackendError: The feed does not fit the plan, or the run fails.
        """

        def call(context: PlanContext) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
            times = StepTimes(*context.run_timed(feed))
            return context.outputs(), times

        return self._run(feed, call)

    @property
    def launch_clock(self) -> str:
        """What `launch_times` goes by, in words."""
        return "CUDA events around the network"

    def launch_times(self, feed: Feed, count: int) -> list[float]:
        """Run the network alone so often on a feed that lies on the GPU already.

        Returns:
            Milliseconds of each run, by CUDA events around it.

        Raises:
            BackendError: The feed does not fit the plan, or a run fails.
        """
        for _ in range(1 if self._kept is None else SEEN_BEFORE_PLACE):
            self.infer(feed)
        assert self._last is not None
        return [self._last.launch_timed() for _ in range(count)]

    # -- several at once

    def submit(self, feed: Feed | Mapping[str, Any]) -> Ticket:
        """Start one inference and return at once.

        Arrays on the GPU must stay as they are until `collect`; those on the host may change at
        once, they have been copied.

        Raises:
            BackendError: All contexts are in flight, the feed does not fit, or the run fails.
        """
        self._select_device()
        with self._lock:
            if not self._free:
                raise BackendError(
                    "submit",
                    f"all {len(self._contexts)} contexts are in flight",
                    "collect a ticket first, or open more contexts",
                )
            ticket = Ticket(self._count, self._free.popleft())
            self._count += 1
            self._in_flight[ticket.number] = ticket.context
        try:
            self._contexts[ticket.context].start(feed)
        except BackendError:
            self._give_back(ticket)
            raise
        return ticket

    def collect(self, ticket: Ticket) -> dict[str, npt.NDArray[Any]]:
        """Wait for a submitted inference and return its outputs, as arrays of their own.

        Raises:
            BackendError: The ticket is unknown or was collected, or the run failed.
        """
        with self._lock:
            if self._in_flight.get(ticket.number) != ticket.context:
                raise BackendError(
                    f"ticket {ticket.number}", "it is not in flight", "collect each ticket once"
                )
        self._select_device()
        try:
            outputs = self._contexts[ticket.context].finish(patient=True)
            return {name: array.copy() for name, array in outputs.items()}
        finally:
            self._give_back(ticket)

    def _give_back(self, ticket: Ticket) -> None:
        with self._lock:
            if self._in_flight.pop(ticket.number, None) is not None:
                self._free.append(ticket.context)

    # -- lanes: a context each, whose memory is filled in place

    def tensor_lanes(self, count: int) -> list[PlanContext]:
        """Return so many contexts; while they are used, `infer` and `submit` must not be.

        Raises:
            BackendError: There is not enough memory on the GPU.
        """
        self.reserve_contexts(count)
        return self._contexts[:count]

    def frame_lanes(self, rules: Preprocess, size: tuple[int, int], count: int) -> list[FrameLane]:
        """Return lanes that take uint8 pictures and letterbox them on the GPU.

        Args:
            rules: The family's preprocessing.
            size: Network input (height, width) in pixels.
            count: Lanes, so batches in flight.

        Raises:
            RequestError: The kernel does not do what the rules say.
            MissingExtraError: cuda-bindings is not installed.
            BackendError: There is no NVRTC, or not enough memory.
        """
        if self._letterbox is None:
            self._letterbox = Letterbox(rules, size, self.inputs[0].dtype, self._compute_capability)
        contexts = self.tensor_lanes(count)
        return [FrameLane(self._plan, c, self._letterbox, rules, size) for c in contexts]

    def close(self) -> None:
        """Free contexts, buffers and the plan; a second call does nothing."""
        if self._kept is not None:
            self._kept.close()
        self._last = None
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        if self._letterbox is not None:
            self._letterbox.close()
            self._letterbox = None
        self._engines.clear()
        self._runtime = None


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
