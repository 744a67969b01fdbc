"""Files that take pictures: detections as by the host's path, through every verb."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import tiny_models
from onnx import numpy_helper

from boxwright import catalog, load
from boxwright.backends import BackendOptions
from boxwright.calibrate import calibrate
from boxwright.detector import Detector
from boxwright.engine_record import read_record
from boxwright.engines.inspection import read_facts
from boxwright.engines.settings import BuildSettings, build_line
from boxwright.errors import BoxwrightError, ImageError
from boxwright.graph.end2end import add_end2end, runnable_anywhere
from boxwright.graph.image_input import NETWORK_INPUT, add_image_input, with_network_input
from boxwright.graph.io import check_model, write_stamp
from boxwright.graph.precision import fp16_from_fp32
from boxwright.graph.quantize import int8_from_fp32
from boxwright.image_parity import box_gap, grey_gap
from boxwright.sources import SourceRequest
from boxwright.stamps import Stamp
from boxwright.types import Detections, NmsSettings, Preprocess, Target
from boxwright.verify import Candidate, verify

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="NOT TESTED: OpenVINO is not installed"
)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NOT TESTED: TensorRT-RTX is not installed",
)
MAKERS = {
    "ultralytics": tiny_models.ultralytics_onnx,
    "nms-free": tiny_models.nms_free_onnx,
    "yolox": tiny_models.yolox_onnx,
    "yolov5": tiny_models.yolov5_onnx,
}
ONE_THREAD = BackendOptions(1, "cpu", spin=False)


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    return {
        family: catalog.source_for(".onnx").export(
            SourceRequest(make(folder / f"{family}.onnx"), family)
        )
        for family, make in MAKERS.items()
    }


def model_of(raw, target: Target) -> onnx.ModelProto:
    """Make a file as a run does, body first and pictures last."""
    model = raw.model
    if target.precision == "fp16":
        model = fp16_from_fp32(model)
    if target.precision == "int8":
        ranges = calibrate(model, raw.spec, tiny_models.pictures(2), target.deployment)
        model = int8_from_fp32(model, ranges.ranges, target.deployment)
    if target.outputs == "end2end":
        model = add_end2end(model, raw.spec, NmsSettings(), target)
    if target.input == "image":
        model = add_image_input(model, raw.spec, target)
    write_stamp(model, Stamp(raw.spec, target, NmsSettings()))
    check_model(model, "picture file")
    return model


def opened(raw, target: Target, runtime: str = "onnxruntime", extra: bool = False) -> Detector:
    model = runnable_anywhere(model_of(raw, target))
    if extra:
        model = with_network_input(model)
    backend = catalog.backend(runtime).open_bytes(model.SerializeToString(), ONE_THREAD)
    return Detector(backend, raw.spec, target, NmsSettings())


def assert_alike(found: Detections, wanted: Detections, px: float = 0.5, score: float = 0.01):
    assert len(wanted) > 5 and found.image_size == wanted.image_size
    assert found.class_ids.tolist() == wanted.class_ids.tolist()
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=px)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=score)


TARGETS = {
    "raw": Target(input="image"),
    "onnx": Target("fp32", "end2end", input="image"),
    "portable, nchw, rgb": Target(
        "fp32", "end2end", "portable", input="image", image_layout="nchw", image_color="rgb"
    ),
    "efficient_nms": Target("fp32", "end2end", "efficient_nms", input="image"),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("family", MAKERS)
def test_detections_are_those_of_the_hosts_path(raws, family, target):
    """Of pictures of four sizes in one call, in the order in which they were given."""
    pictures = tiny_models.pictures(6)
    host = opened(raws[family], target.of_tensor)
    graph = opened(raws[family], target)
    for found, wanted in zip(graph(pictures), host(pictures), strict=True):
        assert_alike(found, wanted)
        height, width = wanted.image_size
        assert found.xyxy.min() >= 0
        assert (found.xyxy <= [width, height, width, height]).all()


@needs_openvino
@pytest.mark.parametrize("target", list(TARGETS.values())[:3], ids=list(TARGETS)[:3])
def test_openvino_finds_them_and_compiles_once(raws, target):
    pictures = tiny_models.pictures(4)
    host, graph = (opened(raws["ultralytics"], t, "openvino") for t in (target.of_tensor, target))
    for image in pictures:
        assert_alike(graph(image), host(image))
    assert len(graph.backend._compiled) == 1


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_precision_takes_pictures(raws, precision):
    target = Target(precision, "end2end", "portable", input="image", deployment="cpu")
    host, graph = (opened(raws["yolox"], t) for t in (target.of_tensor, target))
    for image in tiny_models.pictures(3):
        assert_alike(graph(image), host(image))


def test_a_fixed_batch_and_a_fixed_size_are_kept(raws):
    raw = raws["ultralytics"]
    target = Target("fp32", "end2end", batch=3, input="image", source_size=(90, 120))
    model = model_of(raw, dataclasses.replace(target, batch=None))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    backend = catalog.backend("onnxruntime").open_bytes(model.SerializeToString(), ONE_THREAD)
    graph, host = Detector(backend, raw.spec, target, NmsSettings()), opened(raw, Target())
    assert backend.inputs[0].shape == (3, 90, 120, 3)
    images = [tiny_models.picture(90, 120, seed) for seed in range(4)]
    for found, image in zip(graph(images), images, strict=True):
        assert_alike(found, host(image))
    with pytest.raises(ImageError, match=r"64x64 .*takes pictures of 90x120 only; export with"):
        graph(tiny_models.picture(64, 64))


def test_a_batch_of_several_sizes_is_never_stacked(raws):
    graph = opened(raws["ultralytics"], Target(input="image"))
    assert graph.batches(tiny_models.pictures(5)) == [[0, 4], [1], [2], [3]]
    with pytest.raises(ImageError, match=r"several sizes \(64x64, 90x120\)"):
        graph.preprocess(tiny_models.pictures(2))
    long = np.zeros((1, 40_000, 3), np.uint8)
    with pytest.raises(ImageError, match="sides of up to 32768"):
        graph(long)


# -- verification


def verified(raw, candidate: Detector, pictures=None):
    reference = opened(raw, Target())
    named = {"c": Candidate(candidate, "fp32", NETWORK_INPUT)}
    return verify(reference, named, pictures or tiny_models.pictures(4))["c"]


def test_verification_measures_grey_levels_and_pixels(raws):
    target = Target("fp32", "end2end", input="image", source_size=(70, 110))
    parity = verified(raws["ultralytics"], opened(raws["ultralytics"], target, extra=True))
    assert parity.passed and parity.detections > 50
    checks = {c.name: c for c in parity.checks}
    assert checks["input tensor, grey levels"].measured <= 1
    assert checks["boxes in the picture, px"].measured <= 0.5
    assert checks["pictures that differ in a batch of 3"].measured == 0


def _other_padding(model):
    for stored in model.graph.initializer:
        if numpy_helper.to_array(stored).tolist() == 114.0:
            stored.CopyFrom(numpy_helper.from_array(np.array(117, np.float32), stored.name))
            return


def _no_flip(model):
    flip = [1 for n in model.graph.node if n.op_type == "Gather" and n.name.startswith("image/")]
    assert flip
    for stored in model.graph.initializer:
        if numpy_helper.to_array(stored).tolist() == [2, 1, 0]:
            same = np.array([0, 1, 2], np.int64)
            stored.CopyFrom(numpy_helper.from_array(same, stored.name))
            return


def _no_mapping(model):
    last = model.graph.node[-1]
    assert last.output[0] == "det_boxes"
    last.input[0] = "det_boxes/input_px"


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (_other_padding, "input tensor, grey levels"),
        (_no_flip, "input tensor, grey levels"),
        (_no_mapping, "1 - IoU of matched boxes"),
    ],
)
def test_verification_catches_wrong_preprocessing(raws, spoil, check):
    raw, target = raws["ultralytics"], Target("fp32", "end2end", input="image")
    model = with_network_input(model_of(raw, target))
    spoil(model)
    backend = catalog.backend("onnxruntime").open_bytes(model.SerializeToString(), ONE_THREAD)
    parity = verified(raw, Detector(backend, raw.spec, target, NmsSettings()))
    assert not parity.passed
    assert check in {c.name for c in parity.failures} or "missing" in parity.failures[0].name


def test_gaps_are_measured_in_grey_levels_and_pixels():
    rules = Preprocess(std=(0.5, 1.0, 1.0))
    one, other = np.zeros((3, 2, 2), np.float32), np.zeros((3, 2, 2), np.float32)
    other[0, 0, 0], other[2, 1, 1] = 2 / 255 / 0.5, 3 / 255
    assert grey_gap(one, other, rules) == 3.0

    def seen(*boxes, labels):
        xyxy = np.array(boxes, np.float32).reshape(-1, 4)
        return Detections(xyxy, np.ones(len(xyxy), np.float32), np.array(labels, np.int64))

    first = seen((0, 0, 10, 10), (50, 50, 60, 60), labels=[0, 1])
    moved = seen((0, 0, 10, 10.4), (0, 0, 9, 10), (50, 50, 60, 60), labels=[0, 0, 0])
    assert box_gap(first, moved) == pytest.approx(0.4, abs=1e-5)
    assert box_gap(first, seen(labels=[])) == 0.0


# -- the command line


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with files of pictures, of any size and of one."""
    from boxwright.cli import main

    folder = tmp_path_factory.mktemp("made")
    tiny_models.ultralytics_onnx(folder / "tiny.onnx")
    (folder / "images").mkdir()
    for index, image in enumerate(tiny_models.pictures(3)):
        cv2.imwrite(str(folder / "images" / f"p{index}.png"), image)
    words = ["run", str(folder / "tiny.onnx"), "--outputs", "end2end", "--nms", "portable"]
    words += ["--images", str(folder / "images"), "--out", str(folder), "--threads", "1"]
    for more in (["tensor,image"], ["image", "--source-size", "90,120"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--skip-benchmark", "--input", *more])
        assert ended.value.code == 0
    return folder


FREE, FIXED = "tiny.fp32.end2end.portable.image.onnx", "tiny.fp32.end2end.portable.image90x120.onnx"


def test_a_run_proves_and_describes_such_files(made, cli):
    manifest = json.loads((made / "tiny" / "manifest.json").read_text())
    text = json.dumps(manifest)
    assert FREE in text and FIXED in text and "input tensor, grey levels" in text
    shown = json.loads(cli("inspect", made / "tiny" / FIXED, "--json").out)
    assert shown["inputs"] == ["image uint8 ['batch', 90, 120, 3]"]
    target = shown["target"]
    assert (target["input"], target["source_size"], target["image_color"]) == (
        "image",
        [90, 120],
        "bgr",
    )
    shown = json.loads(cli("inspect", made / "tiny" / FREE, "--json").out)
    assert shown["inputs"] == ["image uint8 ['batch', 'height', 'width', 3]"]


def test_predict_takes_pictures_as_they_are(made, cli):
    words = ("--json", "--batch", "3", "--runtime", "onnxruntime", "--quiet")
    host = cli("predict", made / "tiny" / FREE.replace(".image", ""), made / "images", *words)
    graph = cli("predict", made / "tiny" / FREE, made / "images", *words)
    assert graph.code == host.code == 0
    for one, other in zip(json.loads(host.out), json.loads(graph.out), strict=True):
        assert one["image"] == other["image"] and len(one["detections"]) > 5
        gaps = [
            np.abs(np.subtract(a["xyxy"], b["xyxy"])).max()
            for a, b in zip(one["detections"], other["detections"], strict=True)
        ]
        assert max(gaps) <= 0.5
    refused = cli("predict", made / "tiny" / FIXED, made / "images", *words)
    assert refused.code == 2
    assert "64x64 (height x width): this file takes pictures of 90x120 only" in refused.error


def test_verify_and_evaluate_and_benchmark_take_them(made, cli):
    source = made / "tiny.onnx"
    proven = cli("verify", source, made / "tiny" / FIXED, "--images", made / "images", "--json")
    assert proven.code == 0 and "grey levels" in proven.out
    raw = cli("verify", made / "tiny" / FREE, source)
    assert raw.code == 2
    measured = cli(
        "benchmark", made / "tiny" / FREE, made / "tiny" / FIXED, "--images", made / "images",
        "--runtime", "onnxruntime", "--batch", "2", "--iterations", "5", "--warmup", "1",
        "--no-memory",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    assert "stretched to one size" in measured.err


def test_evaluate_keeps_the_order_of_pictures_of_several_sizes(made):
    from boxwright.datasets import open_dataset
    from boxwright.evaluate import evaluate

    labels = made / "labels"
    labels.mkdir(exist_ok=True)
    with load(made / "tiny" / FREE.replace(".image", ""), "onnxruntime", quiet=True) as host:
        for path in sorted((made / "images").iterdir()):
            lines = host(path).as_yolo_lines()[:4]
            (made / "labels" / f"{path.stem}.txt").write_text("\n".join(lines) + "\n")
        (made / "data.yaml").write_text("path: .\nval: images\nnames: [ant, bee, cat]\n")
        dataset = open_dataset(str(made / "data.yaml"), class_names=host.spec.class_names)
        wanted = evaluate({"f": host}, dataset, batch=3)["f"]
        with load(made / "tiny" / FREE, "onnxruntime", quiet=True) as graph:
            found = evaluate({"f": graph}, dataset, batch=3)["f"]
    assert wanted.objects > 0 and wanted.map50_95 is not None
    assert found.map50_95 == pytest.approx(wanted.map50_95, abs=0.02)


def test_such_a_file_is_no_source(made, cli):
    ran = cli("export", made / "tiny" / FREE, "--out", made / "again")
    assert ran.code == 2 and "it holds NMS already" in ran.error
    raw = made / "raw.image.onnx"
    spec = catalog.source_for(".onnx").export(SourceRequest(made / "tiny.onnx", "tiny"))
    onnx.save(model_of(spec, Target(input="image")), raw)
    ran = cli("export", raw, "--out", made / "again")
    assert ran.code == 2 and "it takes pictures, not the network's tensor" in ran.error


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--source-size", "90,120"], "--source-size: it is of files that take pictures"),
        (["--image-color", "rgb"], "add --input image"),
        (["--input", "picture"], "--input picture: known are tensor, image; use one of them"),
        (["--input", "image", "--image-layout", "nhwc,nchw"], "a file has one of them"),
        (["--input", "image", "--image-color", "cmyk"], "known are bgr, rgb"),
        (["--input", "image", "--source-size", "90"], "it is not height,width"),
        (["--input", "image", "--source-size", "0,9"], "between 1 and 32768"),
        (["--input", "image", "--source-size", "9,99999"], "between 1 and 32768"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(cli, place, snapshot, words, found):
    before = snapshot(place)
    ran = cli("export", "tiny.onnx", *words)
    assert ran.code == 2 and found in ran.error
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("{source_size: [9, 9]}", "source_size needs input: image"),
        ("{input: image, source_size: [9, 0]}", "between 1 and 32768"),
        ("{input: image, source_size: [9]}", "too few"),
        ("{input: image, image_colour: rgb}", "did you mean image_color?"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, keys, found):
    from boxwright.recipe import recipe_from_file

    path = tmp_path / "r.yaml"
    path.write_text(f"source: a.onnx\ntargets: [{keys}]\n")
    with pytest.raises(BoxwrightError, match=found.replace("?", r"\?")):
        recipe_from_file(path)


def test_a_recipe_holds_several_forms(tmp_path):
    from boxwright.recipe import recipe_from_file, text_from_recipe

    path = tmp_path / "r.yaml"
    path.write_text(
        "source: a.onnx\ntargets:\n- {input: image, source_size: [1080, 1920]}\n"
        "- {outputs: end2end, input: image, image_layout: nchw, image_color: rgb}\n"
    )
    recipe = recipe_from_file(path)
    names = [t.suffix for t in recipe.target_records()]
    assert names == ["fp32.image1080x1920", "fp32.end2end.image.nchw.rgb"]
    path.write_text(text_from_recipe(recipe))
    assert recipe_from_file(path) == recipe


# -- plans


BUILDS = {
    "fp32, any size": Target("fp32", "end2end", "portable", input="image"),
    "fp16, any size": Target("fp16", "end2end", "portable", input="image"),
    "int8, any size": Target(
        "int8", "end2end", "portable", deployment="tensorrt", input="image", image_layout="nchw"
    ),
    "fp32, one size": Target("fp32", "end2end", "portable", input="image", source_size=(90, 120)),
    "fp16, one size": Target("fp16", "end2end", "portable", input="image", source_size=(90, 120)),
    "int8, one size": Target(
        "int8", "end2end", "portable", deployment="tensorrt", input="image", source_size=(90, 120)
    ),
    "raw, any size": Target(input="image", image_color="rgb"),
}


@needs_rtx
@pytest.mark.parametrize("target", BUILDS.values(), ids=BUILDS)
def test_tensorrt_rtx_builds_every_form(raws, tmp_path, cli, target):
    family = "yolox" if target.precision == "fp16" else "ultralytics"
    path = tmp_path / f"tiny.{target.suffix}.onnx"
    onnx.save(model_of(raws[family], target), path)
    words = ["build", path, "--runtime", "tensorrt-rtx", "--batch", "1,2,4"]
    if target.source_size is None:
        words += ["--image-sizes", "32x48,90x120,500x640"]
    ran = cli(*words)
    assert ran.code == 0, ran.err
    record = read_record(next(tmp_path.glob("*.plan")))
    shapes = {
        None: ((1, 32, 48, 3), (2, 90, 120, 3), (4, 500, 640, 3)),
        (90, 120): ((1, 90, 120, 3), (2, 90, 120, 3), (4, 90, 120, 3)),
    }[target.source_size]
    if target.image_layout == "nchw":
        shapes = tuple((n, 3, h, w) for n, h, w, _ in shapes)
    assert record.profile == {"image": shapes}
    assert ("--image-sizes" in record.command) == (target.source_size is None)


@pytest.mark.parametrize(
    ("source_size", "sizes", "found"),
    [
        (None, [], "it takes pictures of any size, and a plan wants to know which"),
        ((90, 120), ["--image-sizes", "90x120"], "takes one size only; drop it"),
        (None, ["--image-sizes", "90,120"], "it is not smallest, best, largest HEIGHTxWIDTH"),
        (None, ["--image-sizes", "90x120,80x120,90x120"], "a side is not smallest, best, largest"),
        (None, ["--image-sizes", "9x9,9x9,9x40000"], "from 1 to 32768"),
    ],
)
def test_wrong_sizes_of_a_plan_are_refused(raws, tmp_path, cli, source_size, sizes, found):
    path = tmp_path / "tiny.onnx"
    target = Target(input="image", source_size=source_size)
    onnx.save(model_of(raws["ultralytics"], target), path)
    ran = cli("build", path, "--runtime", "tensorrt-rtx", *sizes)
    assert ran.code == 2 and found in ran.error
    assert list(tmp_path.iterdir()) == [path]


def test_a_build_line_names_the_sizes(raws, tmp_path):
    settings = BuildSettings(image_sizes=((1, 2), (3, 4), (5, 6)))
    line = build_line(settings, Path("a.onnx"), "tensorrt")
    assert line == "boxwright build a.onnx --image-sizes 1x2,3x4,5x6"
    assert "image_sizes" not in BuildSettings().as_dict()
    path = tmp_path / "a.onnx"
    onnx.save(model_of(raws["yolox"], Target(input="image")), path)
    assert read_facts(path).inputs == (("image", ("batch", "height", "width", 3)),)


# -- real weights

ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)


@pytest.mark.skipif(
    not (ASSETS / "onnx" / "yolox_nano_416_static.onnx").is_file(),
    reason="NOT TESTED, BOXWRIGHT_ASSETS names no folder with real weights",
)
def test_a_real_detector_finds_the_same_in_real_pictures():
    path = ASSETS / "onnx" / "yolox_nano_416_static.onnx"
    raw = catalog.source_for(".onnx").export(SourceRequest(path, "yolox"))
    target = Target("fp32", "end2end", input="image")
    host, graph = (opened(raw, t) for t in (target.of_tensor, target))
    for name in ("bus.jpg", "zidane.jpg"):
        found, wanted = (d(ASSETS / "images" / name) for d in (graph, host))
        assert len(wanted) >= 2 and found.class_ids.tolist() == wanted.class_ids.tolist()
        np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=0.5)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=5e-3)
