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


def test_a_plan_runs_requests_together(model_class, plan):
    folder, cuda = plan
    model = model_class("tensorrt")
    model.initialize(arguments(folder, config(4), "GPU"))
    given = [rows(1, 0), rows(2, 50), rows(1, 90)]
    answers = model.execute([Request(**{"in": g}) for g in given])
    for one, value in zip(answers, given, strict=True):
        np.testing.assert_array_equal(one.tensors["out"], value * 2)
    assert cuda.calls.count("launch") == 1
    assert "capture" not in cuda.calls
    kept = answers[0].tensors["out"].copy()
    model.execute([Request(**{"in": rows(4, 7)})])
    np.testing.assert_array_equal(answers[0].tensors["out"], kept)  # no view of pinned memory
    model.finalize()


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
