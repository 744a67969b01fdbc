"""OpenVINO on the CPU: for many pictures the faster runtime in FP32 on x86."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends import BackendKind, BackendOptions, Feed
from boxwright.devices import device_from_text
from boxwright.errors import BackendError, MissingExtraError
from boxwright.types import TensorInfo

__all__ = ["BACKEND", "OpenVinoBackend"]

_DTYPES = {"f32": "float32", "f16": "float16", "i32": "int32", "i64": "int64", "u8": "uint8"}

_SHAPES = 4  # that stay compiled


@dataclass(frozen=True, slots=True)
class _Compiled:
    model: Any
    request: Any


class OpenVinoBackend:
    """A compiled model on the CPU, in float32.

    OpenVINO's own default is bfloat16 where the processor has it; that is another result than the
    file's, so the precision is fixed to f32 here.
    """

    def __init__(self, model: Path | bytes, options: BackendOptions) -> None:
        """Load a file or the bytes of a model.

        Raises:
            MissingExtraError: OpenVINO is not installed.
            BackendError: It refuses the model, or another device than the CPU was asked for.
        """
        if importlib.util.find_spec("openvino") is None:
            raise MissingExtraError("OpenVINO", "openvino")
        import openvino as ov

        what = "model" if isinstance(model, bytes) else str(model)
        if device_from_text(options.device).insists_on_gpu:
            raise BackendError(what, "OpenVINO has no CUDA device", "use --runtime onnxruntime")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY" if options.streams == 1 else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads * options.streams
        if options.streams > 1:
            settings["NUM_STREAMS"] = options.streams
        self._core, self._settings = ov.Core(), settings
        try:
            self._graph = self._core.read_model(model if isinstance(model, bytes) else str(model))
            self.inputs = tuple(_info(port) for port in self._graph.inputs)
            self.outputs = tuple(_info(port) for port in self._graph.outputs)
            self._compiled: OrderedDict[tuple[int, ...], _Compiled] = OrderedDict()
            shape = self._graph.inputs[0].get_partial_shape()
            first = tuple(d.get_length() if d.is_static else 1 for d in shape)
            # Only the batch is free; other free sizes wait for what they are fed.
            free = [d for d in list(shape)[1:] if not d.is_static]
            if not free:
                self._ready(first)
        except RuntimeError as error:
            raise BackendError(
                what,
                f"OpenVINO refuses it ({_cause(error)})",
                "try --runtime onnxruntime",
            ) from None
        self._streams = options.streams
        threads = f", {options.threads} threads" if options.threads else ""
        version = ov.get_version().split("-")[0]
        self.description = f"openvino {version} (CPU, f32{threads})"
        self.metadata = _metadata(self._graph)
        self._names = [o.name for o in self.outputs]

    def _ready(self, shape: tuple[int, ...]) -> _Compiled:
        """Return the model compiled for the shape of its first input.

        OpenVINO computes fixed shapes faster than free ones, and INT8 graphs of a free batch
        wrongly where GatherND follows (2026.4). A few shapes are kept, the latest ones.
        Where uint8 pictures go in, their sides stay free: nothing behind the preprocessing depends
        on them, and a new size would cost a compilation.
        """
        first = self._graph.inputs[0]
        if self.inputs[0].dtype == "uint8":
            sides = first.get_partial_shape()
            free = [
                -1 if not d.is_static and i else n
                for i, (d, n) in enumerate(zip(sides, shape, strict=True))
            ]
            shape = tuple(free)
        if shape in self._compiled:
            self._compiled.move_to_end(shape)
            return self._compiled[shape]
        graph = self._graph
        if graph.inputs[0].get_partial_shape().is_dynamic:
            graph = graph.clone()
            graph.reshape({graph.inputs[0]: list(shape)})
        model = self._core.compile_model(graph, "CPU", self._settings)
        self._compiled[shape] = _Compiled(model, model.create_infer_request())
        if len(self._compiled) > _SHAPES:
            self._compiled.popitem(last=False)
        return self._compiled[shape]

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are views of the runtime's memory until the next call.

        Raises:
            BackendError: The feed does not fit the graph, or the run fails.
        """
        try:
            request = self._ready(feed[self.inputs[0].name].shape).request
            results = request.infer(dict(feed), share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise BackendError(
                "inference", f"OpenVINO failed ({_cause(error)})", "check the input's shape"
            ) from None
        return {name: np.asarray(results[i]) for i, name in enumerate(self._names)}

    def infer_queued(self, feed: Feed, go_on: Callable[[], bool]) -> list[tuple[float, float]]:
        """Keep `streams` inferences in flight with OpenVINO's AsyncInferQueue.

        Returns:
            Of each inference, when it was submitted and when it was done, in seconds of
            `time.perf_counter`.

        Raises:
            BackendError: The feed does not fit the graph, or the run fails.
        """
        import openvino as ov

        # No callback in Python: its thread would want the interpreter's lock just when closing the
        # model, which holds that lock, waits for the thread.
        compiled = self._ready(feed[self.inputs[0].name].shape).model
        queue = ov.AsyncInferQueue(compiled, self._streams)
        begun: dict[int, float] = {}
        times: list[tuple[float, float]] = []

        def collect(slot: int) -> None:
            if slot in begun:
                begin = begun.pop(slot)
                times.append((begin, begin + queue[slot].latency / 1e3))

        try:
            while go_on():
                slot = queue.get_idle_request_id()  # waits for one; the wait is not its latency
                collect(slot)
                begun[slot] = perf_counter()
                queue.start_async(dict(feed), share_inputs=True)
            queue.wait_all()
            for slot in list(begun):
                collect(slot)
        except RuntimeError as error:
            raise BackendError(
                "inference", f"OpenVINO failed ({_cause(error)})", "check the input's shape"
            ) from None
        return times

    def close(self) -> None:
        """Free the compiled model."""
        self._compiled.clear()
        del self._graph, self._core


def _info(port: Any) -> TensorInfo:
    shape = tuple(d.get_length() if d.is_static else "?" for d in port.get_partial_shape())
    kind = port.get_element_type().get_type_name()
    # A port has every name that its tensor had on the way; the graph's own is the node's name.
    name = port.node.get_friendly_name().rsplit("/sink_port_", 1)[0]
    if name not in port.get_names():
        name = port.get_any_name()
    return TensorInfo(name, _DTYPES.get(kind, kind), shape)


def _metadata(graph: Any) -> dict[str, str]:
    """Return the ONNX metadata, which OpenVINO keeps under rt_info's `framework`."""
    info = graph.get_rt_info()
    if "framework" not in info:
        return {}
    return {str(k): str(v.astype(str)) for k, v in info["framework"].items()}


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-2:])[:220]


def _missing() -> str | None:
    return None if importlib.util.find_spec("openvino") else "openvino"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"openvino": version("openvino")}


BACKEND = BackendKind(
    name="openvino",
    suffixes=(".onnx",),
    missing=_missing,
    open=OpenVinoBackend,
    open_bytes=OpenVinoBackend,
    versions=_versions,
)
