"""Official Ultralytics model names: how they are spelt, which were released, what their bytes are.

People write `yolov11n-pose`, `yolo8s-detect` or `YOLOv8N.pt`; releases and configurations know one
spelling each. This module knows both, from tables: no network, no file, standard library only.

The facts (names of release assets and of configurations) are those of the `ultralytics` package
8.4. The checksums were published by at least two independent public projects each; a name without
one is checked by size and by a record of the first download instead (see `sources.hub`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from boxwright.errors import RequestError, nearest_name

__all__ = [
    "RELEASES_URL",
    "Checksum",
    "OfficialName",
    "Task",
    "config_name",
    "nearest_released",
    "normalise_name",
    "parse_name",
    "release_checksum",
    "release_url",
    "released",
]

RELEASES_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"

Task: TypeAlias = Literal["detect", "seg", "pose", "obb", "cls"]


class Checksum(NamedTuple):
    """What a file must be: its size in bytes and its SHA-256 in lower-case hexadecimal."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OfficialName:
    """A name taken apart.

    Attributes:
        text: The official spelling, without a suffix: `yolov8n-seg`.
        line: Number of the model line, 8 for YOLOv8; 0 for a name outside of the numbered grid.
        size: Size as it is spelt: `n`, `x6`, `-tiny`.
        task: What the head does; None for a name outside of the grid.
    """

    text: str
    line: int = 0
    size: str = ""
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class _Line:
    """One model line: how it is spelt, its sizes, and the sizes that each task exists in."""

    stem: str
    sizes: tuple[str, ...]
    configs: Mapping[Task, tuple[str, ...]]
    checkpoints: Mapping[Task, tuple[str, ...]]


_TASKS: tuple[Task, ...] = ("detect", "seg", "pose", "obb", "cls")
_NSMLX = tuple("nsmlx")
_V3 = ("", "-tiny", "-spp")
_V5 = (*_NSMLX, *(f"{size}6" for size in _NSMLX))
_V9 = tuple("tsmce")
_V9_TASKS: Mapping[Task, tuple[str, ...]] = {"detect": _V9, "seg": ("c", "e")}
_V10 = tuple("nsmblx")
_EVERY: Mapping[Task, tuple[str, ...]] = dict.fromkeys(_TASKS, _NSMLX)
_LINES: Mapping[int, _Line] = {
    3: _Line("yolov3", _V3, {"detect": _V3}, {"detect": _V3}),
    5: _Line("yolov5", _V5, {"detect": _V5}, {"detect": _V5}),
    6: _Line("yolov6", _NSMLX, {"detect": _NSMLX}, {}),
    8: _Line("yolov8", _NSMLX, _EVERY, _EVERY),
    9: _Line("yolov9", _V9, _V9_TASKS, _V9_TASKS),
    10: _Line("yolov10", _V10, {"detect": _V10}, {"detect": _V10}),
    11: _Line("yolo11", _NSMLX, _EVERY, _EVERY),
    12: _Line("yolo12", _NSMLX, _EVERY, {"detect": _NSMLX}),
    26: _Line("yolo26", _NSMLX, _EVERY, _EVERY),
}

# Size words, and each letter's nearest relative in lines that lack it.
_SIZE_WORDS: Mapping[str, str] = {
    "nano": "n", "tiny": "t", "small": "s", "medium": "m", "balanced": "b", "compact": "c",
    "large": "l", "extralarge": "x", "xlarge": "x", "extended": "e",
}  # fmt: skip
_SIZE_RELATIVES: Mapping[str, str] = {"t": "n", "n": "t", "c": "l", "b": "l", "e": "x", "x": "e"}
_TASK_WORDS: Mapping[str, Task] = {
    "detect": "detect", "detection": "detect", "det": "detect",
    "seg": "seg", "segment": "seg", "segmentation": "seg",
    "pose": "pose", "keypoint": "pose", "keypoints": "pose",
    "obb": "obb", "oriented": "obb",
    "cls": "cls", "classify": "cls", "classification": "cls",
}  # fmt: skip


