"""Turns a generated page into training canvases: the rules of what the detector is shown.

One page gives the whole page as the product sees it, and crops of it in full resolution, so that
letters of many sizes are seen sharp. Boxes that a crop cuts and boxes that became too small are
ignored, not taught as background. NumPy and OpenCV only: it runs in the generating processes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from boxwright.families.yolox import FAMILY
from boxwright.preprocess import place

CANVAS = 640  # pixels, square
PAD = int(FAMILY.preprocess.pad_value)
MAX_BOXES = 64  # valid and ignored boxes of a canvas; a canvas with more is dropped and counted
NONE, VALID, IGNORE = 0, 1, 2  # flags of a row of the padded boxes
MIN_VISIBLE = 0.85  # share of a block's area that must remain for a cut block to be taught
MIN_SIDE_PX = 4.0  # shorter side on the canvas under which a block is ignored
HELD_OUT_END = 100_000  # seeds below: evaluation and threshold selection, never training

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
Generator = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Canvas:
    """One network input with its labels.

    Attributes:
        image: (640, 640, 3) uint8 BGR, padded with 114 right and bottom.
        boxes: (N, 4) float32 xyxy in canvas pixels, clipped to what is visible.
        flags: (N,) uint8, VALID or IGNORE.
        extent: Width and height in pixels of the picture inside the canvas.
    """

    image: ByteArray
    boxes: FloatArray
    flags: ByteArray
    extent: tuple[int, int]


def load_generator(name: str) -> Generator:
    """Return the function `module:function` that makes a page from a seed."""
    module, _, function = name.partition(":")
    loaded: Generator = getattr(importlib.import_module(module), function)
    return loaded


def make_page(
    generate: Generator, seed: int, cjk_share: float = 0.0
) -> tuple[ByteArray, FloatArray]:
    """Call the generator: the one place that knows its arguments and its record.

    Args:
        generate: `boxwright.sample.generate_page` or its like.
        seed: Of the page; it also decides whether the page is a CJK one.
        cjk_share: Share of the pages with CJK lettering, which needs the optional fonts.

    Returns:
        The page (H, W, 3) uint8 BGR and its blocks (N, 4) float32 xyxy in page pixels.
    """
    cjk = (seed * 0.6180339887498949) % 1.0 < cjk_share  # spread evenly over the seeds
    page = generate(seed, cjk=True) if cjk else generate(seed)
    boxes = np.array([block.xyxy for block in page.blocks], np.float32).reshape(-1, 4)
    return page.image, boxes


def visible_boxes(
    boxes: FloatArray, window: tuple[float, float, float, float], scale: tuple[float, float]
) -> tuple[FloatArray, ByteArray]:
    """Cut boxes by a window and bring them to the canvas.

    Args:
        boxes: (N, 4) float32 xyxy in page pixels.
        window: xyxy of the crop in page pixels.
        scale: Canvas pixels per page pixel (x, y).

    Returns:
        boxes (M, 4) float32 xyxy in canvas pixels and flags (M,) uint8: VALID when at least
        MIN_VISIBLE of the area remains and the shorter side has MIN_SIDE_PX, else IGNORE. Boxes
        outside the window are gone.

    >>> visible_boxes(np.array([[0, 0, 10, 10]], np.float32), (1, 0, 50, 50), (2, 2))
    (array([[ 0.,  0., 18., 20.]], dtype=float32), array([1], dtype=uint8))
    """
    left, top, right, bottom = window
    low = np.array((left, top) * 2, np.float32)
    cut = np.clip(boxes, low, np.array((right, bottom) * 2, np.float32))
    whole_area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    sides = cut[:, 2:] - cut[:, :2]
    kept = (sides > 0).all(axis=1)
    result = ((cut - low) * np.array(scale * 2, np.float32))[kept].astype(np.float32)
    enough = (sides.prod(axis=1) >= MIN_VISIBLE * whole_area)[kept]
    enough &= (result[:, 2:] - result[:, :2]).min(axis=1, initial=np.inf) >= MIN_SIDE_PX
    return result, np.where(enough, VALID, IGNORE).astype(np.uint8)


def letterbox(image: ByteArray) -> tuple[ByteArray, tuple[int, int], tuple[float, float]]:
    """Resize a picture into the canvas as the YOLOX family is fed (`boxwright.preprocess`).

    Returns:
        canvas (640, 640, 3) uint8, the picture's (width, height) in it, and canvas pixels per
        picture pixel (x, y).
    """
    where = place((image.shape[0], image.shape[1]), (CANVAS, CANVAS), FAMILY.preprocess)
    height, width = where.resized_size
    canvas = np.full((CANVAS, CANVAS, 3), PAD, np.uint8)
    canvas[:height, :width] = (
        image
        if where.source_size == (height, width)
        else cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    )
    return canvas, (width, height), where.scale


def canvas_from_window(
    image: ByteArray, boxes: FloatArray, window: tuple[int, int, int, int]
) -> Canvas:
    """Cut a window (xyxy, whole pixels) out of a page and letterbox it."""
    left, top, right, bottom = window
    canvas, extent, scale = letterbox(np.ascontiguousarray(image[top:bottom, left:right]))
    placed, flags = visible_boxes(boxes, window, scale)
    return Canvas(canvas, placed, flags, extent)


def random_window(
    size: tuple[int, int], rng: np.random.Generator, smallest: float = 0.35
) -> tuple[int, int, int, int]:
    """Draw a crop (xyxy, whole pixels) whose sides are `smallest` to all of the page's.

    Args:
        size: Page (height, width) in pixels.
        rng: Source of randomness.
        smallest: Least share of a side.
    """
    share = rng.uniform(smallest, 1.0)
    aspect = rng.uniform(0.8, 1.25)
    sides = []
    for length, factor in ((size[1], aspect), (size[0], 1 / aspect)):
        sides.append(round(length * min(1.0, max(smallest, share * factor))))
    left = int(rng.integers(0, size[1] - sides[0] + 1))
    top = int(rng.integers(0, size[0] - sides[1] + 1))
    return left, top, left + sides[0], top + sides[1]


def page_canvas(generate: Generator, seed: int, cjk_share: float = 0.0) -> Canvas:
    """Return the whole page of a held-out seed."""
    if not 0 <= seed < HELD_OUT_END:
        raise ValueError(f"seed {seed} is not held out: those are 0..{HELD_OUT_END - 1}")
    image, boxes = make_page(generate, seed, cjk_share)
    return canvas_from_window(image, boxes, (0, 0, image.shape[1], image.shape[0]))


def training_canvases(
    generate: Generator, seed: int, crops: int, cjk_share: float = 0.0
) -> list[Canvas]:
    """Return the whole page of a training seed and `crops` random crops of it."""
    if seed < HELD_OUT_END:
        raise ValueError(f"seed {seed} is held out: training starts at {HELD_OUT_END}")
    image, boxes = make_page(generate, seed, cjk_share)
    height, width = image.shape[:2]
    rng = np.random.default_rng((seed, 1))
    windows = [(0, 0, width, height)]
    windows += [random_window((height, width), rng) for _ in range(crops)]
    return [canvas_from_window(image, boxes, window) for window in windows]
