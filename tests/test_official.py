"""The projects' own exports: recognised, joined to one head, and decoded as the projects do.

The graphs (`official_graphs`) have the projects' shapes; what each should say is worked out in
NumPy from its own outputs. Two goldens hold what the DETR projects' post-processing says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from official_graphs import (
    CASES,
    CLASSES,
    FLOAT,
    SIZE,
    STRIDES,
    WORDS,
    anchor_reference,
    centre_to_corners,
    counted,
    final,
    levels,
    ppyoloe,
    ultralytics_rtdetr,
    yolov7_rows,
)
from onnx import helper, numpy_helper

from boxwright import boxes, catalog
from boxwright.backends import BackendOptions
from boxwright.errors import RequestError, SourceError, UnknownFamilyError
from boxwright.graph.io import bytes_from_model
from boxwright.graph.join import joined
from boxwright.loading import load
from boxwright.sources import SourceRequest
from boxwright.types import HeadJoin


def infer(model, feed):
    runtime = catalog.backend("onnxruntime").open_bytes(
        bytes_from_model(model, "test"), BackendOptions()
    )
    return runtime.infer(feed)


def own_outputs(model, picture):
    """Run the project's export as the project does."""
    names = {i.name for i in model.graph.input}
    feed = {model.graph.input[0].name: picture}
    if "scale_factor" in names:
        feed["scale_factor"] = np.ones((len(picture), 2), np.float32)
    if "orig_target_sizes" in names:
        feed["orig_target_sizes"] = np.full((len(picture), 2), SIZE, np.int64)
    return infer(model, feed)


@pytest.fixture
def picture():
    return np.random.default_rng(3).normal(0, 1, (2, 3, SIZE, SIZE)).astype(np.float32)


def check_rows(found, wanted):
    assert found[0].shape == wanted[0].shape
    assert np.abs(found[0] - wanted[0]).max() <= 0.01
    assert np.abs(found[1] - wanted[1]).max() <= 1e-5


def labels_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(WORDS))
    return str(file)


@pytest.mark.parametrize("case", CASES)
def test_an_official_export_is_read_as_its_project_reads_it(case, tmp_path, picture):
    build, asked, family, read = CASES[case]
    model = build()
    path = tmp_path / "official.onnx"
    onnx.save(model, path)
    request = SourceRequest(path, "official", family=asked, labels=tuple(WORDS))
    source = catalog.source_of(path)
    raw = source.export(request)
    assert raw.spec.family == family
    assert len(raw.model.graph.output) == 1
    (head,) = infer(raw.model, {raw.model.graph.input[0].name: picture}).values()
    first = boxes.decode(head[:1], raw.spec.layout, raw.spec.input_size)
    found = (first[0][0], first[1][0])
    if raw.spec.layout.nms_free:
        found = final(found[0], found[1][:, 0], found[1][:, 1])
        real = found[1][:, 0] > 0  # behind what is counted
        found = (found[0][real], found[1][real])
    check_rows(found, read(own_outputs(model, picture)))
    # The file itself, not only what is made from it, can be run.
    with load(path, family=asked, labels=labels_file(tmp_path), runtime="onnxruntime") as detector:
        assert detector.spec.family == family
        detector([np.full((50, 70, 3), 120, np.uint8)])


def test_every_new_family_is_here():
    shown = {family for _, _, family, _ in CASES.values()}
    elsewhere = {"ultralytics", "ultralytics-nms-free", "yolox"}
    assert {f.name for f in catalog.families()} == shown | elsewhere


@pytest.mark.parametrize(
    ("model", "mentioned"),
    [
        (lambda: levels(CLASSES + 4), ("yolov6", "rtmdet")),
        (lambda: levels(5 + CLASSES, True), ("yolov5", "yolov7")),
        (ppyoloe, ("ppyoloe", "ppyoloe-plus")),
    ],
    ids=["levels", "anchors", "ppyoloe"],
)
def test_what_shapes_cannot_tell_is_asked_for(model, mentioned, tmp_path):
    path = tmp_path / "unsure.onnx"
    onnx.save(model(), path)
    with pytest.raises(UnknownFamilyError) as caught:
        catalog.source_of(path).describe(SourceRequest(path, "unsure"))
    assert all(name in str(caught.value) for name in (*mentioned, "--family"))


