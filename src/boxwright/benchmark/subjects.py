"""What is looked at, and what a file costs by counting: prepared before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2

from boxwright.detector import Detector
from boxwright.errors import RequestError
from boxwright.image_parity import fitted
from boxwright.images import expand_paths, read_image
from boxwright.measurement.records import ModelCost

__all__ = ["chosen_batches", "cost_of", "pictures_for", "pictures_of_one_size"]

_SAMPLE_CLASSES = ("text_block",)
_GENERATED = 4
_FIRST_SEED = 42  # the sample detector was never trained on seeds under 100000


def pictures_for(
    images: Sequence[str], max_images: int, detector: Detector, folder: Path, seed: int
) -> tuple[list[Path], str]:
    """Return picture files to detect in, each of which can be read, and what they are in words.

    Args:
        images: Files, folders, globs; empty for generated ones.
        max_images: At most so many, evenly spaced.
        detector: The first file to be measured; generated pictures suit it.
        folder: Where generated pictures are written.
        seed: Of generated pictures.

    Raises:
        ImageError: One cannot be read.
    """
    if images:
        found = expand_paths(images)
        if len(found) > max_images:
            step = len(found) / max_images
            found = [found[int(i * step)] for i in range(max_images)]
        for path in found:
            read_image(path)
        return found, f"{len(found)} of --images"
    if detector.spec.class_names == _SAMPLE_CLASSES:
        from boxwright.sample.pages_on_disk import png_bytes, sample_pages

        paths = []
        for page in sample_pages(range(_FIRST_SEED, _FIRST_SEED + _GENERATED)):
            paths.append(folder / page.name)
            paths[-1].write_bytes(png_bytes(page.page))
        return paths, f"{_GENERATED} generated comic pages (PNG)"
    from boxwright.pictures import generated_pictures

    paths = []
    for index, picture in enumerate(
        generated_pictures(detector.spec.input_size, _GENERATED, seed=seed)
    ):
        done, data = cv2.imencode(".jpg", picture)
        assert done, "a picture can be a JPEG"
        paths.append(folder / f"generated_{index}.jpg")
        paths[-1].write_bytes(data.tobytes())
    return paths, f"{_GENERATED} generated pictures without objects (JPEG)"


def pictures_of_one_size(
    pictures: Sequence[Path], detector: Detector, batch: int, folder: Path
) -> list[Path]:
    """Return pictures that a file can take in one batch; most files take any.

    A file that takes pictures as they are wants those of one size together, or of its only size.
    Where they are of others, JPEG copies are stretched to it, or to the first one's size.

    Args:
        pictures: What all files look at.
        detector: The file.
        batch: Pictures of one call.
        folder: Where copies are written.
    """
    only = detector.target.source_size
    if detector.target.input != "image" or (only is None and batch == 1):
        return list(pictures)
    images = [read_image(path) for path in pictures]
    size = only or (images[0].shape[0], images[0].shape[1])
    found = []
    for number, (path, image) in enumerate(zip(pictures, images, strict=True)):
        if image.shape[:2] != size:
            done, data = cv2.imencode(".jpg", fitted(image, size))
            assert done, "a picture can be a JPEG"
            path = folder / f"{size[0]}x{size[1]}_{number}.jpg"
            path.write_bytes(data.tobytes())
        found.append(path)
    return found


def chosen_batches(asked: Sequence[int], detector: Detector, name: str) -> list[int]:
    """Return the batch sizes to measure a file with.

    Raises:
        RequestError: The file is fixed to another.
    """
    fixed = detector.fixed_batch
    if not asked:
        return [fixed or 1]
    wrong = [b for b in asked if fixed not in (None, b)]
    if wrong:
        raise RequestError(
            f"--batch {wrong[0]}", f"{name} takes {fixed} pictures only", f"use --batch {fixed}"
        )
    return list(dict.fromkeys(asked))


def cost_of(path: Path | str, input_size: tuple[int, int]) -> ModelCost | None:
    """Count parameters and FLOPs of an ONNX file; None for other files."""
    if isinstance(path, str) or path.suffix.lower() != ".onnx":
        return None
    from boxwright.graph.flops import count_flops, count_parameters
    from boxwright.graph.io import model_from_file

    model = model_from_file(path)
    return ModelCost(count_parameters(model), count_flops(model), input_size)