def _other_releases() -> Iterator[tuple[str, str]]:
    """Yield (name, configuration or "") of the released checkpoints outside of the grid."""
    for size in _NSMLX:
        yield f"yolov8{size}-oiv7", ""
        yield f"yolo26{size}-sem", f"yolo26{size}-sem.yaml"
        yield f"yolo26{size}-depth", f"yolo26{size}-depth.yaml"
        for variant in ("objv1-150", "objv1-seg", "distill", "sem-ade20k"):
            yield f"yolo26{size}-{variant}", ""
    for size in "smlx":
        yield f"yolov8{size}-world", f"yolov8{size}-world.yaml"
        yield f"yolov8{size}-worldv2", f"yolov8{size}-worldv2.yaml"
    for stem, sizes in (("v8", "sml"), ("11", "sml"), ("26", "nsmlx")):
        for size in sizes:
            yield f"yoloe-{stem}{size}-seg", f"yoloe-{stem}{size}-seg.yaml"
            yield f"yoloe-{stem}{size}-seg-pf", ""
    for size in "lx":
        yield f"rtdetr-{size}", f"rtdetr-{size}.yaml"
    yield "yolov8x-pose-p6", "yolov8x-pose-p6.yaml"
    yield "yolo11n-grayscale", ""
    yield from ((f"yolo_nas_{size}", "") for size in "sml")
    yield from ((f"sam_{size}", "") for size in "bl")
    yield from ((f"sam2_{size}", "") for size in "blst")
    yield from ((f"sam2.1_{size}", "") for size in "blst")
    yield from ((f"FastSAM-{size}", "") for size in "sx")
    yield "mobile_sam", ""


_OTHERS: Mapping[str, str] = dict(_other_releases())
_OTHERS_BY_KEY: Mapping[str, str] = {name.lower().replace("_", "-"): name for name in _OTHERS}

# Name, bytes, SHA-256.
_CHECKSUM_TABLE = """
yolov8n        6549796 f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36
yolov8n-seg    7071756 a7cd8f929e1903d78a12a48efecab430209f18dc46cb96c3599a5980c63c423c
yolov8s       22588772 1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a
yolo11n        5613764 0ebbc80d4a7680d14987a577cd21342b65ecfd94632bd9a8da63ae6417644ee1
yolo11s       19313732 85a76fe86dd8afe384648546b56a7a78580c7cb7b404fc595f97969322d502d5
yolo11m       40684120 d5ffc1a674953a08e11a8d21e022781b1b23a19b730afc309290bd9fb5305b95
yolo11m-seg   45400152 eb9a06f63e2206c35d68d839b08c362429ebecf933ad54c1ad68b2fd001c17cf
yolo11x      114636239 7bc158aa95c0ebfdd87f70f01653c1131b93e92522dbe15c228bcd742e773a24
yolo26n        5544453 9b09cc8bf347f0fc8a5f7657480587f25db09b34bf33b0652110fb03a8ad4fef
yolo26s       20422725 646f8bc3fe0a656803d95c294f7852321748cb29d13466a1af8862e2db384a1b
yolo26m       44255705 401cea9ab23ad19246ff7744859816bc599f350e93c9dd30367b6f0a0745d0b7
yolo26l       53211173 9fe3c544f2b19bebad7ea41e76d7ad3d88b7c2f10d11d24430c5311f6b32db26
yolo26x      118667365 9fdd44a31c504547ffb81d2c6d9e6dac3493c8eaa8b0398d3f43bae6c7003e92
yolo26n-seg    6719965 361fbfabab285c3237700b6bb91d7ecfa602cd945fffda8dbe1242829b71e73f
yolo26s-seg   23467933 3da1d83e31caec96f9300eb4064f4f62882c133c7c264d63dfe61a7c197837a4
yolo26m-seg   54750385 16b636f04e8fb6a325b3370f22dc5e5535ff473e384f4d041fd28d788f6ee9f5
yolo26l-seg   63700037 636024306410afa1732692322fba57d22ea2b1c2f07613fcee131a93d7dd380c
yolo26x-seg  142129861 92b3de0065766a17180d6219858717dc9d03cdce8a3ca9576c97fd75aabb64f3
"""
_CHECKSUMS: Mapping[str, Checksum] = {
    name: Checksum(int(size_bytes), sha256)
    for name, size_bytes, sha256 in (row.split() for row in _CHECKSUM_TABLE.strip().splitlines())
}


