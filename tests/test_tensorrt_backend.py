"""The TensorRT backend's own logic on a fake TensorRT; the real one needs a GPU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeCuda, fake_tensorrt, network_of

from boxwright import catalog
from boxwright.backends import BackendOptions, Bounded, Stepwise
from boxwright.backends import tensorrt as backend_module
from boxwright.engine_record import EngineRecord, read_record, record_bytes, sidecar_path
from boxwright.errors import BackendError, BoxwrightError, SourceError
from boxwright.loading import choose_runtime, load
from boxwright.nvidia import Gpu
from boxwright.sample import generate_page, onnx_file

H100 = Gpu("NVIDIA H100", "9.0", "580", "13.0")
PLAN = b"plan"


def record(**changes: object) -> EngineRecord:
    made = EngineRecord(
        runtime="tensorrt",
        version="8.6.0",
        gpu="NVIDIA H100",
        compute_capability="9.0",
        driver="580",
        cuda="13.0",
        source="a.onnx",
        source_sha256="0",
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        size_bytes=len(PLAN),
        profile={"in": ((1, 3), (1, 3), (4, 3))},
        settings={},
        metadata={"task": "detect"},
        build_seconds=1.0,
        command="boxwright build a.onnx",
        trtexec="trtexec",
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def opened(tmp_path, monkeypatch, cuda):
    """Return a function that opens a plan on the fake TensorRT."""

    def call(described: EngineRecord | None = None, *, graph: bool = True, **how: object):
        plan = tmp_path / "a.plan"
        plan.write_bytes(PLAN)
        if described is not None:
            sidecar_path(plan).write_bytes(record_bytes(described))
        module = fake_tensorrt(cuda, **how)
        monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
        monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
        monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
        return catalog.backend("tensorrt").open(plan, BackendOptions(cuda_graph=graph))

    return call


def feed(rows: int, first: float = 1.0) -> dict[str, np.ndarray]:
    return {"in": np.arange(first, first + 3 * rows, dtype=np.float32).reshape(rows, 3)}


def test_a_fixed_plan_is_captured_once_and_replayed(opened, cuda):
    backend = opened()
    for first in (1.0, 5.0, -3.0):
        given = feed(2, first)
        assert np.array_equal(backend.infer(given)["out"], given["in"] * 2)
    assert cuda.calls.count("capture") == 1 and cuda.calls.count("launch") == 1
    assert cuda.calls.count("replay") == 3
    last = [c for c in cuda.calls if c in ("copy_in", "replay", "copy_out")][-3:]
    assert last == ["copy_in", "replay", "copy_out"]
    assert "CUDA graph" in backend.description and "8.6.0" in backend.description


def test_another_shape_is_captured_anew(opened, cuda):
    backend = opened(record(), most=4, free=True)
    for rows in (1, 4, 4, 1):
        assert np.array_equal(backend.infer(feed(rows))["out"], feed(rows)["in"] * 2)
    assert cuda.calls.count("capture") == 3
    assert backend.inputs[0].shape == ("batch", 3)
    assert isinstance(backend, Bounded) and backend.largest_batch == 4


def test_a_profile_without_choice_is_a_fixed_batch(opened):
    backend = opened(record(profile={"in": ((2, 3), (2, 3), (2, 3))}), free=True)
    assert backend.inputs[0].shape == (2, 3)
    assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2)


def test_without_a_graph_every_run_is_launched(opened, cuda):
    backend = opened(graph=False)
    backend.infer(feed(2))
    backend.infer(feed(2))
    assert cuda.calls.count("launch") == 2 and "capture" not in cuda.calls


def test_outputs_that_depend_on_the_data_are_sized_by_the_allocator(opened, cuda):
    backend = opened(dependent=True)
    given = np.array([[1, 2, 3], [-1, 0, 0]], np.float32)
    assert backend.infer({"in": given})["out"].tolist() == [[2, 4, 6]]
    assert backend.infer({"in": given * 0 - 1})["out"].shape == (0, 3)
    assert backend.infer({"in": abs(given)})["out"].shape == (2, 3)
    assert "capture" not in cuda.calls and "depend on the data" in backend.description


def test_a_plan_that_cannot_be_captured_says_so_and_runs(opened, cuda):
    backend = opened()
    cuda.capture_limit = 0
    for _ in range(2):
        assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2)
    assert cuda.calls.count("capture") == 1 and "no CUDA graph" in backend.description


def test_steps_are_timed_by_events(opened, cuda):
    backend = opened()
    assert isinstance(backend, Stepwise)
    outputs, times = backend.infer_in_steps(feed(2))
    assert np.array_equal(outputs["out"], feed(2)["in"] * 2)
    assert times.infer_ms == times.copy_out_ms == 1.5 < times.copy_in_ms
    order = [c for c in cuda.calls if c in ("cudaEventRecord", "copy_in", "replay", "copy_out")]
    assert order == [
        "cudaEventRecord", "copy_in", "cudaEventRecord", "replay", "cudaEventRecord", "copy_out",
        "cudaEventRecord",
    ]  # fmt: skip
    assert backend.launch_times(feed(2), 5) == [1.5] * 5


def test_closing_frees_all_memory(opened, cuda):
    backend = opened(record(), most=4, free=True)
    backend.infer(feed(1))
    backend.infer(feed(4))
    backend.close()
    backend.close()
    assert not cuda.memory


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "input in is missing"),
        ({"in": np.zeros((2, 3), np.float64)}, "in is float64; feed float32"),
        ({"in": np.zeros((9, 3), np.float32)}, r"\(9, 3\); the plan takes \[1, 3\] to \[4, 3\]"),
    ],
    ids=["missing", "dtype", "batch"],
)
def test_a_wrong_feed_is_refused(opened, given, words):
    backend = opened(record(), most=4, free=True)
    with pytest.raises(BackendError, match=words):
        backend.infer(given)


def test_full_memory_is_told(opened, cuda):
    backend = opened()
    cuda.full = True
    with pytest.raises(BackendError, match=r"cudaMalloc failed .*MemoryAllocation"):
        backend.infer(feed(2))


@pytest.mark.parametrize(
    ("changes", "here", "words"),
    [
        ({"version": "10.3.0"}, {}, "built for TensorRT 10.3.0, this is TensorRT 8.6.0; rebuild"),
        ({"compute_capability": "8.6", "gpu": "A10"}, {}, r"8.6 \(A10\), this is 9.0"),
        (
            {"version": "8.6.0", "settings": {"version_compatible": True}},
            {"version": "11.1.0"},
            "built for TensorRT 8.6.0",
        ),
        (
            {
                "compute_capability": "8.6",
                "settings": {"hardware_compatibility": "same_compute_capability"},
            },
            {},
            "compute capability 8.6",
        ),
        ({"plan_sha256": "1"}, {}, "describes another plan"),
        ({}, {"loads": False}, "magic tag does not match"),
    ],
    ids=["version", "architecture", "8 to 11", "same capability", "other plan", "damaged"],
)
def test_a_plan_for_another_machine_is_refused(opened, changes, here, words):
    with pytest.raises(BoxwrightError, match=words) as caught:
        opened(record(**changes), **here)
    assert "rebuild with: boxwright build a.onnx" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "here"),
    [
        ({"settings": {"version_compatible": True}}, {"version": "10.3.0"}),
        ({"version": "10.3.0", "settings": {"version_compatible": True}}, {"version": "11.1.0"}),
        ({"compute_capability": "8.6", "settings": {"hardware_compatibility": "ampere_plus"}}, {}),
    ],
    ids=["8 to 10", "10 to 11", "ampere_plus"],
)
def test_a_compatible_plan_loads(opened, changes, here):
    assert opened(record(**changes), **here).metadata == {"task": "detect"}


@pytest.fixture
def sample_plan(tmp_path, monkeypatch, cuda):
    """A plan of the embedded detector for 1 to 2 pictures, computed by ONNX Runtime."""
    metadata = {p.key: p.value for p in onnx.load(onnx_file()).metadata_props}
    network = network_of(onnx_file())
    shapes = tuple((n, *network.input_shape) for n in (1, 1, 2))
    described = record(profile={network.input_name: shapes}, metadata=metadata)
    module = fake_tensorrt(cuda, most=2, free=True, network=network)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
    plan = tmp_path / "sample.trt8.6.0-sm90.plan"
    plan.write_bytes(PLAN)
    sidecar_path(plan).write_bytes(record_bytes(described))
    return plan


def test_a_plan_detects_what_its_graph_detects(sample_plan):
    """Three pictures through a profile that ends at two: as the ONNX file, picture by picture."""
    images = [generate_page(seed).image for seed in (42, 43, 44)]
    with load(onnx_file(), "onnxruntime") as reference, load(sample_plan) as detector:
        assert detector.spec == reference.spec
        expected, found = [reference(i) for i in images], detector(images)
    assert sum(len(e) for e in expected) > 5
    for one, other in zip(expected, found, strict=True):
        assert np.allclose(one.xyxy, other.xyxy, atol=1e-3)
        assert np.array_equal(one.class_ids, other.class_ids)


def test_verbs_take_plans(cli, sample_plan, tmp_path):
    picture = tmp_path / "page.png"
    cv2.imwrite(str(picture), generate_page(42).image)
    ran = cli("predict", sample_plan, picture, "--json")
    assert ran.code == 0 and "tensorrt 8.6.0 (NVIDIA H100, CUDA graph)" in ran.err
    ran = cli("benchmark", sample_plan, "--images", picture, "--quick", "--format", "json")
    assert ran.code == 0, ran.err
    (measured,) = json.loads(ran.out)["measured"]
    assert measured["runtime"] == "tensorrt"
    assert {"copy_in", "infer", "copy_out"} <= set(measured["latencies"])
    ran = cli("evaluate", sample_plan, "--data", "sample", "--pages", 2, "--json")
    assert ran.code == 0, ran.err
    ran = cli("verify", onnx_file(), sample_plan, "--images", picture, "--json")
    assert ran.code == 0 and json.loads(ran.out)["passed"], ran.err


def test_a_plan_without_a_description_is_not_guessed(opened, tmp_path):
    opened()
    with pytest.raises(SourceError, match=r"a\.plan\.json is missing.*boxwright build"):
        load(tmp_path / "a.plan")


def test_a_damaged_description_is_told(tmp_path):
    plan = tmp_path / "a.plan"
    sidecar_path(plan).write_text("{}")
    with pytest.raises(SourceError, match="not a plan's description"):
        read_record(plan)


def test_the_description_comes_back_as_it_was_written(tmp_path):
    metadata = {"boxwright.spec": '{"a": 1}', "boxwright.parent": "ab", "names": "x"}
    made = record(metadata=metadata, notes=("n",))
    sidecar_path(tmp_path / "a.plan").write_bytes(record_bytes(made))
    assert read_record(tmp_path / "a.plan") == made
    text = json.loads(sidecar_path(tmp_path / "a.plan").read_text())
    assert text["stamp"]["spec"] == {"a": 1}


def test_plans_and_engines_go_to_tensorrt():
    assert choose_runtime(".plan") == choose_runtime(".engine") == "tensorrt"


def test_what_is_missing_is_named(cli, tmp_path, monkeypatch):
    """Without TensorRT, predict says in one line what to install."""
    monkeypatch.setattr("boxwright.nvidia.module_name", lambda runtime: None)
    (tmp_path / "a.plan").write_bytes(PLAN)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    ran = cli("predict", tmp_path / "a.plan", tmp_path / "a.png")
    assert ran.code == 2
    assert "TensorRT: its Python module is not installed; install" in ran.error
    assert catalog.backend("tensorrt").missing() == "tensorrt"


def test_a_plan_is_refused_on_the_cpu(tmp_path):
    path = Path(tmp_path / "a.plan")
    path.write_bytes(PLAN)
    with pytest.raises(BackendError, match="runs on a GPU only"):
        load(path, device="cpu")
