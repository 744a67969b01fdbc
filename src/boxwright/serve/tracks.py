"""The tracks, the formats they are made of, and what everything is called. Pure data.

A track is a way from a picture to boxes: A raw ONNX, B raw TensorRT plan, C end-to-end files, D
DALI in front of C, E graphs that take pictures, F a file of C with all around it in one process. A
format is one file of a track.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from boxwright.errors import RequestError, nearest_name

__all__ = [
    "DEFAULT_TEMPLATE",
    "FORMATS",
    "FUSED",
    "SIZES",
    "TRACKS",
    "Format",
    "FormatName",
    "Track",
    "formats_of_tracks",
    "largest_batch",
    "model_name",
    "size_of",
    "stem_of",
]

Track: TypeAlias = Literal["a", "b", "c", "d", "e", "f"]
FormatName: TypeAlias = Literal[
    "onnx",
    "trt",
    "onnx_end2end",
    "trt_end2end",
    "dali",
    "onnx_image",
    "trt_image",
    "onnx_fused",
    "trt_fused",
]
DEFAULT_TEMPLATE = "{stem}{suffix}"


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of served file.

    Attributes:
        name: As `--formats` takes it.
        track: That it belongs to.
        suffix: Behind the stem of its folder.
        outputs: Of the file.
        input: Of the file.
        plan: Whether it is a TensorRT plan.
    """

    name: FormatName
    track: Track
    suffix: str
    outputs: Literal["raw", "end2end"]
    input: Literal["tensor", "image"]
    plan: bool


FORMATS: Mapping[FormatName, Format] = {
    f.name: f
    for f in (
        Format("onnx", "a", "", "raw", "tensor", False),
        Format("trt", "b", "_trt", "raw", "tensor", True),
        Format("onnx_end2end", "c", "_end2end", "end2end", "tensor", False),
        Format("trt_end2end", "c", "_trt_end2end", "end2end", "tensor", True),
        Format("dali", "d", "_dali", "end2end", "tensor", False),
        Format("onnx_image", "e", "_image", "end2end", "image", False),
        Format("trt_image", "e", "_trt_image", "end2end", "image", True),
        Format("onnx_fused", "f", "_fused", "end2end", "tensor", False),
        Format("trt_fused", "f", "_trt_fused", "end2end", "tensor", True),
    )
}
TRACKS: Mapping[Track, tuple[FormatName, ...]] = {
    "a": ("onnx",),
    "b": ("trt",),
    "c": ("onnx_end2end", "trt_end2end"),
    "d": ("dali",),
    "e": ("onnx_image", "trt_image"),
    "f": ("onnx_fused", "trt_fused"),
}
# The formats of track F, and those whose files they serve.
FUSED: Mapping[FormatName, FormatName] = {
    "onnx_fused": "onnx_end2end",
    "trt_fused": "trt_end2end",
}

# Word of a size, and the pictures that a batch of it holds unless another number is given.
SIZES: Mapping[str, int] = {"nano": 128, "small": 64, "medium": 32, "large": 16, "xlarge": 8}
_OTHER_SIZE = 16
_LETTERS = {
    "n": "nano", "t": "nano", "s": "small", "m": "medium", "b": "large", "c": "large",
    "l": "large", "x": "xlarge", "e": "xlarge",
}  # fmt: skip
_OFFICIAL = re.compile(r"yolo(?:v|x[-_]?)?(\d+)?[-_]?([ntsmbclxe])(?![a-z])", re.IGNORECASE)
_WORDS = re.compile(r"(nano|tiny|small|medium|large|xlarge)", re.IGNORECASE)
_SAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def formats_of_tracks(tracks: Iterable[Track]) -> tuple[FormatName, ...]:
    """Return the formats of some tracks.

    >>> formats_of_tracks(["a", "c"])
    ('onnx', 'onnx_end2end', 'trt_end2end')
    """
    return tuple(name for track in tracks for name in TRACKS[track])


def size_of(name: str) -> str | None:
    """Return the size word of a model's name; None when the name has none.

    >>> size_of("yolo11s"), size_of("yolov9t_volleyball"), size_of("yolox_nano"), size_of("best")
    ('small', 'nano', 'nano', None)
    """
    match = _OFFICIAL.match(name)
    if match and match.group(1):
        return _LETTERS[match.group(2).lower()]
    words = _WORDS.findall(name)
    if words:
        return "nano" if words[-1].lower() == "tiny" else str(words[-1]).lower()
    return _LETTERS[match.group(2).lower()] if match else None


def stem_of(name: str) -> str:
    """Return the stem of a model's folders: the guides' for official names, else the name itself.

    >>> stem_of("yolo11s"), stem_of("yolov8n"), stem_of("text block")
    ('yolov11_small', 'yolov8_nano', 'text_block')
    """
    match = re.fullmatch(r"yolov?(\d+)([nsmlx])", name, re.IGNORECASE)
    if match:
        return f"yolov{match.group(1)}_{_LETTERS[match.group(2).lower()]}"
    return _SAFE.sub("_", name).strip("._") or "model"


def largest_batch(name: str, given: Mapping[str, int]) -> int:
    """Return the largest batch of a model.

    Args:
        name: Of the model.
        given: Numbers that replace the table's, by size; "" is for every model.

    >>> largest_batch("yolo11n", {}), largest_batch("yolo11n", {"": 4}), largest_batch("best", {})
    (128, 4, 16)
    """
    size = size_of(name)
    if size is not None and size in given:
        return given[size]
    if "" in given:
        return given[""]
    return SIZES[size] if size is not None else _OTHER_SIZE


def model_name(template: str, name: str, suffix: str) -> str:
    """Return the name of a served model, which is that of its folder.

    Args:
        template: Text with `{suffix}`, and `{stem}`, `{name}` or `{size}`.
        name: Of the model.
        suffix: Of the format.

    Raises:
        RequestError: The template has another field, or none for the suffix.

    >>> model_name(DEFAULT_TEMPLATE, "yolo11s", "_trt"), model_name("{name}{suffix}", "best", "")
    ('yolov11_small_trt', 'best')
    """
    fields = {"stem": stem_of(name), "name": name, "size": size_of(name) or "", "suffix": suffix}
    asked = f"--name-template {template}"
    try:
        result = template.format_map(fields)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        near = nearest_name(str(error).strip("'"), fields)
        hint = f"did you mean {{{near}}}?" if near else f"known are {', '.join(fields)}"
        raise RequestError(asked, f"it has a field that is not known ({error})", hint) from None
    if "{suffix}" not in template:
        raise RequestError(asked, "it has no {suffix}, and two folders would be one", "add it")
    if _SAFE.search(result) or result.startswith("."):
        raise RequestError(
            asked, f"{result!r} is no name of a folder", "use letters, digits, _, - and ."
        )
    return result
