"""Pictures of every kind go through, damaged ones are reported, results are never half there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models

from boxwright.detector import Detector
from boxwright.errors import ImageError
from boxwright.images import expand_paths, read_image

WORDS = ["predict", "tiny.onnx"]
RUNTIME = ["--runtime", "onnxruntime", "--threads", "1"]


def _encoded(suffix: str, picture: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, picture, list(options))
    assert done
    return data.tobytes()


def _with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Return a JPEG with an EXIF block that says how the picture is turned."""
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01"
    tiff += bytes([0, orientation]) + b"\x00\x00\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def _palette_png(height: int, width: int) -> bytes:
    """Return a palette PNG, which OpenCV cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rng = np.random.default_rng(0)
    index = rng.integers(0, 16, (height // 8, width // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    rows = b"".join(b"\0" + row.tobytes() for row in index)
    colors = rng.integers(0, 256, (16, 3), np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"PLTE", colors)
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


PICTURE = tiny_models.picture(96, 128)
# file name: (bytes, (height, width))
GOOD = {
    "1x1.png": (_encoded(".png", PICTURE[:1, :1]), (1, 1)),
    "1x10000.png": (_encoded(".png", np.tile(PICTURE[:1], (1, 79, 1))[:, :10000]), (1, 10000)),
    "10000x1.png": (_encoded(".png", np.tile(PICTURE[:, :1], (105, 1, 1))[:10000]), (10000, 1)),
    "rgba.png": (_encoded(".png", np.dstack([PICTURE, PICTURE[..., :1]])), (96, 128)),
    "grey.png": (_encoded(".png", PICTURE[..., 0]), (96, 128)),
    "16bit.png": (_encoded(".png", PICTURE.astype(np.uint16) * 257), (96, 128)),
    "16bit_grey.png": (_encoded(".png", PICTURE[..., 0].astype(np.uint16) * 257), (96, 128)),
    "palette.png": (_palette_png(96, 128), (96, 128)),
    "a.bmp": (_encoded(".bmp", PICTURE), (96, 128)),
    "a.webp": (_encoded(".webp", PICTURE), (96, 128)),
    "a.tiff": (_encoded(".tiff", PICTURE), (96, 128)),
    "a.jpg": (_encoded(".jpg", PICTURE), (96, 128)),
    "progressive.jpg": (_encoded(".jpg", PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (96, 128)),
    "grey.jpg": (_encoded(".jpg", PICTURE[..., 0]), (96, 128)),
    "turned.jpg": (_with_orientation(_encoded(".jpg", PICTURE), 6), (128, 96)),
    "upside_down.jpg": (_with_orientation(_encoded(".jpg", PICTURE), 3), (96, 128)),
    "two words ä.JPG": (_encoded(".jpg", PICTURE), (96, 128)),
    "[a]*?.png": (_encoded(".png", PICTURE), (96, 128)),
}
BIG = tiny_models.picture(300, 400)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _with_wrong_bytes(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 60]) + data[middle + 60 :]


BAD = {
    "zero.jpg": b"",
    "text.png": b"hello\n",
    "cut.jpg": _half(_encoded(".jpg", BIG)),
    "cut_in_header.jpg": _encoded(".jpg", BIG)[:30],
    "cut.png": _half(_encoded(".png", BIG)),
    "cut.bmp": _half(_encoded(".bmp", BIG)),
    "cut.webp": _half(_encoded(".webp", BIG)),
    "cut.tiff": _half(_encoded(".tiff", BIG)),
    "wrong_bytes.png": _with_wrong_bytes(_encoded(".png", BIG)),
    "noise.jpg": bytes(range(256)) * 8,
    "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n",
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("model", ["ultralytics", "yolox"])
def test_every_kind_of_picture(name, model, place, cli):
    data, (height, width) = GOOD[name]
    (place / name).write_bytes(data)
    make = {"ultralytics": tiny_models.ultralytics_onnx, "yolox": tiny_models.yolox_onnx}[model]
    make(place / "m.onnx")
    ran = cli("predict", "m.onnx", name, "--json", "--out", "drawn", *RUNTIME)
    assert ran.code == 0, ran.err
    [found] = json.loads(ran.out)
    assert (found["image"], found["height"], found["width"]) == (name, height, width)
    assert found["detections"]
    boxes = np.array([d["xyxy"] for d in found["detections"]])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    [drawn] = Path("drawn").iterdir()
    assert drawn.stem == Path(name).stem
    assert read_image(drawn).shape == (height, width, 3)


def test_pixels_are_what_they_should_be(tmp_path):
    for name in ("rgba.png", "16bit.png", "a.bmp", "a.tiff"):
        (tmp_path / name).write_bytes(GOOD[name][0])
        assert np.array_equal(read_image(tmp_path / name), PICTURE), name
    (tmp_path / "grey.png").write_bytes(GOOD["grey.png"][0])
    assert np.array_equal(read_image(tmp_path / "grey.png"), PICTURE[..., :1].repeat(3, 2))
    upright = cv2.imdecode(np.frombuffer(GOOD["a.jpg"][0], np.uint8), cv2.IMREAD_COLOR)
    turns = {"turned.jpg": cv2.ROTATE_90_CLOCKWISE, "upside_down.jpg": cv2.ROTATE_180}
    for name, turn in turns.items():
        (tmp_path / name).write_bytes(GOOD[name][0])
        assert np.array_equal(read_image(tmp_path / name), cv2.rotate(upright, turn)), name


def test_cmyk(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    source = pillow.fromarray(PICTURE[..., ::-1].copy())
    source.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    difference = read_image(tmp_path / "cmyk.jpg").astype(int) - PICTURE
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("name", BAD)
def test_damaged_pictures_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert caught.value.do


@pytest.mark.parametrize("batch", [1, 3])
def test_damaged_pictures_among_good_ones(batch, place, cli):
    for name, data in BAD.items():
        (place / "pics" / name).write_bytes(data)
    ran = cli(*WORDS, "pics", "--save-json", "all.json", "--save-txt", "text", "--out", "drawn",
              "--batch", batch, *RUNTIME)  # fmt: skip
    assert ran.code == 1
    assert f"boxwright: 2 pictures, 93 detections, {len(BAD)} unreadable" in ran.err
    for name in BAD:
        assert ran.err.count(f"boxwright: pics/{name}: ") == 1
    assert "Traceback" not in ran.err
    records = json.loads(Path("all.json").read_text(encoding="utf-8"))
    assert [r["image"] for r in records] == ["pics/p0.png", "pics/p1.png"]
    assert sorted(p.name for p in Path("text").iterdir()) == ["p0.txt", "p1.txt"]
    assert sorted(p.name for p in Path("drawn").iterdir()) == ["p0.jpg", "p1.jpg"]
    alone = cli(*WORDS, "pics/p0.png", "pics/p1.png", "--json", *RUNTIME)
    assert alone.code == 0
    assert json.loads(alone.out) == records


def test_only_damaged_pictures(place, cli):
    (place / "a.jpg").touch()
    (place / "b.png").write_text("hello")
    ran = cli(*WORDS, "a.jpg", "b.png", "--json", *RUNTIME)
    assert ran.code == 1
    assert json.loads(ran.out) == []
    assert "0 pictures, 0 detections, 2 unreadable" in ran.err


def test_a_damaged_picture_stops_a_verification(place, cli, snapshot):
    (place / "pics/cut.jpg").write_bytes(BAD["cut.jpg"])
    before = snapshot(place)
    ran = cli("run", "tiny.onnx", "--out", "out", "--images", "pics")
    assert ran.code == 2
    assert "pics/cut.jpg: the picture is cut off" in ran.error
    assert snapshot(place) == before


def test_classes_are_filtered(place, cli):
    every = json.loads(cli(*WORDS, "pics", "--json", *RUNTIME).out)
    for text, names in (("bee", {"bee"}), ("0", {"ant"}), ("cat, ant", {"ant", "cat"})):
        ran = cli(*WORDS, "pics", "--json", "--classes", text, *RUNTIME)
        assert ran.code == 0
        wanted = [[d for d in p["detections"] if d["class_name"] in names] for p in every]
        assert [p["detections"] for p in json.loads(ran.out)] == wanted
        assert sum(map(len, wanted)) > 5


@pytest.mark.parametrize("option", ["--save-json", "--save-coco"])
def test_results_are_replaced_only_by_force(option, place, cli):
    (place / "result.json").write_text("mine")
    ran = cli(*WORDS, "pics", option, "result.json", *RUNTIME)
    assert ran.code == 2
    assert "result.json: it is there already" in ran.error
    assert (place / "result.json").read_text() == "mine"
    assert cli(*WORDS, "pics", option, "result.json", "--force", *RUNTIME).code == 0
    assert json.loads((place / "result.json").read_text(encoding="utf-8"))


def test_an_interrupted_prediction_leaves_no_half_written_file(place, cli, monkeypatch):
    (place / "result.json").write_text("mine")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    ran = cli(*WORDS, "pics", "--save-json", "result.json", "--force", *RUNTIME)
    assert ran.code == 130
    assert ran.err.splitlines()[-1].startswith("boxwright: error: interrupted")
    assert (place / "result.json").read_text() == "mine"
    assert not list(place.rglob("*.part"))


def _video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (128, 96))
    if not writer.isOpened():
        pytest.skip("NOT TESTED, this OpenCV cannot write videos")
    for index in range(frames):
        writer.write(tiny_models.picture(96, 128, index))
    writer.release()


def test_videos(place, cli):
    _video(place / "v.mp4", 5)
    _video(place / "w.mp4", 4)
    ran = cli(*WORDS, "v.mp4", "w.mp4", "--out", "drawn", "--json", "--max-frames", 3, *RUNTIME)
    assert ran.code == 0, ran.err
    names = [r["image"] for r in json.loads(ran.out)]
    assert names == [f"{v}.mp4#{i}" for v in "vw" for i in range(3)]
    assert sorted(p.name for p in Path("drawn").iterdir()) == ["v.mp4", "w.mp4"]
    for path in Path("drawn").iterdir():
        capture = cv2.VideoCapture(str(path))
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
        capture.release()


def test_a_damaged_video_is_reported(place, cli):
    _video(place / "v.mp4", 5)
    data = (place / "v.mp4").read_bytes()
    (place / "cut.mp4").write_bytes(data[: len(data) // 2])
    (place / "text.mp4").write_text("hello")
    ran = cli(*WORDS, "cut.mp4", "text.mp4", "pics", *RUNTIME)
    assert ran.code == 1
    assert "2 pictures" in ran.err
    assert "2 unreadable" in ran.err


def test_an_interrupted_video_is_not_left_half_drawn(place, cli, monkeypatch):
    _video(place / "v.mp4", 5)
    real, calls = Detector.infer, []

    def fail(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Detector, "infer", fail)
    ran = cli(*WORDS, "v.mp4", "--out", "drawn", *RUNTIME)
    assert ran.code == 130
    assert list(Path("drawn").iterdir()) == []


def test_pictures_of_one_stem_keep_their_own_results(place, cli):
    cv2.imwrite("pics/p0.bmp", tiny_models.picture(40, 40))
    (place / "pics/deeper").mkdir()
    cv2.imwrite("pics/deeper/p0.png", tiny_models.picture(50, 50))
    assert cli(*WORDS, "pics", "--save-txt", "text", *RUNTIME).code == 0
    names = sorted(str(p.relative_to("text")) for p in Path("text").rglob("*.txt"))
    assert names == ["deeper/p0.txt", "p0.txt", "p0_2.txt", "p1.txt"]


def test_expand_paths(place):
    (place / "pics/note.txt").write_text("x")
    (place / "pics/C.JPG").write_bytes(b"x")
    names = [p.name for p in expand_paths(["pics", "pics/p0.png", "pics/*.png"])]
    assert names == ["C.JPG", "p0.png", "p1.png"]
    assert expand_paths(["pics/note.txt"]) == [Path("pics/note.txt")], "named outright"
    for text in ("pics/*.txt", "nowhere", "pics/*.gif"):
        with pytest.raises(ImageError):
            expand_paths([text])
