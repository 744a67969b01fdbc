"""The tasks: our reading of each head equals Ultralytics' own; graphs equal the host path."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright import budget, catalog
from boxwright.backends import BackendOptions
from boxwright.datasets import open_dataset, wanted_of
from boxwright.detector import Detector
from boxwright.errors import RequestError
from boxwright.graph.branches import layers_of_extras
from boxwright.graph.end2end import add_end2end
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import quantisable_layers
from boxwright.heads import candidates_from_raw
from boxwright.loading import load
from boxwright.masks import mask_logits, masks_in_input
from boxwright.outcome import Listener
from boxwright.preprocess import antialiased
from boxwright.quantization import Converter
from boxwright.recipe import Recipe
from boxwright.rle import mask_from_rle, rle_from_mask
from boxwright.rotated import corners_from_rotated, probiou_matrix, rotated_iou, rotated_nms
from boxwright.sources import RawModel, SourceRequest
from boxwright.task_parity import TASK_TOLERANCES, keypoint_similarity, mask_iou, task_gaps
from boxwright.types import (
    Detections,
    HeadLayout,
    MaskCrop,
    ModelSpec,
    NmsSettings,
    Preprocess,
    Target,
)

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("ultralytics", reason="the export extra is not installed")

import task_nets  # noqa: E402

BOXES = ("segment", "pose", "obb")
NETS = [(t, g) for t in BOXES for g in (8, 26)] + [("classify", 8)]
SETTINGS = NmsSettings(score_threshold=0.25, iou_threshold=0.5, keep_topk=40)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Return the raw graph of a task's tiny network; each is made once."""
    folder, made = tmp_path_factory.mktemp("nets"), {}

    def get(task: str, generation: int = 8, head: str = "auto") -> RawModel:
        key = (task, generation, head)
        if key not in made:
            path = task_nets.checkpoint(folder / f"{task}{generation}.pt", task, generation)
            request = SourceRequest(path, path.stem, head=head)
            made[key] = catalog.source_for(".pt").export(request)
        return made[key]

    return get


def opened(model, spec, target=None, settings=SETTINGS):
    data = bytes_from_model(model, spec.name)
    backend = catalog.backend("onnxruntime").open_bytes(data, BackendOptions(1, "cpu"))
    return Detector(backend, spec, target, settings)


def scene(height: int = 97, width: int = 150) -> np.ndarray:
    blocks = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)


def ultralytics_rows(outputs, spec):
    """Return (N, 6 + extras) as Ultralytics' NMS leaves them."""
    from ultralytics.utils.nms import non_max_suppression

    return non_max_suppression(
        torch.from_numpy(outputs["output0"].copy()),
        SETTINGS.score_threshold,
        SETTINGS.iou_threshold,
        max_det=SETTINGS.keep_topk,
        nc=len(spec.class_names),
        rotated=spec.task == "obb",
        end2end=spec.layout.nms_free,
    )[0]


@pytest.mark.parametrize(("height", "width"), [(97, 150), (150, 97), (128, 128), (300, 301)])
@pytest.mark.parametrize(("task", "generation", "head"), [
    *((t, g, "auto") for t in BOXES for g in (8, 26)), *((t, 26, "one2many") for t in BOXES),
])  # fmt: skip
def test_the_host_path_equals_ultralytics(raw, task, generation, head, height, width):
    from ultralytics.utils import ops

    made = raw(task, generation, head)
    assert made.spec.layout.nms_free == (generation == 26 and head == "auto")
    image = scene(height, width)
    with opened(made.model, made.spec) as detector:
        batch, places = detector.preprocess([image])
        outputs = detector.infer(batch)
        found = detector.postprocess(outputs, places)[0]
    rows = ultralytics_rows(outputs, made.spec)
    size = made.spec.input_size
    if task == "segment":
        rows[:, :4] = ops.scale_boxes(size, rows[:, :4], image.shape)
        prototypes = torch.from_numpy(outputs["output1"][0].copy())
        masks = ops.process_mask_native(prototypes, rows[:, 6:], rows[:, :4], image.shape[:2])
        kept = masks.amax((-2, -1)) > 0
        rows, masks = rows[kept], masks[kept].numpy().astype(bool)
    assert 3 <= len(found) == len(rows)
    np.testing.assert_allclose(found.scores, rows[:, 4], atol=1e-6)
    np.testing.assert_array_equal(found.class_ids, rows[:, 5])
    if task == "segment":
        np.testing.assert_allclose(found.xyxy, rows[:, :4], atol=1e-3)
        assert found.masks.shape == masks.shape and masks.any()
        assert (found.masks != masks).sum() <= 1e-4 * masks.size
    elif task == "pose":
        points = rows[:, 6:].reshape(-1, 5, 3)
        points = ops.scale_coords(size, points, image.shape)
        np.testing.assert_allclose(found.keypoints, points, atol=1e-3)
    else:
        turned = torch.cat([rows[:, :4], rows[:, -1:]], 1)
        turned[:, :4] = ops.scale_boxes(size, turned[:, :4], image.shape, xywh=True)
        np.testing.assert_allclose(found.rotated, turned, atol=1e-3)


