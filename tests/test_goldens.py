"""Native checkpoints against what their own projects computed: raw outputs, boxes, detections.

Each folder of the goldens holds a checkpoint and arrays; nothing here depends on which are there.
`BOXWRIGHT_GOLDENS` names the folder of those folders.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from boxwright import boxes, catalog
from boxwright.backends import BackendOptions
from boxwright.graph.io import bytes_from_model
from boxwright.preprocess import prepare
from boxwright.sources import SourceRequest
from boxwright.types import NmsSettings

_HERE = Path(__file__).resolve()
_CANDIDATES = [Path(os.environ[n]) for n in ("BOXWRIGHT_GOLDENS",) if n in os.environ] + [
    parent / "shared" / "goldens" / "open" for parent in _HERE.parents
]
GOLDENS = next((p for p in _CANDIDATES if p.is_dir()), None)


def checkpoint(folder):
    found = [p for p in sorted(folder.iterdir()) if p.suffix in (".pt", ".pth")]
    return found[0] if found else None


CASES = sorted(f for f in GOLDENS.iterdir() if f.is_dir() and checkpoint(f)) if GOLDENS else []

if not CASES:
    pytest.skip(
        "NO GOLDENS: set BOXWRIGHT_GOLDENS to their folder; no native checkpoint was compared",
        allow_module_level=True,
    )
torch = pytest.importorskip("torch")

from boxwright.sources import native  # noqa: E402
from boxwright.sources.native_files import read_native  # noqa: E402
from boxwright.sources.torch_export import onnx_from_module  # noqa: E402


class Golden:
    """A folder, its arrays, and its network in torch, once for all tests of the module."""

    def __init__(self, folder):
        self.folder, self.path = folder, checkpoint(folder)
        self.arrays = dict(np.load(folder / "golden.npz"))
        self.file = read_native(self.path)
        self.kind = self.file.config.kind if self.file.config else self.file.project
        self.plain = native.native_network(self.file, self.kind, self.path.name, fused=False)
        self.folded = native.native_network(self.file, self.kind, self.path.name, fused=True)

    def request(self, size):
        return SourceRequest(self.path, "golden", image_size=size)

    def raw(self, side):
        """Return (map name, level, array) of the raw outputs that are stored."""
        for key, value in self.arrays.items():
            if key.startswith(f"{side}_raw_"):
                name, level = key[2:].rsplit("_", 1)
                yield name.removeprefix("raw_"), int(level), value


@pytest.fixture(scope="module", params=CASES, ids=lambda f: f.name)
def golden(request):
    return Golden(request.param)


def decoded(output, spec):
    """Return boxes (A, 4) and scores (A, classes) of the first picture."""
    xyxy, scores = boxes.decode(output[:1], spec.layout, spec.input_size)
    return xyxy[0], scores[0]


def check_decoded(golden, side, xyxy, scores):
    stored = golden.arrays
    assert np.abs(xyxy - stored[f"{side}_boxes_xyxy"]).max() <= 0.05
    if f"{side}_scores" in stored:
        assert np.abs(scores - stored[f"{side}_scores"]).max() <= 1e-4
    else:
        assert np.abs(scores.max(1) - stored[f"{side}_scores_max"]).max() <= 1e-4


def detections(xyxy, scores, *, multi, agnostic=False, keep=300):
    """Return (n, 6) after the projects' rules: conf 0.25, IoU 0.65."""
    if multi and scores.shape[1] > 1:
        anchor, label = np.nonzero(scores > 0.25)
        value = scores[anchor, label]
    else:
        label = scores.argmax(1)
        value = scores[np.arange(len(scores)), label]
        anchor = np.flatnonzero(value > 0.25)
        label, value = label[anchor], value[anchor]
    order = np.argsort(-value, kind="stable")
    anchor, label, value = anchor[order], label[order], value[order]
    rules = NmsSettings(0.25, 0.65, keep_topk=keep, class_agnostic=agnostic)
    kept = boxes.batched_nms(xyxy[anchor], value, label.astype(np.int64), rules)
    return np.column_stack([xyxy[anchor][kept], value[kept], label[kept]])


def check_same_set(found, wanted):
    """The same detections, whatever their order: near ties may swap rows."""
    assert len(found) == len(wanted)
    free = list(range(len(found)))
    for row in wanted:
        near = [
            i
            for i in free
            if found[i, 5] == row[5]
            and abs(found[i, 4] - row[4]) <= 1e-4
            and np.abs(found[i, :4] - row[:4]).max() <= 0.05
        ]
        assert near, f"no detection like {row}"
        free.remove(near[0])


