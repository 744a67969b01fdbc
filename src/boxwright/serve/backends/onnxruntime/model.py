"""ONNX files in Triton without its C++ backend: `backend: "onnxruntime"` loads them unchanged.

On a GPU a model that batches has a session for each of a few batch sizes, and batches are filled up
to the next of them: since 1.20 a convolution of the CUDA provider keeps the plan of its last shape
alone and makes a new one at every change (microsoft/onnxruntime issue 23006).
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from joining import (
    Buffers,
    Failed,
    Padding,
    Tensor,
    batch_sizes,
    check_tensors,
    free_input,
    run_joined,
)

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


# How ONNX Runtime, CUDA, cuBLAS and cuDNN say that memory is full.
_MEMORY = ("out of memory", "failed to allocate memory", "smaller than requested bytes",
           "cuda failure 2:", "status_alloc_failed")  # fmt: skip


class TritonPythonModel:
    """One instance of a model: a session of ONNX Runtime, or one for each size of a batch."""

    def initialize(self, args):
        """Open the file, compare it with the configuration, and run each size of a batch once."""
        self.config = json.loads(args["model_config"])
        self.on_gpu = args["model_instance_kind"] == "GPU"
        name = self.config.get("default_model_filename") or "model.onnx"
        self.file = Path(args["model_repository"], args["model_version"], name)
        if not self.file.is_file():
            raise pb_utils.TritonModelException(f"{self.file}: there is no such file")
        self.largest = int(self.config.get("max_batch_size", 0))
        sizes = self._sizes_asked_for()
        self.providers = _providers(self.config, args)
        self.settings = _settings(self.config, self.on_gpu)
        session = self._opened(f"a session of batches of {sizes[0]}" if sizes else "it")
        inputs = session.get_inputs() + session.get_overridable_initializers()
        tensors = _tensors(inputs)
        try:
            check_tensors(self.config, "input", tensors)
            check_tensors(self.config, "output", _tensors(session.get_outputs()))
        except ValueError as error:
            raise pb_utils.TritonModelException(f"{self.file}: {error}") from None
        self.names = [entry["name"] for entry in self.config["input"]]
        self.outputs = [entry["name"] for entry in self.config["output"]]
        self.buffers = Buffers()
        ranks = {i.name: len(i.shape) for i in inputs}
        self.shared = {
            entry["name"]: ranks[entry["name"]]
            for entry in self.config["input"]
            if self.largest and ranks[entry["name"]] == len(entry["dims"])
        }
        taken = [t for t in tensors if t.name in self.names]
        sizes = self._sizes_for(sizes, taken)
        self.padding = Padding(sizes) if sizes else None
        self.sessions = {}
        needed = {i.name for i in session.get_inputs()}
        for size in sizes or (None,):
            self.sessions[size] = session or self._opened(f"a session of batches of {size}")
            session = None
            if size is not None:
                self._run_once(size, [t for t in taken if t.name in needed])

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
            padding=self.padding,
        )
        return [_response(r, a) for r, a in zip(requests, answers, strict=True)]

    def _run(self, feed):
        size = None
        if self.padding is not None:
            size = next(len(value) for name, value in feed.items() if name not in self.shared)
        return dict(zip(self.outputs, self.sessions[size].run(self.outputs, feed), strict=True))

    def _opened(self, what):
        """Return a new session; `what` names it where memory is short."""
        try:
            # Without fallback: ONNX Runtime would open it again on the CPU where a GPU fails.
            session = ort.InferenceSession(
                str(self.file), self.settings, providers=self.providers, enable_fallback=0
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            self._refuse_if_short(what, error)
            raise pb_utils.TritonModelException(
                f"ONNX Runtime refuses {self.file}: {error}"
            ) from None
        if self.on_gpu and "CUDAExecutionProvider" not in session.get_providers():
            raise pb_utils.TritonModelException(
                f"{self.file}: an instance on a GPU was asked for, and ONNX Runtime could not "
                f"start CUDA (it has {', '.join(session.get_providers())})"
            )
        return session

    def _refuse_if_short(self, what, error):
        if self.on_gpu and any(words in str(error).lower() for words in _MEMORY):
            raise pb_utils.TritonModelException(
                f"{self.file}: the GPU's memory does not suffice for {what}; give fewer or smaller "
                "batch_sizes (a parameter), fewer instances or a smaller max_batch_size"
            ) from None

    def _sizes_asked_for(self):
        """Return the sizes that batches may be filled up to, before the file is known."""
        told = self.config.get("parameters", {}).get("batch_sizes")
        try:
            sizes = batch_sizes(
                self.largest, None if told is None else told.get("string_value", "")
            )
        except ValueError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        # Engines of TensorRT serve every size of their profile; one for each would be built anew.
        if not self.on_gpu or (told is None and _accelerators(self.config)):
            return ()
        return sizes

    def _sizes_for(self, sizes, taken):
        """Return the sizes for this file: none where other sizes than the batch are free, too."""
        free = free_input(taken, self.shared) if sizes else ""
        if free and "batch_sizes" in self.config.get("parameters", {}):
            raise pb_utils.TritonModelException(
                f"{self.file}: the parameter batch_sizes is for files in which only the batch is "
                f"free, and the input {free} has other free sizes; leave it out"
            )
        return () if free else sizes

    def _run_once(self, size, taken):
        """Run a size with zeros, so that no request pays for what its first run makes."""
        shapes = {t.name: t.shape if t.name in self.shared else (size, *t.shape[1:]) for t in taken}
        feed = {t.name: np.zeros(shapes[t.name], t.dtype) for t in taken}
        try:
            self.sessions[size].run(self.outputs, feed)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            self._refuse_if_short(f"a batch of {size}", error)
            raise pb_utils.TritonModelException(
                f"{self.file}: a batch of {size} black pictures does not run, as every size of "
                f'batch_sizes (a parameter; "any" for none) does at first: {error}'
            ) from None


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


def _settings(config, on_gpu):
    """Return session options out of the parameters that the C++ backend knows, too.

    On a GPU the few nodes that stay on the CPU have one thread, unless a parameter says otherwise:
    a pool of one thread a core, for each size of a batch, would poll for them.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        if _parameter(config, key):
            setattr(settings, key.replace("thread_count", "num_threads"),
                    int(_parameter(config, key)))  # fmt: skip
    alone = on_gpu and not _parameter(config, "intra_op_thread_count")
    if alone:
        settings.intra_op_num_threads = 1
    instances = sum(int(g.get("count", 1)) for g in config.get("instance_group", []))
    if (
        alone or instances > 1
    ):  # idle threads that poll would take the cores from the other instances
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