def test_masks_in_the_network_input_equal_ultralytics(raw):
    from ultralytics.utils import ops

    made = raw("segment")
    with opened(made.model, made.spec) as detector:
        batch, _ = detector.preprocess([scene()])
        outputs = detector.infer(batch)
    rows = candidates_from_raw(outputs, 0, made.spec, SETTINGS)
    size = made.spec.input_size
    ours = masks_in_input(mask_logits(rows.extras, rows.prototypes), rows.xyxy, size)
    theirs = ops.process_mask(
        torch.from_numpy(rows.prototypes.copy()), torch.from_numpy(rows.extras.copy()),
        torch.from_numpy(rows.xyxy.copy()), size, upsample=True,
    ).numpy().astype(bool)  # fmt: skip
    assert theirs.any() and (ours != theirs).sum() <= 1e-4 * theirs.size


@pytest.mark.parametrize("nms", ["onnx", "portable"])
@pytest.mark.parametrize(("task", "generation"), NETS)
def test_end_to_end_equals_the_host_path(raw, task, generation, nms):
    made = raw(task, generation)
    target = Target(outputs="end2end", nms=nms)
    graph = add_end2end(made.model, made.spec, SETTINGS, target)
    images = [scene(), scene(60, 200)]
    with (
        opened(made.model, made.spec) as host,
        opened(graph, made.spec, target) as baked,
    ):
        pairs = list(zip(host(images), baked(images), strict=True))
    for expected, found in pairs:
        assert len(expected) == len(found) > 0
        np.testing.assert_array_equal(expected.class_ids, found.class_ids)
        np.testing.assert_allclose(expected.scores, found.scores, atol=1e-5)
        np.testing.assert_allclose(expected.xyxy, found.xyxy, atol=2e-2)
        gaps = task_gaps(expected, found, [(i, i) for i in range(len(found))])
        assert len(gaps) == (0 if task == "classify" else len(found))
        assert max(gaps, default=0) <= 0.01


@pytest.mark.parametrize(("task", "generation"), NETS)
def test_portable_end_to_end_graphs_build_with_tensorrt_rtx(raw, task, generation):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    from test_tensorrt_rtx import build

    made = raw(task, generation)
    target = Target(outputs="end2end", nms="portable")
    settings = NmsSettings(pre_topk=100, keep_topk=20)
    graph = add_end2end(made.model, made.spec, settings, target)
    assert build(bytes_from_model(graph, task)) > 0


@pytest.mark.parametrize("task", BOXES)
def test_the_plugin_is_refused_where_it_cannot_say_what_it_kept(raw, task):
    made = raw(task)
    with pytest.raises(RequestError, match="portable"):
        add_end2end(made.model, made.spec, SETTINGS, Target(outputs="end2end", nms="efficient_nms"))


@pytest.mark.parametrize(("task", "generation", "branch"), [
    ("pose", 8, "cv4"), ("segment", 8, "cv4"), ("obb", 8, ""), ("pose", 26, ""),
])  # fmt: skip
def test_the_branch_of_what_a_task_adds(raw, task, generation, branch):
    """An angle turns the box too, and an NMS-free head picks from all columns at once."""
    layers = layers_of_extras(raw(task, generation).model)
    assert len(layers) == (9 if branch else 0)
    assert all(f"/{branch}." in name for name in layers)


@pytest.mark.parametrize(("deployment", "stays"), [("cpu", True), ("tensorrt", False)])
def test_keypoints_stay_in_float(raw, deployment, stays):
    made = raw("pose")
    converter = Converter(made.spec, Recipe(source="net.pt"), (), None, Listener())
    names = converter._always_float(made.model, deployment)
    assert len(names) == (6 if stays else 0)  # the last of each level is in any case
    assert set(names) <= set(quantisable_layers(made.model))


