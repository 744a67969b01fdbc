"""The two interpreters of HeadLayout agree; NMS in graphs equals NMS on the host."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright import boxes, catalog
from boxwright.backends import BackendOptions
from boxwright.detector import Detector
from boxwright.errors import GraphError, RequestError
from boxwright.graph.builder import GraphBuilder
from boxwright.graph.decode import add_decode
from boxwright.graph.end2end import add_end2end, runnable_anywhere, with_score_threshold
from boxwright.graph.io import bytes_from_model, check_model, write_stamp
from boxwright.graph.precision import fp16_from_fp32, half_from_single
from boxwright.stamps import Stamp
from boxwright.types import HeadLayout, ModelSpec, NmsSettings, Preprocess, Target

SIZE = (64, 96)
CLASSES = 5
ANCHORS = 8 * 12 + 4 * 6 + 2 * 3

LAYOUTS = {
    f"{axes}-{fmt}-{enc}{'-obj' * obj}{'-act' * act}{'-norm' * norm}-x{extras}": HeadLayout(
        axes=axes,
        box_format=fmt,
        box_encoding=enc,
        objectness=bool(obj),
        scores_activated=bool(act),
        normalised=bool(norm),
        extras=extras,
    )
    for axes, fmt, enc, obj, act, norm, extras in itertools.product(
        ("nca", "nac"), ("cxcywh", "xyxy"), ("pixels", "grid_exp"), (0, 1), (0, 1), (0, 1), (0, 3)
    )
    if not (enc == "grid_exp" and (fmt == "xyxy" or norm))
}
NMS_FREE = {
    f"{axes}-nms-free{'-act' * act}": HeadLayout(
        axes=axes, box_format="xyxy", nms_free=True, scores_activated=bool(act)
    )
    for axes in ("nca", "nac")
    for act in (0, 1)
}
MAIN = {
    "ultralytics": HeadLayout(axes="nca"),
    "yolox": HeadLayout(axes="nac", box_encoding="grid_exp", objectness=True),
    "yolov5": HeadLayout(axes="nac", objectness=True),
    "logits": HeadLayout(axes="nca", scores_activated=False),
}


def spec_of(layout: HeadLayout, classes: int = CLASSES) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        family="tiny",
        task="detect",
        class_names=tuple(f"c{i}" for i in range(classes)),
        input_size=SIZE,
        preprocess=Preprocess(),
        layout=layout,
    )


def random_raw(layout: HeadLayout, batch: int, seed: int = 0, classes: int = CLASSES):
    rng = np.random.default_rng(seed)
    channels = layout.channel_count(classes)
    rows = rng.normal(0, 1, (batch, ANCHORS, channels)).astype(np.float32)
    if layout.box_encoding == "pixels":
        rows[..., :2] = rng.random((batch, ANCHORS, 2), np.float32) * 60
        rows[..., 2:4] = (
            rows[..., :2] * (layout.box_format == "xyxy")
            + 4
            + 20 * rng.random((batch, ANCHORS, 2), np.float32)
        )
    if layout.scores_activated:
        rows[..., 4:] = rng.random((batch, ANCHORS, channels - 4), np.float32)
    if layout.nms_free:
        rows[..., 5] = rng.integers(0, classes, (batch, ANCHORS))
    return np.ascontiguousarray(rows.swapaxes(1, 2)) if layout.axes == "nca" else rows


def raw_graph(layout: HeadLayout, opset: int = 17, classes: int = CLASSES) -> onnx.ModelProto:
    """A graph whose head is its input: what follows is then tested alone."""
    channels = layout.channel_count(classes)
    shape = ["batch", channels, ANCHORS] if layout.axes == "nca" else ["batch", ANCHORS, channels]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["head"])],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("head", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    return model


def run(model: onnx.ModelProto, feed, runtime: str = "onnxruntime"):
    data = bytes_from_model(model, "tiny")
    return catalog.backend(runtime).open_bytes(data, BackendOptions(2, "cpu")).infer(feed)


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20])
@pytest.mark.parametrize("layout", MAIN.values(), ids=MAIN.keys())
def test_interpreters_agree_at_every_opset(layout, opset):
    _assert_interpreters_agree(layout, opset)


@pytest.mark.parametrize(
    "layout", [*LAYOUTS.values(), *NMS_FREE.values()], ids=[*LAYOUTS, *NMS_FREE]
)
def test_interpreters_agree(layout):
    _assert_interpreters_agree(layout, 17)


def _assert_interpreters_agree(layout: HeadLayout, opset: int) -> None:
    model = raw_graph(layout, opset)
    b = GraphBuilder(model, "t")
    names = add_decode(b, "head", layout, SIZE, CLASSES)
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    raw = random_raw(layout, 2, seed=opset)
    found = run(model, {"images": raw})
    expected = boxes.decode(raw, layout, SIZE)
    for name, values in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)


def detections(model, layout, settings, raw, runtime="onnxruntime"):
    """Run an end-to-end graph and return (boxes, scores, classes) of each picture."""
    out = run(model, {"images": raw}, runtime)
    result = []
    for i in range(len(raw)):
        n = int(out["num_dets"][i, 0])
        assert out["det_boxes"].dtype == np.float32 and out["num_dets"].dtype == np.int32
        assert (out["det_scores"][i, n:] == 0).all() and (out["det_classes"][i, n:] == -1).all()
        assert (out["det_boxes"][i, n:] == 0).all()
        result.append(
            (out["det_boxes"][i, :n], out["det_scores"][i, :n], out["det_classes"][i, :n])
        )
    return result


def host(layout, settings, raw):
    result = []
    for picture in raw:
        xyxy, scores, labels = boxes.select_candidates(picture, layout, SIZE, settings)
        if layout.nms_free:
            keep = np.arange(min(len(scores), settings.keep_topk))
        else:
            keep = boxes.batched_nms(xyxy, scores, labels, settings)
        result.append((xyxy[keep], scores[keep], labels[keep]))
    return result


SETTINGS = {
    "defaults": NmsSettings(score_threshold=0.25, iou_threshold=0.5),
    "few": NmsSettings(score_threshold=0.3, iou_threshold=0.4, pre_topk=40, keep_topk=7),
    "agnostic": NmsSettings(score_threshold=0.25, iou_threshold=0.3, class_agnostic=True),
    "multi label": NmsSettings(score_threshold=0.4, iou_threshold=0.6, multi_label=True),
    "all": NmsSettings(score_threshold=0.0, iou_threshold=1.0, keep_topk=1000),
    "none": NmsSettings(score_threshold=1.0, iou_threshold=0.5),
}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", ["onnx", "portable", "efficient_nms"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("layout", MAIN.values(), ids=MAIN.keys())
def test_end2end_equals_host(layout, settings, form, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    spec = spec_of(layout)
    target = Target("fp32", "end2end", form, nms_iterations=32)
    model = add_end2end(raw_graph(layout), spec, settings, target)
    write_stamp(model, Stamp(spec, target, settings))
    check_model(model, "tiny")
    model = runnable_anywhere(model)
    for batch in (1, 3, 8):
        raw = random_raw(layout, batch, seed=batch)
        found = detections(model, layout, settings, raw, runtime)
        for (fb, fs, fc), (hb, hs, hc) in zip(found, host(layout, settings, raw), strict=True):
            assert len(fs) == len(hs)
            np.testing.assert_allclose(fs, hs, rtol=1e-5, atol=1e-6)
            # OpenVINO's sigmoid differs in the last digit: rows of nearly equal score may swap.
            gaps = np.abs(np.diff(hs, prepend=2, append=-2))
            clear = np.minimum(gaps[:-1], gaps[1:]) > 2e-6
            assert not len(clear) or clear.mean() > 0.9
            np.testing.assert_array_equal(fc[clear], hc[clear])
            np.testing.assert_allclose(fb[clear], hb[clear], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", NMS_FREE.values(), ids=NMS_FREE.keys())
def test_nms_free_heads_need_no_nms(layout):
    spec, settings = spec_of(layout), NmsSettings(score_threshold=0.6, keep_topk=20)
    model = add_end2end(raw_graph(layout), spec, settings, Target("fp32", "end2end"))
    check_model(model, "tiny")
    assert all(n.op_type != "NonMaxSuppression" for n in model.graph.node)
    raw = random_raw(layout, 3)
    found = detections(model, layout, settings, raw)
    for (fb, fs, fc), (hb, hs, hc) in zip(found, host(layout, settings, raw), strict=True):
        np.testing.assert_allclose(fs, hs, rtol=1e-5)
        np.testing.assert_array_equal(fc, hc)
        np.testing.assert_allclose(fb, hb, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("opset", [11, 12, 13, 18, 20])
def test_end2end_at_every_opset(opset):
    layout, settings = MAIN["yolov5"], SETTINGS["defaults"]
    for form in ("onnx", "portable"):
        model = add_end2end(
            raw_graph(layout, opset), spec_of(layout), settings, Target("fp32", "end2end", form)
        )
        check_model(model, "tiny")
        raw = random_raw(layout, 2)
        found, wanted = detections(model, layout, settings, raw), host(layout, settings, raw)
        assert [len(f[1]) for f in found] == [len(w[1]) for w in wanted]


def chain(length: int):
    """Boxes in a row of which each overlaps the next: the deepest chain of suppressions."""
    layout = MAIN["ultralytics"]
    raw = np.zeros((1, layout.channel_count(1), ANCHORS), np.float32)
    for i in range(length):
        raw[0, :4, i] = (10 + i, 30, 10, 10)
        raw[0, 4, i] = 0.9 - i * 0.004
    return layout, raw


@pytest.mark.parametrize(
    ("length", "iterations", "settled"), [(10, 16, 1), (60, 16, 0), (60, 64, 1)]
)
def test_portable_nms_says_when_it_has_not_settled(length, iterations, settled):
    layout, raw = chain(length)
    settings = NmsSettings(score_threshold=0.25, iou_threshold=0.7)
    spec = spec_of(layout, classes=1)
    target = Target("fp32", "end2end", "portable", nms_iterations=iterations)
    model = add_end2end(raw_graph(layout, classes=1), spec, settings, target)
    out = run(model, {"images": raw})
    assert out["nms_converged"].tolist() == [[settled]]
    expected = host(layout, settings, raw)[0]
    if settled:
        assert int(out["num_dets"][0, 0]) == len(expected[1])
    else:  # a superset: one host pass over it gives the greedy result exactly
        count = int(out["num_dets"][0, 0])
        assert count >= len(expected[1])
        kept = boxes.batched_nms(
            out["det_boxes"][0, :count],
            out["det_scores"][0, :count],
            out["det_classes"][0, :count].astype(np.int64),
            settings,
        )
        np.testing.assert_allclose(out["det_scores"][0, :count][kept], expected[1])


def test_dynamic_thresholds_are_optional_inputs():
    layout, settings = MAIN["ultralytics"], SETTINGS["defaults"]
    for form in ("onnx", "portable"):
        target = Target("fp32", "end2end", form, dynamic_thresholds=True)
        model = add_end2end(raw_graph(layout), spec_of(layout), settings, target)
        check_model(model, "tiny")
        raw = random_raw(layout, 2)
        default = run(model, {"images": raw})
        higher = run(model, {"images": raw, "score_threshold": np.array([0.9], np.float32)})
        other = NmsSettings(score_threshold=0.9, iou_threshold=0.5)
        assert default["num_dets"].ravel().tolist() == [
            len(h[1]) for h in host(layout, settings, raw)
        ]
        assert higher["num_dets"].ravel().tolist() == [len(h[1]) for h in host(layout, other, raw)]


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        (Target("fp32", "end2end", "efficient_nms", dynamic_thresholds=True), NmsSettings()),
        (Target("fp32", "end2end", "portable", nms_iterations=5), NmsSettings()),
        (Target("fp32", "end2end"), NmsSettings(score_threshold=1.5)),
        (Target("fp32", "end2end"), NmsSettings(pre_topk=0)),
    ],
    ids=["plugin with inputs", "odd steps", "score", "topk"],
)
def test_contradictions_are_refused(target, settings):
    layout = MAIN["ultralytics"]
    with pytest.raises(RequestError):
        add_end2end(raw_graph(layout), spec_of(layout), settings, target)


def test_a_wrong_class_count_is_refused():
    layout = MAIN["ultralytics"]
    with pytest.raises(GraphError, match="channels"):
        add_end2end(raw_graph(layout), spec_of(layout, 4), NmsSettings(), Target("fp32", "end2end"))


def test_baked_threshold_can_be_lowered_for_a_check():
    layout = MAIN["ultralytics"]
    strict = NmsSettings(score_threshold=1.0)
    model = add_end2end(raw_graph(layout), spec_of(layout), strict, Target("fp32", "end2end"))
    raw = random_raw(layout, 1)
    assert run(model, {"images": raw})["num_dets"].sum() == 0
    assert run(with_score_threshold(model, 0.2), {"images": raw})["num_dets"].sum() > 0


def small_network(extra_scale: float = 1.0) -> onnx.ModelProto:
    """Two convolutions, a resize, and a head with sigmoid decode."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "b1": rng.normal(0, 0.1, 8),
        "w2": rng.normal(0, 0.3, (6, 8, 1, 1)) * extra_scale,
        "scales": np.array([1, 1, 2, 2]),
        "half": np.array(0.5),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["s"], "sig"),
        helper.make_node("Mul", ["a", "s"], ["m"], "silu"),
        helper.make_node("Resize", ["m", "", "scales"], ["r"], "up", mode="nearest"),
        helper.make_node("Conv", ["r", "w2"], ["c"], "conv2"),
        helper.make_node("Sigmoid", ["c"], ["p"], "head_sigmoid"),
        helper.make_node("Mul", ["p", "half"], ["out"], "head_mul"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 6, 16, 16])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


