"""Box geometry, NMS and candidate selection on the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from boxwright import boxes
from boxwright.types import HeadLayout, NmsSettings

_COORDINATES = hnp.arrays(
    np.float32, (7, 4), elements=st.floats(-500, 2000, width=32, allow_subnormal=False)
)


def _slow_nms(xyxy, scores, labels, limits):
    """Greedy NMS written as its definition, in float64."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        for j in kept:
            if not limits.class_agnostic and labels[i] != labels[j]:
                continue
            a, b = xyxy[i].astype(float), xyxy[j].astype(float)
            w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            inter = w * h
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
            if inter and inter / union > limits.iou_threshold:
                break
        else:
            kept.append(i)
    return kept[: limits.keep_topk]


def _random_boxes(rng, count, classes=3, spread=200.0):
    corner = rng.random((count, 2), np.float32) * spread
    size = rng.random((count, 2), np.float32) * 60 + 5
    xyxy = np.concatenate([corner, corner + size], axis=1)
    scores = np.sort(rng.random(count).astype(np.float32))[::-1].copy()
    return xyxy, scores, rng.integers(0, classes, count)


@given(_COORDINATES)
def test_formats_round_trip(array):
    xywh = boxes.xyxy_from_xywh(boxes.xywh_from_xyxy(array))
    centred = boxes.xyxy_from_cxcywh(boxes.cxcywh_from_xyxy(array))
    np.testing.assert_allclose(xywh, array, atol=1e-3)
    np.testing.assert_allclose(centred, array, atol=1e-3)


@pytest.mark.parametrize("agnostic", [False, True], ids=["per class", "agnostic"])
@pytest.mark.parametrize("count", [0, 1, 2, 40, 319, 321, 900])
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7])
def test_nms_is_greedy(count, iou, agnostic):
    rng = np.random.default_rng(count + int(iou * 10))
    xyxy, scores, labels = _random_boxes(rng, count)
    limits = NmsSettings(iou_threshold=iou, keep_topk=50, class_agnostic=agnostic)
    expected = _slow_nms(xyxy, scores, labels, limits)
    assert boxes.batched_nms(xyxy, scores, labels, limits).tolist() == expected


def test_nms_keeps_boxes_without_area():
    point = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [9, 9, 3, 3]], np.float32)
    assert boxes.nms(point, 0.5).tolist() == [0, 1, 2]


def test_large_class_numbers_do_not_cost_digits():
    """A shift of the boxes by class id would round these two IoUs to the same side."""
    base = np.array([[0, 0, 10, 10], [0, 0, 10, 5.0009765]], np.float32)
    labels = np.array([1199, 1199])
    kept = boxes.batched_nms(
        base, np.array([0.9, 0.8], np.float32), labels, NmsSettings(iou_threshold=0.5)
    )
    assert kept.tolist() == [0]


@pytest.mark.parametrize("objectness", [False, True])
@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("axes", ["nca", "nac"])
@pytest.mark.parametrize("multi", [False, True])
def test_candidates_equal_full_decode(objectness, activated, axes, multi):
    layout = HeadLayout(
        axes=axes,
        objectness=objectness,
        scores_activated=activated,
        box_encoding="grid_exp",
        extras=2,
    )
    rng = np.random.default_rng(3)
    count = layout.channel_count(5)
    raw = rng.normal(0, 1.5, (1, count, 84)).astype(np.float32)
    if activated:
        raw[:, 4 : count - 2] = rng.random((1, count - 6, 84), np.float32)
    if axes == "nac":
        raw = np.ascontiguousarray(raw.swapaxes(1, 2))
    limits = NmsSettings(score_threshold=0.3, pre_topk=60, multi_label=multi)
    xyxy, scores, labels = boxes.select_candidates(raw[0], layout, (64, 64), limits)
    all_boxes, all_scores = boxes.decode(raw, layout, (64, 64))
    if multi:
        anchor, label = np.nonzero(all_scores[0] > np.float32(0.3))
        value = all_scores[0][anchor, label]
    else:
        label, value = all_scores[0].argmax(1), all_scores[0].max(1)
        anchor = np.flatnonzero(value > np.float32(0.3))
        label, value = label[anchor], value[anchor]
    order = np.argsort(-value, kind="stable")[:60]
    assert len(order) > 10
    np.testing.assert_allclose(scores, value[order], rtol=1e-6)
    np.testing.assert_array_equal(labels, label[order])
    np.testing.assert_allclose(xyxy, all_boxes[0][anchor[order]], rtol=1e-5, atol=1e-4)
    classes = boxes.select_class_scores(raw[0], layout, limits)
    np.testing.assert_allclose(classes, all_scores[0][anchor[order]], rtol=1e-6)


def test_nan_scores_are_never_candidates():
    raw = np.zeros((7, 84), np.float32)
    raw[4:] = np.nan
    found = boxes.select_candidates(raw, HeadLayout(), (64, 64), NmsSettings())
    assert len(found[1]) == 0


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_iou_matrix_is_symmetric_and_bounded(n, m, seed):
    rng = np.random.default_rng(seed)
    a, b = _random_boxes(rng, n)[0], _random_boxes(rng, m)[0]
    overlap = boxes.iou_matrix(a, b)
    assert overlap.shape == (n, m)
    np.testing.assert_array_equal(overlap, boxes.iou_matrix(b, a).T)
    assert ((overlap >= 0) & (overlap <= 1.0001)).all()
    np.testing.assert_allclose(np.diag(boxes.iou_matrix(a, a)), 1, rtol=1e-6)
