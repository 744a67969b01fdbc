"""The generator of labelled pages: the same everywhere, and its truth is true."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright.errors import MissingExtraError
from boxwright.sample import generate_page
from boxwright.sample.chance import Chance
from boxwright.sample.fonts import FACES, SCRIPTS, have_cjk
from boxwright.sample.raster import FULL, Canvas, coverage_of, extent_of
from boxwright.sample.scan import _compressed
from boxwright.sample.shapes import oval, rectangle, stroke

# SHA-256 of pixels and boxes; the same on Python 3.10 to 3.13, NumPy 2.2 and 2.4.
HASHES = {
    0: "6c940a03e5da8ddb",
    1: "a0d700a8a042ef35",
    2: "5167bca22e6b0d7f",
    3: "ba2f6e0b173def55",
    5: "7ec0d71e5f5b4a48",
    8: "bbce0dff9bac4de6",
    13: "e1e4118c67f0edb7",
    21: "7eae036df8808d55",
    34: "8613cc60ca5a843b",
}


def _hash(seed: int) -> str:
    page = generate_page(seed)
    return hashlib.sha256(
        page.image.tobytes() + page.boxes.tobytes() + str(page.image.shape).encode()
    ).hexdigest()[:16]


@pytest.mark.parametrize("seed", HASHES)
def test_a_page_is_a_function_of_its_seed(seed):
    assert _hash(seed) == HASHES[seed]


def test_another_process_draws_the_same_pages():
    code = (
        "import sys; sys.path[:0] = ['src', 'tests']\n"
        "from test_sample import _hash, HASHES\n"
        "print(*[_hash(s) for s in HASHES])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.split() == list(HASHES.values())


def test_pages_differ():
    assert len(set(HASHES.values())) == len(HASHES) > 5


@pytest.mark.parametrize("seed", [*range(24), 31, 42])
def test_boxes_enclose_the_glyphs_and_fit_tightly(seed):
    page = generate_page(seed, with_lettering=True)
    ink = page.lettering
    assert ink is not None and ink.shape == page.image.shape[:2]
    left_over = ink.copy()
    for block in page.blocks:
        x1, y1, x2, y2 = block.xyxy
        assert 0 <= x1 < x2 <= page.image.shape[1] and 0 <= y1 < y2 <= page.image.shape[0]
        rows = slice(int(np.floor(y1)), int(np.ceil(y2)))
        columns = slice(int(np.floor(x1)), int(np.ceil(x2)))
        y, x = np.nonzero(ink[rows, columns])
        assert len(y), "the box is empty"
        # Every side is touched by ink, within the pixel in which the outline ends.
        assert y.min() + rows.start - y1 <= 1 and y2 - (y.max() + rows.start + 1) <= 1
        assert x.min() + columns.start - x1 <= 1 and x2 - (x.max() + columns.start + 1) <= 1
        assert 0 < block.letter_height_px <= y2 - y1 + 1 or block.kind in ("sound", "sign")
        left_over[rows, columns] = 0
    assert not left_over.any(), "ink lies outside every box"


def test_with_lettering_does_not_change_the_page():
    plain, traced = generate_page(5), generate_page(5, with_lettering=True)
    assert plain.lettering is None
    np.testing.assert_array_equal(plain.image, traced.image)
    assert plain.blocks == traced.blocks


def test_text_stands_out_from_its_ground():
    """A box whose text cannot be seen would be a lie: the ink differs from what surrounds it."""
    faint = []
    total = 0
    for seed in range(30):
        page = generate_page(seed, with_lettering=True)
        grey = page.image.astype(np.float64).mean(2)
        for block in page.blocks:
            x1, y1, x2, y2 = (round(v) for v in block.xyxy)
            inked = page.lettering[y1:y2, x1:x2] > 0
            near = cv2.dilate(inked.astype(np.uint8), np.ones((5, 5))) > 0
            around = near & ~inked
            if not inked.any() or not around.any():
                continue
            total += 1
            here = grey[y1:y2, x1:x2]
            colours = page.image[y1:y2, x1:x2].astype(np.float64)
            contrast = abs(np.median(here[inked]) - np.median(here[around]))
            hue = np.abs(np.median(colours[inked], 0) - np.median(colours[around], 0)).max()
            if max(contrast, hue) < 25:
                faint.append((seed, block.kind, round(contrast)))
    assert total > 150
    assert len(faint) <= total * 0.02, faint


def test_pages_hold_what_they_promise():
    blocks = [b for seed in range(60) for b in generate_page(seed).blocks]
    assert {b.kind for b in blocks} == {
        "balloon", "caption", "sound", "free", "sign", "paragraph"
    }  # fmt: skip
    assert {b.script for b in blocks} == {
        "latin", "cyrillic", "greek", "hebrew", "thai", "devanagari"
    }  # fmt: skip
    heights = [b.letter_height_px for b in blocks]
    assert min(heights) < 9 and max(heights) > 60
    assert any(not generate_page(seed).blocks for seed in range(200, 260)), "some have no text"


def test_every_face_has_the_letters_of_its_scripts():
    for script in SCRIPTS.values():
        for name in {*script.speech, *script.display} - (set() if have_cjk() else {"cjk"}):
            for letter in {*script.letters[:200], *script.letters[:200].upper()}:
                for character in letter:
                    glyph = FACES[name].glyph(character)
                    assert glyph.polygons and glyph.advance > 0, (name, character)


def test_cjk_pages_need_their_package(monkeypatch):
    monkeypatch.setattr("boxwright.sample.fonts.have_cjk", lambda: False)
    with pytest.raises(MissingExtraError, match=r"boxwright\[cjk\]"):
        generate_page(0, cjk=True)


@pytest.mark.skipif(not have_cjk(), reason="the cjk extra is not installed")
def test_cjk_pages_are_lettered_in_cjk():
    scripts = {b.script for seed in range(12) for b in generate_page(seed, cjk=True).blocks}
    assert scripts <= {"kana", "han", "hangul"} and len(scripts) > 1


def test_chance_is_fixed():
    chance = Chance(7)
    assert [chance.whole(0, 99) for _ in range(6)] == [32, 15, 65, 7, 53, 36]
    assert chance.octets(2, 3).tolist() == chance_octets()
    spread = Chance(1).octets(200, 200).astype(np.float64)
    assert abs(spread.mean() - 127.5) < 2 and abs(spread.std() - 73.9) < 2


def chance_octets() -> list[list[int]]:
    other = Chance(7)
    for _ in range(6):
        other.unit()
    return other.octets(2, 3).tolist()


@pytest.mark.parametrize("sample_rows", [4, 8, 16])
def test_coverage_is_area(sample_rows):
    box = rectangle((1.25, 0.5, 3.5, 2.0))
    window = coverage_of([box], (4, 6), sample_rows=sample_rows)
    expected = np.outer([0.5, 1.0], [0.75, 1.0, 0.5]) * FULL
    assert (window.x, window.y) == (1, 0)
    np.testing.assert_array_equal(window.coverage, expected)


def test_coverage_of_curves_sums_to_their_area():
    for seed in range(20):
        chance = Chance(seed)
        x, y = chance.between(5, 20), chance.between(5, 20)
        shape = oval((x, y, x + chance.between(5, 60), y + chance.between(5, 60)), 60)
        a, b = shape, np.roll(shape, -1, 0)
        area = abs(float((a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]).sum())) / 2
        covered = coverage_of([shape], (100, 100), sample_rows=16).coverage.sum() / FULL
        assert covered == pytest.approx(area, rel=0.01)


def test_holes_unions_and_edges_of_the_canvas():
    outer, inner = rectangle((0, 0, 8, 8)), rectangle((2, 2, 6, 6))
    ring = coverage_of([outer, inner[::-1]], (8, 8)).coverage
    assert ring[4, 4] == 0 and ring[1, 1] == FULL
    union = coverage_of([outer, inner], (8, 8)).coverage
    assert (union == FULL).all()
    assert coverage_of([rectangle((-9, -9, -1, -1))], (8, 8)) is None
    assert coverage_of([], (8, 8)) is None
    cut = coverage_of([rectangle((-5, -5, 4, 50))], (8, 8))
    assert cut.coverage.shape == (8, 4) and (cut.coverage == FULL).all()
    part = coverage_of([rectangle((-5, -5, 50, 50))], (8, 8), within=cut)
    assert part.coverage.shape == (8, 4) and (part.coverage == FULL).all()


def test_paint_mixes_and_clips():
    canvas = Canvas(np.zeros((4, 4, 3), np.uint8))
    canvas.fill([rectangle((0, 0, 2, 4))], (200, 100, 50))
    canvas.fill([rectangle((2.5, 0, 4, 4))], (255, 255, 255))
    assert canvas.pixels[0].tolist() == [[200, 100, 50]] * 2 + [[128] * 3, [255] * 3]
    left = coverage_of([rectangle((0, 0, 1, 4))], (4, 4))
    canvas.fill([rectangle((0, 0, 4, 4))], (0, 0, 0), clip=left)
    assert canvas.pixels[0].tolist() == [[0, 0, 0], [200, 100, 50], [128] * 3, [255] * 3]
    canvas.fill([rectangle((0, 0, 4, 4))], (0, 0, 0), opacity=FULL // 2)
    assert canvas.pixels[0].tolist() == [[0, 0, 0], [100, 50, 25], [64] * 3, [128] * 3]


def test_strokes_have_their_width():
    line = stroke(np.array([(2.0, 10.0), (30.0, 10.0)]), 3.0)
    _, y1, _, y2 = extent_of(line)
    assert (y1, y2) == (8.5, 11.5)
    assert stroke(np.array([(2.0, 2.0), (2.0, 2.0)]), 3.0) == []


@pytest.mark.parametrize("quality", [20, 50, 85])
def test_jpeg_is_what_a_jpeg_library_makes_of_it(quality):
    grey = generate_page(3).image[:203, :301].mean(2).astype(np.uint8)
    ours = _compressed(grey.astype(np.int16), quality)
    _, packed = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])
    theirs = cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE).astype(np.int16)
    assert ours.shape == grey.shape
    assert np.abs(ours - theirs).mean() < 0.3
    assert np.abs(ours - grey.astype(np.int16)).mean() > 0.3