# Stored detections: with every class of an anchor, across classes, and the (lowest, highest)
# coordinates that boxes are clipped to before NMS; None is the network's input.
_ANY = (-np.inf, np.inf)
_KINDS = {
    "det_multilabel": (True, False, _ANY),
    "det_singlelabel": (False, False, _ANY),
    "det_classaware": (False, False, _ANY),
    "det_agnostic": (False, True, _ANY),
    "det": (True, False, (0.0, None)),
    "det_noclip": (True, False, (0.0, np.inf)),
}


def check_detections(golden, side, xyxy, scores):
    stored, project = golden.arrays, golden.file.config.project if golden.file.config else ""
    keep = scores.size if golden.kind == "yolox" else 300
    height, width = stored[f"{side}_input"].shape[2:]
    limit = np.array([width, height, width, height], np.float32)
    for kind, (multi, agnostic, clip) in _KINDS.items():
        wanted = stored.get(f"{side}_{kind}")
        if wanted is None:
            continue
        if wanted.shape[1] == 7:  # YOLOX keeps objectness and class score apart
            score = wanted[:, 4] * wanted[:, 5]
            wanted = np.column_stack([wanted[:, :4], score, wanted[:, 6]])
        candidates = np.clip(xyxy, clip[0], limit if clip[1] is None else clip[1])
        rules = {"multi": multi, "agnostic": agnostic, "keep": keep}
        found = detections(candidates, scores, **rules)
        if project == "mmyolo":  # it clips what NMS has kept
            found[:, :4] = np.clip(found[:, :4], 0, limit)
        check_same_set(found, wanted)


long = pytest.mark.long


@pytest.mark.parametrize(
    ("form", "side"),
    [
        ("plain", "b"),
        ("folded", "a"),
        pytest.param("plain", "a", marks=long),
        pytest.param("folded", "b", marks=long),
    ],
)
def test_torch(golden, side, form):
    picture = golden.arrays[f"{side}_input"]
    spec = native.SOURCE.describe(golden.request(picture.shape[2:]))
    network = getattr(golden, form)
    with torch.inference_mode():
        tensor = torch.from_numpy(picture)
        maps, output = network.maps(tensor), network(tensor).numpy()
    compared = 0
    for name, level, wanted in golden.raw(side):
        found = maps[name][level].numpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-3
        compared += 1
    assert compared >= 3
    xyxy, scores = decoded(output, spec)
    check_decoded(golden, side, xyxy, scores)
    check_detections(golden, side, xyxy, scores)


class Flat(torch.nn.Module):
    """The raw maps as a tuple, to export them."""

    def __init__(self, network, names):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, images):
        maps = self.network.maps(images)
        return torch.cat([level.flatten(1) for n in self.names for level in maps[n]], dim=1)


def test_onnx(golden, request):
    # All of them take minutes; every eighth always runs, `pytest -m ""` runs the others.
    if CASES.index(golden.folder) % 8 and "not long" in (request.config.option.markexpr or ""):
        pytest.skip("of the exported files every eighth is compared; all with: pytest -m ''")
    picture = golden.arrays["b_input"]
    asked = golden.request(picture.shape[2:])
    raw = native.SOURCE.export(asked)
    onnxruntime = catalog.backend("onnxruntime")
    with_decode = onnxruntime.open_bytes(bytes_from_model(raw.model, "golden"), BackendOptions())
    output = next(iter(with_decode.infer({"images": picture}).values()))
    xyxy, scores = decoded(output, raw.spec)
    check_decoded(golden, "b", xyxy, scores)
    check_detections(golden, "b", xyxy, scores)
    wanted = list(golden.raw("b"))
    names = list(dict.fromkeys(name for name, _, _ in wanted))
    bare = dataclasses.replace(asked, simplify=False)
    model = onnx_from_module(Flat(golden.folded, names), asked.image_size, "maps", bare)
    runtime = onnxruntime.open_bytes(bytes_from_model(model, "golden"), BackendOptions())
    flat = runtime.infer({"images": picture})["maps"][0]
    by_name = {(n, level): value for n, level, value in wanted}
    expected = [by_name[n, i].ravel() for n in names for i in range(len(golden.file.strides))]
    assert np.abs(flat - np.concatenate(expected)).max() <= 1e-3


def test_preprocess(golden):
    stored = golden.arrays
    if "pre_image_bgr_uint8" not in stored:
        pytest.skip("this golden stores no picture")
    wanted = stored["pre_input"][0]
    spec = native.SOURCE.describe(golden.request(wanted.shape[1:]))
    out = np.empty(wanted.shape, np.float32)
    prepare(stored["pre_image_bgr_uint8"], wanted.shape[1:], spec.preprocess, out)
    # One grey level: OpenCV's releases round its filters differently.
    level = spec.preprocess.scale / min(spec.preprocess.std)
    assert np.abs(out - wanted).max() <= level * 1.01
