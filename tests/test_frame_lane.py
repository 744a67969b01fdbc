"""A batch's way as one CUDA graph, in pieces, without work that is done twice: on a fake CUDA."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from fake_tensorrt import FakeCuda, Network, fake_tensorrt
from kernel_on_host import FakeDriver, HostKernel
from test_plan_lanes import OnDevice
from test_tensorrt_backend import H100, PLAN, record

from boxwright import catalog, gpu_preprocess
from boxwright.backends import BackendOptions
from boxwright.backends import tensorrt as backend_module
from boxwright.engine_record import record_bytes, sidecar_path
from boxwright.errors import BackendError, ImageError
from boxwright.gpu_preprocess import PICTURE, RECORD, picture_record
from boxwright.heads import rows_from_end2end
from boxwright.preprocess import place
from boxwright.types import HeadLayout, ModelSpec, Preprocess

SIZE = (32, 48)
RULES = Preprocess()
WHOLE = Network(input_shape=(3, *SIZE), output_shape=(3, *SIZE))
WAY = ("copy_in", "letterbox", "launch", "capture", "replay", "copy_out")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> HostKernel:
    return HostKernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def opened(tmp_path, monkeypatch, cuda, kernel):
    """Return a function that opens a plan of 1 to 4 pictures whose network doubles the tensor."""
    monkeypatch.setattr(gpu_preprocess, "cuda_driver", lambda: FakeDriver(kernel, cuda))
    monkeypatch.setattr(gpu_preprocess, "compile_source", lambda *_: b"code")
    backends = []

    def call(*, graph: bool = True, network: Network = WHOLE, dependent: bool = False):
        profile = {"in": tuple((n, 3, *SIZE) for n in (1, 1, 4))}
        described = record(profile=profile, plan_sha256=hashlib.sha256(PLAN).hexdigest())
        plan = tmp_path / "a.plan"
        plan.write_bytes(PLAN)
        sidecar_path(plan).write_bytes(record_bytes(described))
        module = fake_tensorrt(cuda, most=4, free=True, network=network, dependent=dependent)
        monkeypatch.setattr(backend_module, "load_tensorrt", lambda runtime: module)
        monkeypatch.setattr(backend_module, "cuda_runtime", lambda: cuda)
        monkeypatch.setattr(backend_module, "find_gpu", lambda: H100)
        backends.append(catalog.backend("tensorrt").open(plan, BackendOptions(cuda_graph=graph)))
        return backends[-1]

    yield call
    for backend in backends:
        backend.close()


@pytest.fixture
def backend(opened):
    return opened()


@pytest.fixture
def lane(backend):
    (made,) = backend.frame_lanes(RULES, SIZE, 1)
    yield made
    made.close()


@pytest.fixture
def expected(kernel):
    """Return a function: what a lane gives for pictures, from the kernel and nothing else."""

    def call(pictures, batch: int | None = None) -> np.ndarray:
        records = np.zeros(batch or len(pictures), PICTURE)
        for index, picture in enumerate(pictures):
            where = place(picture.shape[:2], SIZE, RULES)
            words = (picture.ctypes.data, picture.strides[0], where)
            records[index] = picture_record(*words, swap=True)
        tensor = np.full((len(records), 3, *SIZE), np.nan, np.float32)
        kernel.run(records, tensor, RULES)
        return tensor * 2

    return call


def pictures_of(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def run(lane, pictures, batch: int | None = None, **how: bool) -> np.ndarray:
    lane.reserve(pictures, batch or len(pictures), **how)
    lane.start_with(pictures)
    return lane.finish(patient=False)["out"].copy()


def way(cuda: FakeCuda) -> list[str]:
    found = [c for c in cuda.calls if c in WAY]
    cuda.calls.clear()
    return found


def test_the_second_batch_is_captured_and_the_others_replayed(lane, cuda, expected):
    """The graph holds letterbox, network and copy out; frames of other sizes replay it, too."""
    found = []
    for seed, size in enumerate([(24, 40), (24, 40), (20, 44), (40, 24), (24, 40)]):
        pictures = pictures_of(size, seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures)), seed
        found.append(way(cuda))
    assert found[0] == ["copy_in", "letterbox", "launch", "copy_out"]
    assert found[1] == ["copy_in", "capture", "replay"]
    assert found[2:] == [["copy_in", "replay"]] * 3
    assert [len(g) for g in cuda.graphs] == [3]


def test_bulk_batches_take_the_same_graph(lane, cuda, expected):
    for seed in range(4):
        pictures = pictures_of((24, 40), (30, 20), seed=seed)
        lane.reserve(pictures, 2)
        for index, picture in enumerate(pictures):
            lane.fill(index, picture)
        lane.start()
        assert np.array_equal(lane.finish(patient=True)["out"], expected(pictures))
    assert way(cuda)[-2:] == ["copy_in", "replay"]


def test_only_who_sleeps_needs_an_event(lane, cuda):
    pictures = pictures_of((24, 40))
    run(lane, pictures)
    assert "cudaEventRecord" not in cuda.calls and "cudaEventSynchronize" not in cuda.calls
    lane.start()
    lane.finish(patient=True)
    order = [c for c in cuda.calls if c in ("cudaEventRecord", "cudaEventSynchronize")]
    assert order == ["cudaEventRecord", "cudaEventSynchronize"]


def test_memory_that_grows_drops_the_graph(lane, cuda, expected):
    """Small, larger than the memory that is there, small again: right each time."""
    for seed, size in enumerate([(8, 8)] * 3 + [(200, 300)] * 3 + [(8, 8), (300, 400), (8, 8)] * 2):
        pictures = pictures_of(size, seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures)), seed
    assert cuda.calls.count("capture") == 3, "one for each place of the pictures"
    assert cuda.calls.count("cudaGraphExecDestroy") == 2
    assert way(cuda)[-2:] == ["copy_in", "replay"]


def test_batches_of_other_sizes_run_unless_they_come_again(lane, cuda, expected):
    counts = [2, 2, 2, 1, 3, 1, 1, 1, 4]
    for seed, count in enumerate(counts):
        pictures = pictures_of(*[(24, 40)] * count, seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures)), seed
    assert cuda.calls.count("capture") == 2, "of 2 and of 1, which came twice in a row"


def test_a_batch_that_is_filled_up_has_zeros(lane, cuda, expected):
    """The places that pictures lack are zero, also after a batch that had them."""
    for seed, count in enumerate([3, 1, 2, 3, 1, 1]):
        pictures = pictures_of(*[(24, 40)] * count, seed=seed)
        found = run(lane, pictures, batch=3)
        assert np.array_equal(found, expected(pictures, 3)), seed
        assert not found[count:].any()
    assert cuda.calls.count("capture") == 1
    for batch in (1, 2, 4, 1):  # the same pictures, other batches
        assert np.array_equal(run(lane, pictures, batch=batch), expected(pictures, batch))


@pytest.mark.parametrize("count", [1, 3])
def test_large_pictures_are_sent_in_pieces(lane, cuda, expected, count):
    """A frame of 640x480 in two, more where it is larger; what was there before is written over."""
    numbers = []
    for seed, size in enumerate([(480, 640), (480, 640), (1080, 1920), (37, 5000), (480, 640)]):
        pictures = pictures_of(*[size] * count, seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures)), seed
        numbers.append(way(cuda).count("copy_in"))
    assert numbers == ([2, 2, 6, 2, 2] if count == 1 else [4, 4, 10, 3, 4])


def test_the_first_piece_leaves_before_the_last_row_is_copied(lane, cuda, monkeypatch):
    pictures = pictures_of((480, 640))
    run(lane, pictures)
    seen = []
    send = cuda.cudaMemcpyAsync

    def spy(to, of, size, kind, stream):
        seen.append((kind, size, int(lane._pixels[lane._offsets[0] + pictures[0].nbytes - 1])))
        return send(to, of, size, kind, stream)

    monkeypatch.setattr(cuda, "cudaMemcpyAsync", spy)
    before, after = int(pictures[0][-1, -1, -1]), int(~pictures[0][-1, -1, -1])
    pictures[0] = ~pictures[0]
    lane.reserve(pictures, 1)
    lane.start_with(pictures)
    lane.finish()
    sent = [s for s in seen if s[0] == 1]
    assert [last for _, _, last in sent] == [before, after % 256]
    assert sum(size for _, size, _ in sent) == lane.upload_bytes


def test_pictures_on_the_gpu(lane, cuda, expected):
    """With pictures of the host among them; of a decoder's colours; at another place each time."""
    for seed in range(4):
        pictures = pictures_of((24, 40), (30, 20), (480, 640), seed=seed)
        given = [OnDevice(cuda, pictures[0]), pictures[1], OnDevice(cuda, pictures[2])]
        assert np.array_equal(run(lane, given), expected(pictures))
        turned = [OnDevice(cuda, p[..., ::-1].copy()) for p in pictures]
        assert np.array_equal(run(lane, turned, device_is_rgb=True), expected(pictures))
        assert np.array_equal(run(lane, pictures, device_is_rgb=True), expected(pictures))
    assert cuda.calls.count("capture") <= 2


