"""The stream finds what the plain loop finds, in order, whatever goes wrong on the way."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models

from boxwright.detector import Detector
from boxwright.errors import BackendError, ImageError, RequestError
from boxwright.loading import load
from boxwright.sample import generate_page, onnx_file
from boxwright.stream import Stream

GOOD = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pages of several sizes and formats, two of them damaged, one missing."""
    place = tmp_path_factory.mktemp("pages")
    pages = [generate_page(seed).image for seed in (42, 43)]
    for index in range(GOOD):
        page = pages[index % 2]
        scale = 1 - 0.04 * index
        size = (int(page.shape[1] * scale), int(page.shape[0] * scale))
        suffix = ".png" if index % 4 == 0 else ".jpg"
        cv2.imwrite(str(place / f"{index:02d}{suffix}"), cv2.resize(page, size))
    cut = (place / "01.jpg").read_bytes()
    (place / "01_cut.jpg").write_bytes(cut[: len(cut) // 2])
    (place / "05_text.jpg").write_text("hello")
    return place


@pytest.fixture(scope="module")
def items(folder) -> list[Path]:
    found = sorted(folder.iterdir())
    return [*found[:3], folder / "missing.jpg", *found[3:]]


def plain(detector: Detector, items: list[Path], batch: int) -> list[object]:
    """What the plain loop makes of items: detections, or the text of an error."""
    from boxwright.errors import ImageError

    answers: list[object] = [None] * len(items)
    waiting: list[tuple[int, np.ndarray]] = []

    def flush() -> None:
        found = detector([image for _, image in waiting])
        for (index, _), detections in zip(waiting, found, strict=True):
            answers[index] = detections
        waiting.clear()

    for index, item in enumerate(items):
        try:
            waiting.append((index, detector.read(item)))
        except ImageError as error:
            answers[index] = str(error)
        if len(waiting) == batch:
            flush()
    flush()
    return answers


def same(one, other) -> bool:
    return (
        np.array_equal(one.xyxy, other.xyxy)
        and np.array_equal(one.scores, other.scores)
        and np.array_equal(one.class_ids, other.class_ids)
        and one.image_size == other.image_size
        and one.class_names == other.class_names
    )


def no_threads(*, but: str = "nothing") -> bool:
    names = [t.name for t in threading.enumerate() if t.name.startswith("boxwright-")]
    return not [n for n in names if not n.startswith(but)]


@pytest.mark.parametrize(
    ("runtime", "batch"), [("onnxruntime", 1), ("onnxruntime", 3), ("openvino", 3)]
)
def test_it_finds_what_the_plain_loop_finds(runtime, batch, items):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    with load(onnx_file(), runtime, quiet=True) as detector:
        expected = plain(detector, items, batch)
        with Stream(detector, batch=batch, decoders=3) as stream:
            found = list(stream.detect(iter(items)))
    assert [s.index for s in found] == list(range(len(items)))
    assert [s.item for s in found] == items
    assert sum(len(d) for d in expected if not isinstance(d, str)) > 5
    for seen, want in zip(found, expected, strict=True):
        if isinstance(want, str):
            assert seen.error == want and seen.detections is None
        else:
            assert not seen.error and same(seen.detections, want)
        assert seen.image is None
    assert no_threads()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_models.ultralytics_onnx(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture
def detector(tiny):
    with load(tiny, "onnxruntime", threads=1, quiet=True) as opened:
        yield opened


def test_a_fixed_batch_is_filled_up(tmp_path, items):
    path = tiny_models.ultralytics_onnx(tmp_path / "fixed.onnx", batch=3)
    with load(path, "onnxruntime", threads=1, quiet=True) as detector:
        expected = plain(detector, items, 3)
        with Stream(detector, batch=64, decoders=2) as stream:
            assert stream.batch == 3
            found = list(stream.detect(items))
    for seen, want in zip(found, expected, strict=True):
        assert seen.error == want if isinstance(want, str) else same(seen.detections, want)


def test_arrays_classes_and_kept_images(detector, items):
    images = [detector.read(i) for i in items if not _bad(i)]
    whole = detector(images)
    wanted = [int(whole[0].class_ids[0])]
    expected = detector(images, class_ids=wanted)
    with Stream(detector, batch=2, class_ids=wanted, keep_images=True) as stream:
        found = list(stream.detect(images))
        again = stream.detect_now(images[:2])
    assert all(same(s.detections, e) for s, e in zip(found, expected, strict=True))
    assert all(np.array_equal(s.image, i) for s, i in zip(found, images, strict=True))
    assert all(same(a, e) for a, e in zip(again, expected, strict=False))
    assert sum(map(len, expected)) < sum(map(len, whole))


def _bad(path: Path) -> bool:
    return path.stem in ("missing", "01_cut", "05_text")


def test_the_first_results_come_before_the_last_items_are_read(detector, items):
    """What is read ahead is bounded: an endless source is no problem."""
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield items[0]

    with Stream(detector, batch=2, decoders=2) as stream:
        found = stream.detect(endless())
        first = [next(found) for _ in range(20)]
        assert [s.index for s in first] == list(range(20))
        assert drawn < 80
        found.close()
        assert no_threads(but="boxwright-infer"), "that one ends with the stream"
        assert len(list(stream.detect(items))) == len(items), "it goes on after an early end"


def test_only_bad_items(detector, tmp_path):
    missing = [tmp_path / f"{i}.jpg" for i in range(3000)]
    with Stream(detector, batch=2, decoders=2) as stream:
        found = list(stream.detect(missing))
    assert [s.item for s in found] == missing and all(s.error for s in found)


def test_no_items(detector):
    with Stream(detector) as stream:
        assert list(stream.detect([])) == []


def test_an_error_of_the_backend_comes_after_the_results_before_it(detector, items, monkeypatch):
    good = [i for i in items if not _bad(i)]
    real, calls = detector.backend.infer, []

    def fail(feed):
        calls.append(1)
        if len(calls) == 3:
            raise BackendError("inference", "it is broken", "mend it")
        return real(feed)

    monkeypatch.setattr(detector.backend, "infer", fail)
    seen = []
    with Stream(detector, batch=2, decoders=2) as stream:
        with pytest.raises(BackendError, match="it is broken"):
            seen.extend(stream.detect(good))
        assert no_threads(but="boxwright-infer")
        calls.extend([1, 1])
        assert len(list(stream.detect(good))) == len(good)
    assert no_threads()


def test_an_error_of_the_source_is_the_consumers(detector, items):
    def broken():
        yield from items[:2]
        raise ZeroDivisionError

    with Stream(detector) as stream, pytest.raises(ZeroDivisionError):
        list(stream.detect(broken()))
    assert no_threads()


def test_an_unforeseen_error_while_decoding_is_told(detector, items, monkeypatch):
    monkeypatch.setattr(Detector, "read", staticmethod(lambda item: 1 / 0))
    with Stream(detector) as stream, pytest.raises(ZeroDivisionError):
        list(stream.detect(items))
    assert no_threads()


def test_an_interrupted_consumer_leaves_no_thread(detector, items):
    with pytest.raises(KeyboardInterrupt), Stream(detector, batch=2) as stream:
        for seen in stream.detect(items):
            if seen.index == 3:
                raise KeyboardInterrupt
    assert no_threads()


def test_what_lies_on_the_gpu_is_refused_by_host_lanes(detector, items):
    class OnGpu:
        __cuda_array_interface__ = {}  # noqa: RUF012

    with Stream(detector) as stream:
        found = list(stream.detect([items[0], OnGpu()]))
        assert not found[0].error and "it lies on the GPU; use --preprocess gpu" in found[1].error
        with pytest.raises(ImageError, match="neither a path nor an array"):
            stream.detect_now([OnGpu()])


def test_one_at_a_time(detector, items):
    with Stream(detector) as stream:
        with pytest.raises(RequestError, match="2 pictures: the batch is 1; use detect"):
            stream.detect_now(items[:2])
        first = stream.detect(items)
        next(first)
        with pytest.raises(RequestError, match="a detect runs"):
            stream.detect_now(items[:1])
        with pytest.raises(RequestError, match="another one of this stream runs"):
            next(stream.detect(items))
        first.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "--batch 0: it is not positive"),
        ({"decoders": -1}, "--decoders -1"),
        ({"decode": "gpu"}, "--decode gpu: .*add --preprocess gpu"),
        ({"preprocess": "gpu"}, "does not letterbox on the GPU; give a plan, or use --preprocess"),
    ],
)
def test_options_that_do_not_go_together(detector, options, words):
    with pytest.raises(RequestError, match=words):
        Stream(detector, **options)
    assert no_threads()


def test_predict_is_the_same_with_threads(tiny, folder, tmp_path, cli):
    words = ["predict", tiny, folder, folder / "00.png", "--runtime", "onnxruntime", "--batch", 3]
    results = []
    for name, more in (("plain", []), ("threads", ["--decoders", 3])):
        place = tmp_path / name
        saved = ["--save-json", place / "a.json", "--save-coco", place / "c.json"]
        saved += ["--save-txt", place / "text", "--out", place / "drawn"]
        ran = cli(*words, *saved, *more)
        assert ran.code == 1, "two files are damaged"
        assert "7 pictures" in ran.err and "2 unreadable" in ran.err
        results.append(
            {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
        )
    assert len(results[0]) == 2 + 7 + 7
    assert results[0] == results[1]
    assert no_threads()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--preprocess", "gpu"],
            "does not letterbox on the GPU; give a plan, or use --preprocess",
        ),
        (["--decode", "gpu"], "--decode gpu: its pictures lie on the GPU"),
    ],
)
def test_predict_refuses_what_does_not_go_together(tiny, folder, cli, more, words):
    ran = cli("predict", tiny, folder, "--runtime", "onnxruntime", *more)
    assert ran.code == 2 and words in ran.error
