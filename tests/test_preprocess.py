"""Letterbox, stretch, normalisation and the way back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.errors import ImageError
from boxwright.preprocess import bgr_from_array, place, prepare, source_from_input
from boxwright.types import Preprocess

_CASES = {
    "letterbox": Preprocess(),
    "top left, floor, BGR 0..255": Preprocess(
        resize="letterbox_top_left", rounding="floor", color="bgr", scale=1.0
    ),
    "stretch with mean and std": Preprocess(
        resize="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}


def _plain(image, size, rules):
    """The same preprocessing, written the slow and obvious way."""
    height, width = image.shape[:2]
    canvas = np.full((*size, 3), rules.pad_value, np.uint8)
    if rules.resize == "stretch":
        canvas = cv2.resize(image, (size[1], size[0]))
    else:
        ratio = min(size[0] / height, size[1] / width)
        whole = round if rules.rounding == "round" else int
        new = (max(1, whole(width * ratio)), max(1, whole(height * ratio)))
        small = cv2.resize(image, new) if new != (width, height) else image
        left = top = 0
        if rules.resize == "letterbox":
            left = round((size[1] - new[0]) / 2 - 0.1)
            top = round((size[0] - new[1]) / 2 - 0.1)
        canvas[top : top + new[1], left : left + new[0]] = small
    if rules.color == "rgb":
        canvas = canvas[..., ::-1]
    values = canvas.astype(np.float64) * rules.scale
    values = (values - np.array(rules.mean)) / np.array(rules.std)
    return values.transpose(2, 0, 1)


@pytest.mark.parametrize("rules", _CASES.values(), ids=_CASES.keys())
@pytest.mark.parametrize(
    "shape", [(1080, 810), (64, 64), (1, 1), (1, 10000), (10000, 1), (333, 500), (96, 64)]
)
def test_prepare_equals_the_plain_way(rules, shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    out = np.full((3, 64, 96), np.nan, np.float32)
    prepare(image, (64, 96), rules, out)
    np.testing.assert_allclose(out, _plain(image, (64, 96), rules), atol=2e-5, rtol=1e-5)


@settings(max_examples=200)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from(list(_CASES.values())),
    st.sampled_from([(640, 640), (384, 640), (416, 416)]),
)
def test_boxes_return_to_the_picture(height, width, rules, size):
    where = place((height, width), size, rules)
    new_height, new_width = where.resized_size
    assert 0 <= where.left <= size[1] - new_width
    assert 0 <= where.top <= size[0] - new_height
    whole = np.array(
        [[where.left, where.top, where.left + new_width, where.top + new_height]], np.float32
    )
    back = source_from_input(whole, where)
    np.testing.assert_allclose(back, [[0, 0, width, height]], rtol=1e-5, atol=1e-2)


def test_boxes_are_clipped_to_the_picture():
    where = place((100, 200), (640, 640), Preprocess())
    back = source_from_input(np.array([[-50, -50, 9999, 9999]], np.float32), where)
    assert back.tolist() == [[0, 0, 200, 100]]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((2, 3, 4), 7, np.uint8), 7),
        (np.full((2, 3, 3), 7 * 257, np.uint16), 7),
    ],
    ids=["grey", "grey with axis", "BGRA", "16 bits"],
)
def test_arrays_become_bgr(array, expected):
    image = bgr_from_array(array)
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8 and (image == expected).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 2), np.uint8), np.zeros((0, 3, 3), np.uint8)],
    ids=["float", "two channels", "no pixels"],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageError):
        bgr_from_array(array)


def test_mmyolo_resizes_a_lying_picture_twice_for_a_standing_input():
    """150x230 to 104x160, as if the input lay, and then to 83x128 (worked out by hand)."""
    rules = Preprocess(resize="letterbox_twice", rounding="floor", interpolation="area")
    where = place((150, 230), (160, 128), rules)
    assert (where.resized_size, where.left, where.top) == ((83, 128), 0, 38)
    picture = np.random.default_rng(0).integers(0, 256, (150, 230, 3), np.uint8)
    out = np.empty((3, 160, 128), np.float32)
    prepare(picture, (160, 128), rules, out)
    between = cv2.resize(picture, (160, 104), interpolation=cv2.INTER_AREA)
    wanted = cv2.resize(between, (128, 83))[..., ::-1].transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_allclose(out[:, 38:121], wanted, atol=1e-6)
    once = place((150, 230), (128, 160), rules)  # an input that lies is filled at once
    assert once == place((150, 230), (128, 160), Preprocess(rounding="floor"))