def test_two_lanes_have_a_graph_each(backend, cuda, expected):
    lanes = backend.frame_lanes(RULES, SIZE, 2)
    for seed in range(3):
        batches = [pictures_of((24, 40), seed=10 * seed + n) for n in range(2)]
        for one, pictures in zip(lanes, batches, strict=True):
            one.reserve(pictures, 1)
            one.start_with(pictures)
        for one, pictures in zip(lanes, batches, strict=True):
            assert np.array_equal(one.finish()["out"], expected(pictures))
    assert cuda.calls.count("capture") == 2
    for one in lanes:
        one.close()


def test_tensors_and_frames_take_turns(backend, lane, cuda, expected):
    """The context is used by `infer` between frames, with the same and with other batches."""
    for seed, rows in enumerate([1, 1, 2, 1, 1, 3]):
        pictures = pictures_of((24, 40), seed=seed)
        for _ in range(3):
            assert np.array_equal(run(lane, pictures), expected(pictures))
        given = np.random.default_rng(seed).random((rows, 3, *SIZE), np.float32)
        assert np.array_equal(backend.infer({"in": given})["out"], given * 2)
        device = OnDevice(cuda, given)
        for _ in range(4):
            assert np.array_equal(backend.infer({"in": device})["out"], given * 2)


# -- where there is no such graph


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0, "no CUDA graph: this plan cannot be captured"),
        (1, "CUDA graph of the network alone: le"),
    ],
    ids=["no plan", "no letterbox"],
)
def test_what_cannot_be_captured_runs_and_is_told(backend, lane, cuda, expected, limit, words):
    cuda.capture_limit = limit
    for seed in range(4):
        pictures = pictures_of((24, 40), seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures))
    assert words in backend.description
    last = ["copy_in", "letterbox", "replay" if limit else "launch", "copy_out"]
    assert way(cuda)[-4:] == last


