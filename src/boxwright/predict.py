"""Detection over many inputs, with records and drawings on disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np

from boxwright.detector import Detector
from boxwright.drawings import Drawer, Frame, write_file
from boxwright.errors import ImageError, RequestError, StoreError, nearest_name
from boxwright.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, expand_paths, read_image
from boxwright.types import Detections

__all__ = [
    "Frame",
    "Inputs",
    "Summary",
    "Threads",
    "Wishes",
    "class_ids_from_text",
    "open_inputs",
    "predict",
]


Answers: TypeAlias = "Generator[tuple[Frame, Detections | None], None, None]"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What to look at.

    Attributes:
        total: How many pictures, as far as that is known.
        frames: The pictures, read one after the other.
        files: (path, stem) of each where all are picture files, which threads may read; or None.
    """

    total: int | None
    frames: Callable[[], Iterator[Frame]]
    files: Sequence[tuple[Path, str]] | None = None


@dataclass(frozen=True, slots=True)
class Threads:
    """How pictures are read while the network runs.

    Attributes:
        decoders: Threads that read and decode.
        decode: `gpu` decodes JPEG files on the GPU.
        preprocess: `gpu` letterboxes on the GPU.
    """

    decoders: int
    decode: Literal["cpu", "gpu"] = "cpu"
    preprocess: Literal["host", "gpu"] = "host"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to save, and where.

    Attributes:
        drawings: Folder for pictures and videos with the detections drawn.
        json_file: List of {image, width, height, detections}.
        coco_file: COCO results; image ids are the numbers in the names, else positions.
        text_folder: YOLO text, a file per picture.
        text_scores: Scores as the sixth column of the text.
        force: Replace files that are there.
    """

    drawings: Path | None = None
    json_file: Path | None = None
    coco_file: Path | None = None
    text_folder: Path | None = None
    text_scores: bool = False
    force: bool = False

    def check(self) -> None:
        """Refuse results that would replace files, or that cannot be written, before any work.

        Raises:
            StoreError: A file is there already, or a folder cannot be made.
            RequestError: Two results would be one file.
        """
        try:
            self._check()
        except OSError as error:
            raise StoreError(
                str(error.filename), f"it cannot be written ({error.strerror})", "choose another"
            ) from None

    def _check(self) -> None:
        files = [f for f in (self.json_file, self.coco_file) if f is not None]
        if len(files) == 2 and files[0].absolute() == files[1].absolute():
            raise RequestError(
                f"--save-json --save-coco {files[0]}", "both name one file", "name two files"
            )
        for file in files:
            if file.is_dir():
                raise StoreError(str(file), "it is a folder", "name a file")
            if file.exists() and not self.force:
                raise StoreError(str(file), "it is there already", "use --force, or another name")
        folders = [f for f in (self.drawings, self.text_folder) if f is not None]
        for folder in folders:
            if folder.is_dir() and any(folder.iterdir()) and not self.force:
                raise StoreError(str(folder), "it is not empty", "use --force, or another folder")
        parents = [f.parent for f in files]
        for folder in [*folders, *parents]:
            nearest = folder
            while not nearest.exists():
                nearest = nearest.parent
            if not nearest.is_dir() or not os.access(nearest, os.W_OK):
                raise StoreError(str(folder), "it cannot be written", "choose another place")


@dataclass(slots=True)
class Summary:
    """What was found.

    Attributes:
        records: {image, width, height, detections} of every picture that was read.
        read, failed: Pictures that could and could not be read.
        detections: Over all pictures.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    coco: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    failed: int = 0
    detections: int = 0


def class_ids_from_text(text: str | None, names: Sequence[str]) -> list[int] | None:
    """Read `--classes`: names or ids, a comma list.

    Raises:
        RequestError: A class is unknown; the nearest is named.

    >>> class_ids_from_text("bus,0", ["person", "bus"])
    [1, 0]
    """
    if text is None:
        return None
    found = []
    for word in (w.strip() for w in text.split(",")):
        if word in names:
            found.append(list(names).index(word))
        elif re.fullmatch("[0-9]{1,9}", word) and int(word) < len(names):
            found.append(int(word))
        else:
            near = nearest_name(word, names)
            hint = f"did you mean {near}?" if near else f"give names or ids 0 to {len(names) - 1}"
            raise RequestError(f"--classes {word}", "the model has no such class", hint)
    return found


def open_inputs(texts: Sequence[str], max_frames: int | None = None) -> Inputs:
    """Turn paths, folders, globs, videos and camera numbers into pictures.

    Raises:
        ImageError: A path does not exist, or a folder or glob yields nothing.
    """
    cameras = [t for t in texts if re.fullmatch("[0-9]{1,4}", t) and not Path(t).exists()]
    others = [t for t in texts if t not in cameras]
    paths = expand_paths(others, IMAGE_SUFFIXES | VIDEO_SUFFIXES) if others else []
    stems = _stems(paths, [Path(t) for t in others if Path(t).is_dir()])
    videos = [p for p in paths if p.suffix.lower() in VIDEO_SUFFIXES]

    def frames() -> Iterator[Frame]:
        for path in paths:
            if path in videos:
                yield from _video_frames(str(path), stems[path], max_frames)
                continue
            try:
                yield Frame(str(path), stems[path], read_image(path))
            except ImageError as error:
                yield Frame(str(path), stems[path], None, str(error))
        for camera in cameras:
            yield from _video_frames(int(camera), f"camera{camera}", max_frames)

    if cameras or videos:
        return Inputs(None, frames)
    return Inputs(len(paths), frames, [(p, stems[p]) for p in paths])


