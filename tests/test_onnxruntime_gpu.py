"""ONNX Runtime on a GPU: the backend's own logic on a stand-in; the real one needs a GPU."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
from fake_onnxruntime import FakeOnnxRuntime, threads_of
from fake_tensorrt import FakeCuda
from onnx import TensorProto, helper

from boxwright import catalog
from boxwright.backends import BackendOptions, Bounded, Stepwise
from boxwright.backends import onnxruntime as backend_module
from boxwright.devices import device_from_text
from boxwright.errors import BackendError, BoxwrightError, RequestError
from boxwright.loading import load
from boxwright.ort_providers import facts_of_graph, gpu_providers
from boxwright.sample import generate_page, onnx_file

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


def model_bytes(operator: str = "Add", batch: int | str = "batch") -> bytes:
    """Return a model whose `out` is twice its `in` (N, 3), or where it is not zero."""
    inputs = ["in", "in"] if operator == "Add" else ["in"]
    shape, kind = ([batch, 3], TensorProto.FLOAT)
    if operator == "NonZero":
        shape, kind = ([2, "found"], TensorProto.INT64)
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["out"])],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("out", kind, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.fixture(params=[True, False], ids=["cuda-bindings", "without"])
def bindings(request):
    return FakeCuda() if request.param else None


@pytest.fixture
def opened(monkeypatch):
    """Return a function that opens a model on the stand-in: (module, backend)."""

    def call(model: bytes, options: BackendOptions, cuda: FakeCuda | None = None, **how: object):
        module = FakeOnnxRuntime(**how)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
        return module, catalog.backend("onnxruntime").open_bytes(model, options)

    return call


def feed(rows: int, first: float = 1.0) -> dict[str, np.ndarray]:
    return {"in": np.arange(first, first + 3 * rows, dtype=np.float32).reshape(rows, 3)}


def test_each_shape_is_captured_once_and_replayed(opened, bindings):
    ort, backend = opened(model_bytes(), BackendOptions(), bindings)
    for rows, first in ((2, 1.0), (2, 5.0), (4, -3.0), (2, 9.0), (4, 0.5)):
        given = feed(rows, first)
        assert np.array_equal(backend.infer(given)["out"], given["in"] * 2)
    # A shape's first call finds the sizes, captures, and then replays like all later ones.
    first, later = ["run", "capture", "replay"], ["replay"]
    assert ort.calls == [*first, *later, *first, *later, *later]
    assert backend.description == "onnxruntime 1.31.1 (CUDA, TF32 on, CUDA graph)"
    (told,) = ort.sessions
    assert told[CUDA]["enable_cuda_graph"] == "1" and told[CUDA]["device_id"] == "0"
    assert ("user_compute_stream" in told[CUDA]) == (bindings is not None)


@pytest.mark.parametrize(
    ("options", "providers", "threads"),
    [
        (BackendOptions(device="cuda"), (CUDA,), (1, False)),
        (BackendOptions(device="auto"), (CUDA,), (1, False)),
        (BackendOptions(device="tensorrt"), (TENSORRT, CUDA), (1, False)),
        (BackendOptions(device="cuda", threads=3), (CUDA,), (3, True)),
        (BackendOptions(device="cuda", threads=3, spin=False), (CUDA,), (3, False)),
        (BackendOptions(device="cpu"), (CUDA,), (0, True)),
        (BackendOptions(device="auto"), (), (0, True)),
        (BackendOptions(device="cpu", threads=2), (CUDA,), (2, True)),
        (BackendOptions(device="cpu", spin=False), (CUDA,), (0, False)),
    ],
)
def test_only_a_session_on_a_gpu_has_one_thread_that_nobody_asked_for(
    opened, options, providers, threads
):
    ort, _ = opened(model_bytes(), options, providers=(*providers, "CPUExecutionProvider"))
    assert {threads_of(one) for one in ort.settings} == {threads}


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """End-to-end files of ten classes and of one, by form of NMS."""
    from tiny_models import ultralytics_onnx

    from boxwright.pipeline import run
    from boxwright.recipe import recipe_from_mapping

    found = {}
    folder = tmp_path_factory.mktemp("forms")
    raw = ultralytics_onnx(folder / "ten.onnx", classes=10)
    for source, forms in ((raw, ("onnx", "portable")), (onnx_file(), ("onnx",))):
        targets = [{"outputs": "end2end", "nms": form} for form in forms]
        data = {"source": str(source), "targets": targets, "verify": False,
                "measure": {"latency": False, "accuracy": False}}  # fmt: skip
        outcome = run(recipe_from_mapping(data, "test"), folder)
        for form, row in zip(forms, [r for r in outcome.rows if "end2end" in r.path.name],
                             strict=True):  # fmt: skip
            found[source.stem, form] = row.path
    return found


@pytest.mark.parametrize(
    ("form", "device", "quiet", "told"),
    [
        ("onnx", "cuda", False, True),
        ("onnx", "cuda", True, False),
        ("onnx", "cpu", False, False),
        ("onnx", "tensorrt", False, False),
        ("portable", "cuda", False, False),
    ],
)
def test_nms_by_class_on_cuda_is_told_in_one_line(
    forms, monkeypatch, capsys, form, device, quiet, told
):
    module = FakeOnnxRuntime((TENSORRT, CUDA, "CPUExecutionProvider"))
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: None)
    load(forms["ten", form], "onnxruntime", device=device, quiet=quiet).close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == told
    if told:
        assert "waits for the GPU after each of 10 classes of each picture" in lines[0]
        assert lines[0].endswith("a file of --nms portable does not")


def test_nms_of_one_class_is_no_word_worth(forms, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime())
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: None)
    load(forms[onnx_file().stem, "onnx"], "onnxruntime", device="cuda").close()
    assert capsys.readouterr().err == ""


def test_outputs_of_a_call_are_not_those_of_the_next(opened, bindings):
    _, backend = opened(model_bytes(), BackendOptions(), bindings)
    one = backend.infer(feed(1))["out"]
    backend.infer(feed(1, 7.0))
    assert np.array_equal(one, feed(1)["in"] * 2)


def test_without_a_graph_tensors_stay_bound(opened, bindings):
    ort, backend = opened(model_bytes(), BackendOptions(cuda_graph=False), bindings)
    for first in (1.0, 5.0):
        assert np.array_equal(backend.infer(feed(2, first))["out"], feed(2, first)["in"] * 2)
    assert ort.calls == ["run", "run", "run"] and ort.devices == [0]
    assert ort.sessions[0][CUDA]["enable_cuda_graph"] == "0"
    assert backend.description == "onnxruntime 1.31.1 (CUDA, TF32 on)"


def test_sizes_that_depend_on_the_data_are_never_captured(opened, bindings):
    ort, backend = opened(model_bytes("NonZero"), BackendOptions(), bindings)
    for values in ([[1, 0, 2]], [[0, 0, 0]], [[3, 3, 3]]):
        given = np.array(values, np.float32)
        assert np.array_equal(backend.infer({"in": given})["out"], np.nonzero(given))
    assert "capture" not in ort.calls and ort.sessions[0][CUDA]["enable_cuda_graph"] == "0"
    assert "no CUDA graph: the sizes that NonZero makes depend on the data" in backend.description


def test_nodes_on_the_cpu_are_told_and_run_without_a_graph(opened, bindings):
    ort, backend = opened(model_bytes(), BackendOptions(), bindings, refuses_capture=True)
    assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2)
    assert [s[CUDA]["enable_cuda_graph"] for s in ort.sessions] == ["1", "0"]
    assert "no CUDA graph: not every node runs on the GPU" in backend.description


def test_a_failed_capture_is_ended_and_told(opened):
    cuda = FakeCuda()
    ort, backend = opened(model_bytes(), BackendOptions(), cuda, capture_fails=True)
    for first in (1.0, 2.0):
        assert np.array_equal(backend.infer(feed(2, first))["out"], feed(2, first)["in"] * 2)
    assert ort.calls.count("capture") == 1 and len(ort.sessions) == 2 and len(cuda.graphs) == 1
    assert "no CUDA graph: its capture failed (CUDA failure 900" in backend.description


def test_a_failed_capture_without_bindings_says_what_to_do(opened):
    _, backend = opened(model_bytes(), BackendOptions(), None, capture_fails=True)
    with pytest.raises(BackendError, match=r"its capture failed .*; say --no-cuda-graph"):
        backend.infer(feed(2))


def test_later_shapes_are_not_captured_for_ever(opened):
    ort, backend = opened(model_bytes(), BackendOptions(), None)
    for rows in range(1, 20):
        assert np.array_equal(backend.infer(feed(rows))["out"], feed(rows)["in"] * 2)
    assert ort.calls.count("capture") == 16
    assert "CUDA graph, not of its latest shapes" in backend.description


def test_times_of_the_network_alone(opened, bindings):
    ort, backend = opened(model_bytes(), BackendOptions(cuda_graph=False), bindings)
    times = backend.launch_times(feed(2), 3)
    assert len(times) == 3
    if bindings is not None:
        assert times == [1.5] * 3 and ort.calls[-3:] == ["start"] * 3
        order = [c for c in bindings.calls if c.startswith(("cudaEventRecord", "cudaStreamSyn"))]
        assert order[-3:] == ["cudaEventRecord", "cudaEventRecord", "cudaStreamSynchronize"]
        assert backend.launch_clock.startswith("CUDA events")
    else:
        assert min(times) > 0 and ort.calls[-3:] == ["run"] * 3
        assert backend.launch_clock.startswith("the host's clock")
    assert isinstance(backend, Stepwise)
    outputs, steps = backend.infer_in_steps(feed(2))
    assert np.array_equal(outputs["out"], feed(2)["in"] * 2)
    assert min(steps.copy_in_ms, steps.infer_ms, steps.copy_out_ms) > 0


def test_device_numbers_reach_all_that_is_made(opened):
    cuda = FakeCuda()
    ort, backend = opened(model_bytes(), BackendOptions(device="cuda:1"), cuda)
    backend.infer(feed(1))
    assert ort.sessions[0][CUDA]["device_id"] == "1" and ort.devices == [1]
    assert "cudaSetDevice" in cuda.calls and "(CUDA:1, " in backend.description


def test_full_memory_is_told(opened, bindings):
    _, backend = opened(model_bytes(), BackendOptions(), bindings, full=True)
    with pytest.raises(BackendError, match="memory does not suffice; use a smaller --batch"):
        backend.infer(feed(1))


def test_a_provider_that_does_not_start_is_an_error(opened, capsys):
    with pytest.raises(BackendError, match=r"could not start it \(active: CPU.*boxwright doctor"):
        opened(model_bytes(), BackendOptions(), None, active=("CPUExecutionProvider",))
    assert capsys.readouterr().out == ""  # what the preloading prints is no data of ours


def test_libraries_of_wheels_elsewhere_are_shown_to_it(opened, tmp_path, monkeypatch):
    """As where ONNX Runtime lies apart from torch and its wheels of CUDA."""
    for name in ("cu13/lib/libcublas.so.13", "cudnn/lib/libcudnn.so.9", "empty/lib/readme"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True)
        (tmp_path / "nvidia" / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    ort, _ = opened(model_bytes(), BackendOptions(), None)
    found = [str(tmp_path / "nvidia" / place / "lib") for place in ("cu13", "cudnn")]
    assert ort.preloaded == ["", *found]


def test_a_missing_driver_is_told(opened):
    class NoDriver:
        def cudaSetDevice(self, index: int) -> None:  # noqa: N802
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(BackendError, match=r"CUDA does not start .*libcuda.*; say --device cpu"):
        opened(model_bytes(), BackendOptions(), NoDriver())


def test_closing_frees_the_stream_after_the_session(opened):
    cuda = FakeCuda()
    _, backend = opened(model_bytes(), BackendOptions(), cuda)
    backend.close()
    backend.close()
    assert cuda.calls.count("cudaStreamDestroy") == 1


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_cpu_is_not_touched(opened, device):
    ort, backend = opened(
        model_bytes(), BackendOptions(device=device), None, providers=("CPUExecutionProvider",)
    )
    assert np.array_equal(backend.infer(feed(2))["out"], feed(2)["in"] * 2)
    assert ort.calls == [] and ort.sessions == []
    assert backend.description == "onnxruntime 1.31.1 (CPU)"
    assert isinstance(backend, Bounded) and backend.largest_batch is None
    with pytest.raises(BackendError, match="on the CPU; say --device cuda"):
        backend.launch_times(feed(2), 1)


# -- providers' options


BOTH = (TENSORRT, CUDA, "CPUExecutionProvider")


def test_tensorrt_is_told_profile_caches_and_no_precision(opened, tmp_path):
    options = BackendOptions(
        device="tensorrt:1",
        provider_options=(("trt_builder_optimization_level", "5"), ("use_tf32", "0")),
        engine_cache=tmp_path,
        profile_batch=(1, 2, 4),
    )
    ort, backend = opened(model_bytes(), options, None, providers=BOTH)
    (told,) = ort.sessions
    assert list(told) == list(BOTH)
    assert told[TENSORRT] == {
        "device_id": "1",
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_cuda_graph_enable": "0",
        "trt_profile_min_shapes": "in:1x3",
        "trt_profile_opt_shapes": "in:2x3",
        "trt_profile_max_shapes": "in:4x3",
        "trt_builder_optimization_level": "5",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert told[CUDA] == {"device_id": "1", "use_tf32": "0"}
    assert backend.largest_batch == 4 and "TensorRT:1" in backend.description
    assert "captured with fixed shapes only" in backend.description


def test_a_fixed_graph_needs_no_profile_and_is_captured(opened):
    ort, backend = opened(model_bytes(batch=2), BackendOptions(device="tensorrt"), providers=BOTH)
    backend.infer(feed(2))
    assert not any("profile" in key for key in ort.sessions[0][TENSORRT])
    assert "capture" in ort.calls and backend.largest_batch is None


def test_int8_follows_the_graph():
    pair = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["in", "s"], ["out"])],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("out", TensorProto.UINT8, [1])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])],
    )
    facts = facts_of_graph(helper.make_model(pair).SerializeToString(), "q")
    choice = device_from_text("tensorrt")
    told = gpu_providers(
        choice, TENSORRT, facts, options={}, capture=False, stream=None, engine_cache=None,
        profile_batch=None, what="q",
    )  # fmt: skip
    assert told[0][1]["trt_int8_enable"] == "1" and told[0][1]["trt_fp16_enable"] == "0"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cudaa"}, "did you mean cuda"),
        ({"device": "cpu:1"}, "known are auto, cpu, cuda, cuda:N"),
        ({"provider_options": (("device_id", "1"),)}, "say --device cuda:N"),
        ({"provider_options": (("trt_fp16_enable", "1"),)}, "precision is in the graph"),
        ({"provider_options": (("cudnn_conv_algo", "1"),)}, "mean cudnn_conv_algo_search"),
        ({"provider_options": (("use_tf32", "0"),), "device": "cpu"}, "the CPU runs this; drop"),
        ({"device": "tensorrt"}, "has no TensorRT provider .*; install onnxruntime-gpu"),
    ],
)
def test_wrong_requests_are_refused(opened, options, words):
    with pytest.raises(BoxwrightError, match=words):
        opened(model_bytes(), BackendOptions(**options))


def test_wrong_profiles_are_refused(opened, tmp_path):
    with pytest.raises(RequestError, match="--profile-batch 4,2,1: it is not smallest, best"):
        options = BackendOptions(device="tensorrt", profile_batch=(4, 2, 1))
        opened(model_bytes(), options, providers=BOTH)
    model = onnx.load_model_from_string(model_bytes())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(RequestError, match="in is batchxwidth, and a profile is of batches"):
        options = BackendOptions(device="tensorrt")
        opened(model.SerializeToString(), options, providers=BOTH)
    path = tmp_path / "a.onnx"
    path.write_bytes(model_bytes())
    with pytest.raises(RequestError, match="--profile-batch: it is for --device tensorrt"):
        load(path, device="cpu", profile_batch=(1, 1, 1))
    with pytest.raises(RequestError, match="it is for ONNX Runtime, this is openvino"):
        load(path, "openvino", provider_options={"use_tf32": "0"})


# -- the verbs


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose ONNX Runtime has a GPU."""
    module = FakeOnnxRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: None)
    return module


