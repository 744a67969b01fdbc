"""Track F: pictures to boxes in one process, without a server and on stand-ins."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
from test_plan_lanes import cuda, driver, kernel, plan  # noqa: F401 - fixtures
from test_repository import config_of, plan_of
from triton_place import client_on_path

import boxwright.serve.models
from boxwright.engine_record import sidecar_path
from boxwright.errors import BackendError, MemoryShortError, RequestError
from boxwright.loading import load
from boxwright.sample import generate_page, onnx_file
from boxwright.serve import picture_service
from boxwright.serve.check_repository import check_repository
from boxwright.serve.folder_parts import ServeOptions
from boxwright.serve.folders import folders_of
from boxwright.serve.picture_service import PictureService, Refused
from boxwright.serve.requirements import requirements_of
from boxwright.serve.served_files import read_file
from boxwright.serve.steps import Limits
from boxwright.serve.versions import add_version, rollback
from boxwright.stream.lanes import open_lanes
from boxwright.types import Detections

client_on_path()
needs_client = pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None,
    reason='NOT TESTED, no tritonclient: pip install "boxwright[triton]"',
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The sample as end-to-end files: thresholds and limits of a server."""
    from boxwright.pipeline import run
    from boxwright.recipe import recipe_from_mapping

    recipe = recipe_from_mapping(
        {
            "source": str(onnx_file()),
            "targets": [{"outputs": "end2end"}, {"outputs": "raw"}],
            "nms": {"score_threshold": 0.25, "iou_threshold": 0.45, "keep_topk": 100},
            "verify": False,
            "measure": {"latency": False, "accuracy": False},
        },
        "test",
    )
    return run(recipe, tmp_path_factory.mktemp("runs")).folder


@pytest.fixture(scope="module")
def final(runs) -> Path:
    return next(runs.glob("*.fp32.end2end.onnx"))