def _stems(paths: list[Path], roots: list[Path]) -> dict[Path, str]:
    """Return a distinct relative stem for every file; folders keep their inner structure."""
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        root = next((r for r in roots if r in path.parents), path.parent)
        stem = str(path.relative_to(root).with_suffix(""))
        unique, number = stem, 2
        while unique in taken:
            unique, number = f"{stem}_{number}", number + 1
        taken.add(unique)
        stems[path] = unique
    return stems


def _video_frames(source: str | int, stem: str, max_frames: int | None) -> Iterator[Frame]:
    name = f"camera {source}" if isinstance(source, int) else source
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            yield Frame(name, stem, None, f"{name}: it cannot be opened as a video; check it")
            return
        fps = float(capture.get(cv2.CAP_PROP_FPS)) or 25.0
        number = 0
        while max_frames is None or number < max_frames:
            ok, image = capture.read()
            if not ok:
                break
            picture = np.asarray(image, np.uint8)
            yield Frame(f"{name}#{number}", f"{stem}_{number:06d}", picture, "", stem, fps)
            number += 1
        if number == 0:
            yield Frame(name, stem, None, f"{name}: the video holds no readable frame; check it")
    finally:
        capture.release()


def predict(
    detector: Detector,
    inputs: Inputs,
    wishes: Wishes,
    *,
    batch: int = 1,
    class_ids: Sequence[int] | None = None,
    threads: Threads | None = None,
    advance: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Detect in every picture and save what was wished for.

    The detections are the same with threads and without, where nothing is done on the GPU.

    Args:
        detector: The model.
        inputs: The pictures.
        wishes: What to save.
        batch: Pictures per inference.
        class_ids: Keep only these classes.
        threads: Read ahead in threads; None reads one picture after the other.
        advance: Called after each picture.
        report: Told of each picture that cannot be read.

    Raises:
        StoreError: A result cannot be written.
        BackendError: The runtime fails.
        RequestError: Threads are asked for inputs that are not picture files.
    """
    summary = Summary()
    drawer = Drawer(detector, wishes.drawings)
    if threads is None:
        answers = _in_turn(detector, inputs, batch, class_ids)
    else:
        keep = wishes.drawings is not None
        answers = _in_threads(detector, inputs, batch, class_ids, threads, keep, report)
    try:
        with closing(answers):
            for frame, found in answers:
                if found is None:
                    summary.failed += 1
                    report(frame.error)
                else:
                    _keep(frame, found, wishes, drawer, summary)
                advance()
        drawer.finish()
    finally:
        drawer.close()
    if wishes.json_file is not None:
        _write_json(wishes.json_file, summary.records)
    if wishes.coco_file is not None:
        _write_json(wishes.coco_file, summary.coco)
    return summary


def _in_turn(
    detector: Detector, inputs: Inputs, batch: int, class_ids: Sequence[int] | None
) -> Answers:
    """Yield every frame with what was found, or None when it could not be read."""
    waiting: list[Frame] = []

    def found() -> Iterator[tuple[Frame, Detections]]:
        images = [f.image for f in waiting if f.image is not None]
        if images:
            yield from zip(waiting, detector(images, class_ids=class_ids), strict=True)
        waiting.clear()

    for frame in inputs.frames():
        if frame.image is None:
            yield frame, None
            continue
        waiting.append(frame)
        if len(waiting) == batch:
            yield from found()
    yield from found()


def _in_threads(
    detector: Detector,
    inputs: Inputs,
    batch: int,
    class_ids: Sequence[int] | None,
    threads: Threads,
    keep_images: bool,
    report: Callable[[str], None],
) -> Answers:
    """Do the same, while threads read ahead."""
    from boxwright.stream import Stream

    if inputs.files is None:
        raise RequestError(
            "--decoders, --decode, --preprocess",
            "threads read picture files, not videos or cameras",
            "drop these options",
        )
    with Stream(
        detector,
        batch=batch,
        decoders=threads.decoders,
        decode=threads.decode,
        preprocess=threads.preprocess,
        class_ids=class_ids,
        keep_images=keep_images,
    ) as stream:
        files = inputs.files
        for seen in stream.detect(path for path, _ in files):
            path, stem = files[seen.index]
            yield Frame(str(path), stem, seen.image, seen.error), seen.detections
    if stream.decoded_on_host:
        report(f"{stream.decoded_on_host} JPEG files were decoded on the CPU: the GPU does not")


def _keep(
    frame: Frame, found: Detections, wishes: Wishes, drawer: Drawer, summary: Summary
) -> None:
    """Write down and draw what was found in one picture."""
    height, width = found.image_size
    summary.read += 1
    summary.detections += len(found)
    summary.records.append(
        {
            "image": frame.name,
            "width": width,
            "height": height,
            "detections": found.as_dicts(),
        }
    )
    if wishes.coco_file is not None:
        summary.coco += found.as_coco(_image_id(frame, summary.read))
    if wishes.text_folder is not None:
        lines = found.as_yolo_lines(wishes.text_scores)
        text = "".join(line + "\n" for line in lines)
        write_file(wishes.text_folder / f"{frame.stem}.txt", text.encode())
    drawer.draw(frame, found)


def _image_id(frame: Frame, position: int) -> int:
    """Return COCO's id: the number that the file is named by, else the position from 1."""
    digits = re.fullmatch(r"(?:.*[/\\])?(?:[A-Za-z0-9]+_)*0*(\d+)", frame.stem)
    return int(digits.group(1)) if digits and not frame.video else position


def _write_json(path: Path, value: Any) -> None:
    write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
