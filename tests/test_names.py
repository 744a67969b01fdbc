"""Official names: spellings, releases, configurations and checksums."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from boxwright.errors import RequestError
from boxwright.sources import names

SPELLINGS = {
    "official": ("yolo11n", "yolo11n"),
    "v before 11": ("yolov11n-pose", "yolo11n-pose"),
    "no v before 8, detect": ("yolo8s-detect", "yolov8s"),
    "no v before 10, never released": ("yolo10m-seg", "yolov10m-seg"),
    "upper case and .pt": ("YOLOv8N.pt", "yolov8n"),
    "yaml": ("yolo11n.yaml", "yolo11n"),
    "yml": ("yolov11x-obb.yml", "yolo11x-obb"),
    "dash before the number": ("yolo-11n", "yolo11n"),
    "dash before v": ("yolo-v8-m", "yolov8m"),
    "spaces": (" YOLO 11 n ", "yolo11n"),
    "size word, underscore": ("yolov11_small", "yolo11s"),
    "size word, dash": ("yolov8-nano", "yolov8n"),
    "size word, glued": ("yolo26medium", "yolo26m"),
    "x-large": ("yolo11-x-large", "yolo11x"),
    "extra large": ("yolo11_extra_large", "yolo11x"),
    "tiny of 9": ("yolov9-tiny", "yolov9t"),
    "balanced of 10": ("yolov10-balanced", "yolov10b"),
    "segment": ("yolov8n-segment", "yolov8n-seg"),
    "segmentation": ("yolo26l_segmentation", "yolo26l-seg"),
    "classify": ("yolo11m-classify", "yolo11m-cls"),
    "oriented": ("yolo11m-oriented", "yolo11m-obb"),
    "keypoints": ("yolov8x-keypoints", "yolov8x-pose"),
    "task, glued": ("yolo11nseg", "yolo11n-seg"),
    "3": ("yolov3", "yolov3u"),
    "3 with u": ("yolov3u", "yolov3u"),
    "3 tiny": ("yolov3-tiny", "yolov3-tinyu"),
    "3 tiny with u": ("yolo3-tinyu.pt", "yolov3-tinyu"),
    "3 spp": ("yolov3-spp", "yolov3-sppu"),
    "5": ("yolov5n", "yolov5nu"),
    "5 with u": ("yolov5nu", "yolov5nu"),
    "5 at 1280": ("yolov5n6", "yolov5n6u"),
    "5 at 1280 with u": ("yolov5x6u.pt", "yolov5x6u"),
    "5 at 1280 as configured": ("yolov5s-p6.yaml", "yolov5s6u"),
    "6": ("yolo6n", "yolov6n"),
    "12": ("yolov12l", "yolo12l"),
    "26": ("yolov26s-pose", "yolo26s-pose"),
    "outside of the grid": ("RTDETR-L.pt", "rtdetr-l"),
    "outside of the grid, v": ("yolo8s_world", "yolov8s-world"),
    "outside of the grid, case": ("fastsam-s", "FastSAM-s"),
    "outside of the grid, underscore": ("yolo-nas-s", "yolo_nas_s"),
}


@pytest.mark.parametrize(("text", "official"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_spelling(text: str, official: str) -> None:
    assert names.normalise_name(text) == official
    assert names.normalise_name(official) == official, "an official name is its own spelling"


UNKNOWN = {
    "typing error": ("yolo11nn", "yolo11n"),
    "line that is not Ultralytics'": ("yolov7", "it has 3, 5, 6, 8, 9, 10, 11, 12, 26"),
    "line that does not exist": ("yolov13n", "no YOLO13"),
    "no size": ("yolo11", "yolo11n or yolo11s or yolo11m or yolo11l or yolo11x"),
    "no size, with a task": ("yolov8-seg", "yolov8n-seg or yolov8s-seg"),
    "size of another line": ("yolov9n", "no size n; did you mean yolov9t?"),
    "size of another line, large": ("yolov8e", "no size e; did you mean yolov8x?"),
    "u where there is none": ("yolov8nu", "yolov8n"),
    "p6 where there is none": ("yolo11n6", "yolo11n"),
    "two sizes": ("yolo11n-small", "yolo11n"),
    "something else": ("resnet50", "names look like"),
    "empty": ("", "names look like"),
    "other digits": ("yolo１１n", "yolo"),
    "ONNX": ("yolo11n.onnx", "yolo11n"),
}


@pytest.mark.parametrize(("text", "hint"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown(text: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        names.normalise_name(text)
    assert hint in str(caught.value)
    assert repr(text) in str(caught.value), "the message says what was asked"
    assert "\n" not in str(caught.value)


def test_parts() -> None:
    assert names.parse_name("yolo5x6") == names.OfficialName("yolov5x6u", 5, "x6", "detect")
    assert names.parse_name("yolo10m-seg") == names.OfficialName("yolov10m-seg", 10, "m", "seg")


NEVER_RELEASED = {
    "task of 10": ("yolov10m-seg", ("yolov10m", "yolo11m-seg")),
    "size of 10": ("yolov10b-seg", ("yolov10b", "yolo11l-seg")),
    "task of 12": ("yolo12n-pose", ("yolo12n", "yolo11n-pose")),
    "size of 9": ("yolov9t-seg", ("yolov9t", "yolov9c-seg", "yolov8n-seg")),
    "task of 5": ("yolov5n-seg", ("yolov5nu", "yolov8n-seg")),
    "line 6": ("yolov6l", ("yolov5lu",)),
    "tiny of 3": ("yolov3-tiny-seg", ("yolov3-tinyu",)),
}


@pytest.mark.parametrize(("name", "near"), NEVER_RELEASED.values(), ids=NEVER_RELEASED.keys())
def test_never_released(name: str, near: tuple[str, ...]) -> None:
    assert not names.released(name)
    found = names.nearest_released(name)
    assert found[: len(near)] == near
    assert all(names.released(each) for each in found)
    with pytest.raises(RequestError, match="ever released; fetch " + " or ".join(near)):
        names.release_url(name)


@pytest.mark.parametrize(
    "name",
    ["yolov3u", "yolov3-sppu", "yolov5n6u", "yolov8x-oiv7", "yolov9c-seg", "yolov10b",
     "yolo11l-cls", "yolo12x", "yolo26n-obb", "rtdetr-x", "yoloe-26x-seg-pf"],
)  # fmt: skip
def test_released(name: str) -> None:
    assert names.released(name)
    assert names.release_url(name) == (
        f"https://github.com/ultralytics/assets/releases/download/v8.4.0/{name}.pt"
    )


def test_unknown_name_is_never_just_unreleased() -> None:
    with pytest.raises(RequestError):
        names.released("yolov99n")


def test_mirror() -> None:
    assert names.release_url("yolo8n", "http://here/a/") == "http://here/a/yolov8n.pt"


CONFIGS = {
    "11": ("yolo11n", "yolo11n.yaml"),
    "11 task": ("yolov11n-seg", "yolo11n-seg.yaml"),
    "3": ("yolov3u", "yolov3.yaml"),
    "3 tiny": ("yolov3-tinyu", "yolov3-tiny.yaml"),
    "5": ("yolov5nu", "yolov5n.yaml"),
    "5 at 1280": ("yolov5x6u", "yolov5x-p6.yaml"),
    "6, never released": ("yolov6n", "yolov6n.yaml"),
    "12 task, never released": ("yolo12n-seg", "yolo12n-seg.yaml"),
    "9": ("yolov9e-seg", "yolov9e-seg.yaml"),
    "10": ("yolov10b", "yolov10b.yaml"),
    "outside of the grid": ("rtdetr-l", "rtdetr-l.yaml"),
}


@pytest.mark.parametrize(("name", "config"), CONFIGS.values(), ids=CONFIGS.keys())
def test_config(name: str, config: str) -> None:
    assert names.config_name(name) == config


@pytest.mark.parametrize("name", ["yolov10m-seg", "yolov9t-seg", "yolov8n-oiv7", "sam_b"])
def test_no_config(name: str) -> None:
    with pytest.raises(RequestError, match="Ultralytics has none"):
        names.config_name(name)


def test_configs_exist_in_ultralytics() -> None:
    spec = importlib.util.find_spec("ultralytics")  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("ultralytics is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "cfg" / "models"
    shipped = {path.name for path in folder.rglob("*.yaml")}
    for name in names._KNOWN:
        try:
            config = names.config_name(name)
        except RequestError:
            continue
        # Ultralytics finds a size's configuration under the name without the size.
        scaled = re.sub(r"(\d+)[nslmx](.+)$", r"\1\2", config)
        assert config in shipped or scaled in shipped, config


def test_every_checksum_is_of_a_release_and_whole() -> None:
    assert len(names._CHECKSUMS) >= 3
    assert len({c.sha256 for c in names._CHECKSUMS.values()}) == len(names._CHECKSUMS)
    for name, checksum in names._CHECKSUMS.items():
        assert names.released(name)
        assert re.fullmatch(r"[0-9a-f]{64}", checksum.sha256), name
        assert 1_000_000 < checksum.size_bytes < 500_000_000, name


def test_checksum() -> None:
    assert names.release_checksum("yolov11n.pt") == names.Checksum(
        5613764, "0ebbc80d4a7680d14987a577cd21342b65ecfd94632bd9a8da63ae6417644ee1"
    )
    assert names.release_checksum("yolov10m") is None


def test_imports_nothing_heavy() -> None:
    """The module needs the standard library and the exceptions alone."""
    nodes = list(ast.walk(ast.parse(Path(names.__file__).read_text(encoding="utf-8"))))
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"collections.abc", "boxwright.errors"}
