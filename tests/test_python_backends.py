"""Triton's python-based backends on stand-ins: what they answer, and what they refuse to load."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from fake_onnxruntime import threads_of
from fake_tensorrt import FakeCuda, Network, fake_tensorrt
from onnx import helper, numpy_helper

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


class Opened(list):
    """The providers of the sessions that were opened; `shapes` of what each of them ran.

    `most` is how many there is memory for, `most_rows` how large a batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[list[dict[str, tuple[int, ...]]]] = []
        self.settings: list[object] = []
        self.most, self.most_rows = 99, 999


@pytest.fixture
def sessions(monkeypatch):
    """Keep how sessions are opened and what they run; they run on the CPU."""
    import onnxruntime

    seen = Opened()
    real = onnxruntime.InferenceSession

    def opened(path, settings, providers, enable_fallback):
        assert enable_fallback == 0
        if len(seen) == seen.most:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        seen.append(providers)
        seen.settings.append(settings)
        session = real(path, settings, providers=["CPUExecutionProvider"])
        shapes: list[dict[str, tuple[int, ...]]] = []
        seen.shapes.append(shapes)
        compute = session.run

        def run(names, feed):
            if any(len(value) > seen.most_rows for value in feed.values()):
                raise RuntimeError("Failed to allocate memory for requested buffer of size 9")
            shapes.append({name: value.shape for name, value in feed.items()})
            return compute(names, feed)

        monkeypatch.setattr(session, "run", run)
        if isinstance(providers[0], tuple):
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


@pytest.mark.parametrize(
    ("kind", "asked", "instances", "threads"),
    [
        ("GPU", "", 1, (1, False)),
        ("GPU", "", 2, (1, False)),
        ("GPU", "4", 1, (4, True)),
        ("GPU", "4", 2, (4, False)),
        ("CPU", "", 1, (0, True)),
        ("CPU", "", 2, (0, False)),
        ("CPU", "4", 1, (4, True)),
    ],
)
def test_sessions_on_a_gpu_have_one_thread(
    model_class, tmp_path, sessions, kind, asked, instances, threads
):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(sample.onnx_file().read_bytes())
    config = {**graph_config(4, ""), "instance_group": [{"count": instances}]}
    if asked:
        config["parameters"]["intra_op_thread_count"] = {"string_value": asked}
    model_class("onnxruntime").initialize(arguments(tmp_path, config, kind))
    assert len(sessions.settings) == (2 if kind == "GPU" else 1)  # batches of 1 and 4
    assert {threads_of(one) for one in sessions.settings} == {threads}


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


@pytest.fixture
def picture_plan(plan, monkeypatch):
    """The same, of rows of any length: the inputs of a plan of pictures."""
    folder, cuda = plan
    network = Network(input_shape=(-1, 3), output_shape=(-1, 3))
    module = fake_tensorrt(cuda, most=4, free=True, network=network)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
    return folder, cuda


def pictures_config(batch: int, **parameters: str) -> dict:
    told = config(batch, dims=("-1", "3") if batch else ("1", "-1", "3"))
    return {**told, "parameters": {k: {"string_value": v} for k, v in parameters.items()}}


def sized(*sizes: int) -> list[np.ndarray]:
    return [np.full((1, size, 3), number, np.float32) for number, size in enumerate(sizes, 1)]


@pytest.mark.parametrize(
    ("told", "captures", "replays"),
    [({}, 2, 8), ({"shapes": "1"}, 1, 4), ({"shapes": "0"}, 0, 0)],
    ids=["by default", "1", "0"],
)
@pytest.mark.parametrize("batch", [0, 1])
def test_picture_sizes_that_come_often_have_graphs(
    model_class, picture_plan, batch, told, captures, replays
):
    folder, cuda = picture_plan
    model = model_class("tensorrt")
    model.initialize(arguments(folder, pictures_config(batch, **told), "GPU"))
    for _ in range(6):
        for given in sized(5, 7):
            assert np.array_equal(answered(model, [given])[0], given * 2)
    assert cuda.calls.count("capture") == captures and cuda.calls.count("replay") == replays
    model.finalize()
    assert not cuda.memory


def test_a_turn_of_several_sizes_answers_each(model_class, picture_plan):
    """Outputs of one context that runs several times in a turn are not overwritten."""
    folder, cuda = picture_plan
    model = model_class("tensorrt")
    model.initialize(arguments(folder, pictures_config(4), "GPU"))
    for _ in range(5):
        given = sized(5, 7, 5, 9, 5, 5, 5, 7)
        found = answered(model, given)
        for one, other in zip(given, found, strict=True):
            assert np.array_equal(one * 2, other)
    assert cuda.calls.count("capture") >= 3
    model.finalize()
    assert not cuda.memory


