"""ONNX Runtime: CPU, and its CUDA and TensorRT providers where its build has them.

On a GPU tensors are bound once for each shape, the network is captured as a CUDA graph where that
is possible, and everything runs on a stream of ours where cuda-bindings is installed.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy.typing as npt

from boxwright.backends import BackendKind, BackendOptions, Feed, StepTimes
from boxwright.devices import device_from_text
from boxwright.errors import BackendError, BoxwrightError, MemoryShortError
from boxwright.nvidia import cuda_runtime
from boxwright.ort_binding import Bound, CaptureError, GpuRunner, Stream, preload_libraries
from boxwright.ort_providers import (
    CUDA,
    TENSORRT,
    GraphFacts,
    ProviderList,
    capture_obstacle,
    check_provider_options,
    facts_of_graph,
    gpu_providers,
    note_on_nms,
    wanted_provider,
)
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
# How ONNX Runtime, CUDA, cuBLAS and cuDNN say that memory is full.
_MEMORY = ("out of memory", "failed to allocate memory", "smaller than requested bytes",
           "cuda failure 2:", "status_alloc_failed")  # fmt: skip
# How ONNX Runtime says that some node is not on the GPU, since 1.17 and before.
_NO_CAPTURE = ("graph capture feature", "cuda graph feature")


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
    """An inference session; on a GPU for one thread at a time.

    A provider that was asked for and does not come up is an error: ONNX Runtime by itself would
    go on with the CPU and say so only in its log.
    """

    def __init__(self, model: Path | bytes, options: BackendOptions) -> None:
        """Load a file or the bytes of a model.

        Raises:
            RequestError: The device, a provider's option or the profile is wrong.
            BackendError: The runtime refuses the model, or a GPU was wanted and does not start.
        """
        import onnxruntime as ort

        self._ort, self._model, self._options = ort, model, options
        self._what = what = "model" if isinstance(model, bytes) else str(model)
        self._choice = device_from_text(options.device)
        self._provider = wanted_provider(self._choice, ort.get_available_providers(), what)
        check_provider_options(dict(options.provider_options), self._provider)
        self._runner: GpuRunner | None = None
        self._stream: Stream | None = None
        self._facts: GraphFacts | None = None
        self._obstacle = ""
        if self._provider in (CUDA, TENSORRT):
            self._open_on_gpu()
        else:
            self._session = self._new_session([(self._provider, {})])
        self.inputs = _infos(
            [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        )
        self.outputs = _infos(self._session.get_outputs())
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self._names = [o.name for o in self.outputs]

    def _new_session(self, providers: ProviderList) -> Any:
        """Return a session whose first provider is the one that was asked for.

        Raises:
            BackendError: The runtime refuses the model, or the provider does not start.
        """
        ort, options, what = self._ort, self._options, self._what
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        on_gpu = providers[0][0] != "CPUExecutionProvider"
        # On a GPU few nodes stay on the CPU, for which no thread of each core should poll.
        alone = on_gpu and options.threads is None
        threads = 1 if alone else options.threads
        if threads is not None:
            settings.intra_op_num_threads = threads
            settings.inter_op_num_threads = 1
        if alone or not options.spin:
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = self._model if isinstance(self._model, bytes) else str(self._model)
        # Without fallback: ONNX Runtime would open it again without our options, and print that.
        how: dict[str, Any] = {"enable_fallback": 0} if on_gpu else {}
        chosen: list[Any] = list(providers) if on_gpu else [name for name, _ in providers]
        try:
            session = ort.InferenceSession(model, settings, providers=chosen, **how)
        except _failures(ort) as error:
            raise self._refused(error) from None
        active = session.get_providers()
        if active[0] != providers[0][0]:
            raise BackendError(
                what,
                f"ONNX Runtime has {providers[0][0]} but could not start it (active: {active[0]})",
                "mend the CUDA libraries (boxwright doctor names them), or say --device cpu",
            )
        return session

    def _refused(self, error: Exception) -> BackendError:
        if _is_out_of_memory(error):
            return _out_of_memory(self._what)
        return BackendError(
            self._what, f"ONNX Runtime refuses it ({_cause(error)})", _advice(error)
        )

    def _open_on_gpu(self) -> None:
        """Open the session with a stream of ours, captured as CUDA graphs where that can be."""
        preload_libraries(self._ort)
        self._facts = facts_of_graph(self._model, self._what)
        self._obstacle = ""
        if self._options.cuda_graph:
            self._obstacle = capture_obstacle(self._facts, self._choice)
        cuda = cuda_runtime()
        if cuda is not None:
            try:
                self._stream = Stream(cuda, self._choice.index)
            except RuntimeError as error:  # what the bindings raise where there is no driver
                cause = " ".join(str(error).split())[:120]
                raise BackendError(
                    self._what, f"CUDA does not start ({cause})", "say --device cpu"
                ) from None
        try:
            self._start(capture=self._options.cuda_graph and not self._obstacle)
        except BoxwrightError as error:
            if not any(words in error.found.lower() for words in _NO_CAPTURE):
                self._close_stream()
                raise
            self._obstacle = "not every node runs on the GPU"
            self._start(capture=False)

    def _start(self, *, capture: bool) -> None:
        """Open a session, and what binds its tensors."""
        assert self._facts is not None
        providers = gpu_providers(
            self._choice,
            self._provider,
            self._facts,
            options=dict(self._options.provider_options),
            capture=capture,
            stream=self._stream.address if self._stream else None,
            engine_cache=self._options.engine_cache,
            profile_batch=self._options.profile_batch,
            what=self._what,
        )
        self._session = self._new_session(providers)
        self._runner = GpuRunner(
            self._ort,
            self._session,
            {o.name: o.dtype for o in _infos(self._session.get_outputs())},
            device=self._choice.index,
            dependent=self._facts.depends_on_data,
            capture=capture,
            stream=self._stream,
            failures=_failures(self._ort),
        )

    @property
    def description(self) -> str:
        """Runtime, version, device, threads; of a GPU TF32, and CUDA graph or why there is none."""
        parts = ["CPU"]
        if self._provider in (CUDA, TENSORRT):
            index = f":{self._choice.index}" if self._choice.index else ""
            parts = [f"{'CUDA' if self._provider == CUDA else 'TensorRT'}{index}"]
            set_to = self._session.get_provider_options().get(CUDA, {})
            if "use_tf32" in set_to:
                parts.append(f"TF32 {'on' if set_to['use_tf32'] == '1' else 'off'}")
            if self._obstacle:
                parts.append(f"no CUDA graph: {self._obstacle}")
            elif self._options.cuda_graph:
                full = self._runner is not None and self._runner.graphs_full
                parts.append("CUDA graph" + (", not of its latest shapes" if full else ""))
        if self._options.threads:
            parts.append(f"{self._options.threads} threads")
        return f"onnxruntime {self._ort.__version__} ({', '.join(parts)})"

    @property
    def largest_batch(self) -> int | None:
        """The most pictures of one call: the profile's, where TensorRT runs a free batch."""
        if self._provider != TENSORRT or self._facts is None or self._facts.is_fixed:
            return None
        return (self._options.profile_batch or (1, 1, 1))[2]

    def advice(self, classes: int) -> str:
        """Return what speaks against this file on its device, in one line; "" for nothing."""
        if self._provider != CUDA or self._facts is None:
            return ""
        return note_on_nms(self._facts.operators, classes)

    @property
    def launch_clock(self) -> str:
        """What `launch_times` goes by, in words; "" on the CPU."""
        if self._runner is None:
            return ""
        if self._stream is None:
            return "the host's clock around a run that is waited for"
        return "CUDA events around the run"

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run once.

        Raises:
            BackendError: The feed does not fit the graph, or the run fails.
        """
        if self._runner is not None:
            return self.infer_in_steps(feed)[0]
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(feed)), strict=True))
        except _failures(self._ort) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> BackendError:
        if _is_out_of_memory(error):
            return _out_of_memory("inference")
        return BackendError(
            "inference", f"ONNX Runtime failed ({_cause(error)})", "check the input's shape"
        )

    def infer_in_steps(self, feed: Feed) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
        """Run once; on a GPU by I/O binding, so that copies are timed apart from the network.

        On the CPU the session reads the feed in place and hands its outputs over: no copies. On a
        GPU the times are the host's, around steps that are waited for.

        Raises:
            BackendError: The feed does not fit the graph, or the run fails.
        """
        start = perf_counter()
        if self._runner is None:
            outputs = self.infer(feed)
            return outputs, StepTimes(0.0, (perf_counter() - start) * 1e3, 0.0)
        try:
            bound = self._stage(feed)
            fed = perf_counter()
            self._runner.run(bound)
            done = perf_counter()
            outputs = self._runner.fetch(bound)
        except _failures(self._ort) as error:
            raise self._failed(error) from None
        end = perf_counter()
        return outputs, StepTimes((fed - start) * 1e3, (done - fed) * 1e3, (end - done) * 1e3)

    def _stage(self, feed: Feed) -> Bound:
        """Copy a feed to the GPU; a session whose capture fails is opened again without."""
        assert self._runner is not None
        try:
            return self._runner.stage(feed)
        except CaptureError as error:
            if self._stream is None:
                raise BackendError(
                    "CUDA graph", f"its capture failed ({error})", "say --no-cuda-graph"
                ) from None
            self._obstacle = f"its capture failed ({error})"
            self._runner.close()
            self._start(capture=False)
            return self._runner.stage(feed)

    def launch_times(self, feed: Feed, count: int) -> list[float]:
        """Run the network alone so often on a feed that lies on the GPU already.

        Returns:
            Milliseconds of each run, by `launch_clock`.

        Raises:
            BackendError: It runs on the CPU, the feed does not fit the graph, or a run fails.
        """
        if self._runner is None:
            raise BackendError("launch times", "this session is on the CPU", "say --device cuda")
        try:
            bound = self._stage(feed)
            self._runner.run(bound)
            return self._runner.launch_times(bound, count)
        except _failures(self._ort) as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Free the session, then the stream that it ran on; a second call does nothing."""
        if self._runner is not None:
            self._runner.close()
        self._runner = self._session = None
        self._close_stream()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


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
    found = (getattr(state, n) for n in names if hasattr(state, n))
    return (*found, ValueError, RuntimeError)  # the latter of copies to and from a GPU


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return any(words in text for words in _MEMORY)


def _out_of_memory(what: str) -> MemoryShortError:
    return MemoryShortError(
        what,
        "the GPU's memory does not suffice",
        "use a smaller --batch, or free some (nvidia-smi says who has it)",
    )


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