def _spelling(line: int, size: str, task: Task) -> str:
    """Return the official spelling; the anchor-free YOLOv3 and YOLOv5 detectors end in `u`."""
    if task == "detect":
        return f"{_LINES[line].stem}{size}" + ("u" if line in (3, 5) else "")
    return f"{_LINES[line].stem}{size}-{task}"


_RELEASED: Mapping[str, OfficialName] = {
    name.text: name
    for name in (
        *(
            OfficialName(_spelling(number, size, task), number, size, task)
            for number, line in _LINES.items()
            for task, sizes in line.checkpoints.items()
            for size in sizes
        ),
        *(OfficialName(name) for name in _OTHERS),
    )
}
_KNOWN: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *_RELEASED,
            *(
                _spelling(number, size, task)
                for number, line in _LINES.items()
                for task, sizes in line.configs.items()
                for size in sizes
            ),
        )
    )
)

_SUFFIX = re.compile(r"\.(pt|ya?ml)$")
_NUMBERED = re.compile(r"yolo-?v?-?([0-9]{1,3})(.*)")
_REST = re.compile(
    r"-?(?P<size>{sizes}|[nsmlxtcbe]|spp)?(?:-?(?P<p6>p?6))?(?:-?(?P<u>u))?(?:-?(?P<task>{tasks}))?".format(
        sizes="|".join(_SIZE_WORDS), tasks="|".join(sorted(_TASK_WORDS, key=len, reverse=True))
    )
)


def parse_name(text: str) -> OfficialName:
    """Take apart a model name in whatever spelling a user gave it.

    Case, `v`, `_` for `-`, size words (`nano`), task words (`detect`, `segment`) and a suffix
    (`.pt`, `.yaml`) make no difference. The name need not have been released: see `released`.

    Raises:
        RequestError: no official name is spelt nearly like it, or its size is missing.

    >>> parse_name("YOLOv11_small-segment.pt")
    OfficialName(text='yolo11s-seg', line=11, size='s', task='seg')
    """
    key = _SUFFIX.sub("", re.sub(r"[_\s]+", "-", text.strip().lower()))
    numbered = _NUMBERED.fullmatch(key)
    line = _LINES.get(int(numbered[1])) if numbered else None
    if numbered and line:
        key = f"{line.stem}{numbered[2]}"
    if key in _OTHERS_BY_KEY:
        return OfficialName(_OTHERS_BY_KEY[key])
    match = _REST.fullmatch(re.sub(r"(extra|x)-large", "xlarge", numbered[2])) if numbered else None
    if not numbered or not line or not match:
        raise _unknown(text, key, "" if line or not numbered else numbered[1])
    number = int(numbered[1])
    if match["u"] and number not in (3, 5):
        raise _unknown(text, key)
    size = _size_of(number, match["size"] or "", match["p6"] is not None)
    task = _TASK_WORDS[match["task"] or "detect"]
    if size not in line.sizes:
        raise _unknown_size(text, number, size, task)
    return OfficialName(_spelling(number, size, task), number, size, task)


def normalise_name(text: str) -> str:
    """Return the official spelling of a model name, without a suffix.

    Raises:
        RequestError: no official name is spelt nearly like it, or its size is missing.

    >>> [normalise_name(n) for n in ("yolov11n-pose", "yolo8s-detect", "yolo10m-seg", "YOLOv8N.pt")]
    ['yolo11n-pose', 'yolov8s', 'yolov10m-seg', 'yolov8n']
    """
    return parse_name(text).text


def released(name: str) -> bool:
    """Return whether a checkpoint of this name is among the official release assets.

    Raises:
        RequestError: the name is unknown.

    >>> released("yolo11m-seg"), released("yolo10m-seg")
    (True, False)
    """
    return normalise_name(name) in _RELEASED


def release_url(name: str, base_url: str = RELEASES_URL) -> str:
    """Return where the checkpoint of this name is downloaded from.

    Args:
        name: Any spelling of an official name.
        base_url: Folder that holds the release assets, for mirrors.

    Raises:
        RequestError: the name is unknown or was never released.

    >>> release_url("yolov11n", "https://mirror.example/yolo")
    'https://mirror.example/yolo/yolo11n.pt'
    """
    official = normalise_name(name)
    if official not in _RELEASED:
        near = " or ".join(nearest_released(official))
        raise RequestError(
            f"model {official}", "no checkpoint of it was ever released", f"fetch {near} instead"
        )
    return f"{base_url.rstrip('/')}/{official}.pt"


