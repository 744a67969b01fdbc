"""ONNX Runtime: CPU, and CUDA where its build has it."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends import BackendKind, BackendOptions, Feed, StepTimes
from boxwright.errors import BackendError
from boxwright.types import TensorInfo

__all__ = ["BACKEND", "OnnxRuntimeBackend"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


def _infos(values: list[Any]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            v.name,
            _DTYPES.get(v.type, v.type),
            tuple(d if isinstance(d, int) else (d or "?") for d in v.shape),
        )
        for v in values
    )


class OnnxRuntimeBackend:
    """An inference session.

    A provider that was asked for and does not come up is an error: ONNX Runtime by itself would
    go on with the CPU and say so only in its log.
    """

    def __init__(self, model: Path | bytes, options: BackendOptions) -> None:
        """Load a file or the bytes of a model.

        Raises:
            BackendError: The runtime refuses the model, or CUDA was wanted and does not start.
        """
        import onnxruntime as ort

        what = "model" if isinstance(model, bytes) else str(model)
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
            settings.inter_op_num_threads = 1
        if not options.spin:
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = self._providers(ort, options, what)
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), settings, providers=providers
            )
        except _failures(ort) as error:
            raise BackendError(
                what, f"ONNX Runtime refuses it ({_cause(error)})", _advice(error)
            ) from None
        active = self._session.get_providers()
        if active[0] != providers[0]:
            raise BackendError(
                what,
                f"ONNX Runtime has {providers[0]} but could not start it (active: {active[0]})",
                "mend the CUDA libraries, or say --device cpu",
            )
        self._ort = ort
        self._on_cuda = active[0].startswith("CUDA")
        device = "CUDA" if self._on_cuda else "CPU"
        threads = f", {options.threads} threads" if options.threads else ""
        self.description = f"onnxruntime {ort.__version__} ({device}{threads})"
        self.inputs = _infos(
            [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        )
        self.outputs = _infos(self._session.get_outputs())
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self._names = [o.name for o in self.outputs]

    @staticmethod
    def _providers(ort: Any, options: BackendOptions, what: str) -> list[str]:
        available = ort.get_available_providers()
        has_cuda = "CUDAExecutionProvider" in available
        if options.device == "cuda" and not has_cuda:
            raise BackendError(
                what,
                f"this ONNX Runtime has no CUDA provider (it has {', '.join(available)})",
                "install onnxruntime-gpu in place of onnxruntime",
            )
        if has_cuda and options.device != "cpu":
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return ["CPUExecutionProvider"]

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run once.

        Raises:
            BackendError: The feed does not fit the graph, or the run fails.
        """
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(feed)), strict=True))
        except _failures(self._ort) as error:
            raise BackendError(
                "inference", f"ONNX Runtime failed ({_cause(error)})", "check the input's shape"
            ) from None

    def infer_in_steps(self, feed: Feed) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
        """Run once; on CUDA by IOBinding, so that copies are timed apart from the network.

        On the CPU the session reads the feed in place and hands its outputs over: no copies.

        Raises:
            BackendError: The feed does not fit the graph, or the run fails.
        """
        start = perf_counter()
        if not self._on_cuda:
            outputs = self.infer(feed)
            return outputs, StepTimes(0.0, (perf_counter() - start) * 1e3, 0.0)
        try:
            binding = self._session.io_binding()
            for name, value in feed.items():
                array = np.ascontiguousarray(value)
                device_value = self._ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
                binding.bind_ortvalue_input(name, device_value)
            for name in self._names:
                binding.bind_output(name, "cuda")
            binding.synchronize_inputs()
            fed = perf_counter()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            done = perf_counter()
            arrays = binding.copy_outputs_to_cpu()
        except _failures(self._ort) as error:
            raise BackendError(
                "inference", f"ONNX Runtime failed ({_cause(error)})", "check the input's shape"
            ) from None
        end = perf_counter()
        times = StepTimes((fed - start) * 1e3, (done - fed) * 1e3, (end - done) * 1e3)
        return dict(zip(self._names, arrays, strict=True)), times

    def close(self) -> None:
        """Free the session."""
        del self._session


def _failures(ort: Any) -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
        "EPFail",
    )
    return (*(getattr(state, n) for n in names if hasattr(state, n)), ValueError)


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(" : ", 2)[-1][:220]


def _advice(error: Exception) -> str:
    if "EfficientNMS_TRT" in str(error):
        return "EfficientNMS_TRT runs in TensorRT only: export with --nms onnx or --nms portable"
    return "check the file with: boxwright inspect"


def _versions() -> dict[str, str]:
    import onnxruntime

    return {"onnxruntime": str(onnxruntime.__version__)}


BACKEND = BackendKind(
    name="onnxruntime",
    suffixes=(".onnx",),
    missing=lambda: None,
    open=OnnxRuntimeBackend,
    open_bytes=OnnxRuntimeBackend,
    versions=_versions,
)