def test_a_budget_in_plans_holds_the_tasks_own_figure(raw, tmp_path, monkeypatch):
    made = raw("classify")
    with opened(made.model, made.spec) as detector:
        for index in range(4):
            best = int(detector(scene(97, 120 + index)).class_ids[0])
            folder = tmp_path / made.spec.class_names[best if index else (best + 1) % 9]
            folder.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / f"{index}.png"), scene(97, 120 + index))
    wanted, names = wanted_of(made.spec), made.spec.class_names
    dataset = open_dataset(str(tmp_path), class_names=names, wanted=wanted)

    def as_plan(data, options, watcher):
        return closing(catalog.backend("onnxruntime").open_bytes(data, BackendOptions(1, "cpu")))

    monkeypatch.setattr("boxwright.quantization.opened_as_plan", as_plan)
    converter = Converter(made.spec, Recipe(source="net.pt"), (), dataset, Listener())
    assert converter.measure(made.model, "tensorrt") == 3 / 4
    assert converter.measure(made.model) == 3 / 4 and converter.measure_name == "top-1"


def test_sensitivity_sees_what_a_task_adds(raw):
    """Other keypoints, coefficients or angles alone are an error; the same head is none."""
    for task in BOXES:
        made = raw(task)
        with opened(made.model, made.spec) as detector:
            feed, _ = detector.preprocess([scene()])
            want = budget._decoded(detector, feed.copy())
        assert budget._error(want, want, made.spec) == 0
        moved = replace(want, extras=want.extras + 0.4 * np.abs(want.extras).max())
        assert budget._error(want, moved, made.spec) > 0.01, task


def test_sensitivity_of_a_head_with_nms_inside():
    """It finds now more, now fewer: a missing detection is as wrong as its score."""
    layout = HeadLayout(nms_free=True)
    spec = ModelSpec("m", "rtmdet", "detect", ("a",), (64, 64), Preprocess(), layout)

    def rows(*scores: float) -> budget._Decoded:
        none = np.zeros((len(scores), 0), np.float32)
        return budget._Decoded(none, np.array(scores, np.float32), none, None)

    assert budget._error(rows(0.9, 0.5), rows(0.9), spec) == pytest.approx(0.25)
    assert budget._error(rows(0.9), rows(0.9, 0.02), spec) == 0
    assert budget._error(rows(), rows(), spec) == 0
    assert budget._error(rows(), rows(0.4), spec) == pytest.approx(0.4)


def test_classes_equal_ultralytics(raw):
    """The picture is cut out as Pillow and torchvision do, and the best five are the same."""
    from PIL import Image

    made, image = raw("classify"), scene(90, 130)
    side = made.spec.input_size[0]
    with opened(made.model, made.spec, settings=NmsSettings(score_threshold=0.0)) as detector:
        batch, places = detector.preprocess([image])
        outputs = detector.infer(batch)
        found = detector.postprocess(outputs, places)[0]
    width = int(side * 130 / 90)
    resized = np.asarray(Image.fromarray(image).resize((width, side), Image.Resampling.BILINEAR))
    left = round((width - side) / 2)
    cut = resized[:, left : left + side, ::-1].transpose(2, 0, 1).astype(np.float32) / 255
    np.testing.assert_allclose(batch[0], cut, atol=1e-6)
    best = np.argsort(-outputs["output0"][0], kind="stable")[:5]
    assert found.class_ids.tolist() == best.tolist() and len(found) == 5
    np.testing.assert_array_equal(found.xyxy, [[0, 0, 130, 90]] * 5)


@pytest.mark.parametrize("size", [(7, 5), (64, 128), (50, 100), (33, 31), (200, 300)])
def test_antialiasing_equals_pillow(size):
    """Where both sides shrink much alike, as before a crop; otherwise Pillow 13 goes down first."""
    from PIL import Image

    image = np.random.default_rng(1).integers(0, 256, (101, 203, 3), np.uint8)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(antialiased(image, size), np.asarray(expected))