def test_fp16_body_and_fp32_decode():
    model = small_network()
    half = fp16_from_fp32(model)
    check_model(half, "small")
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in half.graph.output}
    kinds = {n.name: types[n.output[0]] for n in half.graph.node if n.output[0] in types}
    assert kinds["conv1"] == kinds["silu"] == kinds["conv2"] == TensorProto.FLOAT16
    assert kinds["head_sigmoid"] == kinds["head_mul"] == TensorProto.FLOAT
    stored = {i.name: i.data_type for i in half.graph.initializer}
    assert stored["scales"] == TensorProto.FLOAT and stored["w1/fp16"] == TensorProto.FLOAT16
    assert "w1" not in stored
    feed = {"images": np.random.default_rng(1).random((2, 3, 8, 8), np.float32)}
    np.testing.assert_allclose(run(half, feed)["out"], run(model, feed)["out"], atol=3e-3)


def test_fp16_keeps_named_nodes_in_fp32():
    half = fp16_from_fp32(small_network(), keep_fp32=["conv2"])
    check_model(half, "small")
    stored = {i.name: i.data_type for i in half.graph.initializer}
    assert stored["w2"] == TensorProto.FLOAT and "w2/fp16" not in stored


def test_fp16_refuses_weights_beyond_its_range():
    with pytest.raises(GraphError, match="65504"):
        fp16_from_fp32(small_network(extra_scale=1e6))