def test_a_plan_of_one_picture_size_keeps_nothing(model_class, plan):
    folder, cuda = plan
    model = model_class("tensorrt")
    model.initialize(arguments(folder, config(4), "GPU"))
    for _ in range(5):
        model.execute([Request(**{"in": rows(2, 0)})])
    assert "capture" not in cuda.calls and model.backend.kept_shapes is None


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("many", "the parameter shapes is 'many', not a whole number"),
        ("-1", "the parameter shapes is '-1', not a whole number"),
        ("", "the parameter shapes is '', not a whole number"),
        ("65", "shapes 65: it is not within 0 and 64"),
    ],
    ids=["text", "negative", "empty", "many"],
)
def test_a_wrong_number_of_shapes_is_refused(model_class, picture_plan, told, says):
    with pytest.raises(RefusalError) as refused:
        model_class("tensorrt").initialize(
            arguments(picture_plan[0], pictures_config(1, shapes=told), "GPU")
        )
    assert says in str(refused.value) and "model.plan" in str(refused.value)


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


# Sizes of batches on a GPU


def convolutions(folder: Path, side: int | str = 12, threshold: bool = False) -> Path:
    """Write a network of three convolutions to FOLDER/1: `in` (N, 3, S, S) to `out` (N, 4)."""
    random = np.random.default_rng(7)
    weights = [("a", (8, 3, 3, 3)), ("b", (8, 8, 3, 3)), ("c", (4, 8, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["in", "a"], ["x"]),
        helper.make_node("Relu", ["x"], ["x1"]),
        helper.make_node("Conv", ["x1", "b"], ["x2"]),
        helper.make_node("Conv", ["x2", "c"], ["x3"]),
        helper.make_node("ReduceMean", ["x3"], ["y"], axes=[2, 3], keepdims=0),
        helper.make_node("Add" if threshold else "Identity", ["y", "t"][: 1 + threshold], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info("in", 1, ["batch", 3, side, side])]
    if threshold:
        inputs.append(helper.make_tensor_value_info("t", 1, [1]))
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("out", 1, ["batch", 4])],
        [numpy_helper.from_array(random.normal(size=s).astype(np.float32), n) for n, s in weights],
    )  # fmt: skip
    file = folder / "1/model.onnx"
    file.parent.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


def convolution_config(batch: int, sizes: str | None = None, threshold: bool = False) -> dict:
    told = {} if sizes is None else {"batch_sizes": {"string_value": sizes}}
    inputs = [{"name": "in", "data_type": "TYPE_FP32", "dims": ["3", "12", "12"]}]
    if threshold:
        inputs.append({"name": "t", "data_type": "TYPE_FP32", "dims": ["1"]})
    output = {"name": "out", "data_type": "TYPE_FP32", "dims": ["4"]}
    return {"max_batch_size": batch, "input": inputs, "output": [output], "parameters": told}


