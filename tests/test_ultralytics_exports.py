"""ONNX files that Ultralytics itself wrote (`yolo export`) of every task, as sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from task_nets import SIDE, checkpoint

pytest.importorskip("ultralytics", reason="the export extra is not installed")

import boxwright
from boxwright import catalog
from boxwright.errors import UnknownFamilyError
from boxwright.pictures import generated_pictures
from boxwright.sources import SourceRequest
from boxwright.sources.rebuild import prepare_ultralytics

pytestmark = pytest.mark.filterwarnings("ignore")  # its tracer's notes

TASKS = ("detect", "segment", "pose", "obb", "classify")
CASES = [(t, 8) for t in TASKS] + [(t, 26) for t in TASKS if t != "classify"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Checkpoint and Ultralytics' own export of each, made once."""
    prepare_ultralytics()
    from ultralytics import YOLO

    folder, made = tmp_path_factory.mktemp("ultralytics"), {}

    def get(task, generation):
        if (task, generation) not in made:
            path = checkpoint(folder / f"{task}{generation}.pt", task, generation)
            model = YOLO(str(path), task=task)
            model.model.task = task  # as training leaves it
            names = {i: f"thing {i}" for i in range(len(model.model.names))}
            model.model.names = names
            free = {"nms": False} if generation == 26 else {}
            side = SIDE // 2 if task == "classify" else SIDE
            written = model.export(format="onnx", imgsz=side, simplify=False, verbose=False, **free)
            own = folder / f"{task}{generation}.own.onnx"
            Path(written).replace(own)
            made[task, generation] = (path, own)
        return made[task, generation]

    return get


@pytest.mark.parametrize(("task", "generation"), CASES, ids=[f"{t}{g}" for t, g in CASES])
def test_its_own_export_detects_as_its_checkpoint(task, generation, exported):
    path, own = exported(task, generation)
    spec = catalog.source_of(own).describe(SourceRequest(own, "own"))
    free = generation == 26
    assert spec.family == ("ultralytics-nms-free" if free else "ultralytics")
    assert spec.task == task and spec.layout.nms_free == free
    assert spec.class_names[:2] == ("thing 0", "thing 1")
    pictures = generated_pictures((SIDE, SIDE), count=2, seed=3)
    found = []
    for file, runtime in ((own, "onnxruntime"), (path, "pytorch")):
        with boxwright.load(file, runtime, quiet=True) as detector:
            found.append([detector(p) for p in pictures])
    for first, second in zip(*found, strict=True):
        assert len(first) == len(second) > 3
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)
        np.testing.assert_allclose(first.xyxy, second.xyxy, atol=0.05)
        for kind in ("keypoints", "rotated"):
            if getattr(first, kind) is not None:
                np.testing.assert_allclose(getattr(first, kind), getattr(second, kind), atol=0.05)
        if task == "segment":
            assert (first.masks != second.masks).mean() < 1e-3


def test_end_to_end_files_are_made_of_it(exported, cli, tmp_path):
    _, own = exported("pose", 8)
    ran = cli("run", own, "--outputs", "raw,end2end", "--out", tmp_path, "--skip-benchmark")
    assert ran.code == 0, ran.err
    made = onnx.load(next(Path(tmp_path).rglob("*.end2end.onnx")))
    assert "det_keypoints" in {o.name for o in made.graph.output}


def test_a_pose_file_without_the_shape_of_its_points_is_refused(exported, tmp_path):
    _, own = exported("pose", 8)
    model = onnx.load(own)
    kept = [p for p in model.metadata_props if p.key != "kpt_shape"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UnknownFamilyError):
        catalog.source_of(own).describe(SourceRequest(tmp_path / "bare.onnx", "bare"))