def test_fp16_refuses_fp16():
    with pytest.raises(GraphError, match="already"):
        fp16_from_fp32(fp16_from_fp32(small_network()))


def test_rounding_errors_cancel_within_a_kernel():
    values = np.random.default_rng(0).normal(0, 0.1, (16, 8, 3, 3)).astype(np.float32)
    plain = np.abs((values.astype(np.float16).astype(np.float64) - values).sum((2, 3)))
    fed_back = np.abs((half_from_single(values).astype(np.float64) - values).sum((2, 3)))
    assert fed_back.mean() < plain.mean() / 2
    assert np.abs(half_from_single(values).astype(np.float64) - values).max() < 2e-4


def test_detector_resolves_what_portable_nms_left_open():
    """An unsettled portable graph still gives the greedy result through the Detector."""
    layout, raw = chain(60)
    settings = NmsSettings(score_threshold=0.25, iou_threshold=0.7)
    spec = spec_of(layout, classes=1)
    target = Target("fp32", "end2end", "portable", nms_iterations=2)
    model = add_end2end(raw_graph(layout, classes=1), spec, settings, target)
    backend = catalog.backend("onnxruntime").open_bytes(
        bytes_from_model(model, "tiny"), BackendOptions(1, "cpu")
    )
    detector = Detector(backend, spec, target, settings)
    from boxwright.preprocess import place

    where = place(SIZE, SIZE, spec.preprocess)
    found = detector.postprocess(backend.infer({"images": raw}), [where])[0]
    np.testing.assert_allclose(found.scores, host(layout, settings, raw)[0][1], rtol=1e-6)
