"""The projects' own exports as small graphs in their shapes, and what each should say, in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CASES", "CLASSES", "FLOAT", "QUERIES", "SIZE", "STRIDES", "WORDS", "final", "levels"]

SIZE, CLASSES, QUERIES = 64, 5, 50
STRIDES = (8, 16, 32)
CELLS = sum((SIZE // s) ** 2 for s in STRIDES)
WORDS = [f"name{i}" for i in range(CLASSES)]


class Graph:
    """Collects nodes; a seeded convolution is the network."""

    def __init__(self, inputs=("images",), pixel_range=1.0):
        self.rng = np.random.default_rng(1)
        self.pixel_range = pixel_range
        self.nodes, self.weights = [], []
        self.inputs = inputs
        self._body = ""

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

    def body(self):
        """Features (B, 6, h, w) that every level shares: what FP16 and INT8 change."""
        if not self._body:
            weight = self.rng.normal(0, 0.2, (6, 3, 3, 3)).astype(np.float32)
            weight /= np.float32(self.pixel_range)
            sides = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            self._body = self.op("Conv", self.inputs[0], self.value(weight), **sides)
            self._body = self.op("Relu", self._body)
        return self._body

    def level(self, channels, stride, gain=0.2):
        """A map (B, channels, h, w) that depends on the picture."""
        weight = self.rng.normal(0, gain, (channels, 6, stride, stride)).astype(np.float32)
        bias = self.value(self.rng.normal(0, 1, channels).astype(np.float32))
        sides = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        return self.op("Conv", self.body(), self.value(weight / stride), bias, **sides)

    def rows(self, channels, count, stride=8, gain=0.2):
        """(B, count, channels), with as many cells of a map as are needed."""
        level = self.level(channels, stride, gain)
        flat = self.op("Reshape", level, self.ints(0, channels, -1))
        cut = self.op("Slice", flat, self.ints(0), self.ints(count), self.ints(2))
        return self.op("Transpose", cut, perm=[0, 2, 1])

    def scores(self, count=None):
        """Class scores (B, count, classes), or of all cells: some near 0, some near 1."""
        if count is None:
            logits = _rows_of_levels(self, CLASSES, gain=2.0)
        else:
            logits = self.rows(CLASSES, count, gain=2.0)
        return self.op("Sigmoid", self.op("Sub", logits, self.value(np.float32(3))))

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


def levels(channels, anchored=False, pixel_range=1.0):
    g = Graph(pixel_range=pixel_range)
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
    flat = g.scores(QUERIES)
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
    box = g.op("Mul", g.op("Sigmoid", g.rows(4, QUERIES)), g.value(np.float32(60)))
    flat = g.scores(QUERIES)
    rows = g.op("Concat", box, g.op("ReduceMax", flat, axes=[2], keepdims=1), axis=2)
    labels = g.op("ArgMax", flat, axis=2, keepdims=0)
    return g.model(
        {
            "dets": (rows, FLOAT, [QUERIES, 5]),
            "labels": (labels, TensorProto.INT64, [QUERIES]),
        }
    )


def ultralytics_rtdetr(channels):
    g = Graph()
    box = g.op("Sigmoid", g.rows(4, QUERIES))
    rows = g.op("Concat", box, g.scores(QUERIES), axis=2)
    if channels == 6:
        rows = g.op("Slice", rows, g.ints(0), g.ints(6), g.ints(2))
    metadata = {"description": "Ultralytics RT-DETR-l model", "task": "detect"}
    return g.model({"output0": (rows, FLOAT, [QUERIES, channels])}, metadata=metadata)


def split_levels():
    """RTMDet of MMDetection before its post-processing: classes of all levels, then distances."""
    g, outputs = Graph(("input",)), {}
    for kind, channels in (("cls", CLASSES), ("reg", 4)):
        for index, stride in enumerate(STRIDES):
            side = SIZE // stride
            tensor = g.level(channels, stride)
            if kind == "reg":
                tensor = g.op("Mul", g.op("Exp", tensor), g.value(np.float32(stride)))
            outputs[f"{kind}{index}"] = (tensor, FLOAT, [channels, side, side])
    return g.model(outputs)


def counted(names=("boxes", "scores", "labels"), kind=TensorProto.INT32):
    """Detections with their number, as easydeploy writes them: behind it zeros, and -1 as label."""
    g = Graph()
    box = g.op("Mul", g.op("Sigmoid", g.rows(4, QUERIES)), g.value(np.float32(SIZE)))
    flat = g.scores(QUERIES)
    scores = g.op("ReduceMax", flat, axes=[2], keepdims=0)
    labels = g.op("ArgMax", flat, axis=2, keepdims=0)
    best, order = f"best{len(g.nodes)}", f"order{len(g.nodes)}"
    width = g.value(np.array([QUERIES], np.int64))
    g.nodes.append(helper.make_node("TopK", [scores, width], [best, order], axis=1))
    labels = g.op("GatherElements", labels, order, axis=1)
    wide = g.op("Expand", g.op("Unsqueeze", order, g.ints(2)), g.ints(1, 1, 4))
    box = g.op("GatherElements", box, wide, axis=1)
    some = g.op("Greater", best, g.value(np.float32(0.8)))
    count = g.op("ReduceSum", g.op("Cast", some, to=TensorProto.INT64), g.ints(1), keepdims=1)
    scores = g.op("Mul", best, g.op("Cast", some, to=FLOAT))
    labels = g.op("Where", some, labels, g.value(np.int64(-1)))
    labels = g.op("Cast", labels, to=kind)
    outputs = {
        "num_dets": (count, TensorProto.INT64, [1]),
        names[0]: (box, FLOAT, [QUERIES, 4]),
        names[1]: (scores, FLOAT, [QUERIES]),
        names[2]: (labels, kind, [QUERIES]),
    }
    return g.model(outputs)


def yolov7_rows():
    """YOLOv7 with `--end2end --max-wh`: picture, xyxy, class, score of every detection."""
    g = Graph()
    box = g.op("Mul", g.op("Sigmoid", g.rows(4, QUERIES)), g.value(np.float32(SIZE)))
    flat = g.scores(QUERIES)
    scores = g.op("ReduceMax", flat, axes=[2], keepdims=1)
    labels = g.op("Cast", g.op("ArgMax", flat, axis=2, keepdims=1), to=FLOAT)
    some = g.op("Greater", scores, g.value(np.float32(0.8)))
    shape = g.op("Slice", g.op("Shape", scores), g.ints(0), g.ints(1))
    count = g.op("Squeeze", shape, g.ints(0))
    turn = g.op("Range", g.value(np.int64(0)), count, g.value(np.int64(1)))
    turn = g.op("Reshape", g.op("Cast", turn, to=FLOAT), g.ints(-1, 1, 1))
    zeros = g.op("Mul", scores, g.value(np.float32(0)))
    rows = g.op("Concat", g.op("Add", zeros, turn), box, labels, scores, axis=2)
    rows = g.op("Reshape", rows, g.ints(-1, 7))
    rows = g.op("Compress", rows, g.op("Reshape", some, g.ints(-1)), axis=0)
    model = g.model({"output": (rows, FLOAT, [7])})
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    return model


def ppyoloe_nms():
    """Paddle's NMS: rows of all pictures behind one another, and how many are of each."""
    g = Graph(("image",))
    given = helper.make_tensor_value_info("scale_factor", FLOAT, ["batch", 2])
    ratio = g.op("Unsqueeze", g.op("Concat", *["scale_factor"] * 2, axis=1), g.ints(1))
    box = g.op("Mul", g.op("Sigmoid", g.rows(4, QUERIES)), g.value(np.float32(SIZE)))
    box = g.op("Div", box, ratio)
    flat = g.scores(QUERIES)
    scores = g.op("ReduceMax", flat, axes=[2], keepdims=1)
    labels = g.op("Cast", g.op("ArgMax", flat, axis=2, keepdims=1), to=FLOAT)
    some = g.op("Greater", scores, g.value(np.float32(0.8)))
    number = g.op("Cast", some, to=TensorProto.INT32)
    count = g.op("Reshape", g.op("ReduceSum", number, g.ints(1), keepdims=0), g.ints(-1))
    rows = g.op("Reshape", g.op("Concat", labels, scores, box, axis=2), g.ints(-1, 6))
    rows = g.op("Compress", rows, g.op("Reshape", some, g.ints(-1)), axis=0)
    model = g.model({"rows": (rows, FLOAT, [6]), "counts": (count, TensorProto.INT32, [])}, [given])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    return model


