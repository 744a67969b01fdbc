"""Contexts that stay at one shape: which run, what is captured, and what happens without memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeCuda, Network, fake_tensorrt, network_of
from test_tensorrt_backend import H100, PLAN, record

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.backends import tensorrt as backend_module
from boxwright.engine_record import record_bytes, sidecar_path
from boxwright.errors import BackendError, RequestError
from boxwright.graph.image_input import add_image_input
from boxwright.loading import load
from boxwright.sample import generate_page, onnx_file
from boxwright.stamps import metadata_from_stamp, stamp_from_metadata
from boxwright.stream import Stream

SIZES = Network(input_shape=(-1, 3), output_shape=(-1, 3))


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def opened(tmp_path, monkeypatch, cuda):
    """Return a function that opens a plan of rows of any length, which it doubles."""

    def call(*, graph: bool = True, network: Network = SIZES, **how: object):
        plan = tmp_path / "a.plan"
        plan.write_bytes(PLAN)
        module = fake_tensorrt(cuda, network=network, **{"most": 4, "free": True} | how)
        monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
        monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
        monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
        backend = catalog.backend("tensorrt").open(plan, BackendOptions(cuda_graph=graph))
        backend.engines = module.engines
        return backend

    return call


def picture(size: int, first: float = 1.0, rows: int = 1) -> dict[str, np.ndarray]:
    count = rows * size * 3
    return {"in": np.arange(first, first + count, dtype=np.float32).reshape(rows, size, 3)}


def run(backend, *sizes: int) -> None:
    """Run pictures, and compare every answer."""
    for number, size in enumerate(sizes):
        given = picture(size, first=10.0 * number)
        assert np.array_equal(backend.infer(given)["out"], given["in"] * 2)


def test_a_size_that_comes_often_is_captured_once(opened, cuda):
    backend = opened()
    run(backend, *[5] * 10)
    assert cuda.calls.count("capture") == 1 and cuda.calls.count("replay") == 8
    assert backend.kept_shapes.shapes == (((1, 5, 3),),)
    assert "CUDA graphs of up to 8 shapes" in backend.description


def test_sizes_in_turns_are_replayed(opened, cuda):
    """What was a capture at each change is one capture a size."""
    backend = opened()
    run(backend, *[5, 7, 9] * 10)
    assert cuda.calls.count("capture") == backend.kept_shapes.captures == 3
    cuda.calls.clear()
    run(backend, 9, 5, 7, 5)
    assert cuda.calls.count("replay") == 4 and "launch" not in cuda.calls


def test_rare_sizes_run_without_a_graph(opened, cuda):
    backend = opened()
    run(backend, *range(1, 40))
    assert "capture" not in cuda.calls and cuda.calls.count("launch") == 39


def test_no_kept_shapes_capture_at_every_change(opened, cuda):
    backend = opened()
    backend.keep_shapes(0)
    run(backend, 5, 7, 5, 7)
    assert cuda.calls.count("capture") == 4 and backend.kept_shapes is None


def test_without_graphs_none_is_kept_unless_asked(opened, cuda):
    backend = opened(graph=False)
    run(backend, *[5] * 5)
    assert "capture" not in cuda.calls and backend.kept_shapes is None
    backend.keep_shapes(1)
    run(backend, *[5] * 5, *[7] * 5)
    assert cuda.calls.count("capture") == 1


def test_a_plan_of_a_free_batch_alone_keeps_no_shapes_unless_asked(opened, cuda):
    backend = opened(network=Network())
    assert backend.kept_shapes is None and not backend.has_free_sizes
    backend.keep_shapes(2)
    for rows in (1, 2) * 5:
        given = np.ones((rows, 3), np.float32)
        assert np.array_equal(backend.infer({"in": given})["out"], given * 2)
    assert cuda.calls.count("capture") == 2


def test_a_change_of_camera_changes_the_place(opened, cuda):
    backend = opened()
    backend.keep_shapes(1)
    run(backend, *[5] * 50, *[7] * 300)
    assert backend.kept_shapes.shapes == (((1, 7, 3),),)
    assert cuda.calls.count("capture") == 2
    assert cuda.calls.count("cudaStreamCreateWithFlags") == 2, "the context was used again"


@pytest.mark.parametrize(("version", "engines"), [("8.6.0", 3), ("10.3.0", 1)])
def test_a_place_has_an_engine_where_tensorrt_shares_none(opened, version, engines):
    """The fake refuses a second context of a free engine before 10, as TensorRT does."""
    backend = opened(version=version)
    run(backend, *[5, 7] * 5)
    assert len(backend.engines) == engines and len(backend.kept_shapes.shapes) == 2


def test_memory_to_fill_is_that_of_the_context_that_will_run(opened, cuda):
    backend = opened()
    for turn in range(8):
        for size in (5, 7, 9):
            given = picture(size, 100.0 * turn + size)["in"]
            view = backend.input_view("in", given.shape, "float32")
            view[...] = given
            assert np.array_equal(backend.infer({"in": view})["out"], given * 2)
    addresses = {backend.input_view("in", (1, n, 3), "float32").ctypes.data for n in (5, 7, 9, 11)}
    assert len(addresses) == 4, "three places and the first context"


def test_a_view_of_before_the_place_was_given_is_copied(opened):
    """Its memory is the first context's; the run that makes the place still reads it."""
    backend = opened()
    view = backend.input_view("in", (1, 5, 3), "float32")
    for first in range(6):
        view[...] = picture(5, first)["in"]
        assert np.array_equal(backend.infer({"in": view})["out"], view * 2)
    assert backend.kept_shapes.captures == 1


