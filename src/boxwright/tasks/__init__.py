"""Tasks: what a detector finds, and how it is drawn. One file each, with a `TASK`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from boxwright.types import Detections, Image

__all__ = ["Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: As the metadata names it.
        draw: Returns a copy of a BGR picture with its detections drawn.
    """

    name: str
    draw: Callable[[Image, Detections], Image]