def test_a_gpu_detects_what_the_cpu_detects(gpu):
    images = [generate_page(seed).image for seed in (42, 43)]
    with (
        load(onnx_file(), "onnxruntime", device="cpu") as reference,
        load(onnx_file(), "onnxruntime", device="cuda") as detector,
    ):
        expected, found = reference(images), detector(images)
        assert "CUDA graph" in detector.description
    assert sum(len(e) for e in expected) > 3
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one.xyxy, other.xyxy)


SHORT = ("--images", "pics", "--iterations", 2, "--warmup", 1, "--no-memory", "--format", "json")


def test_verbs_pass_the_device_on(cli, gpu, place):
    words = ("--runtime", "onnxruntime", "--device", "cuda:2", "--no-cuda-graph")
    words += ("--provider-option", "cudnn_conv_algo_search=HEURISTIC")
    ran = cli("predict", "tiny.onnx", "pics", *words)
    assert ran.code == 0, ran.err
    ran = cli("benchmark", "tiny.onnx", *words, *SHORT)
    assert ran.code == 0, ran.err
    (measured,) = json.loads(ran.out)["measured"]
    assert measured["description"] == "onnxruntime 1.31.1 (CUDA:2, TF32 on)"
    assert measured["latencies"]["copy_in"]["p50_ms"] > 0
    assert len(measured["network"]["samples_ms"]) == 2
    assert measured["network_clock"].startswith("the host's clock")
    for told in gpu.sessions:
        assert told[CUDA] == {
            "device_id": "2",
            "cudnn_conv_algo_search": "HEURISTIC",
            "enable_cuda_graph": "0",
        }
    ran = cli("benchmark", "tiny.onnx", "--device", "cuda", *SHORT[:-2])
    assert ran.code == 0 and "CUDA graph" in ran.err and "network alone" in ran.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--device", "gpu"), "--device gpu: known are auto, cpu, cuda, cuda:N, tensorrt"),
        (("--provider-option", "a"), "--provider-option a: it is not KEY=VALUE"),
        (("--profile-batch", "1,2"), "--profile-batch 1,2: it is not smallest, best, largest"),
    ],
)
def test_wrong_words_are_one_line(cli, place, words, expected):
    for verb in (("predict", "tiny.onnx", "pics"), ("benchmark", "tiny.onnx")):
        ran = cli(*verb, *words)
        assert ran.code == 2 and ran.error.startswith(expected)


def test_several_sessions_at_once_capture_nothing(cli, gpu, place):
    ran = cli("benchmark", "tiny.onnx", "--device", "cuda", "--concurrency", 2, *SHORT)
    assert ran.code == 0, ran.err
    (measured,) = json.loads(ran.out)["measured"]
    assert "CUDA graph" not in measured["description"] and "2 sessions" in measured["description"]