def test_probiou_and_rotated_nms_equal_ultralytics():
    from ultralytics.utils.metrics import batch_probiou
    from ultralytics.utils.nms import TorchNMS

    rng = np.random.default_rng(5)
    boxes = np.concatenate(
        [
            rng.uniform(0, 100, (60, 2)),
            rng.uniform(5, 40, (60, 2)),
            rng.uniform(-0.8, 2.4, (60, 1)),
        ],
        axis=1,
    ).astype(np.float32)
    tensor = torch.from_numpy(boxes)
    np.testing.assert_allclose(
        probiou_matrix(boxes, boxes), batch_probiou(tensor, tensor), atol=2e-4
    )
    scores = torch.linspace(1, 0.1, 60)
    expected = TorchNMS.fast_nms(tensor, scores, 0.3, iou_func=batch_probiou).tolist()
    assert rotated_nms(boxes, np.zeros(60, np.int64), 0.3).tolist() == expected
    assert 5 < len(expected) < 60


def test_rotated_iou_of_known_boxes():
    """A square turned by 45 degrees shares a regular octagon with itself."""
    upright = np.array([50, 50, 20, 20, 0], np.float32)
    turned = np.array([50, 50, 20, 20, np.pi / 4], np.float32)
    octagon = 2 * (np.sqrt(2) - 1) * 400
    assert rotated_iou(upright, turned) == pytest.approx(octagon / (800 - octagon), abs=1e-5)
    assert rotated_iou(upright, np.array([90, 50, 20, 20, 0.3], np.float32)) == 0
    corners = corners_from_rotated(np.array([[50, 50, 20, 10, np.pi / 2]], np.float32))[0]
    assert np.ptp(corners, axis=0) == pytest.approx([10, 20], abs=1e-4)


def test_rle_round_trip_and_pycocotools_form():
    rng = np.random.default_rng(2)
    for mask in (rng.random((37, 23)) > 0.5, np.zeros((4, 5), bool), np.ones((4, 5), bool)):
        rle = rle_from_mask(mask)
        np.testing.assert_array_equal(mask_from_rle(rle), mask)
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    mask = cv2.GaussianBlur(rng.random((90, 70)).astype(np.float32), (0, 0), 5) > 0.5
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = theirs["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    assert rle_from_mask(mask)["counts"] == text


def example(task: str) -> Detections:
    square = MaskCrop(2, 3, np.ones((4, 5), bool))
    return Detections(
        np.array([[2, 3, 7, 7]], np.float32), np.array([0.5], np.float32), np.array([1]),
        ("a", "b"), (10, 20), task,  # type: ignore[arg-type]
        mask_crops=(square,) if task == "segment" else None,
        keypoints=np.array([[[4, 5, 0.9], [6, 5, 0.1]]], np.float32) if task == "pose" else None,
        rotated=np.array([[5, 5, 4, 2, 0]], np.float32) if task == "obb" else None,
    )  # fmt: skip


def test_records_of_the_tasks():
    segment, pose, obb, classes = (example(t) for t in (*BOXES, "classify"))
    assert mask_from_rle(segment.as_coco(7)[0]["segmentation"]).sum() == 20
    assert segment.as_yolo_lines()[0].split()[:3] == ["1", "0.100000", "0.300000"]
    assert pose.as_coco(7)[0]["keypoints"] == [4.0, 5.0, 0.9, 6.0, 5.0, 0.1]
    assert pose.as_yolo_lines()[0].split()[5:8] == ["0.200000", "0.500000", "0.900000"]
    assert obb.as_coco(7)[0]["poly"] == [7.0, 6.0, 7.0, 4.0, 3.0, 4.0, 3.0, 6.0]
    assert obb.as_yolo_lines()[0].split()[1:3] == ["0.350000", "0.600000"]
    assert "bbox" not in classes.as_coco(7)[0]
    assert classes.as_yolo_lines() == ["0.5000 b"]
    for found in (segment, pose, obb, classes):
        json.dumps([found.as_dicts(), found.as_coco(1)])
        assert len(found.select(np.array([False]))) == 0


@pytest.mark.parametrize("task", [*BOXES, "classify"])
def test_drawings_change_the_picture(task):
    image = np.full((10, 20, 3), 128, np.uint8)
    drawn = catalog.task(task).draw(image, example(task))
    assert drawn.shape == image.shape and (drawn != image).any() and (image == 128).all()


def test_gaps_see_what_moved():
    """Parity of the tasks can fail."""
    points = example("pose").keypoints
    moved = points + np.float32(3)
    assert keypoint_similarity(points[0], points[0], 20) == 1
    assert keypoint_similarity(points[0], moved[0], 20) < 0.9
    one = MaskCrop(0, 0, np.ones((10, 10), bool))
    assert mask_iou(one, MaskCrop(5, 0, one.pixels)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("task", ["pose", "classify"])
def test_run_and_predict(raw, cli, tmp_path, task):
    """A task's whole way through the command line."""
    path = task_nets.checkpoint(tmp_path / "net.pt", task)
    (tmp_path / "pics").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "pics" / f"{index}.png"), scene(90 + index * 7, 120))
    ran = cli("run", path, "--out", tmp_path / "runs", "--images", tmp_path / "pics",
              "--outputs", "raw,end2end", "--nms", "portable")  # fmt: skip
    assert ran.code == 0, ran.err
    file = tmp_path / "runs" / "net" / "net.fp32.end2end.portable.onnx"
    drawings = tmp_path / "drawn"
    ran = cli("predict", file, tmp_path / "pics", "--out", drawings, "--save-coco",
              tmp_path / "coco.json", "--runtime", "onnxruntime")  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(list(drawings.iterdir())) == 3
    more, refused = {  # before any work
        "classify": (("--data", tmp_path / "pics"), "holds no folders of pictures"),
        "pose": (("--outputs", "end2end", "--nms", "efficient_nms"), "portable"),
    }[task]
    ran = cli("run", path, "--out", tmp_path / "more", *more)
    assert ran.code == 2 and refused in ran.error
    assert not (tmp_path / "more").exists()
    _measured(cli, file, task, tmp_path)
    records = json.loads(Path(tmp_path / "coco.json").read_text())
    assert records and ("keypoints" in records[0]) == (task == "pose")