def release_checksum(name: str) -> Checksum | None:
    """Return the size and SHA-256 of the official checkpoint, or None where they are not known.

    Raises:
        RequestError: the name is unknown.
    """
    return _CHECKSUMS.get(normalise_name(name))


def config_name(name: str) -> str:
    """Return the name of the configuration that Ultralytics builds this model from.

    Raises:
        RequestError: the name is unknown, or Ultralytics has no configuration for it.

    >>> config_name("yolov5nu"), config_name("yolov5n6u"), config_name("yolov6n")
    ('yolov5n.yaml', 'yolov5n-p6.yaml', 'yolov6n.yaml')
    """
    official = parse_name(name)
    if official.task is None:
        config = _OTHERS[official.text]
    elif official.size in _LINES[official.line].configs.get(official.task, ()):
        size = f"{official.size[0]}-p6" if official.size.endswith("6") else official.size
        task = "" if official.task == "detect" else f"-{official.task}"
        config = f"{_LINES[official.line].stem}{size}{task}.yaml"
    else:
        config = ""
    if not config:
        near = " or ".join(nearest_released(official.text))
        raise RequestError(
            f"configuration of {official.text}",
            "Ultralytics has none for this model",
            f"name the checkpoint {near}.pt" if official.task is None else f"try {near}",
        )
    return config


def nearest_released(name: str) -> tuple[str, ...]:
    """Return up to three released names near one that was not: its own line first, then its task.

    Raises:
        RequestError: the name is unknown.

    >>> nearest_released("yolo10m-seg")
    ('yolov10m', 'yolo11m-seg')
    """
    wanted = parse_name(name)
    if wanted.text in _RELEASED or wanted.task is None:
        return (wanted.text,)
    near: list[str] = []
    for same in ("size", "task", "both"):
        candidates = [
            other
            for other in _RELEASED.values()
            if other.task is not None
            and (same == "both" or other.line == wanted.line)
            and (same == "size" or other.task == wanted.task)
            and (same == "task" or _alike(other.size, wanted.size))
        ]
        if candidates:
            near.append(min(candidates, key=lambda other: _distance(wanted, other)).text)
    return tuple(dict.fromkeys(near))


def _alike(size: str, wanted: str) -> bool:
    """Return whether a size is the wanted one or what stands for it in a line without it."""
    return size == wanted or size == _SIZE_RELATIVES.get(wanted)


def _distance(wanted: OfficialName, other: OfficialName) -> tuple[int, bool, bool, int]:
    """Rank a released name: the nearest line, then the same size and task; newer lines win."""
    return (
        abs(other.line - wanted.line),
        other.size != wanted.size,
        other.task != "detect" and other.task != wanted.task,
        -other.line,
    )


def _size_of(line: int, word: str, p6: bool) -> str:
    """Return the size as its line spells it; it may not exist."""
    if line == 3:
        return f"-{word}" if word else ""
    return _SIZE_WORDS.get(word, word) + ("6" if p6 else "")


def _unknown(text: str, key: str, line: str = "") -> RequestError:
    near = nearest_name(key, _KNOWN)
    lines = ", ".join(str(number) for number in _LINES)
    return RequestError(
        f"model name {text!r}",
        f"Ultralytics has no YOLO{line} (it has {lines})"
        if line
        else "no official Ultralytics model is called that",
        f"did you mean {near}?" if near else "names look like yolo11n, yolov8s-seg or yolov10m",
    )


def _unknown_size(text: str, line: int, size: str, task: Task) -> RequestError:
    sizes = _LINES[line].sizes
    relative = _SIZE_RELATIVES.get(size, "")
    examples = [relative] if relative in sizes else sizes[:5]
    return RequestError(
        f"model name {text!r}",
        f"{_LINES[line].stem} has no size {size.lstrip('-')}" if size else "it names no size",
        f"did you mean {' or '.join(_spelling(line, each, task) for each in examples)}?",
    )