def pictures(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(size=(count, 3, 12, 12)).astype(np.float32)


def batches_of(shapes: list[dict[str, tuple[int, ...]]]) -> list[int]:
    return [shape["in"][0] for shape in shapes]


@pytest.mark.parametrize("told", [None, "2,7,16"])
def test_no_session_sees_two_shapes(model_class, tmp_path, sessions, told):
    """200 turns of random sizes; the answers are those of batches as they are, bit for bit."""
    file = convolutions(tmp_path)
    model = model_class("onnxruntime")
    model.initialize(arguments(tmp_path, convolution_config(16, told), "GPU"))
    sizes = [1, 4, 16] if told is None else [2, 7, 16]
    assert [batches_of(s) for s in sessions.shapes] == [[n] for n in sizes]  # each was run once
    import onnxruntime

    plain = onnxruntime.InferenceSession(
        str(file), None, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    random = np.random.default_rng(3)
    for _ in range(200):
        given = [pictures(random, n) for n in random.integers(1, 6, random.integers(1, 9))]
        for found, value in zip(answered(model, given), given, strict=True):
            np.testing.assert_array_equal(found, plain.run(None, {"in": value})[0])
    assert [set(batches_of(s)) for s in sessions.shapes[:3]] == [{n} for n in sizes]
    assert all(len(s) > 20 for s in sessions.shapes[1:3])


def test_the_sample_answers_as_without_sizes(model_class, tmp_path, sessions):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(sample.onnx_file().read_bytes())
    given = [np.random.default_rng(i).random((1, 3, 640, 640), np.float32) for i in range(3)]
    found = []
    for told in ("any", "1,4"):
        config = graph_config(4, "")
        config["parameters"]["batch_sizes"] = {"string_value": told}
        model = model_class("onnxruntime")
        model.initialize(arguments(tmp_path, config, "GPU"))
        answers = model.execute([Request(images=g) for g in given])
        found.append([a.tensors["output"] for a in answers])
    np.testing.assert_array_equal(*found)
    assert [[s["images"][0] for s in shapes] for shapes in sessions.shapes] == [[3], [1], [4, 4]]


def test_a_threshold_has_no_size(model_class, tmp_path, sessions):
    convolutions(tmp_path, threshold=True)
    model = model_class("onnxruntime")
    model.initialize(arguments(tmp_path, convolution_config(4, threshold=True), "GPU"))
    values = [pictures(np.random.default_rng(i), 1) for i in range(3)]
    one = np.ones((1, 1), np.float32)
    with_it = model.execute([Request(**{"in": v, "t": one}) for v in values])
    without = model.execute([Request(**{"in": v, "t": one * 0}) for v in values])
    for a, b in zip(with_it, without, strict=True):
        np.testing.assert_allclose(a.tensors["out"], b.tensors["out"] + 1, rtol=1e-6)
    assert sessions.shapes[1] == [{"in": (4, 3, 12, 12), "t": (1,)}] * 3


def test_a_filled_batch_that_does_not_run_is_halved(model_class, tmp_path, sessions):
    convolutions(tmp_path)
    model = model_class("onnxruntime")
    model.initialize(arguments(tmp_path, convolution_config(16), "GPU"))
    sessions.most_rows = 4  # from now on memory is short
    given = [pictures(np.random.default_rng(i), 1) for i in range(6)]
    good = answered(model, given)
    assert [batches_of(s) for s in sessions.shapes] == [[1], [4, 4, 4], [16]]
    sessions.most_rows = 999
    np.testing.assert_array_equal(good, answered(model, given))
    answers = model.execute(
        [Request(**{"in": v}) for v in (given[0], np.zeros((1, 3, 12, 11), np.float32), given[1])]
    )
    assert [a.error is None for a in answers] == [True, False, True]


@pytest.mark.parametrize(
    ("kind", "told", "side", "batch"),
    [
        ("CPU", None, 12, 16),
        ("CPU", "1,16", 12, 16),
        ("GPU", "", 12, 16),
        ("GPU", "any", 12, 16),
        ("GPU", None, "side", 16),
        ("GPU", None, 12, 0),
    ],
    ids=["CPU", "CPU, told", "off", "any", "other free sizes", "no batches"],
)
def test_one_session_as_before(model_class, tmp_path, sessions, kind, told, side, batch):
    convolutions(tmp_path, side=side)
    config = convolution_config(batch, told)
    if not batch:
        config["input"][0]["dims"] = ["-1", "3", "12", "12"]
        config["output"][0]["dims"] = ["-1", "4"]
    model = model_class("onnxruntime")
    model.initialize(arguments(tmp_path, config, kind))
    assert sessions.shapes == [[]]  # and nothing runs before the first request
    answered(model, [pictures(np.random.default_rng(0), 3)])
    assert [batches_of(s) for s in sessions.shapes] == [[3]]


def test_engines_of_tensorrt_serve_every_size(model_class, tmp_path, sessions):
    """A session each would build an engine each; who says the sizes gets them."""
    convolutions(tmp_path)
    entry = {"name": "tensorrt", "parameters": {}}
    told = {"execution_accelerators": {"gpu_execution_accelerator": [entry]}}
    for sizes, count in ((None, 1), ("1,16", 3)):
        config = {**convolution_config(16, sizes), "optimization": told}
        model_class("onnxruntime").initialize(arguments(tmp_path, config, "GPU"))
        assert len(sessions) == count
    assert all(s[0][0] == "TensorrtExecutionProvider" for s in sessions)


@pytest.mark.parametrize("kind", ["CPU", "GPU"])
def test_wrong_sizes_are_refused_before_anything_is_opened(model_class, tmp_path, sessions, kind):
    convolutions(tmp_path)
    with pytest.raises(RefusalError, match="'1,8', and the last of them must be max_batch_size"):
        model_class("onnxruntime").initialize(
            arguments(tmp_path, convolution_config(16, "1,8"), kind)
        )
    assert not sessions


def test_sizes_of_a_file_with_other_free_sizes_are_refused(model_class, tmp_path, sessions):
    convolutions(tmp_path, side="side")
    with pytest.raises(RefusalError, match="the input in has other free sizes; leave it out"):
        model_class("onnxruntime").initialize(
            arguments(tmp_path, convolution_config(16, "1,16"), "GPU")
        )


@pytest.mark.parametrize(
    ("most", "most_rows", "says"),
    [(2, 99, "a session of batches of 16"), (9, 4, "a batch of 16"), (0, 99, "batches of 1;")],
    ids=["opening", "first run", "the first"],
)
def test_memory_that_is_short_refuses_the_model(
    model_class, tmp_path, sessions, most, most_rows, says
):
    convolutions(tmp_path)
    sessions.most, sessions.most_rows = most, most_rows
    with pytest.raises(RefusalError, match="give fewer or smaller batch_sizes") as refused:
        model_class("onnxruntime").initialize(arguments(tmp_path, convolution_config(16), "GPU"))
    assert "the GPU's memory does not suffice for" in str(refused.value)
    assert says in str(refused.value)