def test_without_graphs(opened, cuda, expected):
    backend = opened(graph=False)
    (lane,) = backend.frame_lanes(RULES, SIZE, 1)
    for seed in range(3):
        pictures = pictures_of((24, 40), (40, 24), seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures))
    assert "capture" not in cuda.calls and "replay" not in cuda.calls
    lane.close()


def test_outputs_that_depend_on_the_data_are_not_captured(opened, cuda):
    """Only rows that begin with a positive number come out: black pictures with white corners."""
    network = Network(input_shape=(3, *SIZE), compute=lambda d: d[:, :, 0, 0] - 0.5)
    network.output_shape = (3,)
    backend = opened(network=network, dependent=True)
    (lane,) = backend.frame_lanes(RULES, SIZE, 1)
    white, black = np.full((*SIZE, 3), 255, np.uint8), np.zeros((*SIZE, 3), np.uint8)
    for pictures, rows in ([[white, black], 1], [[white, white], 2], [[black, black], 0]):
        assert run(lane, pictures).shape == (rows, 3)
    assert "capture" not in cuda.calls and "depend on the data" in backend.description
    lane.close()


# -- errors on the way


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("what", ["copy_in", "copy_out"])
def test_a_call_that_fails_leaves_the_lane_usable(backend, lane, cuda, expected, before, what):
    """Before the first run, before the capture, and after it."""
    pictures = pictures_of((480, 640))
    for _ in range(before):
        run(lane, pictures)
    cuda.refuses = what
    if what == "copy_in" or before == 0:
        with pytest.raises(BackendError, match="cudaMemcpyAsync failed"):
            run(lane, pictures)
    elif before == 1:  # while it is captured: the way without is tried, and fails, too
        with pytest.raises(BackendError, match="cudaMemcpyAsync failed"):
            run(lane, pictures)
        assert "of the network alone" in backend.description
    cuda.refuses = ""
    cuda.calls.clear()
    if before == 0:
        assert np.array_equal(run(lane, pictures), expected(pictures))
        assert "capture" not in way(cuda), "no run has come through yet"
    for seed in range(3):
        pictures = pictures_of((480, 640), seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures))


