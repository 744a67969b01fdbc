"""ONNX Runtime with a GPU of NumPy: what is bound, captured and replayed, computed on the CPU.

"Device" tensors are arrays of their own. A captured graph keeps the very tensors that were bound
when it was captured, and a replay reads and writes those, whatever is bound by then.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime


class Value:
    """A tensor on the "device"."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def numpy(self) -> np.ndarray:
        return self.array.copy()

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape and array.dtype == self.array.dtype
        self.array[...] = array


class Binding:
    """What is bound; None is an output that ONNX Runtime allocates."""

    def __init__(self) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value | None] = {}
        self.results: list[Value] = []

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value

    def bind_output(self, name: str, device: str, index: int) -> None:
        self.outputs[name] = None

    def clear_binding_outputs(self) -> None:
        self.outputs = {}

    def get_outputs(self) -> list[Value]:
        return self.results

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [value.numpy() for value in self.results]


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


def threads_of(settings: Any) -> tuple[int, bool]:
    """Return the threads of a session (0: one a core), and whether idle ones poll."""
    try:
        polls = settings.get_session_config_entry("session.intra_op.allow_spinning") != "0"
    except RuntimeError:  # nobody said anything
        polls = True
    return settings.intra_op_num_threads, polls


class FakeOnnxRuntime:
    """The module; `calls` says what happened on the GPU, `sessions` and
    `settings` what was opened how.

    Args:
        providers: That this build has.
        active: That come up, whatever was asked for; None: those.
        refuses_capture: ONNX Runtime finds at the start that not all nodes are on the GPU.
        capture_fails: A capture runs into something that no capture may.
        full: Device memory is.
    """

    __version__ = "1.31.1"
    __file__ = onnxruntime.__file__
    capi = onnxruntime.capi
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = RunOptions

    def __init__(
        self,
        providers: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider"),
        *,
        active: tuple[str, ...] | None = None,
        refuses_capture: bool = False,
        capture_fails: bool = False,
        full: bool = False,
    ) -> None:
        self.providers, self.active = providers, active
        self.refuses_capture, self.capture_fails, self.full = refuses_capture, capture_fails, full
        self.calls: list[str] = []
        self.preloaded: list[str] = []
        self.devices: list[int] = []
        self.sessions: list[dict[str, dict[str, str]]] = []
        self.settings: list[Any] = []
        self.OrtValue = SimpleNamespace(
            ortvalue_from_numpy=self._from_numpy,
            ortvalue_from_shape_and_type=self._from_shape,
        )

    def get_available_providers(self) -> list[str]:
        return list(self.providers)

    def preload_dlls(self, directory: str = "") -> None:
        self.preloaded.append(directory)
        print("Failed to load libcudnn.so.9")  # as the real one does, on stdout

    def _from_numpy(self, array: np.ndarray, device: str, index: int) -> Value:
        if self.full:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        self.devices.append(index)
        return Value(array.copy())

    def _from_shape(self, shape: tuple[int, ...], kind: Any, device: str, index: int) -> Value:
        return Value(np.zeros(shape, kind))

    def InferenceSession(  # noqa: N802
        self, model: Any, settings: Any, providers: list[Any], **how: Any
    ) -> Session:
        self.settings.append(settings)
        if isinstance(providers[0], tuple):
            assert how == {"enable_fallback": 0}
            self.sessions.append(dict(providers))
        return Session(self, model, providers)


class Session:
    """Computes with a real session on the CPU."""

    def __init__(self, ort: FakeOnnxRuntime, model: Any, providers: list[Any]) -> None:
        self.ort = ort
        self.real = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        names = [p if isinstance(p, str) else p[0] for p in providers]
        self.active = list(ort.active or names)
        self.options = {p[0]: p[1] for p in providers if not isinstance(p, str)}
        first = next(iter(self.options.values()), {})
        flags = (first.get("enable_cuda_graph"), first.get("trt_cuda_graph_enable"))
        self.captures = "1" in flags
        if self.captures and ort.refuses_capture:
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as all "
                "compute graph nodes have not been partitioned to the CUDAExecutionProvider"
            )
        self.graphs: dict[str, tuple[dict[str, Value], dict[str, Value]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return self.active

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {"CUDAExecutionProvider": {"use_tf32": "1", **self.options.get(self.active[0], {})}}

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        number = options.entries.get("gpu_graph_id", "0")
        wanted = self.captures and number != "-1"
        inputs, outputs = binding.inputs, binding.outputs
        if wanted and number in self.graphs:
            inputs, outputs = self.graphs[number]
            self.ort.calls.append("replay")
        elif wanted:
            self.ort.calls.append("capture")
            if self.ort.capture_fails:
                raise RuntimeError(
                    "CUDA failure 900: operation not permitted when stream is captur"
                )
            assert None not in outputs.values(), "a capture needs fixed addresses"
            self.graphs[number] = dict(inputs), dict(outputs)
        else:
            waits = "disable_synchronize_execution_providers" not in options.entries
            self.ort.calls.append("run" if waits else "start")
        names = list(outputs)
        found = self.real.run(names, {n: v.array for n, v in inputs.items()})
        for name, array in zip(names, found, strict=True):
            if outputs[name] is None:
                outputs[name] = Value(array)
            else:
                assert outputs[name].array.shape == array.shape
                outputs[name].array[...] = array
        binding.results = [outputs[name] for name in names]
