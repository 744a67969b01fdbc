"""Triton's python-based backends on stand-ins: what they answer, and what they refuse to load."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from fake_tensorrt import FakeCuda, fake_tensorrt

import boxwright.serve.backends
from boxwright import sample
from boxwright.backends import tensorrt as backend_module
from boxwright.errors import BackendError
from boxwright.nvidia import Gpu
from boxwright.serve.backends import joining

FOLDER = Path(boxwright.serve.backends.__file__).parent


class RefusalError(Exception):
    """Triton's TritonModelException."""


class Request:
    """A request with its inputs."""

    def __init__(self, **inputs: np.ndarray) -> None:
        self.inputs = inputs

    def requested_output_names(self) -> list[str]:
        return ["out", "output"]


def response(output_tensors, error=None):
    return SimpleNamespace(tensors=dict(output_tensors), error=error)


def read(request, name):
    value = request.inputs.get(name)
    return None if value is None else SimpleNamespace(as_numpy=lambda: value)


@pytest.fixture
def model_class(monkeypatch):
    """Return a function that loads a backend as the stub does."""
    stub = ModuleType("triton_python_backend_utils")
    stub.TritonModelException = RefusalError
    stub.TritonError = lambda text: text
    stub.Tensor = lambda name, value: (name, value)
    stub.InferenceResponse = response
    stub.get_input_tensor_by_name = read
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.setitem(sys.modules, "joining", joining)

    def call(name: str):
        spec = importlib.util.spec_from_file_location(f"served_{name}", FOLDER / name / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.TritonPythonModel()

    return call


def arguments(folder: Path, config: dict, kind: str = "CPU") -> dict[str, str]:
    return {
        "model_config": json.dumps(config),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": "0",
    }


def config(batch: int, dims: tuple[str, ...] = ("3",), name: str = "in") -> dict:
    tensor = {"data_type": "TYPE_FP32", "dims": list(dims)}
    return {
        "max_batch_size": batch,
        "input": [{"name": name, **tensor}],
        "output": [{"name": "out", **tensor}],
        "parameters": {},
    }


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A folder with a plan that the fake TensorRT runs: it doubles its input."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan").write_bytes(b"plan")
    cuda = FakeCuda()
    module = fake_tensorrt(cuda, most=4, free=True)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(
        backend_module, "find_gpu", lambda: Gpu("NVIDIA H100", "9.0", "580", "13.0")
    )
    return tmp_path, cuda


def rows(count: int, first: float) -> np.ndarray:
    return np.arange(first, first + 3 * count, dtype=np.float32).reshape(count, 3)


def answered(model, given: list[np.ndarray]) -> list[np.ndarray]:
    """Return what a turn answers, copied when it has ended, as Triton's stub does."""
    answers = model.execute([Request(**{"in": g}) for g in given])
    return [one.tensors["out"].copy() for one in answers]


def test_a_plan_runs_requests_together(model_class, plan):
    folder, cuda = plan
    model = model_class("tensorrt")
    model.initialize(arguments(folder, config(4), "GPU"))
    for given in ([rows(1, 0), rows(2, 50), rows(1, 90)], [rows(4, 7)], [rows(1, 3), rows(1, 8)]):
        cuda.calls.clear()
        for found, value in zip(answered(model, given), given, strict=True):
            np.testing.assert_array_equal(found, value * 2)
        assert cuda.calls.count("launch") == 1
        assert "capture" not in cuda.calls
    model.finalize()


def test_rows_go_straight_into_pinned_memory(model_class, plan, monkeypatch):
    """Rows of several requests are copied once; the backend finds them where it would copy them."""
    model = model_class("tensorrt")
    model.initialize(arguments(plan[0], config(4), "GPU"))
    fed = []
    infer = model.backend.infer
    monkeypatch.setattr(model.backend, "infer", lambda feed: fed.append(feed["in"]) or infer(feed))
    answered(model, [rows(1, 0), rows(2, 50)])
    pinned = model.backend.input_view("in", (3, 3), "float32")
    assert fed[0].ctypes.data == pinned.ctypes.data
    with pytest.raises(BackendError, match="the plan has no input other"):
        model.backend.input_view("other", (1, 3), "float32")


def test_one_turn_of_several_runs_keeps_what_each_answers(model_class, plan):
    """The runs of a turn share pinned memory; all of it is sent when the turn has ended."""
    folder, cuda = plan
    model = model_class("tensorrt")
    model.initialize(arguments(folder, config(4), "GPU"))
    given = [rows(3, 0), rows(3, 50), rows(2, 90), rows(2, 120)]
    for found, value in zip(answered(model, given), given, strict=True):
        np.testing.assert_array_equal(found, value * 2)
    assert cuda.calls.count("launch") == 3
    model.largest = 8  # the plan takes 4: the whole fails, its halves run
    given = [rows(2, 0), rows(2, 50), rows(1, 90), rows(2, 120)]
    for found, value in zip(answered(model, given), given, strict=True):
        np.testing.assert_array_equal(found, value * 2)


def test_a_plan_without_a_batch_runs_requests_one_by_one(model_class, plan):
    model = model_class("tensorrt")
    model.initialize(arguments(plan[0], config(0, dims=("1", "3")), "GPU"))
    given = [rows(1, 0), rows(1, 50)]
    for found, value in zip(answered(model, given), given, strict=True):
        np.testing.assert_array_equal(found, value * 2)