def test_full_memory_leaves_the_lane_usable(lane, cuda, expected):
    """Memory that did not grow is gone; what comes next takes new."""
    small, large = pictures_of((24, 40)), pictures_of((480, 640))
    for _ in range(3):
        run(lane, small)
    cuda.full = True
    with pytest.raises(BackendError, match="cudaMalloc failed"):
        lane.reserve(large, 1)
    cuda.full = False
    for pictures in (small, small, large, large, small):
        assert np.array_equal(run(lane, pictures), expected(pictures))


def test_a_refused_picture_leaves_the_lane_usable(lane, cuda, expected):
    pictures = pictures_of((24, 40), (24, 40))
    run(lane, pictures)
    with pytest.raises(ImageError, match="no picture"):
        lane.reserve([pictures[0], OnDevice(cuda, np.zeros((4, 4), np.uint8))], 2)
    for seed in range(3):
        pictures = pictures_of((24, 40), (24, 40), seed=seed)
        assert np.array_equal(run(lane, pictures), expected(pictures))


def test_closing_frees_graphs_and_memory(opened, cuda):
    backend = opened()
    (lane,) = backend.frame_lanes(RULES, SIZE, 1)
    for _ in range(3):
        run(lane, pictures_of((24, 40)))
    lane.close()
    backend.close()
    assert not cuda.memory
    assert cuda.calls.count("cudaGraphExecDestroy") == cuda.calls.count("capture") == 1
    assert cuda.calls.count("cudaGraphDestroy") == 1


def test_a_lane_that_is_opened_again(backend, cuda, expected):
    """Its memory may come to lie where the last one's lay, with the graph still there."""
    for seed in range(3):
        (lane,) = backend.frame_lanes(RULES, SIZE, 1)
        for count in (1, 1, 2, 2):
            pictures = pictures_of(*[(24, 40)] * count, seed=seed)
            assert np.array_equal(run(lane, pictures), expected(pictures))
        lane.close()


# -- timing, and records


def test_parts_are_timed_on_a_batch_that_comes_out_right(lane, cuda, expected):
    pictures = pictures_of((480, 640))
    assert np.array_equal(run(lane, pictures), expected(pictures))
    assert lane.run_in_parts() == (1.5, 1.5, 1.5, 1.5)
    assert np.array_equal(lane.tensor() * 2, expected(pictures))
    cuda.calls.clear()
    assert lane.run_timed(pictures) == (1.5, 1.5)
    order = [c for c in cuda.calls if c in (*WAY, "cudaEventRecord")]
    event = "cudaEventRecord"
    assert order == [event, "copy_in", "copy_in", event, "capture", "replay", event]


def test_a_record_is_packed_as_numpy_has_it():
    where = place((427, 640), (640, 640), RULES)
    row = picture_record((1 << 40) + 7, 1923, where, swap=True)
    assert RECORD.pack(*row) == np.array([row], PICTURE).tobytes()
    assert RECORD.size == PICTURE.itemsize


@pytest.mark.parametrize("above", [None, 0.0, 0.5, 0.99])
@pytest.mark.parametrize("number", [0, 1, 5, 12, 99])
def test_one_picture_is_read_as_several_are(number, above):
    rng = np.random.default_rng(number)
    outputs = {
        "num_dets": np.array([[number], [3]], np.int32),
        "det_boxes": rng.random((2, 12, 4), np.float32),
        "det_scores": rng.random((2, 12), np.float32),
        "det_classes": rng.integers(0, 9, (2, 12), np.int32),
    }
    spec = ModelSpec("a", "a", "detect", ("b",), (64, 64), Preprocess(), HeadLayout())
    (one,) = rows_from_end2end(outputs, 1, spec, above)
    both = next(rows_from_end2end(outputs, 2, spec, above))
    for name in ("xyxy", "scores", "class_ids", "extras"):
        mine, other = getattr(one, name), getattr(both, name)
        assert mine.dtype == other.dtype and np.array_equal(mine, other), name
        assert not np.shares_memory(mine, outputs["det_boxes"])
    assert not np.shares_memory(one.scores, outputs["det_scores"])