def _accelerators(config):
    """Return the configuration's entries of ONNX Runtime's TensorRT provider."""
    speedups = config.get("optimization", {}).get("execution_accelerators", {})
    entries = speedups.get("gpu_execution_accelerator", [])
    return [entry for entry in entries if entry["name"] == "tensorrt"]


def _providers(config, args):
    """Return the providers that the configuration asks for."""
    convolutions = _convolutions(config)
    if args["model_instance_kind"] != "GPU":
        return ["CPUExecutionProvider"]
    device = {"device_id": args["model_instance_device_id"]}
    found = []
    for entry in _accelerators(config):
        found.append(("TensorrtExecutionProvider", {**device, **_tensorrt(entry)}))
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's and cuDNN's libraries that pip installed
    return [*found, ("CUDAExecutionProvider", {**device, **convolutions}), "CPUExecutionProvider"]


def _tensorrt(entry):
    """Translate the C++ backend's options of TensorRT into the provider's."""
    names = {"precision_mode": None, "max_workspace_size_bytes": "trt_max_workspace_size"}
    given = entry.get("parameters", {})
    options = {names.get(k) or k: v for k, v in given.items() if names.get(k, k) is not None}
    if given.get("precision_mode") == "FP16":
        options["trt_fp16_enable"] = "1"
    return options