def test_short_memory_is_no_error_and_not_tried_again(opened, cuda):
    backend = opened()
    run(backend, 5, 5, 7, 9)
    cuda.full = True
    run(backend, *[5] * 4)
    tried = len(backend.engines)
    run(backend, *[5] * 20)
    assert tried == 2 and len(backend.engines) == tried, "one attempt: an engine and no context"
    cuda.full = False
    run(backend, *[7] * 4, *[5] * 4)
    assert backend.kept_shapes.shapes == (((1, 7, 3),),)
    backend.close()
    assert not cuda.memory


def test_the_last_memory_is_left_to_others(opened, cuda):
    backend = opened()
    backend.keep_shapes(1)
    run(backend, 5, 5, 9)
    before, cuda.free_bytes = len(cuda.memory), (8 << 30) - 1
    run(backend, *[5] * 10)
    assert len(cuda.memory) == before and backend.kept_shapes.shapes == ()
    cuda.free_bytes = 8 << 30
    run(backend, *[7] * 4)
    assert backend.kept_shapes.shapes == (((1, 7, 3),),)


def test_memory_that_ends_while_a_place_is_made_is_given_back(opened, cuda, monkeypatch):
    backend = opened()
    run(backend, 5, 5, 9)
    before = len(cuda.memory)
    module = backend_module.PlanContext

    class Short(module):
        def ready_graph(self):
            cuda.full = True
            self._buffers.reserve("more", 10)

    monkeypatch.setattr(backend_module, "PlanContext", Short)
    run(backend, 5)
    cuda.full = False
    assert len(cuda.memory) == before and backend.kept_shapes.shapes == ()
    run(backend, *[5] * 4)


def test_a_run_that_fails_leaves_the_others_usable(opened, cuda):
    backend = opened()
    run(backend, *[5, 7] * 4)
    cuda.broken.add(1)  # the first graph that was captured, of length 5
    view = backend.input_view("in", (1, 5, 3), "float32")
    view[...] = 3
    with pytest.raises(BackendError, match="cudaGraphLaunch"):
        backend.infer({"in": view})
    assert np.array_equal(backend.infer({"in": view})["out"], view * 2), "its memory is still there"
    run(backend, *[5, 7] * 4)
    assert backend.kept_shapes.shapes == (((1, 7, 3),),) and cuda.calls.count("capture") == 2
    backend.close()
    backend.close()
    assert not cuda.memory


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "input in is missing"),
        ({"in": np.zeros((1, 5, 3), np.float64)}, "in is float64"),
        ({"in": np.zeros((9, 5, 3), np.float32)}, "the plan takes"),
    ],
    ids=["missing", "dtype", "batch"],
)
def test_a_wrong_feed_costs_nobody_a_place(opened, given, words):
    backend = opened()
    run(backend, *[5] * 4)
    for _ in range(5):
        with pytest.raises(BackendError, match=words):
            backend.infer(given)
    run(backend, *[5] * 4)
    assert backend.kept_shapes.shapes == (((1, 5, 3),),) and backend.kept_shapes.captures == 1


def test_a_plan_that_cannot_be_captured_runs_in_its_places(opened, cuda):
    cuda.capture_limit = 0
    backend = opened()
    run(backend, *[5, 7] * 6)
    assert cuda.calls.count("capture") == 1 and "no CUDA graph" in backend.description


def test_the_network_alone_is_timed_where_it_runs(opened, cuda):
    backend = opened()
    cuda.calls.clear()
    assert backend.launch_times(picture(5), 4) == [1.5] * 4
    assert cuda.calls.count("launch") == 3, "twice in the first context, once before the capture"
    assert cuda.calls.count("replay") == 1 + 4
    outputs, times = backend.infer_in_steps(picture(5))
    assert np.array_equal(outputs["out"], picture(5)["in"] * 2) and times.infer_ms == 1.5
    assert cuda.calls.count("capture") == 1


