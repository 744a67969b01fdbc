"""Draws the README's pictures: three generated pages with what the embedded detector finds.

python tools/make_readme_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import cv2

import boxwright
from boxwright.sample import generate_page, onnx_file
from boxwright.tasks.detect import draw_boxes

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
SEEDS = (46, 47, 57)
HEIGHT = 800


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    detector = boxwright.load(onnx_file(), "onnxruntime", quiet=True)
    for seed in SEEDS:
        image = generate_page(seed).image
        drawn = draw_boxes(image, detector(image))
        factor = HEIGHT / drawn.shape[0]
        small = cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        path = FOLDER / f"page_{seed:06d}.jpg"
        cv2.imwrite(str(path), small, [cv2.IMWRITE_JPEG_QUALITY, 80])
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