def _measured(cli, file: Path, task: str, folder: Path) -> None:
    """What a file finds in a picture, taken for the truth, is found: by the name of its figure."""
    with load(file, "onnxruntime", quiet=True) as detector:
        found = detector(folder / "pics" / "0.png")
    height, width = found.image_size
    if task == "classify":
        data = folder / "classes"
        best = found.class_name(int(found.class_ids[0]))
        (data / best).mkdir(parents=True)
        (data / best / "0.png").write_bytes((folder / "pics" / "0.png").read_bytes())
    else:
        data = folder / "truth.json"
        names = enumerate(found.class_names)
        records = found.as_coco(0)
        for record in records:
            points = np.array(record["keypoints"]).reshape(-1, 3)
            points[:, 2] = 2
            record |= {"keypoints": points.ravel().tolist(), "area": 400.0}
        image = {"id": 0, "file_name": "pics/0.png", "height": height, "width": width}
        data.write_text(
            json.dumps(
                {
                    "images": [image],
                    "annotations": records,
                    "categories": [{"id": i, "name": n} for i, n in names],
                }
            )
        )
    out = folder / "figures.json"
    ran = cli("evaluate", file, "--data", data, "--runtime", "onnxruntime", "--save-json", out)
    assert ran.code == 0, ran.err
    [figures] = json.loads(out.read_text())
    if task == "classify":
        assert (figures["measure"], figures["top1"], figures["beside"]) == (
            "top-1", 1.0, {"top-5": 1.0},
        )  # fmt: skip
    else:
        assert figures["measure"] == "OKS mAP50-95" in ran.out
        assert figures["map50_95"] > 0.9 and figures["beside"]["box mAP50-95"] > 0.9


ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"the real weights are not at {ASSETS}")
@pytest.mark.parametrize("task", ["pose", "seg"])
def test_real_weights(task):
    """Four people stand before a bus: each has a face above the feet, or a mask that fills."""
    with load(ASSETS / "checkpoints" / f"yolov8n-{task}-deq.pt", quiet=True) as detector:
        found = detector(ASSETS / "images" / "bus.jpg")
    names = [found.class_name(int(c)) for c in found.class_ids]
    assert names.count("person") == 4
    if task == "seg":
        shares = found.masks.sum((1, 2)) / np.prod(found.xyxy[:, 2:] - found.xyxy[:, :2], axis=1)
        assert "bus" in names and (shares[:3] > 0.4).all() and (shares <= 1.02).all()
        return
    for points in found.keypoints[:3]:
        nose, ankles = points[0], points[15:]
        assert all(nose[1] < a[1] for a in ankles if a[2] > 0.5)


def test_tolerances_are_those_of_the_page():
    text = (Path(__file__).parents[1] / "docs" / "verification.md").read_text(encoding="utf-8")
    limits = [TASK_TOLERANCES[p] for p in ("fp32", "fp16", "int8")]
    cells = " | ".join(
        f"at most {t.gap:g}" + (" on average" if t.on_average else "") for t in limits
    )
    assert text.count(f"| {cells} |") == 3
