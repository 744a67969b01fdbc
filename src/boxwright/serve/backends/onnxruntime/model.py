"""ONNX files in Triton without its C++ backend: `backend: "onnxruntime"` loads them unchanged."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from joining import Buffers, Failed, Tensor, check_tensors, run_joined

_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


_SEARCHES = {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}


class TritonPythonModel:
    """One instance of a model: a session of ONNX Runtime."""

    def initialize(self, args):
        """Open the file and compare it with the configuration."""
        self.config = json.loads(args["model_config"])
        name = self.config.get("default_model_filename") or "model.onnx"
        file = Path(args["model_repository"], args["model_version"], name)
        if not file.is_file():
            raise pb_utils.TritonModelException(f"{file}: there is no such file")
        if args["model_instance_kind"] == "GPU" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's and cuDNN's libraries that pip installed
        providers = _providers(self.config, args)
        try:
            self.session = ort.InferenceSession(
                str(file), _settings(self.config), providers=providers
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            raise pb_utils.TritonModelException(f"ONNX Runtime refuses {file}: {error}") from None
        wanted = "CUDAExecutionProvider"
        on_gpu = args["model_instance_kind"] == "GPU"
        if on_gpu and wanted not in self.session.get_providers():
            raise pb_utils.TritonModelException(
                f"{file}: an instance on a GPU was asked for, and ONNX Runtime could not start "
                f"CUDA (it has {', '.join(self.session.get_providers())})"
            )
        inputs = self.session.get_inputs() + self.session.get_overridable_initializers()
        try:
            check_tensors(self.config, "input", _tensors(inputs))
            check_tensors(self.config, "output", _tensors(self.session.get_outputs()))
        except ValueError as error:
            raise pb_utils.TritonModelException(f"{file}: {error}") from None
        self.names = [entry["name"] for entry in self.config["input"]]
        self.outputs = [entry["name"] for entry in self.config["output"]]
        self.largest = int(self.config.get("max_batch_size", 0))
        self.buffers = Buffers()
        ranks = {i.name: len(i.shape) for i in inputs}
        self.shared = {
            entry["name"]: ranks[entry["name"]]
            for entry in self.config["input"]
            if self.largest and ranks[entry["name"]] == len(entry["dims"])
        }

    def execute(self, requests):
        """Answer requests; those that fit together run as one batch."""
        feeds = []
        for request in requests:
            tensors = ((n, pb_utils.get_input_tensor_by_name(request, n)) for n in self.names)
            feeds.append({n: t.as_numpy() for n, t in tensors if t is not None})
        answers = run_joined(
            feeds,
            self._run,
            batches=self.largest > 0,
            largest=self.largest,
            shared=self.shared,
            place=self.buffers.view,
        )
        return [_response(r, a) for r, a in zip(requests, answers, strict=True)]

    def _run(self, feed):
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))


def _response(request, answer):
    if isinstance(answer, Failed):
        error = pb_utils.TritonError(f"ONNX Runtime failed: {answer.message}")
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    asked = request.requested_output_names()
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(n, np.asarray(v)) for n, v in answer.items() if n in asked]
    )


def _tensors(values):
    return [
        Tensor(v.name, _TYPES.get(v.type, v.type),
               tuple(d if isinstance(d, int) and d >= 0 else None for d in v.shape))
        for v in values
    ]  # fmt: skip


def _parameter(config, name):
    return config.get("parameters", {}).get(name, {}).get("string_value", "")


def _settings(config):
    """Return session options out of the parameters that the C++ backend knows, too."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        if _parameter(config, key):
            setattr(settings, key.replace("thread_count", "num_threads"),
                    int(_parameter(config, key)))  # fmt: skip
    instances = sum(int(g.get("count", 1)) for g in config.get("instance_group", []))
    if instances > 1:  # idle threads that poll would take the cores from the other instances
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def _convolutions(config):
    """Return how cuDNN's algorithms are chosen, as a provider's option; {} for its default.

    The numbers are those of the C++ backend's parameter (its README).
    """
    told = _parameter(config, "cudnn_conv_algo_search")
    if told and told not in _SEARCHES:
        known = ", ".join(f"{number} ({name})" for number, name in _SEARCHES.items())
        raise pb_utils.TritonModelException(
            f"the parameter cudnn_conv_algo_search is {told!r}; known are {known}"
        )
    return {"cudnn_conv_algo_search": _SEARCHES[told]} if told else {}


def _providers(config, args):
    """Return the providers that the configuration asks for."""
    convolutions = _convolutions(config)
    if args["model_instance_kind"] != "GPU":
        return ["CPUExecutionProvider"]
    device = {"device_id": args["model_instance_device_id"]}
    found = []
    speedups = config.get("optimization", {}).get("execution_accelerators", {})
    for entry in speedups.get("gpu_execution_accelerator", []):
        if entry["name"] == "tensorrt":
            found.append(("TensorrtExecutionProvider", {**device, **_tensorrt(entry)}))
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return [*found, ("CUDAExecutionProvider", {**device, **convolutions}), "CPUExecutionProvider"]


def _tensorrt(entry):
    """Translate the C++ backend's options of TensorRT into the provider's."""
    names = {"precision_mode": None, "max_workspace_size_bytes": "trt_max_workspace_size"}
    given = entry.get("parameters", {})
    options = {names.get(k) or k: v for k, v in given.items() if names.get(k, k) is not None}
    if given.get("precision_mode") == "FP16":
        options["trt_fp16_enable"] = "1"
    return options
