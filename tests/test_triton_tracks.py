"""The tracks on a real Triton server, on the CPU: what they answer, and to what they answer no."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from triton_place import client_on_path, dali_python, has_dali, served

import boxwright
from boxwright.boxes import iou_matrix
from boxwright.sample import generate_page, onnx_file
from boxwright.serve.check_repository import load_on_server
from boxwright.serve.server import start_server
from boxwright.serve.versions import add_version, promote, rollback
from boxwright.types import Detections

client_on_path()
grpc = pytest.importorskip("tritonclient.grpc", reason='pip install "boxwright[triton]"')

pytestmark = pytest.mark.slow

FUSED = "text_block_fused"
PYTHON_TRACKS = ("text_block_jpeg", "text_block_end2end_jpeg", "text_block_image_jpeg", FUSED)
DALI = "text_block_ensemble"
TOLERANCE_PX = {"text_block_jpeg": 1e-3, "text_block_end2end_jpeg": 1e-3,
                "text_block_image_jpeg": 0.1, FUSED: 1e-3, DALI: 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository of tracks A, C, E and F of the sample, and D where there is DALI."""
    from boxwright.cli import main

    place = tmp_path_factory.mktemp("repository")
    served(place)  # skips without a server
    tracks = "a,c,d,e,f" if has_dali() else "a,c,e,f"
    words = ["repo", "build", onnx_file(), "--tracks", tracks, "--out", place / "models"]
    words += ["--runs", place / "runs", "--skip-verify", "--allow-missing", "--max-batch", "16"]
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    assert ended.value.code == 0
    return place / "models"


@pytest.fixture(scope="module")
def server(repository):
    """A server of that repository, with every model loaded; no process of it may die."""
    notes: list[str] = []
    with start_server(served(repository, config_name="cpu"), note=notes.append) as running:
        yield running
    assert not [n for n in notes if "has died" in n], "it took a model that was loaded for one"


def needs(model: str) -> None:
    """Skip loudly where the model is track D, and there is no DALI."""
    if model == DALI:
        dali_python()


def client(server):
    return grpc.InferenceServerClient(server.grpc)


def ask(connection, model: str, data: bytes):
    tensor = grpc.InferInput("encoded_image", [1, len(data)], "UINT8")
    tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[None])
    return connection.infer(model, [tensor])


def detections(answer) -> Detections:
    count = int(answer.as_numpy("num_dets")[0, 0])
    parts = [answer.as_numpy(f"det_{n}")[0, :count] for n in ("boxes", "scores", "classes")]
    assert (answer.as_numpy("det_classes")[0, count:] == -1).all()
    return Detections(parts[0], parts[1], parts[2].astype(np.int64))


def jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture(scope="module")
def pages() -> list[bytes]:
    """Pictures of several sizes, each of another length."""
    page = generate_page(30_001).image
    height, width = page.shape[:2]
    sizes = [(height, width), (height // 2, width // 2), (640, 640), (301, 700), (900, 411)]
    return [jpeg(cv2.resize(page, size[::-1]), 80 + i) for i, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def local(pages) -> list[Detections]:
    with boxwright.load(
        onnx_file(), "onnxruntime", score_threshold=0.25, iou_threshold=0.45, quiet=True
    ) as detector:
        return [detector(cv2.imdecode(np.frombuffer(p, np.uint8), 1)) for p in pages]


@pytest.mark.parametrize("model", [*PYTHON_TRACKS, DALI])
def test_every_track_answers_what_the_detector_answers(server, pages, local, model):
    needs(model)
    connection = client(server)
    for data, expected in zip(pages, local, strict=True):
        found = detections(ask(connection, model, data))
        assert len(found) == len(expected)
        assert np.abs(found.xyxy - expected.xyxy).max(initial=0) <= TOLERANCE_PX[model]
        assert np.abs(found.scores - expected.scores).max(initial=0) <= 0.01
        assert (found.class_ids == expected.class_ids).all()
    assert sum(len(d) for d in local) > 5


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    whole = jpeg(generate_page(30_002).image)
    return {
        "empty": (b"\0", "it is empty"),
        "text": (b"this is no picture, but text" * 20, "picture"),
        "cut off": (whole[: len(whole) // 2], "cut off"),
        "damaged": (whole[:2] + b"\x13\x37" * 900 + b"\xff\xd9", "damaged"),
        "12000": (jpeg(np.zeros((64, 12_000), np.uint8)), "up to 8192 pixels"),
    }


@pytest.mark.parametrize("model", [PYTHON_TRACKS[0], PYTHON_TRACKS[2], FUSED, DALI])
def test_bad_pictures_fail_alone(server, pages, local, model):
    """Sent together with good ones: each is named, and its neighbours are unharmed."""
    needs(model)
    bad = bad_pictures()
    jobs = [*((n, data) for n, (data, _) in bad.items()), *((i, p) for i, p in enumerate(pages))]

    def call(job):
        try:  # a client belongs to one thread
            return job[0], detections(ask(client(server), model, job[1]))
        except grpc.InferenceServerException as error:
            return job[0], error.message()

    with ThreadPoolExecutor(len(jobs)) as crew:
        answers = dict(crew.map(call, jobs))
    for name, (_, says) in bad.items():
        if model == DALI and name == "text":
            says = "neither JPEG nor PNG"
        assert isinstance(answers[name], str) and says in answers[name], (name, answers[name])
    for index, expected in enumerate(local):
        found = answers[index]
        assert isinstance(found, Detections), found
        assert np.abs(found.xyxy - expected.xyxy).max(initial=0) <= TOLERANCE_PX[model]
    assert isinstance(call((0, pages[0]))[1], Detections)


@pytest.mark.parametrize("model", [PYTHON_TRACKS[0], FUSED, DALI])
def test_unusual_pictures_are_answered_or_named(server, model, tmp_path):
    needs(model)
    pillow = pytest.importorskip("PIL.Image")
    page = cv2.resize(generate_page(30_003).image, (640, 640))
    grey = cv2.cvtColor(page, cv2.COLOR_BGR2GRAY)
    pillow.fromarray(page[..., ::-1]).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    turned = pillow.Exif()
    turned[0x0112] = 6  # to be turned a quarter
    wide = pillow.fromarray(page[:400, :, ::-1])
    wide.save(tmp_path / "turned.jpg", quality=95, exif=turned)
    pictures = {
        "turned": (tmp_path / "turned.jpg").read_bytes(),
        "grey": jpeg(grey),
        "grey png": cv2.imencode(".png", grey)[1].tobytes(),
        "16 bit": cv2.imencode(".png", page.astype(np.uint16) * 257)[1].tobytes(),
        "cmyk": (tmp_path / "cmyk.jpg").read_bytes(),
    }
    connection = client(server)
    with boxwright.load(
        onnx_file(), "onnxruntime", score_threshold=0.25, iou_threshold=0.45, quiet=True
    ) as detector:
        for name, data in pictures.items():
            if model == DALI and name == "cmyk":
                with pytest.raises(grpc.InferenceServerException, match="CMYK"):
                    ask(connection, model, data)
                continue
            (tmp_path / "picture").write_bytes(data)
            expected = detector(str(tmp_path / "picture"))
            found = detections(ask(connection, model, data))
            assert len(found) == len(expected), name
            assert np.abs(found.xyxy - expected.xyxy).max(initial=0) <= TOLERANCE_PX[model], name


def test_wrong_requests_are_named(server, pages):
    connection = client(server)
    data = np.frombuffer(pages[0], np.uint8)
    for name, shape, dtype, array, says in (
        ("batch", [17, 8], "UINT8", np.zeros((17, 8), np.uint8), "batch-size"),
        ("dtype", [1, 8], "FP32", np.zeros((1, 8), np.float32), "UINT8"),
        ("nothing", [1, 0], "UINT8", np.zeros((1, 0), np.uint8), "it is empty"),
    ):
        tensor = grpc.InferInput("encoded_image", shape, dtype)
        tensor.set_data_from_numpy(array)
        with pytest.raises(grpc.InferenceServerException) as caught:
            connection.infer("text_block_jpeg", [tensor])
        assert says in caught.value.message(), name
    tensor = grpc.InferInput("encoded_image", [1, len(data)], "UINT8")
    tensor.set_data_from_numpy(data[None])
    with pytest.raises(grpc.InferenceServerException, match=r"(?i)version|unknown model"):
        connection.infer("text_block_jpeg", [tensor], model_version="9")


def test_pictures_of_several_lengths_share_a_batch(server, pages):
    """Ragged batching: DALI decodes several pictures at once, though their files differ."""
    needs(DALI)
    jobs = [pages[i % len(pages)] for i in range(24)]
    connection = client(server)
    name = "text_block_dali"
    before = connection.get_inference_statistics(name, as_json=True)["model_stats"][0]
    with ThreadPoolExecutor(12) as crew:
        answers = list(crew.map(lambda data: ask(client(server), DALI, data), jobs))
    after = connection.get_inference_statistics(name, as_json=True)["model_stats"][0]
    pictures = int(after["inference_count"]) - int(before["inference_count"])
    runs = int(after["execution_count"]) - int(before["execution_count"])
    assert len(answers) == pictures == len(jobs)
    assert runs < pictures


def test_thresholds_of_the_configuration_hold(server, repository, pages, tmp_path):
    """The post-processing reads them from config.pbtxt, where anybody can change them."""
    path = repository / "text_block_postprocess/configs/cpu.pbtxt"
    text = path.read_text()
    connection = client(server)
    try:
        path.write_text(text.replace('string_value: "0.25"', 'string_value: "0.999"'))
        connection.load_model("text_block_postprocess")
        assert len(detections(ask(connection, "text_block_jpeg", pages[0]))) == 0
    finally:
        path.write_text(text)
        connection.load_model("text_block_postprocess")
    assert len(detections(ask(connection, "text_block_jpeg", pages[0]))) > 0


def test_a_version_is_swapped_on_the_server_and_no_request_fails(
    server, repository, pages, tmp_path
):
    import onnx

    model = onnx.load(repository / "text_block/1/model.onnx")
    model.doc_string = "another"
    onnx.save(model, tmp_path / "other.onnx")
    connection = client(server)

    def ready() -> list[bool]:
        return [connection.is_model_ready("text_block", str(v)) for v in (1, 2)]

    stop = threading.Event()

    def keep_asking() -> int:
        count = 0
        while not stop.is_set():
            assert len(detections(ask(connection, "text_block_jpeg", pages[0]))) > 0
            count += 1
        return count

    with ThreadPoolExecutor(2) as crew:
        asking = [crew.submit(keep_asking) for _ in range(2)]
        try:
            assert add_version(repository, "text_block", tmp_path / "other.onnx") == 2
            connection.load_model("text_block")
            assert ready() == [True, False]
            promote(repository, "text_block", 2)
            connection.load_model("text_block")
            assert eventually(ready, [False, True])
            rollback(repository, "text_block")
            connection.load_model("text_block")
            assert eventually(ready, [True, False])
        finally:
            stop.set()
        assert sum(a.result() for a in asking) > 5
    shutil.rmtree(repository / "text_block/2")


def eventually(look, wanted) -> bool:
    """Whether it is so within ten seconds: the old version is unloaded in the background."""
    end = time.monotonic() + 10
    while look() != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return look() == wanted


def test_the_server_names_what_it_cannot_load(server, repository):
    needs(DALI)
    folder, url = repository / "text_block_to_source", f"http://{server.http}"
    hidden = folder / "1/model.onnx"
    data = hidden.read_bytes()
    try:
        hidden.write_bytes(b"no graph")
        client(server).unload_model("text_block_to_source")
        found = load_on_server(["text_block_to_source"], url)
        assert [f.model for f in found] == ["text_block_to_source"]
        assert "the server says" in found[0].text
    finally:
        hidden.write_bytes(data)
        assert load_on_server(["text_block_to_source", DALI], url) == []


ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)


@pytest.mark.long
@pytest.mark.parametrize("name", ["yolo11n-deq", "yolo26n-deq"])
def test_tracks_of_a_real_checkpoint_answer_64_pictures_at_once(tmp_path, cli, name):
    """IoU of at least 0.99 on every track that letterboxes as the host does, 0.95 behind DALI."""
    dali_python()
    checkpoint = ASSETS / "checkpoints" / f"{name}.pt"
    pictures = sorted((ASSETS / "images/coco128/images/train2017").glob("*.jpg"))[:64]
    if not checkpoint.is_file() or len(pictures) < 64:
        pytest.skip("NOT TESTED, BOXWRIGHT_ASSETS names no folder with real weights")
    done = cli("repo", "build", checkpoint, "--tracks", "a,c,d,e,f", "--out", tmp_path / "models",
               "--runs", tmp_path / "runs", "--skip-verify", "--allow-missing")  # fmt: skip
    assert done.code == 0, done.err
    with boxwright.load(
        tmp_path / "runs" / name / f"{name}.fp32.end2end.portable.onnx", "onnxruntime", quiet=True
    ) as detector:
        expected = [detector(str(p)) for p in pictures]
    fronts = {"_jpeg": 0.99, "_end2end_jpeg": 0.99, "_image_jpeg": 0.99, "_fused": 0.99}
    fronts |= {"_ensemble": 0.95}
    models = tuple(name + front for front in fronts)
    with start_server(served(tmp_path / "models", models=models, config_name="cpu")) as running:
        connection = client(running)
        for front, least in fronts.items():
            with ThreadPoolExecutor(len(pictures)) as crew:
                answers = list(
                    crew.map(lambda p, f=front: ask(connection, name + f, p.read_bytes()), pictures)
                )
            for answer, wanted in zip(answers, expected, strict=True):
                found = detections(answer)
                assert len(found) == len(wanted), front
                overlap = iou_matrix(wanted.xyxy, found.xyxy)
                overlap *= wanted.class_ids[:, None] == found.class_ids[None]
                assert (overlap.max(axis=1, initial=0) >= least).all(), front
    assert sum(len(d) for d in expected) > 200
