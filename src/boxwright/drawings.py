"""Pictures and videos with the detections drawn, on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2

from boxwright import catalog
from boxwright.detector import Detector
from boxwright.errors import StoreError
from boxwright.store import write_atomic
from boxwright.types import Detections, Image

__all__ = ["Drawer", "Frame", "make_folder", "write_file"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture to look at, or the reason why it cannot be.

    Attributes:
        name: As records name it: the path, with the frame number for videos.
        stem: Relative path without suffix, for result files.
        image: (H, W, 3) uint8 BGR, or None.
        error: Why there is no image.
        video: Key of the video that the frame belongs to, or "".
        fps: Frames per second of that video.
    """

    name: str
    stem: str
    image: Image | None
    error: str = ""
    video: str = ""
    fps: float = 0.0


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        StoreError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            str(folder), f"it cannot be made ({error.strerror})", "choose another place"
        ) from None


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole, in a folder that is made.

    Raises:
        StoreError: It cannot be written.
    """
    make_folder(path.parent)
    write_atomic(path, data)


class Drawer:
    """Writes drawings: a JPEG per picture, a video per video."""

    def __init__(self, detector: Detector, folder: Path | None) -> None:
        """Write into a folder; None draws nothing."""
        self._folder = folder
        self._draw = catalog.task(detector.spec.task).draw
        self._video = ""
        self._writer: cv2.VideoWriter | None = None
        self._part = self._final = Path()

    def draw(self, frame: Frame, found: Detections) -> None:
        """Draw one picture, or add a frame to its video.

        Raises:
            StoreError: It cannot be written.
        """
        if self._folder is None or frame.image is None:
            return
        canvas = self._draw(frame.image, found)
        if frame.video:
            self._add_to_video(frame, canvas)
            return
        ok, data = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, 92])
        if not ok:  # JPEG ends at 65,535 pixels a side
            ok, data = cv2.imencode(".png", canvas)
        suffix = ".jpg" if data[0] == 0xFF else ".png"
        write_file(self._folder / f"{frame.stem}{suffix}", data.tobytes())

    def _add_to_video(self, frame: Frame, canvas: Image) -> None:
        assert self._folder is not None
        if frame.video != self._video:
            self.finish()
            self._final = self._folder / f"{frame.video}.mp4"
            self._part = self._final.with_name(f".{self._final.stem}.part.mp4")
            make_folder(self._final.parent)
            height, width = canvas.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._part), codec, frame.fps, (width, height))
            if not self._writer.isOpened():
                raise _video_error(self._final)
            self._video = frame.video
        assert self._writer is not None
        self._writer.write(canvas)

    def finish(self) -> None:
        """Give the last video its name.

        Raises:
            StoreError: It was not written whole; OpenCV says nothing of a full disk.
        """
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        self._video = ""
        if not _opens_as_video(self._part):
            self._part.unlink(missing_ok=True)
            raise _video_error(self._final)
        self._part.replace(self._final)

    def close(self) -> None:
        """Drop a video that was not finished."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            self._part.unlink(missing_ok=True)


def _opens_as_video(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path))
    try:
        return bool(capture.isOpened() and capture.read()[0])
    finally:
        capture.release()


def _video_error(path: Path) -> StoreError:
    return StoreError(
        str(path), "the video cannot be written", "free some space, or choose another place"
    )