def test_submitted_inferences_keep_their_own_graphs(opened, cuda):
    backend = opened()
    run(backend, 5, 5)
    for _ in range(3):
        ticket = backend.submit(picture(6))
        assert np.array_equal(backend.collect(ticket)["out"], picture(6)["in"] * 2)
    assert cuda.calls.count("capture") == 1
    run(backend, 7, 7)
    assert cuda.calls.count("capture") == 1


def test_outputs_that_depend_on_the_data_come_from_their_places(opened, cuda):
    backend = opened(network=Network(), dependent=True)
    backend.keep_shapes(2)
    for _ in range(6):
        for rows in (2, 3):
            given = np.full((rows, 3), rows, np.float32)
            given[0] = -1
            found = backend.infer({"in": given})["out"]
            assert np.array_equal(found, given[1:] * 2)
    assert "capture" not in cuda.calls and len(backend.kept_shapes.shapes) == 2
    assert "depend on the data" in backend.description
    backend.close()
    assert not cuda.memory


def test_lanes_have_graphs_beside_kept_shapes(opened, cuda):
    backend = opened()
    run(backend, 5)
    (lane,) = backend.tensor_lanes(1)
    lane.start(picture(6))
    assert np.array_equal(lane.finish()["out"], picture(6)["in"] * 2)
    assert cuda.calls.count("capture") == 1


@pytest.mark.parametrize("count", [-1, 65])
def test_a_wrong_number_is_refused(opened, count):
    with pytest.raises(RequestError, match=f"shapes {count}: it is not within 0 and 64"):
        opened().keep_shapes(count)


def test_a_plan_of_one_shape_is_refused(opened):
    backend = opened(free=False, network=Network())
    with pytest.raises(RequestError, match="the plan takes one shape only"):
        backend.keep_shapes(2)
    backend.keep_shapes(0)


def test_closing_frees_all(opened, cuda):
    backend = opened()
    run(backend, *[5, 7, 9] * 5)
    backend.keep_shapes(2)
    run(backend, *[5, 7, 9] * 5)
    backend.close()
    backend.close()
    assert not cuda.memory


# -- pictures: the embedded detector with its preprocessing in the graph, computed by ONNX Runtime


@pytest.fixture(scope="module")
def picture_file(tmp_path_factory) -> Path:
    """The embedded raw file, taking pictures of any size."""
    model = onnx.load(onnx_file())
    found = stamp_from_metadata({p.key: p.value for p in model.metadata_props}, "sample")
    target = dataclasses.replace(found.target, input="image")
    made = add_image_input(model, found.spec, target)
    stamp = dataclasses.replace(found, target=target)
    onnx.helper.set_model_props(made, metadata_from_stamp(stamp))
    path = tmp_path_factory.mktemp("pictures") / "sample.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture
def picture_plan(picture_file, tmp_path, monkeypatch, cuda) -> Path:
    network = network_of(picture_file)
    metadata = {p.key: p.value for p in onnx.load(picture_file).metadata_props}
    low, high = (1, 32, 32, 3), (2, 4096, 4096, 3)
    described = record(profile={"image": (low, low, high)}, metadata=metadata)
    module = fake_tensorrt(cuda, most=2, free=True, network=network)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
    plan = tmp_path / "sample.plan"
    plan.write_bytes(PLAN)
    sidecar_path(plan).write_bytes(record_bytes(described))
    return plan


@pytest.fixture(scope="module")
def pages() -> list[np.ndarray]:
    """Pictures of three sizes in turns, and one of a size of its own."""
    sizes = [(640, 480), (480, 640), (427, 640)]
    page = generate_page(42).image
    found = [cv2.resize(page, (w, h)) for h, w in sizes for _ in range(4)]
    found = [np.roll(p, 3 * i, axis=0) for i, p in enumerate(found)]
    return [found[i] for i in (0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11)] + [page[:400, :333]]


@pytest.fixture(scope="module")
def expected(picture_file, pages):
    with load(picture_file, "onnxruntime") as reference:
        found = [reference(page) for page in pages]
    assert sum(map(len, found)) > 10
    return found


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(one.xyxy, other.xyxy, atol=1e-3)
        assert np.array_equal(one.class_ids, other.class_ids)


def test_pictures_of_a_few_sizes_are_captured_once_each(picture_plan, pages, expected, cuda):
    with load(picture_plan) as detector:
        found = [detector(page) for page in pages]
        shapes = [key[0] for key in detector.backend.kept_shapes.shapes]
    assert_same(found, expected)
    assert shapes == [(1, 640, 480, 3), (1, 480, 640, 3), (1, 427, 640, 3)]
    assert cuda.calls.count("capture") == 3
    assert not cuda.memory


def test_a_stream_of_pictures_keeps_their_sizes(picture_plan, pages, expected, cuda):
    with load(picture_plan) as detector, Stream(detector, batch=1) as stream:
        found = {seen.index: seen.detections for seen in stream.detect(pages)}
    assert_same([found[i] for i in range(len(pages))], expected)
    assert cuda.calls.count("capture") == 3