@pytest.fixture(scope="module")
def pages() -> list[bytes]:
    """Pictures of several sizes."""
    page = generate_page(30_011).image
    height, width = page.shape[:2]
    sizes = [(height, width), (height // 2, width // 2), (640, 640), (301, 700), (900, 411)]
    return [cv2.imencode(".jpg", cv2.resize(page, s[::-1]))[1].tobytes() for s in sizes]


@pytest.fixture(scope="module")
def expected(final, pages) -> list[Detections]:
    with load(final, "onnxruntime", quiet=True) as detector:
        found = [detector(cv2.imdecode(np.frombuffer(p, np.uint8), 1)) for p in pages]
    assert sum(map(len, found)) > 5
    return found


@pytest.fixture(scope="module")
def service(final):
    """Three pictures at most in a run."""
    opened = PictureService(final, device="cpu", batch=3, threads=2, limits=Limits(4096))
    yield opened
    opened.close()


def same(answer, row: int, wanted: Detections, px: float = 1e-3) -> bool:
    count = int(answer["num_dets"][row, 0])
    assert (answer["det_classes"][row, count:] == -1).all()
    return (
        count == len(wanted)
        and np.allclose(answer["det_boxes"][row, :count], wanted.xyxy, atol=px)
        and np.allclose(answer["det_scores"][row, :count], wanted.scores, atol=1e-4 + 0.02 * px)
        and np.array_equal(answer["det_classes"][row, :count], wanted.class_ids)
    )


def test_each_request_gets_what_the_detector_finds(service, pages, expected):
    answers = service.answers([[pages[0]], pages[1:3], [pages[3]], [pages[4]]])
    assert [len(a["num_dets"]) for a in answers] == [1, 2, 1, 1]
    assert {k: (v.dtype.name, v.shape[1:]) for k, v in answers[1].items()} == {
        "num_dets": ("int32", (1,)),
        "det_boxes": ("float32", (100, 4)),
        "det_scores": ("float32", (100,)),
        "det_classes": ("int32", (100,)),
    }
    rows = [(a, i) for a in answers for i in range(len(a["num_dets"]))]
    assert all(same(a, i, e) for (a, i), e in zip(rows, expected, strict=True))
    assert service.answers([]) == []


def test_a_damaged_picture_fails_its_own_request_alone(service, pages, expected):
    wide = cv2.imencode(".jpg", np.zeros((8, 4097, 3), np.uint8))[1].tobytes()
    given = [[b"\0"], [pages[0]], [pages[1], pages[2][:900]], [b"text" * 9], [wide], [pages[3]]]
    answers = service.answers(given)
    assert same(answers[1], 0, expected[0]) and same(answers[5], 0, expected[3])
    refused = [a for a in answers if isinstance(a, Refused)]
    assert len(refused) == 4 and all(r.by_input for r in refused)
    says = ("it is empty", "cut off", "not a picture", "up to 4096 pixels")
    assert all(words in r.message for r, words in zip(refused, says, strict=True))


def test_pictures_of_a_turn_are_decoded_as_memory_allows(service, pages, expected, monkeypatch):
    """By what their headers say; a file that does not say counts as the largest, a bad one not."""
    at_once = []
    real = type(service)._seen
    monkeypatch.setattr(
        type(service), "_seen", lambda self, files: at_once.append(len(files)) or real(self, files)
    )
    webp = cv2.imencode(".webp", np.full((64, 64, 3), 90, np.uint8))[1].tobytes()
    given = [[pages[2]], [pages[2]], [b"\xff\xd8\xff"], [webp], [pages[3]], [pages[2]]]
    monkeypatch.setattr(picture_service, "_MOST_BYTES", 2 * 640 * 640 * 3)
    answers = service.answers(given)
    assert at_once == [3, 1, 2]
    assert isinstance(answers[2], Refused) and answers[3]["num_dets"][0, 0] == 0
    for place, index in ((0, 2), (1, 2), (4, 3), (5, 2)):
        assert same(answers[place], 0, expected[index])


def test_a_batch_that_fails_is_halved(service, pages, expected, monkeypatch):
    real = type(service)._detect
    runs = []

    def failing(self, images):
        runs.append(len(images))
        if any(image.shape[:2] == (640, 640) for image in images):
            raise BackendError("inference", "out of memory", "free some")
        return real(self, images)

    monkeypatch.setattr(type(service), "_detect", failing)
    answers = service.answers([[p] for p in pages[:3]])
    assert same(answers[0], 0, expected[0]) and same(answers[1], 0, expected[1])
    assert answers[2] == Refused("inference: out of memory; free some", by_input=False)
    assert runs == [3, 1, 2, 1, 1]


def test_a_plan_letterboxes_on_the_gpu(plan, driver, pages):  # noqa: F811
    """The kernel runs on the host; its pixels are within a grey level of OpenCV's."""
    images = [cv2.imdecode(np.frombuffer(p, np.uint8), 1) for p in pages[:3]]
    with load(onnx_file(), "onnxruntime", quiet=True) as detector:
        wanted = [detector(i) for i in images]
    opened = PictureService(plan, device="cuda", batch=2, threads=2, preprocess="gpu")
    try:
        driver.launches.clear()
        answers = opened.answers([[p] for p in pages[:3]])
    finally:
        opened.close()
    assert driver.launches == [2, 1]
    assert all(same(a, 0, w, px=1.0) for a, w in zip(answers, wanted, strict=True))


# An ONNX file on a GPU: a session for each of a few batch sizes


@pytest.fixture
def gpu(monkeypatch):
    """ONNX Runtime with a GPU of NumPy, and no onnx package; returns what each session ran."""
    from fake_onnxruntime import FakeOnnxRuntime, Session

    from boxwright.backends import onnxruntime as backend_module

    module = FakeOnnxRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(backend_module, "cuda_runtime", lambda: None)
    ran: dict[int, list[int]] = {}
    real, most = Session.run_with_iobinding, SimpleNamespace(rows=99)

    def run(self, binding, options):
        count = len(binding.inputs["images"].array)
        if count > most.rows:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")
        ran.setdefault(id(self), []).append(count)
        return real(self, binding, options)

    monkeypatch.setattr(Session, "run_with_iobinding", run)
    return SimpleNamespace(ran=ran, most=most, module=module)


@pytest.fixture
def served(final):
    """Return a function that opens the file on a GPU; what it opened is closed at the end."""
    opened = []

    def call(**how) -> PictureService:
        opened.append(PictureService(final, device="cuda:0", threads=2, **how))
        return opened[-1]

    yield call
    for one in opened:
        one.close()


def test_no_session_on_a_gpu_sees_two_sizes(served, gpu, pages, expected):
    service = served(batch=4, sizes="1,2,4")
    assert list(gpu.ran.values()) == [[1], [2], [4]]  # each was run once, and bound
    assert service.description.endswith("batches of 1, 2, 4")
    plain = served(batch=4, sizes="any")
    random = np.random.default_rng(5)
    for _ in range(6):
        chosen = random.integers(0, len(pages), random.integers(1, 6))
        files = [[pages[i]] for i in chosen]
        answers = service.answers(files)
        assert all(same(a, 0, expected[i]) for a, i in zip(answers, chosen, strict=True))
        for a, b in zip(answers, plain.answers(files), strict=True):
            for name, value in a.items():
                np.testing.assert_array_equal(value, b[name])  # bit for bit, on a CPU
    sizes = [set(counts) for counts in gpu.ran.values()]
    assert sizes[:3] == [{1}, {2}, {4}] and len(sizes) == 4


def test_a_filled_batch_that_fails_on_a_gpu_is_halved(served, gpu, pages, expected):
    service = served(batch=4)
    gpu.most.rows = 1
    answers = service.answers([[p] for p in pages[:3]])
    assert all(same(a, 0, e) for a, e in zip(answers, expected[:3], strict=True))
    # Three fail in the session of 4, one runs, two fail there, and run one by one.
    assert list(gpu.ran.values()) == [[1, 1, 1, 1], [4]]


@pytest.mark.parametrize("how", [{"sizes": ""}, {"sizes": "any"}])
def test_sizes_can_be_switched_off(served, gpu, pages, how):
    served(batch=4, **how).answers([[p] for p in pages[:3]])
    assert len(gpu.ran) == 1 and set(*gpu.ran.values()) == {1, 3, 4}


def test_memory_that_is_short_refuses_the_model(served, gpu):
    gpu.most.rows = 4
    says = r"a session of batches of 16: the GPU's memory .*; give fewer or smaller batch_sizes"
    with pytest.raises(MemoryShortError, match=says):
        served(batch=16)


def test_sizes_that_do_not_go_with_the_file_are_refused(served, gpu, plan, final):  # noqa: F811
    with pytest.raises(RequestError, match="'1,2', and the last of them must be max_batch_size, 4"):
        served(batch=4, sizes="1,2")
    assert not gpu.ran
    with pytest.raises(RequestError, match="fed from the host takes batches as they are; drop it"):
        PictureService(plan, device="cuda", batch=2, threads=1, sizes="1,2")


def test_lanes_fill_batches_up(final, pages, expected):
    """With zeros behind, also after fuller batches."""
    images = [cv2.imdecode(np.frombuffer(p, np.uint8), 1) for p in pages]
    fed = []
    with (
        load(final, "onnxruntime", quiet=True) as detector,
        ThreadPoolExecutor(1) as runner,
    ):
        infer = detector.infer
        detector.infer = lambda batch, settings: fed.append(batch.copy()) or infer(batch, settings)
        (lane,) = open_lanes(detector, detector.settings(), 1, "host", runner, fill_to=(3,))
        for first, last in ((0, 3), (3, 4), (3, 5), (4, 5)):
            lane.reserve(images[first:last])
            for index, image in enumerate(images[first:last]):
                lane.fill(index, image)
            lane.start()
            assert [len(d) for d in lane.finish()] == [len(e) for e in expected[first:last]]
            assert len(fed[-1]) == 3 and not fed[-1][last - first :].any()
            assert all(row.any() for row in fed[-1][: last - first])
        lane.close()


def test_a_plan_may_have_a_graph_for_each_size(plan, driver, cuda, pages):  # noqa: F811
    """Each context sees one size, so that its graph is replayed and never captured anew."""
    images = [cv2.imdecode(np.frombuffer(p, np.uint8), 1) for p in pages[:3]]
    with load(onnx_file(), "onnxruntime", quiet=True) as detector:
        wanted = [detector(i) for i in images]
    opened = PictureService(plan, device="cuda", batch=2, threads=2, preprocess="gpu", sizes="1,2")
    try:
        assert opened.description.endswith("batches of 1, 2")
        assert cuda.calls.count("capture") == 2
        turns = ([0], [0, 1], [0, 1, 2], [2])
        for given in turns + turns:  # pictures larger than the first move the memory, once
            opened.answers([[pages[i]] for i in given])
        for given in turns:
            driver.launches.clear()
            cuda.calls.clear()
            answers = opened.answers([[pages[i]] for i in given])
            assert all(same(a, 0, wanted[i], px=1.0) for a, i in zip(answers, given, strict=True))
            assert set(driver.launches) <= {1, 2} and sum(driver.launches) >= len(given)
            assert "capture" not in cuda.calls
            assert cuda.calls.count("replay") == len(driver.launches)
    finally:
        opened.close()
    assert not cuda.memory, "everything was freed"


# The python model


class RefusalError(Exception):
    """Triton's TritonModelException."""


class Fault:
    """Triton's TritonError."""

    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


def request(*rows: bytes, asked: tuple[str, ...] = ("num_dets", "det_boxes")) -> SimpleNamespace:
    given = np.stack([np.frombuffer(r, np.uint8) for r in rows])
    return SimpleNamespace(given=given, requested_output_names=lambda: asked)


@pytest.fixture
def model(monkeypatch):
    stub = ModuleType("triton_python_backend_utils")
    stub.TritonModelException, stub.TritonError = RefusalError, Fault
    stub.Tensor = lambda name, value: (name, value)
    stub.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(
        tensors=dict(output_tensors), error=error
    )
    stub.get_input_tensor_by_name = lambda r, name: SimpleNamespace(as_numpy=lambda: r.given)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    path = Path(boxwright.serve.models.__file__).parent / "fused.py"
    spec = importlib.util.spec_from_file_location("served_fused", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = cv2.getNumThreads()
    yield module.TritonPythonModel()
    cv2.setNumThreads(threads)


def arguments(folder: Path, kind: str = "CPU", **parameters: str) -> dict[str, str]:
    told = {"max_side_px": "8192", **parameters}
    config = {
        "max_batch_size": 4,
        "instance_group": [{"count": 2}],
        "parameters": {k: {"string_value": v} for k, v in told.items()},
    }
    return {
        "model_config": json.dumps(config),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": "0",
    }


@pytest.mark.parametrize("name", ["decode_threads", "intra_op_thread_count"])
@pytest.mark.parametrize("told", ["many", "-2", "0", "1.5"])
def test_threads_that_are_no_number_refuse_the_model(model, tmp_path, name, told):
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_file().read_bytes())
    with pytest.raises(RefusalError, match=f"{name} is '{told}', which is no number of threads"):
        model.initialize(arguments(tmp_path, **{name: told}))


def test_the_python_model_answers_what_was_asked_for(model, final, pages, expected, tmp_path):
    (tmp_path / "1").mkdir()
    shutil.copyfile(final, tmp_path / "1" / "model.onnx")
    model.initialize(arguments(tmp_path, decode_threads="2"))
    try:
        good, bad = model.execute([request(pages[0]), request(b"no picture at all")])
    finally:
        model.finalize()
    assert set(good.tensors) == {"num_dets", "det_boxes"} and good.error is None
    assert good.tensors["num_dets"].tolist() == [[len(expected[0])]]
    assert bad.error.code == "invalid" and "not a picture" in bad.error.message


@pytest.mark.parametrize(
    ("asked", "threads"), [({}, (1, False)), ({"intra_op_thread_count": "3"}, (3, True))]
)
def test_sessions_of_a_gpu_have_one_thread_each(model, final, gpu, tmp_path, asked, threads):
    from fake_onnxruntime import threads_of

    (tmp_path / "1").mkdir()
    shutil.copyfile(final, tmp_path / "1" / "model.onnx")
    model.initialize(arguments(tmp_path, "GPU", batch_sizes="1,4", **asked))
    model.finalize()
    assert [threads_of(one) for one in gpu.module.settings] == [threads, threads]


def test_what_does_not_load_says_why(model, final, tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    with pytest.raises(RefusalError, match=r"there is no model\.plan and no model\.onnx"):
        model.initialize(arguments(tmp_path))
    shutil.copyfile(final, tmp_path / "1" / "model.onnx")
    with pytest.raises(RefusalError, match="does not letterbox on the GPU"):
        model.initialize(arguments(tmp_path, preprocess="gpu"))
    with pytest.raises(RefusalError, match="batch_sizes is '1,x', not whole numbers"):
        model.initialize(arguments(tmp_path, batch_sizes="1,x"))
    monkeypatch.setitem(sys.modules, "boxwright.serve.picture_service", None)
    with pytest.raises(RefusalError, match="needs Boxwright in the Python of the server's models"):
        model.initialize(arguments(tmp_path))


# The repository


@pytest.fixture
def build(cli, tmp_path):
    def call(*words, out="models"):
        place = tmp_path / out
        done = cli("repo", "build", *words, "--out", place, "--max-batch", 8, "--allow-missing",
                   "--no-warm-up")  # fmt: skip
        assert done.code == 0, done.err
        return place, done

    return call


@needs_client
def test_track_f_alone_is_one_folder(build, runs, final):
    models, done = build(runs, "--tracks", "f")
    assert [p.name for p in models.iterdir()] == ["text_block_fused"]
    assert "missing: trt_end2end" in done.err
    folder = models / "text_block_fused"
    assert {p.name for p in (folder / "1").iterdir()} == {"model.py", "model.onnx"}
    assert (folder / "1/model.onnx").read_bytes() == final.read_bytes()
    config, cpu = config_of(folder), config_of(folder, "configs/cpu.pbtxt")
    assert (config.backend, config.max_batch_size) == ("python", 8)
    assert config.input[0].name == "encoded_image" and config.input[0].allow_ragged_batch
    assert list(config.output[1].dims) == [100, 4]
    assert config.instance_group[0].count == cpu.instance_group[0].count == 2
    assert config.parameters["preprocess"].string_value == "host"
    assert requirements_of(models, ("python",), on_gpu=False) == (
        "onnxruntime", "opencv-python-headless==4.11.0.86",
    )  # fmt: skip
    assert not [f for f in check_repository(models) if f.level == "error"]


@needs_client
def test_other_tracks_keep_their_folders(build, runs):
    models, _ = build(runs, "--tracks", "c,f")
    names = {p.name for p in models.iterdir()}
    assert {"text_block_end2end", "text_block_end2end_jpeg", "text_block_fused"} <= names


@needs_client
def test_other_tasks_have_no_track_f(final):
    file = read_file(final)
    posed = dataclasses.replace(file, spec=dataclasses.replace(file.spec, task="pose"))
    for one, kinds in ((file, ["onnx_fused"]), (posed, [])):
        folders = folders_of("a", {"onnx_end2end": one}, ("onnx_fused",), ServeOptions())
        assert [f.kind for f in folders if f.kind == "onnx_fused"] == kinds


@needs_client
def test_a_plan_of_track_f(build, runs, final, tmp_path):
    models, _ = build(final, plan_of(final, tmp_path), "--formats", "trt_fused")
    folder = models / "text_block_trt_fused"
    assert [p.name for p in models.iterdir()] == [folder.name]
    assert {p.name for p in (folder / "1").iterdir()} == {
        "model.py", "model.plan", "model.plan.json",
    }  # fmt: skip
    assert not (folder / "configs").exists()  # a plan needs a GPU
    assert config_of(folder).parameters["preprocess"].string_value == "gpu"
    packages = requirements_of(models, ("python",), on_gpu=True)
    assert {"cuda-bindings", "tensorrt==8.6.0"} <= set(packages)
    assert any(p.startswith("nvidia-cuda-nvrtc") for p in packages)
    assert not [f for f in check_repository(models) if f.level == "error"]
    sidecar_path(folder / "1/model.plan").unlink()
    texts = [f.text for f in check_repository(models) if f.level == "error"]
    assert any("model.plan.json" in t for t in texts), texts


@needs_client
def test_versions_of_track_f(build, runs, final, tmp_path, cli):
    import onnx

    models, _ = build(runs, "--tracks", "f")
    graph = onnx.load(final)
    graph.doc_string = "another"
    onnx.save(graph, tmp_path / "other.onnx")
    assert add_version(models, "text_block_fused", tmp_path / "other.onnx", serve=True) == 2
    new = models / "text_block_fused/2"
    assert (new / "model.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()
    assert (new / "model.py").read_bytes() == (new.parent / "1/model.py").read_bytes()
    assert not [f for f in check_repository(models) if f.level == "error"]
    assert rollback(models, "text_block_fused") == 1
    raw = next(runs.glob("*.fp32.onnx"))
    with pytest.raises(RequestError, match="the file is onnx, the model onnx_fused"):
        add_version(models, "text_block_fused", raw)
    assert cli("clean", "--repo", models).code == 0
    assert not (models / "text_block_fused/1/model.onnx").exists()
    build(runs, "--tracks", "f")
    assert (models / "text_block_fused/1/model.onnx").read_bytes() == final.read_bytes()