def test_a_batch_of_one_may_be_fixed_in_the_file(model_class):
    """TensorRT may fix what its profile leaves no choice of."""
    image = {"name": "image", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "3"]}
    told = {"max_batch_size": 1, "input": [image]}
    file = [joining.Tensor("image", "uint8", (1, None, None, 3))]
    joining.check_tensors(told, "input", file)
    with pytest.raises(ValueError, match="takes 1 at once and no other number"):
        joining.check_tensors({**told, "max_batch_size": 2}, "input", file)
    with pytest.raises(ValueError, match="takes 2 at once and no other number"):
        joining.check_tensors(told, "input", [joining.Tensor("image", "uint8", (2, None, None, 3))])


def test_memory_of_batches_stays_and_grows():
    buffers = joining.Buffers()
    first = buffers.view("x", (4, 3), "float32")
    assert buffers.view("x", (2, 3), "float32").ctypes.data == first.ctypes.data
    assert buffers.view("y", (4, 3), "float32").ctypes.data != first.ctypes.data
    larger = buffers.view("x", (9, 3), "float16")
    assert (larger.shape, larger.dtype.name) == ((9, 3), "float16")
    assert buffers.view("x", (0, 3), "uint8").shape == (0, 3)


@pytest.fixture
def sessions(monkeypatch):
    """Keep the providers that sessions are opened with; they run on the CPU."""
    import onnxruntime

    seen = []
    real = onnxruntime.InferenceSession

    def opened(path, settings, providers, enable_fallback):
        assert enable_fallback == 0
        seen.append(providers)
        session = real(path, settings, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(session, "get_providers", lambda: ["CUDAExecutionProvider"])
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return seen


def graph_config(batch: int, search: str) -> dict:
    parameters = {"cudnn_conv_algo_search": {"string_value": search}} if search else {}
    image = {"name": "images", "data_type": "TYPE_FP32", "dims": ["3", "640", "640"]}
    head = {"name": "output", "data_type": "TYPE_FP32", "dims": ["8400", "6"]}
    return {"max_batch_size": batch, "input": [image], "output": [head], "parameters": parameters}


@pytest.mark.parametrize(
    ("search", "option"),
    [("", None), ("0", "EXHAUSTIVE"), ("1", "HEURISTIC"), ("2", "DEFAULT")],
)
def test_the_search_of_convolutions_is_heeded(model_class, tmp_path, sessions, search, option):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(sample.onnx_file().read_bytes())
    model = model_class("onnxruntime")
    model.initialize(arguments(tmp_path, graph_config(4, search), "GPU"))
    options = dict(p for p in sessions[0] if isinstance(p, tuple))["CUDAExecutionProvider"]
    assert options.get("cudnn_conv_algo_search") == option


@pytest.mark.parametrize("kind", ["CPU", "GPU"])
def test_an_unknown_search_of_convolutions_is_refused(model_class, tmp_path, sessions, kind):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(sample.onnx_file().read_bytes())
    with pytest.raises(RefusalError, match=r"'HEURISTIC'; known are 0 \(EXHAUSTIVE\), 1"):
        model_class("onnxruntime").initialize(
            arguments(tmp_path, graph_config(4, "HEURISTIC"), kind)
        )
    assert not sessions


def test_graphs_are_captured_when_the_configuration_says_so(model_class, plan):
    folder, cuda = plan
    model = model_class("tensorrt")
    told = {**config(4), "optimization": {"cuda": {"graphs": True}}}
    model.initialize(arguments(folder, told, "GPU"))
    model.execute([Request(**{"in": rows(2, 0)})])
    assert "capture" in cuda.calls


@pytest.mark.parametrize(
    ("told", "kind", "says"),
    [
        (config(4), "CPU", "a plan runs on a GPU, and this instance is of KIND_CPU"),
        (config(4, name="images"), "GPU", "config.pbtxt has the input images, the file has in"),
        (config(4, dims=("5",)), "GPU", "the shape [-1, 5] in config.pbtxt"),
    ],
    ids=["no GPU", "name", "shape"],
)
def test_a_plan_is_refused_when_it_is_loaded(model_class, plan, told, kind, says):
    model = model_class("tensorrt")
    with pytest.raises(RefusalError) as refused:
        model.initialize(arguments(plan[0], told, kind))
    assert says in str(refused.value)


def test_a_plan_without_boxwright_is_refused_in_words(model_class, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "boxwright.backends.tensorrt", None)
    model = model_class("tensorrt")
    with pytest.raises(
        RefusalError, match="plans need Boxwright in the Python of the server's models"
    ):
        model.initialize(arguments(plan[0], config(4), "GPU"))


def test_a_missing_file_is_named(model_class, tmp_path):
    for name, file in (("tensorrt", "model.plan"), ("onnxruntime", "model.onnx")):
        with pytest.raises(RefusalError, match=f"{file}: there is no such file"):
            model_class(name).initialize(arguments(tmp_path, config(4), "GPU"))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_instance_without_cuda_is_no_cpu_instance(model_class, tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(sample.onnx_file().read_bytes())
    with pytest.raises(RefusalError, match="an instance on a GPU was asked for"):
        model_class("onnxruntime").initialize(arguments(tmp_path, config(4), "GPU"))


def test_a_damaged_graph_is_refused(model_class, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RefusalError, match="ONNX Runtime refuses"):
        model_class("onnxruntime").initialize(arguments(tmp_path, config(4)))