POINTS, COEFFICIENTS = 5, 4


def ultralytics_task(task, nms_free=False):
    """Ultralytics' export of a task, with its metadata."""
    g = Graph()
    metadata = {"task": task, "stride": "32", "names": repr(dict(enumerate(WORDS)))}
    if task == "classify":
        logits = g.op("ReduceMean", g.level(CLASSES, 8, gain=2.0), axes=[2, 3], keepdims=0)
        scores = g.op("Softmax", logits, axis=1)
        return g.model({"output0": (scores, FLOAT, [CLASSES])}, metadata=metadata)
    box = _rows_of_levels(g, 4)
    middle = g.op("Slice", g.op("Sigmoid", box), g.ints(0), g.ints(2), g.ints(2))
    middle = g.op("Mul", middle, g.value(np.float32(SIZE)))
    extent = g.op("Slice", g.op("Sigmoid", box), g.ints(2), g.ints(4), g.ints(2))
    extent = g.op("Mul", extent, g.value(np.float32(SIZE / 2)))
    scores, extras, outputs = g.scores(), [], {}
    if task == "obb":
        angle = g.op("Sub", g.op("Sigmoid", _rows_of_levels(g, 1)), g.value(np.float32(0.25)))
        extras.append(g.op("Mul", angle, g.value(np.float32(np.pi))))
    elif task == "pose":
        metadata["kpt_shape"] = repr([POINTS, 3])
        for _ in range(POINTS):
            place = g.op("Sigmoid", _rows_of_levels(g, 2))
            extras.append(g.op("Mul", place, g.value(np.float32(SIZE))))
            extras.append(g.op("Sigmoid", _rows_of_levels(g, 1)))
    elif task == "segment":
        extras.append(_rows_of_levels(g, COEFFICIENTS))
        planes = g.op("Resize", g.level(COEFFICIENTS, 8), "", g.value(np.float32([1, 1, 2, 2])))
        outputs["output1"] = (planes, FLOAT, [COEFFICIENTS, SIZE // 4, SIZE // 4])
    if nms_free:
        metadata["end2end"] = "True"
        if task != "obb":  # OBB keeps centre and size
            half = g.op("Mul", extent, g.value(np.float32(0.5)))
            middle, extent = g.op("Sub", middle, half), g.op("Add", middle, half)
        best = g.op("ReduceMax", scores, axes=[2], keepdims=1)
        label = g.op("Cast", g.op("ArgMax", scores, axis=2, keepdims=1), to=FLOAT)
        rows = g.op("Concat", middle, extent, best, label, *extras, axis=2)
        rows = _best_first(g, rows, best)
        width = 6 + _width(task)
        outputs = {"output0": (rows, FLOAT, [QUERIES, width]), **outputs}
    else:
        rows = g.op("Concat", middle, extent, scores, *extras, axis=2)
        rows = g.op("Transpose", rows, perm=[0, 2, 1])
        outputs = {"output0": (rows, FLOAT, [4 + CLASSES + _width(task), CELLS]), **outputs}
    return g.model(outputs, metadata=metadata)


def _width(task):
    return {"detect": 0, "obb": 1, "pose": 3 * POINTS, "segment": COEFFICIENTS}[task]


def _rows_of_levels(g, channels, gain=0.2):
    """(B, A, channels) of the three levels."""
    flat = [
        g.op("Reshape", g.level(channels, stride, gain), g.ints(0, channels, -1))
        for stride in STRIDES
    ]
    return g.op("Transpose", g.op("Concat", *flat, axis=2), perm=[0, 2, 1])


def _best_first(g, rows, best):
    """The best QUERIES of the rows (B, A, width), best first."""
    score, order = f"score{len(g.nodes)}", f"order{len(g.nodes)}"
    width = g.value(np.array([QUERIES], np.int64))
    flat = g.op("Reshape", best, g.ints(0, -1))
    g.nodes.append(helper.make_node("TopK", [flat, width], [score, order], axis=1))
    wide = g.op("Shape", g.op("Slice", rows, g.ints(0), g.ints(QUERIES), g.ints(1)))
    index = g.op("Expand", g.op("Unsqueeze", order, g.ints(2)), wide)
    return g.op("GatherElements", rows, index, axis=1)


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


def read_split(outputs):
    xyxy, scores = [], []
    for index, stride in enumerate(STRIDES):
        reach = outputs[f"reg{index}"][0].astype(np.float64).reshape(4, -1)
        side = SIZE // stride
        y, x = np.divmod(np.arange(side * side), side)
        left, top, right, bottom = reach
        x, y = x * stride, y * stride
        xyxy.append(np.stack([x - left, y - top, x + right, y + bottom], 1))
        scores.append(sigmoid(outputs[f"cls{index}"][0]).reshape(CLASSES, -1).T)
    return np.concatenate(xyxy), np.concatenate(scores)


def read_yolox_levels(outputs):
    """MMYOLO's order of columns: classes, box, objectness."""
    xyxy, scores = [], []
    for index, stride in enumerate(STRIDES):
        raw = outputs[f"map{index}"][0].astype(np.float64)
        raw = raw.reshape(len(raw), -1).T
        side = SIZE // stride
        y, x = np.divmod(np.arange(side * side), side)
        middle = (raw[:, CLASSES : CLASSES + 2] + np.stack([x, y], 1)) * stride
        half = np.exp(raw[:, CLASSES + 2 : CLASSES + 4]) * stride / 2
        xyxy.append(np.concatenate([middle - half, middle + half], 1))
        scores.append(sigmoid(raw[:, :CLASSES]) * sigmoid(raw[:, CLASSES + 4 :]))
    return np.concatenate(xyxy), np.concatenate(scores)


def read_counted(names=("boxes", "scores", "labels")):
    def read(outputs):
        count = int(outputs["num_dets"][0, 0])
        assert 0 < count < QUERIES
        return final(*(outputs[name][0, :count] for name in names))

    return read


def read_indexed(outputs):
    rows = outputs["output"]
    own = rows[rows[:, 0] == 0]
    assert 0 < len(own) < len(rows)
    return final(own[:, 1:5], own[:, 6], own[:, 5])


def read_stacked(outputs):
    count = int(outputs["counts"][0])
    assert 0 < count < len(outputs["rows"])
    rows = outputs["rows"][:count]
    return final(rows[:, 2:], rows[:, 1], rows[:, 0])


V5 = [[(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)]]
V5 += [[(116, 90), (156, 198), (373, 326)]]
V7 = [[(12, 16), (19, 36), (40, 28)], [(36, 75), (76, 55), (72, 146)]]
V7 += [[(142, 110), (192, 243), (459, 401)]]

DETECTED = ("det_boxes", "det_scores", "det_classes")

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
    "rtmdet split": (split_levels, "rtmdet-mmdet", "rtmdet-mmdet", read_split),
    "yolov8 levels": (
        lambda: levels(CLASSES + 64),
        "yolov8",
        "ultralytics",
        point_reference(0.5, 16),
    ),
    "yolox levels": (
        lambda: levels(CLASSES + 5, pixel_range=255.0),
        "yolox",
        "yolox",
        read_yolox_levels,
    ),
    "easydeploy": (counted, "rtmdet", "rtmdet", read_counted()),
    "yolov6 counted": (
        lambda: counted(DETECTED, TensorProto.INT64),
        "yolov6",
        "yolov6",
        read_counted(DETECTED),
    ),
    "yolov7 rows": (yolov7_rows, "yolov7", "yolov7", read_indexed),
    "ppyoloe NMS": (ppyoloe_nms, "ppyoloe", "ppyoloe", read_stacked),
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
