"""The letterbox kernel computes what `preprocess.prepare` does; no GPU is needed to see that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernel_on_host import HostKernel

from boxwright.errors import RequestError
from boxwright.gpu_preprocess import PICTURE, SOURCE, check_rules, compile_source, picture_record
from boxwright.preprocess import prepare
from boxwright.types import Preprocess

YOLO = Preprocess()
YOLOX = Preprocess(resize="letterbox_top_left", rounding="floor", color="bgr", scale=1.0)
RULES = {
    "ultralytics": YOLO,
    "yolox": YOLOX,
    "stretch": Preprocess(resize="stretch"),
    "normalised": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
SIZES = [
    (480, 640), (640, 480), (427, 640), (333, 500), (1080, 810), (640, 640), (1280, 1280),
    (1, 1), (1, 900), (900, 1), (2, 3), (37, 53), (719, 1279), (320, 320), (641, 639), (213, 320),
]  # fmt: skip


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> HostKernel:
    return HostKernel(tmp_path_factory.mktemp("kernel"))


def _batch(kernel, images, size, rules, *, pitch_extra=0, rgb=False):
    """Return the kernel's tensor and the host's; `rgb` hands the kernel red first."""
    pictures = np.zeros(len(images), PICTURE)
    expected = np.empty((len(images), 3, *size), np.float32)
    kept = []
    for index, image in enumerate(images):
        where = prepare(image, size, rules, expected[index])
        given = image[..., ::-1] if rgb else image
        wide = np.zeros((image.shape[0], image.shape[1] * 3 + pitch_extra), np.uint8)
        wide[:, : image.shape[1] * 3] = given.reshape(image.shape[0], -1)
        kept.append(wide)
        swap = (rules.color == "rgb") != rgb
        pictures[index] = picture_record(wide.ctypes.data, wide.strides[0], where, swap=swap)
    found = np.full_like(expected, np.nan)
    kernel.run(pictures, found, rules)
    return found, expected


def _levels(found, expected, rules):
    """Return the largest difference in grey levels."""
    std = np.array(rules.std, np.float32)[:, None, None]
    return float((np.abs(found - expected) * std / np.float32(rules.scale)).max())


def _images(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_a_batch_of_sizes_is_within_one_grey_level(kernel, rules):
    found, expected = _batch(kernel, _images(SIZES), (160, 224), rules)
    assert _levels(found, expected, rules) <= 1.001
    differing = np.mean(np.abs(found - expected) > 1e-6)
    assert differing < 0.01, "nearly all pixels are the very same"


def test_random_sizes(kernel):
    rng = np.random.default_rng(7)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 300, (60, 2))]
    found, expected = _batch(kernel, _images(sizes, 1), (96, 128), YOLO)
    assert _levels(found, expected, YOLO) <= 1.001


def test_a_picture_of_the_input_size_is_exact(kernel):
    """No resampling: the normalised values are the host's bit for bit, padding included."""
    for rules in RULES.values():
        found, expected = _batch(kernel, _images([(64, 96)]), (64, 96), rules)
        assert np.array_equal(found, expected)


def test_rows_with_gaps_and_red_first(kernel):
    """What a decoder on the GPU hands over: rows of another pitch, RGB."""
    for rules in (YOLO, YOLOX):
        found, expected = _batch(
            kernel, _images([(50, 70), (96, 64)]), (64, 96), rules, pitch_extra=13, rgb=True
        )
        assert _levels(found, expected, rules) <= 1.001


def test_an_unused_place_is_black(kernel):
    tensor = np.full((1, 3, 8, 8), np.nan, np.float32)
    kernel.run(np.zeros(1, PICTURE), tensor, dataclasses.replace(YOLO, mean=(1.0, 1.0, 1.0)))
    assert not tensor.any()


def test_what_the_kernel_does_not_do_is_refused():
    with pytest.raises(RequestError, match="cubic interpolation; use --preprocess host"):
        check_rules(Preprocess(interpolation="cubic"), "float32")
    with pytest.raises(RequestError, match="input is uint8"):
        check_rules(YOLO, "uint8")


@pytest.mark.parametrize("out", ["float", "unsigned short"])
def test_nvrtc_takes_the_source(out):
    """NVRTC needs no GPU; where there is none, the arithmetic above is all that is tested."""
    from boxwright.errors import BackendError

    try:
        code = compile_source(SOURCE, {"OUT": out}, "9.0")
    except BackendError as error:
        if "not installed" in str(error):
            pytest.skip(f"NOT TESTED, {error}")
        raise
    assert code.startswith(b"\x7fELF")
    with pytest.raises(BackendError, match="refuses the kernel"):
        compile_source("not CUDA", {}, "9.0")
