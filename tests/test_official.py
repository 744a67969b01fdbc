"""The projects' own exports: recognised, joined to one head, and decoded as the projects do.

The graphs are built here in the projects' shapes; what each should say is worked out in NumPy from
its own outputs. Two goldens hold what the DETR projects' post-processing says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright import boxes, catalog
from boxwright.backends import BackendOptions
from boxwright.errors import UnknownFamilyError
from boxwright.graph.io import bytes_from_model
from boxwright.graph.join import joined
from boxwright.loading import load
from boxwright.sources import SourceRequest
from boxwright.types import HeadJoin

SIZE, CLASSES, QUERIES = 64, 5, 17
STRIDES = (8, 16, 32)
CELLS = sum((SIZE // s) ** 2 for s in STRIDES)
WORDS = [f"name{i}" for i in range(CLASSES)]


class Graph:
    """Collects nodes; a seeded convolution is the network."""

    def __init__(self, inputs=("images",)):
        self.rng = np.random.default_rng(1)
        self.nodes, self.weights = [], []
        self.inputs = inputs

    def op(self, kind, *inputs, **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def value(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *numbers):
        return self.value(np.array(numbers, np.int64))

    def level(self, channels, stride, gain=0.2):
        """A map (B, channels, h, w) that depends on the picture."""
        weight = self.rng.normal(0, gain, (channels, 3, stride, stride)).astype(np.float32)
        bias = self.value(self.rng.normal(0, 1, channels).astype(np.float32))
        sides = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        return self.op("Conv", self.inputs[0], self.value(weight / stride), bias, **sides)

    def rows(self, channels, count, stride=8):
        """(B, count, channels), with as many cells of a map as are needed."""
        flat = self.op("Reshape", self.level(channels, stride), self.ints(0, channels, -1))
        cut = self.op("Slice", flat, self.ints(0), self.ints(count), self.ints(2))
        return self.op("Transpose", cut, perm=[0, 2, 1])

    def model(self, outputs, extra=(), metadata=None):
        """Finish: `outputs` maps a public name to (tensor, element type, shape)."""
        for name, (tensor, _, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [tensor], [name]))
        graph = helper.make_graph(
            self.nodes,
            "official",
            [
                helper.make_tensor_value_info(
                    self.inputs[0], TensorProto.FLOAT, ["batch", 3, SIZE, SIZE]
                ),
                *extra,
            ],
            [
                helper.make_tensor_value_info(name, kind, ["batch", *shape])
                for name, (_, kind, shape) in outputs.items()
            ],
            self.weights,
        )
        found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
        if metadata:
            helper.set_model_props(found, metadata)
        onnx.checker.check_model(found)
        return found


FLOAT = TensorProto.FLOAT


def levels(channels, anchored=False):
    g = Graph()
    outputs = {}
    for index, stride in enumerate(STRIDES):
        side = SIZE // stride
        if anchored:
            split = g.op(
                "Reshape", g.level(3 * channels, stride), g.ints(0, 3, channels, side, side)
            )
            tensor, shape = (
                g.op("Transpose", split, perm=[0, 1, 3, 4, 2]),
                [3, side, side, channels],
            )
        else:
            tensor, shape = g.level(channels, stride), [channels, side, side]
        outputs[f"map{index}"] = (tensor, FLOAT, shape)
    return g.model(outputs)


def yolov6():
    g = Graph()
    flat = g.rows(5 + CLASSES, 64)
    parts = [flat, g.rows(5 + CLASSES, 16, 16), g.rows(5 + CLASSES, 4, 32)]
    all_rows = g.op("Concat", *parts, axis=1)
    half = g.value(np.float32(20))
    box = g.op("Add", g.op("Slice", all_rows, g.ints(0), g.ints(4), g.ints(2)), half)
    one = g.op("Slice", all_rows, g.ints(4), g.ints(5), g.ints(2))
    one = g.op("Sub", one, one)
    one = g.op("Add", one, g.value(np.float32(1)))
    scores = g.op("Sigmoid", g.op("Slice", all_rows, g.ints(5), g.ints(99), g.ints(2)))
    output = g.op("Concat", box, one, scores, axis=2)
    return g.model({"outputs": (output, FLOAT, [CELLS, 5 + CLASSES])})


def ppyoloe():
    g = Graph(("image",))
    box = g.rows(4, 64)
    given = helper.make_tensor_value_info("scale_factor", FLOAT, ["batch", 2])
    ratio = g.op("Unsqueeze", g.op("Concat", *["scale_factor"] * 2, axis=1), g.ints(1))
    box = g.op("Div", g.op("Mul", box, g.value(np.float32(30))), ratio)
    scores = g.op("Sigmoid", g.op("Transpose", g.rows(CLASSES, 64), perm=[0, 2, 1]))
    return g.model(
        {"boxes": (box, FLOAT, [64, 4]), "scores": (scores, FLOAT, [CLASSES, 64])}, [given]
    )


def rtdetr():
    g = Graph()
    given = helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, ["batch", 2])
    size = g.op("Cast", "orig_target_sizes", to=FLOAT)
    size = g.op("Unsqueeze", g.op("Concat", size, size, axis=1), g.ints(1))
    box = g.op("Mul", g.op("Sigmoid", g.rows(4, QUERIES)), size)
    flat = g.op("Sigmoid", g.rows(CLASSES, QUERIES))
    scores = g.op("ReduceMax", flat, axes=[2], keepdims=0)
    labels = g.op("ArgMax", flat, axis=2, keepdims=0)
    return g.model(
        {
            "labels": (labels, TensorProto.INT64, [QUERIES]),
            "boxes": (box, FLOAT, [QUERIES, 4]),
            "scores": (scores, FLOAT, [QUERIES]),
        },
        [given],
    )


def rfdetr(slots=CLASSES + 1):
    g = Graph(("input",))
    box = g.op("Sigmoid", g.rows(4, QUERIES))
    return g.model(
        {
            "dets": (box, FLOAT, [QUERIES, 4]),
            "labels": (g.rows(slots, QUERIES), FLOAT, [QUERIES, slots]),
        }
    )


def rtmdet_deployed():
    g = Graph(("input",))
    rows = g.op("Sigmoid", g.rows(5, QUERIES))
    scale = g.value(np.array([60, 60, 60, 60, 1], np.float32))
    labels = g.op("ArgMax", g.rows(CLASSES, QUERIES), axis=2, keepdims=0)
    return g.model(
        {
            "dets": (g.op("Mul", rows, scale), FLOAT, [QUERIES, 5]),
            "labels": (labels, TensorProto.INT64, [QUERIES]),
        }
    )


def ultralytics_rtdetr(channels):
    g = Graph()
    rows = g.op("Sigmoid", g.rows(channels, QUERIES))
    metadata = {"description": "Ultralytics RT-DETR-l model", "task": "detect"}
    return g.model({"output0": (rows, FLOAT, [QUERIES, channels])}, metadata=metadata)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def point_reference(offset, bins):
    def read(outputs):
        xyxy, scores = [], []
        for stride, name in zip(STRIDES, ("map0", "map1", "map2"), strict=True):
            raw = outputs[name][0].astype(np.float64)
            classes = len(raw) - 4 * bins
            scores.append(sigmoid(raw[:classes]).reshape(classes, -1).T)
            reach = raw[classes:].reshape(4, bins, -1)
            if bins > 1:
                spread = np.exp(reach - reach.max(1, keepdims=True))
                spread /= spread.sum(1, keepdims=True)
                reach = (spread * np.arange(bins)[None, :, None]).sum(1)
            else:
                reach = reach[:, 0]
            side = SIZE // stride
            y, x = np.divmod(np.arange(side * side), side)
            px, py = (x + offset) * stride, (y + offset) * stride
            left, top, right, bottom = reach * stride
            xyxy.append(np.stack([px - left, py - top, px + right, py + bottom], 1))
        return np.concatenate(xyxy), np.concatenate(scores)

    return read


def anchor_reference(anchors):
    def read(outputs):
        xyxy, scores = [], []
        for level, stride in enumerate(STRIDES):
            s = sigmoid(outputs[f"map{level}"][0])
            for a, (w, h) in enumerate(anchors[level]):
                for y in range(s.shape[1]):
                    for x in range(s.shape[2]):
                        v = s[a, y, x]
                        cx, cy = (2 * v[0] - 0.5 + x) * stride, (2 * v[1] - 0.5 + y) * stride
                        bw, bh = (2 * v[2]) ** 2 * w, (2 * v[3]) ** 2 * h
                        xyxy.append([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2])
                        scores.append(v[4] * v[5:])
        return np.array(xyxy), np.array(scores)

    return read


def centre_to_corners(box, scale=1.0):
    return np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1) * scale


def read_yolov6(outputs):
    rows = outputs["outputs"][0]
    return centre_to_corners(rows[:, :4]), rows[:, 5:]


def read_ppyoloe(outputs):
    return outputs["boxes"][0], outputs["scores"][0].T


def final(xyxy, scores, labels):
    """Detections as (boxes, (score, label)) best first, as NMS-free heads decode."""
    order = np.argsort(-scores, kind="stable")
    return xyxy[order], np.stack([scores[order], labels[order]], 1)


def read_rtdetr(outputs):
    return final(outputs["boxes"][0], outputs["scores"][0], outputs["labels"][0])


def read_rfdetr(outputs):
    scores = sigmoid(outputs["labels"][0][:, :CLASSES])
    order = np.argsort(-scores.ravel(), kind="stable")[:QUERIES]
    chosen, labels = np.divmod(order, CLASSES)
    return final(centre_to_corners(outputs["dets"][0][chosen], SIZE), scores.ravel()[order], labels)


def read_deployed(outputs):
    rows = outputs["dets"][0]
    return final(rows[:, :4], rows[:, 4], outputs["labels"][0])


def read_ultralytics_rows(outputs):
    rows = outputs["output0"][0]
    scores = rows[:, 4:]
    return final(centre_to_corners(rows[:, :4], SIZE), scores.max(1), scores.argmax(1))


V5 = [[(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)]]
V5 += [[(116, 90), (156, 198), (373, 326)]]
V7 = [[(12, 16), (19, 36), (40, 28)], [(36, 75), (76, 55), (72, 146)]]
V7 += [[(142, 110), (192, 243), (459, 401)]]

# Name of the case: graph, --family or None where it is recognised, family, reading.
CASES = {
    "yolov6": (yolov6, None, "yolov6", read_yolov6),
    "yolov6 levels": (lambda: levels(CLASSES + 4), "yolov6", "yolov6", point_reference(0.5, 1)),
    "yolov7 raw": (lambda: levels(5 + CLASSES, True), "yolov7", "yolov7", anchor_reference(V7)),
    "yolov7-tiny raw": (
        lambda: levels(5 + CLASSES, True),
        "yolov7-tiny",
        "yolov5",
        anchor_reference(V5),
    ),
    "rtmdet levels": (lambda: levels(CLASSES + 4), "rtmdet", "rtmdet", point_reference(0.0, 1)),
    "rtmdet deployed": (rtmdet_deployed, None, "rtmdet-mmdet", read_deployed),
    "ppyoloe": (ppyoloe, "ppyoloe", "ppyoloe", read_ppyoloe),
    "ppyoloe+": (ppyoloe, "ppyoloe+", "ppyoloe-plus", read_ppyoloe),
    "ppyoloe levels": (
        lambda: levels(CLASSES + 68),
        "ppyoloe",
        "ppyoloe",
        point_reference(0.5, 17),
    ),
    "rtdetr": (rtdetr, None, "rtdetr", read_rtdetr),
    "d-fine": (rtdetr, "d-fine", "rtdetr", read_rtdetr),
    "rfdetr": (rfdetr, None, "rfdetr", read_rfdetr),
    "ultralytics rtdetr": (
        lambda: ultralytics_rtdetr(4 + CLASSES),
        None,
        "ultralytics-rtdetr",
        read_ultralytics_rows,
    ),
}


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


def test_ultralytics_own_final_rows_of_rtdetr(tmp_path):
    path = tmp_path / "final.onnx"
    onnx.save(ultralytics_rtdetr(6), path)
    spec = catalog.source_of(path).describe(SourceRequest(path, "final", labels=tuple(WORDS)))
    assert spec.family == "ultralytics-rtdetr"
    assert spec.layout.normalised and spec.layout.nms_free and spec.preprocess.resize == "stretch"


def goldens():
    import os

    here = Path(__file__).resolve()
    named = [Path(os.environ["BOXWRIGHT_GOLDENS"])] if "BOXWRIGHT_GOLDENS" in os.environ else []
    folders = [*named, *(p / "shared" / "goldens" / "open" for p in here.parents)]
    found = next((f for f in folders if f.is_dir()), None)
    return sorted(found.glob("*_decode")) if found else []


@pytest.mark.skipif(not goldens(), reason="NO GOLDENS of DETR decoding: set BOXWRIGHT_GOLDENS")
@pytest.mark.parametrize("folder", goldens(), ids=lambda f: f.name)
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
