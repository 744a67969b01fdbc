"""Bad input gives one line that says what was asked, found and to do; exit 2; nothing left behind.

Each case runs the command line, and the folder afterwards is the folder before.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tiny_models
from onnx import TensorProto, helper

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was_run",)


def _archive(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("best/data.pkl", data)
            archive.writestr("best/version", b"3\n")

    return write


def _bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def _cut_archive(path: Path) -> None:
    _archive(pickle.dumps({"model": list(range(1000))}))(path)
    path.write_bytes(path.read_bytes()[:700])


def _unknown_family(path: Path) -> None:
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 64, 64])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [picture], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


def _cut_onnx(path: Path) -> None:
    tiny_models.ultralytics_onnx(path)
    path.write_bytes(path.read_bytes()[:5000])


def _dynamic_size(path: Path) -> None:
    tiny_models.ultralytics_onnx(path)
    model = onnx.load(path)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
    onnx.save(model, path)


def _other_batch(path: Path) -> None:
    tiny_models.ultralytics_onnx(path, batch=4)


# name of the file: how it is made, words of the error
SOURCES = {
    "empty.pt": (_bytes(b""), "empty"),
    "text.pt": (_bytes(b"hello\n"), "text"),
    "lfs.pt": (_bytes(LFS), "git-lfs"),
    "cut.pt": (_cut_archive, ""),
    "noise.pt": (_bytes(bytes(range(256)) * 20), ""),
    "attack.pt": (_archive(pickle.dumps({"model": _Attack()}, protocol=2)), ""),
    "attack_bare.pt": (_bytes(pickle.dumps({"model": _Attack()}, protocol=2)), ""),
    "empty.onnx": (_bytes(b""), "empty"),
    "text.onnx": (_bytes(b"hello\n"), "it is text"),
    "lfs.onnx": (_bytes(LFS), "git-lfs"),
    "cut.onnx": (_cut_onnx, "not an ONNX file"),
    "zip.onnx": (_archive(b"x"), "zip archive"),
    "noise.onnx": (_bytes(bytes(range(256)) * 20), ""),
    "relu.onnx": (_unknown_family, "no known family"),
    "dynamic.onnx": (_dynamic_size, "fixed size"),
    "batch4.onnx": (_other_batch, "--batch"),
    "picture.jpg": (_bytes(b"\xff\xd8\xff"), "not supported"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_bad_source(name, place, cli, snapshot):
    make, words = SOURCES[name]
    make(place / name)
    before = snapshot(place)
    ran = cli("run", name, "--out", "out")
    assert ran.code == 2
    if name.endswith(".pt") and importlib.util.find_spec("torch") is None:
        words = "not installed"
    assert words in ran.error
    assert name in ran.error or "--batch" in words or "kind" in ran.error
    assert snapshot(place) == before, "something was left behind, or an attack was run"


def test_the_attack_works_where_nothing_stops_it(place):
    pickle.loads(pickle.dumps({"model": _Attack()}))
    assert (place / "was_run").exists()


LONG = "a" * 300
# case: (words after `run`, what the error must hold)
REQUESTS = {
    "missing pt": ("./no/missing.pt", "no such file"),
    "missing onnx": ("missing.onnx", "no such file"),
    "missing yaml": ("missing.yaml", "missing.yaml"),
    "no such model": ("yolo11q", "yolo11"),
    "folder": ("pics", "it is a folder"),
    "no source": ("", "SOURCE"),
    "long source": (LONG, "too long"),
    "long onnx": (f"{LONG}.onnx", "too long"),
    "long out": (f"tiny.onnx --out {LONG}", "too long"),
    "long name": (f"tiny.onnx --name {LONG}", "--name"),
    "long name in bytes": (f"tiny.onnx --name {'é' * 120}", "--name"),
    "name with slash": ("tiny.onnx --name a/b", "not a file name"),
    "name is parent": ("tiny.onnx --name ..", "not a file name"),
    "opset 7": ("tiny.onnx --opset 7", "11 to 22"),
    "opset 99": ("tiny.onnx --opset 99", "11 to 22"),
    "opset word": ("tiny.onnx --opset abc", "--opset abc"),
    "batch 0": ("tiny.onnx --batch 0", "--batch 0"),
    "batch -1": ("tiny.onnx --batch -1", "--batch -1"),
    "batch word": ("tiny.onnx --batch x", "dynamic"),
    "batch superscript": ("tiny.onnx --batch ²", "dynamic"),
    "batch of many digits": (f"tiny.onnx --batch {'9' * 5000}", "dynamic"),
    "size superscript": ("tiny.onnx --image-size ²", "--image-size ²"),
    "size word": ("tiny.onnx --image-size big", "--image-size big"),
    "size of three": ("tiny.onnx --image-size 64,64,64", "--image-size"),
    "size not the file's": ("tiny.onnx --image-size 32", "fixed to 64,64"),
    "size too large": ("tiny.onnx --image-size 99999", "between 32 and 8192"),
    "precision": ("tiny.onnx --precision fp61", "did you mean fp16?"),
    "precision empty": ("tiny.onnx --precision ,", "empty"),
    "outputs": ("tiny.onnx --outputs end2ned", "did you mean end2end?"),
    "option": ("tiny.onnx --presicion fp16", "did you mean --precision?"),
    "option without value": ("tiny.onnx --out out --family", "requires an argument"),
    "flag with value": ("tiny.onnx --dry-run=3", "--dry-run"),
    "too many words": ("tiny.onnx another.onnx", "another.onnx"),
    "family": ("tiny.onnx --family yolo88", "did you mean yolov8?"),
    "family that does not fit": ("tiny.onnx --family yolox", "do not fit"),
    "nms": ("tiny.onnx --outputs end2end --nms onxn", "did you mean onnx?"),
    "nms without end2end": ("tiny.onnx --nms portable", "add --outputs end2end"),
    "keep-topk without end2end": ("tiny.onnx --keep-topk 5", "add --outputs end2end"),
    "agnostic without end2end": ("tiny.onnx --class-agnostic", "add --outputs end2end"),
    "head": ("tiny.onnx --head one2man", "did you mean one2many?"),
    "threads": ("tiny.onnx --threads 0", "--threads 0"),
    "max-images": ("tiny.onnx --max-images 0", "--max-images 0"),
    "keep-topk": ("tiny.onnx --outputs end2end --keep-topk 0", "--keep-topk 0"),
    "odd iterations": ("tiny.onnx --outputs end2end --nms portable --nms-iterations 3", "odd"),
    "dynamic plugin": (
        "tiny.onnx --outputs end2end --nms efficient_nms --dynamic-thresholds",
        "attributes",
    ),
    "score nan": ("tiny.onnx --outputs end2end --score-threshold nan", "--score-threshold nan"),
    "score inf": ("tiny.onnx --outputs end2end --score-threshold inf", "--score-threshold inf"),
    "iou -1": ("tiny.onnx --outputs end2end --iou-threshold -1", "--iou-threshold -1"),
    "iou 2": ("tiny.onnx --outputs end2end --iou-threshold 2", "--iou-threshold 2"),
    "both outputs": ("tiny.onnx --model-only --outputs raw", "drop one"),
    "no such picture": ("tiny.onnx --images nope.jpg", "nope.jpg"),
    "no pictures in folder": ("tiny.onnx --images empty", "yields no pictures"),
    "glob of nothing": ("tiny.onnx --images pics/*.gif", "yields no pictures"),
    "damaged picture": ("tiny.onnx --images pics --images zero.png", "zero.png: it is empty"),
    "labels missing": ("tiny.onnx --labels nope.txt", "no such file"),
    "labels of wrong count": ("tiny.onnx --labels two.json", "2 names"),
    "labels coco": ("tiny.onnx --labels coco", "80 names"),
    "labels not a list": ("tiny.onnx --labels number.json", "not a list of class names"),
    "labels not json": ("tiny.onnx --labels damaged.json", "cannot be read as JSON"),
    "labels not text": ("tiny.onnx --labels binary.txt", "UTF-8"),
    "out is a file": ("tiny.onnx --out tiny.onnx", "cannot be written"),
    "out below a file": ("tiny.onnx --out tiny.onnx/x/y", "cannot be written"),
    "out in proc": ("tiny.onnx --out /proc", "cannot be written"),
    "download of a file": ("tiny.onnx --download-only", "local file"),
    "trust an onnx": ("tiny.onnx --trust-checkpoint", "drop the option"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_bad_request(case, place, cli, snapshot):
    words, expected = REQUESTS[case]
    (place / "empty").mkdir()
    (place / "zero.png").touch()
    (place / "two.json").write_text('["a", "b"]')
    (place / "number.json").write_text("5")
    (place / "damaged.json").write_text('["a", ')
    (place / "binary.txt").write_bytes(b"\xff\xfe\x00")
    before = snapshot(place)
    words = words.split()
    if "--out" not in words:
        words += ["--out", "out"]
    ran = cli("run", *words)
    assert ran.code == 2
    assert expected in ran.error
    assert snapshot(place) == before


VERBS = {
    "verb": (["rnu"], "did you mean run?"),
    "verb unlike any": (["xyzzy"], "known: run"),
    "export": (["export", "missing.onnx"], "no such file"),
    "runtime": (["predict", "tiny.onnx", "pics", "--runtime", "onnxrutime"], "onnxruntime?"),
    "runtime of other files": (["predict", "tiny.onnx", "pics", "--runtime", "pytorch"], ".pt"),
    "device": (["predict", "tiny.onnx", "pics", "--device", "cdua"], "did you mean cuda?"),
    "no pictures": (["predict", "tiny.onnx"], "it is missing"),
    "no artifact": (["predict", "missing.onnx", "pics"], "no such file"),
    "artifact is a folder": (["predict", "pics", "pics"], "it is a folder"),
    "artifact of another kind": (["predict", "pics/p0.png", "pics"], "no runtime reads it"),
    "artifact is text": (["predict", "text.onnx", "pics"], "text.onnx"),
    "artifact of no family": (["predict", "relu.onnx", "pics"], "no known family"),
    "picture missing": (["predict", "tiny.onnx", "nope.jpg"], "no such file or folder"),
    "picture name too long": (["predict", "tiny.onnx", f"{LONG}.jpg"], "too long"),
    "batch": (["predict", "tiny.onnx", "pics", "--batch", "0"], "--batch 0"),
    "threads": (["predict", "tiny.onnx", "pics", "--threads", "0"], "--threads 0"),
    "classes": (["predict", "tiny.onnx", "pics", "--classes", "bees"], "did you mean bee?"),
    "class id": (["predict", "tiny.onnx", "pics", "--classes", "3"], "no such class"),
    "class superscript": (["predict", "tiny.onnx", "pics", "--classes", "²"], "no such class"),
    "classes empty": (["predict", "tiny.onnx", "pics", "--classes", ""], "no such class"),
    "one file for two": (
        ["predict", "tiny.onnx", "pics", "--save-json", "a.json", "--save-coco", "./a.json"],
        "both name one file",
    ),
    "json is there": (["predict", "tiny.onnx", "pics", "--save-json", "note.txt"], "--force"),
    "coco is there": (["predict", "tiny.onnx", "pics", "--save-coco", "note.txt"], "--force"),
    "json is a folder": (
        ["predict", "tiny.onnx", "pics", "--save-json", "pics", "--force"],
        "it is a folder",
    ),
    "json below a file": (
        ["predict", "tiny.onnx", "pics", "--save-json", "note.txt/a.json"],
        "cannot be written",
    ),
    "json name too long": (["predict", "tiny.onnx", "pics", "--save-json", LONG], "too long"),
    "out is a file": (["predict", "tiny.onnx", "pics", "--out", "note.txt"], "cannot be written"),
    "out is not empty": (["predict", "tiny.onnx", "pics", "--out", "pics"], "not empty"),
    "text is not empty": (["predict", "tiny.onnx", "pics", "--save-txt", "pics"], "not empty"),
    "out in proc": (["predict", "tiny.onnx", "pics", "--out", "/proc/x"], "/proc/x"),
    "verify missing": (["verify", "tiny.onnx", "missing.onnx"], "missing.onnx"),
    "verify text": (["verify", "tiny.onnx", "text.onnx"], "text.onnx"),
    "verify other model": (["verify", "tiny.onnx", "other.onnx"], "not of one model"),
    "verify precision": (["verify", "tiny.onnx", "tiny.onnx", "--precision", "int"], "--precision"),
    "verify damaged picture": (["verify", "tiny.onnx", "tiny.onnx", "--images", "note.txt"], ""),
    "inspect missing": (["inspect", "missing.onnx"], "no such file"),
    "inspect kind": (["inspect", "note.txt"], ".engine, .pt, .pth and .safetensors"),
    "inspect text": (["inspect", "text.onnx"], "it is text"),
    "inspect no family": (["inspect", "relu.onnx"], "no known family"),
    "clean nothing": (["clean", "pics"], "no run of ours"),
    "clean missing": (["clean", "nowhere"], "no run of ours"),
}


@pytest.mark.parametrize("case", VERBS)
def test_bad_words_for_other_verbs(case, place, cli, snapshot):
    words, expected = VERBS[case]
    (place / "note.txt").write_text("mine")
    (place / "text.onnx").write_text("hello")
    _unknown_family(place / "relu.onnx")
    tiny_models.ultralytics_onnx(place / "other.onnx", classes=4)
    before = snapshot(place)
    ran = cli(*words)
    assert ran.code == 2
    assert expected in ran.error
    assert snapshot(place) == before


@pytest.mark.parametrize("option", ["--score-threshold", "--iou-threshold"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "2", "x"])
def test_thresholds_out_of_range(option, value, place, cli):
    ran = cli("predict", "tiny.onnx", "pics", option, value, "--runtime", "onnxruntime")
    assert ran.code == 2
    assert value.rstrip("0.") in ran.error
    assert not ran.out


# file beside the source: content, what the error must hold
SIDECARS = {
    "labels of wrong count": ("labels.json", '["a", "b"]', "2 names"),
    "labels not a list": ("labels.json", '"a"', "not a list of class names"),
    "labels of numbers": ("labels.json", "[1, 2, 3]", "not a list of class names"),
    "labels damaged": ("labels.json", '["a", ', "cannot be read as JSON"),
    "threshold damaged": ("threshold.json", "{", "cannot be read as JSON"),
    "threshold out of range": ("threshold.json", '{"threshold": 25}', "between 0 and 1"),
    "threshold not a number": ("threshold.json", '{"threshold": true}', "between 0 and 1"),
    "another kind of model": ("model_type.json", '{"model_type": "resnet"}', "resnet"),
    "kind damaged": ("model_type.json", "[]", "not a YOLO detector"),
}


@pytest.mark.parametrize("case", SIDECARS)
@pytest.mark.parametrize("verb", ["run", "predict"])
def test_damaged_sidecars_are_refused(case, verb, place, cli, snapshot):
    file, content, expected = SIDECARS[case]
    (place / file).write_text(content)
    before = snapshot(place)
    more = ["--out", "out"] if verb == "run" else ["pics", "--runtime", "onnxruntime"]
    ran = cli(verb, "tiny.onnx", *more)
    assert ran.code == 2
    assert expected in ran.error
    assert snapshot(place) == before


def test_sidecars_are_honoured(place, cli):
    plain = json.loads(cli("predict", "tiny.onnx", "pics", "--json").out)
    (place / "labels.json").write_text('["eins", "zwei", "drei"]')
    (place / "threshold.json").write_text('{"threshold": 0.6}')
    (place / "model_type.json").write_text('{"model_type": "yolo"}')
    ran = cli("run", "tiny.onnx", "--out", "out", "--images", "pics")
    assert ran.code == 0
    made = json.loads(cli("predict", "out/tiny/tiny.fp32.onnx", "pics", "--json").out)
    scores = [[d["score"] for d in p["detections"]] for p in made]
    assert all(s > 0.6 for one in scores for s in one)
    assert [len(s) for s in scores] == [
        sum(d["score"] > 0.6 for d in p["detections"]) for p in plain
    ]
    names = {d["class_name"] for p in made for d in p["detections"]}
    assert names <= {"eins", "zwei", "drei"}
    assert len(names) > 1


def test_a_file_with_nms_is_no_source(place, cli, snapshot):
    assert cli("run", "tiny.onnx", "--out", "out", "--outputs", "end2end").code == 0
    before = snapshot(place)
    ran = cli("run", "out/tiny/tiny.fp32.end2end.onnx", "--out", "again")
    assert ran.code == 2
    assert "it holds NMS already" in ran.error
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("option", "value", "baked"),
    [("--score-threshold", "0.1", "0.25"), ("--iou-threshold", "0.5", "0.7")],
)
def test_baked_thresholds_cannot_be_changed(option, value, baked, place, cli):
    assert cli("run", "tiny.onnx", "--out", "out", "--outputs", "end2end").code == 0
    words = ["predict", "out/tiny/tiny.fp32.end2end.onnx", "pics", option]
    ran = cli(*words, value)
    assert ran.code == 2
    assert f"{baked} is baked into" in ran.error
    assert cli(*words, baked).code == 0
    if option == "--score-threshold":
        assert cli(*words, "0.9").code == 0, "a higher threshold only filters"


def test_help_is_shown_when_nothing_is_asked(cli):
    ran = cli()
    assert ran.code == 2
    assert "Usage: boxwright" in ran.err


def test_debug_shows_the_traceback(environment):
    words = [sys.executable, "-m", "boxwright", "run", "missing.onnx"]
    plain = subprocess.run(words, capture_output=True, text=True, env=environment)
    debug = subprocess.run([*words, "--debug"], capture_output=True, text=True, env=environment)
    assert "Traceback" not in plain.stderr
    assert plain.returncode == 2
    assert "Traceback" in debug.stderr
    assert "SourceError" in debug.stderr


def test_full_stdout_is_no_traceback(place, environment):
    words = [sys.executable, "-m", "boxwright", "predict", "tiny.onnx", "pics", "--json"]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "No space left" in ran.stderr