def test_counted_detections_of_no_named_family_are_refused(tmp_path):
    path = tmp_path / "finished.onnx"
    onnx.save(counted(), path)
    with pytest.raises(SourceError, match=r"NMS already.*--family"):
        catalog.source_of(path).describe(SourceRequest(path, "finished"))


def test_a_plugin_of_tensorrt_is_named(tmp_path):
    path = tmp_path / "plugin.onnx"
    model = counted()
    names = [o.name for o in model.graph.output]
    inputs = [model.graph.node[0].output[0]] * 2
    del model.graph.node[-4:]
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    model.graph.node.append(helper.make_node("EfficientNMS_TRT", inputs, names, domain="TRT"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="EfficientNMS_TRT"):
        catalog.source_of(path).describe(SourceRequest(path, "plugin", family="yolov7"))


def test_ultralytics_own_final_rows_of_rtdetr(tmp_path):
    path = tmp_path / "final.onnx"
    onnx.save(ultralytics_rtdetr(6), path)
    spec = catalog.source_of(path).describe(SourceRequest(path, "final", labels=tuple(WORDS)))
    assert spec.family == "ultralytics-rtdetr"
    assert spec.layout.normalised and spec.layout.nms_free and spec.preprocess.resize == "stretch"


def goldens(pattern):
    import os

    here = Path(__file__).resolve()
    named = [Path(os.environ["BOXWRIGHT_GOLDENS"])] if "BOXWRIGHT_GOLDENS" in os.environ else []
    folders = [*named, *(p / "shared" / "goldens" / "open" for p in here.parents)]
    found = next((f for f in folders if f.is_dir()), None)
    return sorted(found.glob(pattern)) if found else []


@pytest.mark.skipif(
    not goldens("*_decode"), reason="NO GOLDENS of DETR decoding: set BOXWRIGHT_GOLDENS"
)
@pytest.mark.parametrize("folder", goldens("*_decode"), ids=lambda f: f.name)
def test_detr_decode_equals_the_projects(folder):
    stored = np.load(folder / "golden.npz")
    logits, box = stored["pred_logits"], stored["pred_boxes_cxcywh_normalised"]
    count, classes = logits.shape[1:]
    nodes = [
        helper.make_node("Identity", ["stored_boxes"], ["dets"]),
        helper.make_node("Identity", ["stored_logits"], ["labels"]),
    ]
    inputs = [helper.make_tensor_value_info("images", FLOAT, [len(logits), 3, SIZE, SIZE])]
    outputs = [
        helper.make_tensor_value_info("dets", FLOAT, list(box.shape)),
        helper.make_tensor_value_info("labels", FLOAT, list(logits.shape)),
    ]
    weights = [
        numpy_helper.from_array(box, "stored_boxes"),
        numpy_helper.from_array(logits, "stored_logits"),
    ]
    graph = helper.make_graph(nodes, "golden", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    join = HeadJoin("queries", ("dets", "labels"), class_count=classes)
    head = infer(
        joined(model, join, "golden"),
        {"images": np.zeros((len(logits), 3, SIZE, SIZE), np.float32)},
    )["output"]
    for index, (width, height) in enumerate(stored["orig_target_sizes_wh"]):
        rows, wanted_boxes = head[index], stored["boxes_xyxy"][index]
        size = np.array([width, height, width, height], np.float32)
        found = np.column_stack([centre_to_corners(rows[:, :4]) * size, rows[:, 4:]])
        assert len(found) == len(wanted_boxes) == count
        assert np.abs(found[:, 4] - stored["scores"][index]).max() <= 1e-4
        assert (found[:, 5].astype(int) == stored["labels"][index]).all()
        assert np.abs(found[:, :4] - wanted_boxes).max() <= 0.05


EXPORTED = [f for f in goldens("*/golden.npz") if any("ortexport" in n for n in np.load(f).files)]


@pytest.mark.skipif(not EXPORTED, reason="NO GOLDENS of exports with NMS: set BOXWRIGHT_GOLDENS")
@pytest.mark.parametrize("file", EXPORTED, ids=lambda f: f.parent.name)
def test_what_an_export_with_nms_said_is_read_so(file, tmp_path):
    """Outputs of the projects' own files in ONNX Runtime, put into a graph as constants."""
    stored = {n: v for n, v in np.load(file).items() if n.startswith("a_")}
    outputs = {n[12:]: v for n, v in stored.items() if n.startswith("a_ortexport_")}
    shape = stored["a_input"].shape
    nodes = [helper.make_node("Identity", [f"stored_{n}"], [n]) for n in outputs]
    kinds = {n: helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in outputs.items()}
    values = [
        helper.make_tensor_value_info(
            n, kinds[n], [f"{n}_{axis}" for axis in range(v.ndim - 1)] + [v.shape[-1]]
        )
        for n, v in outputs.items()
    ]
    weights = [numpy_helper.from_array(v, f"stored_{n}") for n, v in outputs.items()]
    inputs = [helper.make_tensor_value_info("images", FLOAT, list(shape))]
    graph = helper.make_graph(nodes, "golden", inputs, values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    path = tmp_path / "golden.onnx"
    onnx.save(model, path)
    family = next(k for k in ("ppyoloe", "yolov5", "yolov6", "yolov7", "yolov8", "yolox", "rtmdet")
                  if k in file.parent.name)  # fmt: skip
    if "output" in outputs:
        rows = outputs["output"]
        wanted = np.column_stack([rows[:, 1:5], rows[:, 6], rows[:, 5]])
    else:
        count = int(outputs["num_dets"][0, 0])
        found = [outputs.get(n, outputs.get(f"det_{n}")) for n in ("boxes", "scores")]
        labels = outputs.get("labels", outputs.get("det_classes"))
        wanted = np.column_stack([found[0][0], found[1][0], labels[0]])[:count]
    labels = tmp_path / "names.txt"
    labels.write_text("\n".join(f"class{i}" for i in range(100)))
    size = shape[2:]
    with load(path, family=family, labels=str(labels), runtime="onnxruntime") as detector:
        seen = detector(np.zeros((*size, 3), np.uint8))
    height, width = size
    wanted = wanted[np.argsort(-wanted[:, 4], kind="stable")]
    assert len(seen) == len(wanted) > 10
    limit = np.array([width, height, width, height], np.float32)
    assert np.abs(seen.xyxy - np.clip(wanted[:, :4], 0, limit)).max() <= 1e-3
    assert np.abs(seen.scores - wanted[:, 4]).max() <= 1e-6
    assert (seen.class_ids == wanted[:, 5]).all()


def constant_graph(outputs, size):
    """A graph that says these arrays whatever it sees."""
    nodes = [helper.make_node("Identity", [f"stored_{n}"], [n]) for n in outputs]
    values = [helper.make_tensor_value_info(n, FLOAT, list(v.shape)) for n, v in outputs.items()]
    weights = [numpy_helper.from_array(v, f"stored_{n}") for n, v in outputs.items()]
    inputs = [helper.make_tensor_value_info("images", FLOAT, [1, 3, *size])]
    graph = helper.make_graph(nodes, "golden", inputs, values, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)


def raw_levels(stored, project):
    """Return the maps in the order in which the project's raw export has them."""
    kinds = ("cls_score", "bbox_dist_logits", "bbox_pred", "objectness")
    found = {}
    for kind in kinds:
        names = sorted(n for n in stored if n.startswith(f"b_raw_{kind}_"))
        if names and not (kind == "bbox_pred" and "bbox_dist_logits" in found):
            found[kind] = [stored[n] for n in names]
    if "yolov6" in project and "bbox_dist_logits" in found:  # its export has the expectation
        found["bbox_dist_logits"] = [
            stored[n] for n in sorted(n for n in stored if n.startswith("b_raw_bbox_pred_"))
        ]
    if project.startswith("mmdet"):
        return {f"{k}{i}": v for k, levels in found.items() for i, v in enumerate(levels)}
    maps = {}
    for index in range(len(found["cls_score"])):
        parts = [levels[index] for levels in found.values()]
        if "yolov5" in project or "yolov7" in project:
            label, box, objectness = (
                v.reshape(3, -1, *v.shape[2:]) for v in (parts[0], parts[1], parts[2])
            )
            joint = np.concatenate([box, objectness, label], axis=1)
            maps[f"map{index}"] = joint.reshape(1, -1, *joint.shape[2:])
        else:
            maps[f"map{index}"] = np.concatenate(parts, axis=1)
    return maps


OPENMMLAB = [f for f in goldens("mm*/golden.npz") if "b_scores" in np.load(f).files]


@pytest.mark.skipif(not OPENMMLAB, reason="NO GOLDENS of OpenMMLab's maps: set BOXWRIGHT_GOLDENS")
@pytest.mark.parametrize("file", OPENMMLAB, ids=lambda f: f.parent.name)
def test_maps_of_a_raw_export_are_decoded_as_the_project_does(file, tmp_path):
    stored, project = dict(np.load(file)), file.parent.name
    size = stored["b_input"].shape[2:]
    model = constant_graph(raw_levels(stored, project), size)
    path = tmp_path / "maps.onnx"
    onnx.save(model, path)
    # MMYOLO's YOLOv7-tiny has the anchors of its YOLOv7.
    families = {"mmdet_rtmdet": "rtmdet-mmdet", "ppyoloe_plus": "ppyoloe+", "ppyoloe": "ppyoloe"}
    plain = ("rtmdet", "yolov5", "yolov6", "yolov7", "yolov8", "yolox")
    families |= {name: name for name in plain}
    asked = next(family for name, family in families.items() if name in project)
    classes = stored["b_scores"].shape[1]
    names = tuple(f"class{i}" for i in range(classes))
    request = SourceRequest(path, "maps", family=asked, labels=names, batch=1, simplify=False)
    raw = catalog.source_of(path).export(request)
    seen = infer(raw.model, {"images": np.zeros((1, 3, *size), np.float32)})["output"]
    xyxy, scores = boxes.decode(seen, raw.spec.layout, raw.spec.input_size)
    assert np.abs(xyxy[0] - flattened(stored["b_boxes_xyxy"], asked, size)).max() <= 0.05
    assert np.abs(scores[0] - flattened(stored["b_scores"], asked, size)).max() <= 1e-4


def flattened(rows, family, size):
    """Bring MMYOLO's rows (cell, anchor) into the order (anchor, cell) of anchors."""
    if family not in ("yolov5", "yolov7"):
        return rows
    parts, start = [], 0
    for stride in STRIDES:
        cells = (size[0] // stride) * (size[1] // stride)
        level = rows[start : start + 3 * cells].reshape(cells, 3, -1)
        parts.append(level.transpose(1, 0, 2).reshape(3 * cells, -1))
        start += 3 * cells
    return np.concatenate(parts)


CONFIG = """
model = dict(type='YOLODetector',
    data_preprocessor=dict(mean=[0., 0., 0.], std=[255., 255., 255.], bgr_to_rgb=True),
    backbone=dict(type='YOLOv5CSPDarknet', norm_cfg=dict(type='BN', eps=0.001)),
    neck=dict(type='YOLOv5PAFPN', norm_cfg=dict(type='BN', eps=0.001)),
    bbox_head=dict(type='YOLOv5Head',
        head_module=dict(type='YOLOv5HeadModule', num_classes=5, featmap_strides=[8, 16, 32]),
        prior_generator=dict(base_sizes=[[(4, 5), (6, 7), (8, 9)], [(11, 12), (13, 14), (15, 16)],
            [(21, 22), (23, 24), (25, 26)]], strides=[8, 16, 32])))
test_pipeline = [dict(type='YOLOv5KeepRatioResize', scale=(64, 64)),
    dict(type='LetterResize', scale=(64, 64), allow_scale_up=False)]
"""


def test_a_configuration_gives_anchors_and_preprocessing_of_an_onnx_file(tmp_path, picture):
    path, config = tmp_path / "maps.onnx", tmp_path / "own.py"
    onnx.save(model := levels(5 + CLASSES, True), path)
    config.write_text(CONFIG)
    request = SourceRequest(path, "m", family="yolov5", labels=tuple(WORDS), config=config)
    raw = catalog.source_of(path).export(request)
    assert raw.spec.preprocess.interpolation == "area" and raw.spec.preprocess.rounding == "floor"
    (head,) = infer(raw.model, {"images": picture}).values()
    found = boxes.decode(head[:1], raw.spec.layout, raw.spec.input_size)
    own = [[(4, 5), (6, 7), (8, 9)], [(11, 12), (13, 14), (15, 16)], [(21, 22), (23, 24), (25, 26)]]
    check_rows((found[0][0], found[1][0]), anchor_reference(own)(own_outputs(model, picture)))
    fewer = CONFIG.replace(", (8, 9)", "").replace(", (15, 16)", "").replace(", (25, 26)", "")
    config.write_text(fewer)
    with pytest.raises(RequestError, match="3 levels of 3"):
        catalog.source_of(path).export(request)


ANCHORED = [f for f in goldens("*/golden.npz") if f.parent.name.startswith(("ultra", "wong"))]


@pytest.mark.skipif(not ANCHORED, reason="NO GOLDENS of YOLOv5 and YOLOv7: set BOXWRIGHT_GOLDENS")
@pytest.mark.parametrize("file", ANCHORED, ids=lambda f: f.parent.name)
def test_raw_maps_of_yolov5_and_yolov7_are_decoded_as_they_do(file, tmp_path):
    """Exports without `--grid`: (1, anchors, h, w, 5 + classes) before the sigmoid."""
    stored, project = dict(np.load(file)), file.parent.name
    size = stored["b_input"].shape[2:]
    maps = {f"map{i}": v for i, v in enumerate(stored[n] for n in sorted(stored) if "b_raw" in n)}
    path = tmp_path / "maps.onnx"
    onnx.save(constant_graph(maps, size), path)
    asked = next(n for n in ("yolov7-tiny", "yolov7", "yolov5") if n in project)
    names = tuple(f"class{i}" for i in range(stored["b_scores"].shape[1]))
    request = SourceRequest(path, "maps", family=asked, labels=names, batch=1, simplify=False)
    raw = catalog.source_of(path).export(request)
    seen = infer(raw.model, {"images": np.zeros((1, 3, *size), np.float32)})["output"]
    xyxy, scores = boxes.decode(seen, raw.spec.layout, raw.spec.input_size)
    assert np.abs(xyxy[0] - stored["b_boxes_xyxy"]).max() <= 0.05
    assert np.abs(scores[0] - stored["b_scores"]).max() <= 1e-4


def test_a_free_picture_size_does_not_fix_how_much_is_found(tmp_path, picture):
    """One run on a black picture settles the sizes; what it finds there says nothing."""
    model = yolov7_rows()
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    path = tmp_path / "free.onnx"
    onnx.save(model, path)
    labels = tuple(WORDS)
    request = SourceRequest(path, "free", family="yolov7", labels=labels, image_size=(SIZE, SIZE))
    raw = catalog.source_of(path).export(request)
    shape = [d.dim_value for d in raw.model.graph.output[0].type.tensor_type.shape.dim]
    assert shape[1:] == [1000, 6]
    (rows,) = infer(raw.model, {"images": picture}).values()
    assert rows.shape == (2, 1000, 6) and 1 < (rows[0, :, 4] > 0).sum() < SIZE


def test_every_node_gets_a_name_of_its_own(tmp_path):
    """Exporters may leave names out or repeat them; FP16 and INT8 tell layers by them."""
    model = levels(CLASSES + 4)
    assert not any(n.name for n in model.graph.node)
    model.graph.node[0].name = model.graph.node[1].name = "Conv_4"
    onnx.save(model, tmp_path / "nameless.onnx")
    request = SourceRequest(
        tmp_path / "nameless.onnx", "n", family="rtmdet", labels=tuple(WORDS), simplify=False
    )
    names = [n.name for n in catalog.source_of(request.path).export(request).model.graph.node]
    assert all(names) and len(set(names)) == len(names) and "Conv_4" in names
