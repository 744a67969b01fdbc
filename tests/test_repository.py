"""Model repositories: what is written, how it changes, what is refused; without a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from triton_place import client_on_path, dali_python

from boxwright import serve
from boxwright.engine_record import EngineRecord, record_bytes, sidecar_path
from boxwright.errors import BackendError, CheckFailedError, ImageError, RequestError, StoreError
from boxwright.preprocess import place, source_from_input
from boxwright.sample import onnx_file
from boxwright.serve.check_repository import check_repository
from boxwright.serve.dali import dali_file
from boxwright.serve.model_config import config_from_text
from boxwright.serve.models import preprocess
from boxwright.serve.picture_header import read_header
from boxwright.serve.python_models import COPIED, python_model_files
from boxwright.serve.repository_record import RECORD, read_model_record
from boxwright.serve.served_files import read_file
from boxwright.serve.steps import (
    Limits,
    check_for_dali,
    decode_picture,
    placement_from_row,
    prepared,
    row_from_placement,
)
from boxwright.serve.text_merge import merge, with_block
from boxwright.serve.to_source import INPUT_BOXES, to_source_bytes
from boxwright.serve.tracks import largest_batch, model_name
from boxwright.serve.versions import add_version, list_models, promote, rollback
from boxwright.store import sha256_of_bytes, sha256_of_file
from boxwright.types import Preprocess

client_on_path()
pytest.importorskip("tritonclient.grpc", reason='pip install "boxwright[triton]"')

RAW = "text_block"
NAMES = {
    "text_block", "text_block_end2end", "text_block_image", "text_block_preprocess",
    "text_block_postprocess", "text_block_to_source", "text_block_decode", "text_block_gate",
    "text_block_dali", "text_block_ensemble", "text_block_jpeg", "text_block_end2end_jpeg",
    "text_block_image_jpeg",
}  # fmt: skip


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


GREY = np.tile(np.arange(64, dtype=np.uint8), (48, 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The typed files of the sample that every test builds from."""
    from boxwright.pipeline import run
    from boxwright.recipe import recipe_from_mapping

    out = tmp_path_factory.mktemp("runs")
    targets = [
        {"precision": "fp32", "outputs": "raw"},
        {"precision": "fp32", "outputs": "end2end"},
        {"precision": "fp32", "outputs": "end2end", "input": "image"},
    ]
    recipe = recipe_from_mapping(
        {
            "source": str(onnx_file()),
            "targets": targets,
            "nms": {"score_threshold": 0.25, "iou_threshold": 0.45, "keep_topk": 100},
            "verify": False,
            "measure": {"latency": False, "accuracy": False},
        },
        "test",
    )
    return run(recipe, out).folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """A small picture to warm up with: a generated page takes its time."""
    path = tmp_path_factory.mktemp("picture") / "grey.jpg"
    path.write_bytes(jpeg(GREY))
    return path


@pytest.fixture(scope="module")
def built(runs, picture, tmp_path_factory) -> Path:
    """A repository of the tracks that need no plan."""
    from boxwright.cli import main

    out = tmp_path_factory.mktemp("built") / "models"
    words = ["repo", "build", runs, "--tracks", "a,c,d,e", "--out", out, "--max-batch", 8]
    words += ["--allow-missing", "--warm-up-image", picture]
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    assert ended.value.code == 0
    return out


@pytest.fixture
def models(built, tmp_path) -> Path:
    """A copy of that repository, in tmp_path/models."""
    return shutil.copytree(built, tmp_path / "models")


@pytest.fixture
def build(cli, runs, picture, tmp_path):
    """Build into tmp_path/models; return how the command line ended."""

    def call(*words, tracks="a,c,d,e"):
        return cli(
            "repo", "build", runs, "--tracks", tracks, "--out", tmp_path / "models",
            "--max-batch", 8, "--allow-missing", "--warm-up-image", picture, *words,
        )  # fmt: skip

    return call


def config_of(folder: Path, name: str = "config.pbtxt"):
    return config_from_text((folder / name).read_text(), name)


def test_tracks_become_folders_that_pass_their_check(build, tmp_path, cli, snapshot):
    done = build()
    assert done.code == 0, done.err
    models = tmp_path / "models"
    assert {p.name for p in models.iterdir()} == NAMES
    recorded = read_model_record(models / RAW).versions[1].files["model.onnx"]
    assert sha256_of_file(models / RAW / "1/model.onnx") == recorded
    checked = cli("repo", "check", models)
    assert checked.code == 0 and checked.out.endswith("13 models, 0 errors\n"), checked.out
    assert {f.level for f in check_repository(models)} <= {"note"}
    before = snapshot(models)
    again = build()
    assert again.code == 0 and "made" not in again.out
    assert all(line.endswith("unchanged") for line in again.out.splitlines())
    assert snapshot(models) == before
    assert "trt_end2end of text_block" in done.err and "GPU" in done.err
    assert not list(tmp_path.glob(".models*"))


def test_missing_plans_fail_unless_that_is_allowed(cli, runs, tmp_path):
    done = cli("repo", "build", runs, "--tracks", "c", "--out", tmp_path / "models")
    assert done.code == 1 and "missing: trt_end2end" in done.err
    assert (tmp_path / "models/text_block_end2end/1/model.onnx").is_file()


def test_configuration_of_a_file(build, tmp_path):
    build("--response-cache", "--queue-delay-us", 500)
    folder = tmp_path / "models/text_block_end2end"
    config = config_of(folder)
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 8)
    assert [(i.name, list(i.dims)) for i in config.input] == [("images", [3, 640, 640])]
    assert {o.name: list(o.dims) for o in config.output} == {
        "num_dets": [1], "det_boxes": [100, 4], "det_scores": [100], "det_classes": [100],
    }  # fmt: skip
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (1024, 30_000_000)
    assert policy.timeout_action == type(policy).REJECT
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.response_cache.enable
    assert list(config.version_policy.specific.versions) == [1]
    assert [w.batch_size for w in config.model_warmup] == [1, 8]
    values = {k: v.string_value for k, v in config.parameters.items()}
    stamp = json.loads(values["boxwright"])
    file = read_file(folder / "1/model.onnx")
    assert stamp == dict(file.metadata)
    assert json.loads(values["class_names"]) == list(file.spec.class_names)
    assert (folder / "labels.txt").read_text().splitlines() == list(file.spec.class_names)
    assert (values["score_threshold"], values["iou_threshold"]) == ("0.25", "0.45")
    group = config.instance_group[0]
    assert group.kind == type(group).KIND_GPU
    cpu = config_of(folder, "configs/cpu.pbtxt")
    assert cpu.instance_group[0].kind == type(group).KIND_CPU
    assert [w.batch_size for w in cpu.model_warmup] == [1]


def test_pictures_are_batched_where_that_is_asked_for(build, tmp_path, models):
    """They differ in size as a rule, and Triton's batcher would only stall them."""
    asked = {p.parent.name for p in models.glob("*/config.pbtxt") if "dynamic_b" in p.read_text()}
    alone = {p.parent.name for p in models.glob("*/config.pbtxt")} - asked
    ensembles = {n for n in alone if n.endswith(("_jpeg", "_ensemble"))}
    assert alone == {"text_block_image"} | ensembles
    path = tmp_path / "models/text_block_image/config.pbtxt"
    for words in (["--image-batching"], ["--queue-size", 1024], ["--queue-timeout-ms", 30_000]):
        assert build(*words, tracks="e").code == 0
        policy = config_of(path.parent).dynamic_batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (1024, 30_000_000)
        assert build(tracks="e").code == 0
        assert not config_of(path.parent).HasField("dynamic_batching")


def test_cudnn_does_not_try_every_algorithm_for_each_batch(models):
    for path in models.glob("*/config.pbtxt"):
        config = config_of(path.parent)
        on_gpu = config.backend == "onnxruntime" and config.instance_group[0].kind == 1
        told = config.parameters["cudnn_conv_algo_search"].string_value
        assert told == ("1" if on_gpu else ""), path.parent.name


def test_encoded_inputs_are_ragged_and_equal_on_every_track(models):
    fronts = ["text_block_jpeg", "text_block_end2end_jpeg", "text_block_image_jpeg"]
    for name in (*fronts, "text_block_ensemble", "text_block_preprocess", "text_block_gate"):
        (encoded,) = config_of(models / name).input
        assert (encoded.name, list(encoded.dims)) == ("encoded_image", [-1]), name
        assert encoded.allow_ragged_batch, name
    (pipeline,) = config_of(models / "text_block_dali").input
    assert pipeline.allow_ragged_batch
    for name in (*fronts, "text_block_ensemble"):
        config = config_of(models / name)
        outputs = [(o.name, list(o.dims)) for o in config.output]
        assert outputs == [
            ("num_dets", [1]), ("det_boxes", [100, 4]), ("det_scores", [100]),
            ("det_classes", [100]),
        ]  # fmt: skip
        stamp = json.loads(config.parameters["boxwright"].string_value)
        target = json.loads(stamp["boxwright.target"])
        assert (target["outputs"], target["input"]) == ("end2end", "image")


def test_accelerator_of_onnx_runtime(build, tmp_path):
    done = build(
        "--tensorrt-accelerator", "--accelerator-option", "precision_mode=FP16", tracks="a"
    )
    assert done.code == 0, done.err
    config = config_of(tmp_path / "models/text_block")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "trt_profile_min_shapes": "images:1x3x640x640",
        "trt_profile_opt_shapes": "images:4x3x640x640",
        "trt_profile_max_shapes": "images:8x3x640x640",
    }
    cpu = config_of(tmp_path / "models/text_block", "configs/cpu.pbtxt")
    assert not cpu.optimization.execution_accelerators.gpu_execution_accelerator


# Names, sizes, selection


def test_names_and_batches_are_those_of_the_guides():
    names = [model_name("{stem}{suffix}", "yolo11s", s) for s in ("", "_trt", "_trt_end2end")]
    assert names == ["yolov11_small", "yolov11_small_trt", "yolov11_small_trt_end2end"]
    batches = [largest_batch(f"yolo11{s}", {}) for s in "nsmlx"]
    assert batches == [128, 64, 32, 16, 8]
    assert largest_batch("yolo11s", {"small": 5, "": 7}) == 5
    assert largest_batch("yolo11n", {"small": 5, "": 7}) == 7


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--name-template", "{stm}{suffix}"), "did you mean {stem}"),
        (("--name-template", "{stem}"), "no {suffix}"),
        (("--name-template", "a/{suffix}"), "no name of a folder"),
        (("--max-batch", "tiny=4"), "neither N nor SIZE=N"),
        (("--max-batch", "0"), "neither N nor SIZE=N"),
        (("--formats", "onnx"), "twice"),
        (("--score-threshold", "1.5"), "not between 0 and 1"),
        (("--iou-threshold", "0.6"), "0.45 is baked into"),
        (("--models", "huge"), "known are nano"),
        (("--models", "small"), "no source is of such a size"),
        (("--accelerator-option", "a=b"), "no accelerator"),
    ],
)
def test_requests_that_are_refused(build, tmp_path, words, says):
    done = build(*words)
    assert done.code == 2 and says in done.error, done.err
    assert not (tmp_path / "models").exists()


def test_formats_select(cli, runs, tmp_path):
    out = tmp_path / "models"
    done = cli("repo", "build", runs, "--formats", "onnx_end2end", "--no-jpeg", "--out", out)
    assert done.code == 0 and [p.name for p in out.iterdir()] == ["text_block_end2end"]


def test_two_models_of_one_name_are_refused(cli, runs, tmp_path):
    done = cli("repo", "build", runs, "--tracks", "a", "--out", tmp_path / "m",
               "--name-template", "x{suffix}")  # fmt: skip
    assert done.code == 0
    copy = tmp_path / "other.onnx"
    shutil.copy(onnx_file(), copy)
    done = cli("repo", "build", runs, copy, "--tracks", "a", "--out", tmp_path / "n",
               "--runs", tmp_path / "r", "--skip-verify")  # fmt: skip
    assert done.code == 2 or {p.name for p in (tmp_path / "n").iterdir()} >= {"text_block"}


# Changes by hand


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_edits_stay_when_nothing_else_changes(models, build):
    path = models / "text_block/config.pbtxt"
    edit(path, "max_queue_size: 1024", "max_queue_size: 7  # mine")
    done = build()
    assert done.code == 0 and "kept config.pbtxt as it was edited by hand" in done.out
    assert "max_queue_size: 7  # mine" in path.read_text()


def test_edits_are_never_overwritten_silently(models, build, snapshot):
    path = models / "text_block/config.pbtxt"
    edit(path, "max_queue_size: 1024", "max_queue_size: 7  # mine")
    before = snapshot(models)
    done = build("--instances", 3)
    assert done.code == 2 and "edited by hand" in done.error
    assert "+      max_queue_size: 7  # mine" in done.err or "max_queue_size: 7  # mine" in done.err
    assert "count: 3" in done.err
    assert snapshot(models) == before  # not even the other models

    merged = build("--instances", 3, "--edit")
    assert merged.code == 0, merged.err
    text = path.read_text()
    assert "max_queue_size: 7  # mine" in text and "count: 3" in text

    forced = build("--instances", 4, "--force")
    assert forced.code == 0, forced.err
    assert "mine" not in path.read_text() and "count: 4" in path.read_text()
    (copy,) = path.parent.glob("config.pbtxt.*.bak")
    assert "max_queue_size: 7  # mine" in copy.read_text()


def test_edits_of_the_same_line_are_a_conflict(models, build):
    path = models / "text_block/config.pbtxt"
    edit(path, "count: 1", "count: 9")
    done = build("--instances", 3, "--edit")
    assert done.code == 2 and "both changed the same lines" in done.error
    assert "count: 9" in path.read_text()


def test_merge_keeps_both_sides():
    base = "a\nb\nc\nd\n"
    assert merge(base, "a\nB\nc\nd\n", "a\nb\nc\nd\ne\n").text == "a\nB\nc\nd\ne\n"
    assert merge(base, base, "x\n").text == "x\n"
    assert merge(base, "a\nX\nd\n", "a\nb\nY\nd\n").conflicts
    assert merge(base, "a\nb\nc\nd\n1\n", "a\nb\nc\nd\n2\n").conflicts
    same = "a\nZ\nc\nd\n"
    assert merge(base, same, same).text == same


def test_block_is_replaced_whatever_is_in_strings():
    text = (
        'name: "a { b"\nversion_policy: { specific { versions: [1] } }\n# version_policy {\nz: 1\n'
    )
    new = with_block(text, "version_policy", "version_policy {\n}\n")
    assert new == 'name: "a { b"\nversion_policy {\n}\n# version_policy {\nz: 1\n'


# Versions


def other_file(runs: Path, tmp_path: Path) -> Path:
    """The raw file with another weight: another version of the same model."""
    import onnx

    model = onnx.load(next(runs.glob("*.fp32.onnx")))
    model.doc_string = "another"
    path = tmp_path / "other.fp32.onnx"
    onnx.save(model, path)
    return path


def test_versions_come_and_are_promoted_and_rolled_back(models, runs, tmp_path, cli):
    folder = models / RAW
    edit(folder / "config.pbtxt", "max_queue_size: 1024", "max_queue_size: 7  # mine")
    other = other_file(runs, tmp_path)
    assert add_version(models, RAW, other) == 2
    assert list(config_of(folder).version_policy.specific.versions) == [1]
    assert (folder / "2/model.onnx").read_bytes() == other.read_bytes()
    done = cli("repo", "promote", models, RAW, 2)
    assert done.code == 0 and "version 2 is served; before: 1" in done.out
    for name in ("config.pbtxt", "configs/cpu.pbtxt"):
        assert list(config_of(folder, name).version_policy.specific.versions) == [2]
    assert "max_queue_size: 7  # mine" in (folder / "config.pbtxt").read_text()
    listed = {m.name: m for m in list_models(models)}[RAW]
    assert (listed.versions, listed.served, listed.previous) == ((1, 2), (2,), (1,))
    assert listed.edited == ("config.pbtxt",)
    assert cli("repo", "check", models).code == 0
    assert rollback(models, RAW) == 1
    assert list(config_of(folder).version_policy.specific.versions) == [1]
    with pytest.raises(RequestError, match="nothing else was served before"):
        rollback(models, RAW)
    shown = cli("repo", "list", models)
    assert shown.code == 0 and "text_block_ensemble" in shown.out
    assert len(json.loads(cli("repo", "list", models, "--json").out)) == len(NAMES)


def test_a_build_keeps_what_was_promoted(models, build, runs, tmp_path):
    promote(models, RAW, add_version(models, RAW, other_file(runs, tmp_path)))
    done = build()
    assert done.code == 0, done.err
    assert list(config_of(models / RAW).version_policy.specific.versions) == [2]


def test_changed_files_need_force_and_become_a_version(cli, runs, tmp_path):
    out = tmp_path / "models"
    words = ("repo", "build", "--formats", "onnx", "--out", out, "--no-warm-up")
    assert cli(*words, next(runs.glob("*.fp32.onnx"))).code == 0
    other = other_file(runs, tmp_path)
    refused = cli(*words, other)
    assert refused.code == 2 and "version 1 of it holds other files" in refused.error
    assert cli(*words, other, "--force").code == 0
    assert list(config_of(out / RAW).version_policy.specific.versions) == [2]
    assert {p.name for p in (out / RAW).iterdir() if p.is_dir()} == {"1", "2", "configs"}


@pytest.mark.parametrize(
    ("model", "file", "says"),
    [
        (RAW, "end2end", "the file is onnx_end2end, the model onnx"),
        ("text_block_ensemble", "raw", "of kind ensemble"),
        ("text_blok", "raw", "did you mean text_block?"),
    ],
)
def test_files_that_do_not_fit_are_refused(models, runs, model, file, says, snapshot):
    before = snapshot(models)
    path = next(runs.glob("*.fp32.onnx" if file == "raw" else "*.fp32.end2end.onnx"))
    with pytest.raises(RequestError) as caught:
        add_version(models, model, path)
    assert says in str(caught.value)
    assert snapshot(models) == before


def test_a_damaged_version_is_not_promoted(models, runs, tmp_path):
    add_version(models, RAW, other_file(runs, tmp_path))
    (models / RAW / "2/model.onnx").write_bytes(b"cut off")
    with pytest.raises(CheckFailedError, match=r"model\.onnx is not as it was put there"):
        promote(models, RAW, 2)
    with pytest.raises(RequestError, match="there are 1, 2"):
        promote(models, RAW, 5)
    assert list(config_of(models / RAW).version_policy.specific.versions) == [1]


def test_whoever_polls_sees_whole_versions_only(models, runs, tmp_path):
    """A thread looks all the time: every version folder and configuration is complete."""
    other = other_file(runs, tmp_path)
    size = other.stat().st_size
    wrong: list[str] = []
    looks = [0]
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for folder in list(models.iterdir()):
                if folder.is_dir():
                    numbers = [p.name for p in folder.iterdir() if p.name.isdecimal()]
                    text = (folder / "config.pbtxt").read_text()
                    asked = config_from_text(text, "seen").version_policy.specific.versions
                    if not {str(n) for n in asked} <= set(numbers):
                        wrong.append(f"{folder.name}: {list(asked)} of {numbers}")
                    if folder.name == RAW:
                        for number in numbers:
                            seen = (folder / number / "model.onnx").stat().st_size
                            if abs(seen - size) > 1000:
                                wrong.append(f"{number}: {seen} bytes of {size}")
            looks[0] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(5):
            promote(models, RAW, add_version(models, RAW, other))
            rollback(models, RAW)
    finally:
        stop.set()
        watcher.join()
    assert not wrong and looks[0] > 5


def test_an_interruption_leaves_nothing(models, build, runs, tmp_path, monkeypatch, snapshot):
    before = snapshot(models)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".part-") or ".part-" in self.name:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        add_version(models, RAW, other_file(runs, tmp_path))
    assert snapshot(models) == before
    shutil.rmtree(models / "text_block_image")
    before = snapshot(models)
    assert build(tracks="e").code == 130
    assert snapshot(models) == before and not list(tmp_path.glob(".models*"))


# clean


def test_clean_removes_files_and_keeps_configurations(models, build, cli, tmp_path):
    config = models / "text_block/config.pbtxt"
    text = config.read_text()
    changed = models / "text_block_image/1/model.onnx"
    changed.write_bytes(b"mine")
    assert "would remove" in cli("clean", "--repo", models, "--dry-run").out
    done = cli("clean", "--repo", models)
    assert done.code == 0 and f"kept {changed}" in done.err
    assert changed.read_bytes() == b"mine" and config.read_text() == text
    assert not (models / "text_block/1/model.onnx").exists()
    assert (models / "text_block/1").is_dir()
    (backup,) = tmp_path.glob("models.configs-*")
    assert (backup / "text_block/config.pbtxt").read_text() == text
    assert (backup / "text_block/configs/cpu.pbtxt").is_file()
    checked = cli("repo", "check", models)
    assert checked.code == 1 and "model.onnx is not there" in checked.out
    changed.unlink()
    again = build()
    assert again.code == 0 and "text_block  onnx  version 1  restored" in again.out
    assert cli("repo", "check", models).code == 0


def test_clean_refuses_what_is_not_ours(cli, tmp_path):
    (tmp_path / "models/theirs/1").mkdir(parents=True)
    assert cli("clean", "--repo", tmp_path / "models").code == 2
    assert cli("clean").code == 2
    assert cli("clean", tmp_path, "--repo", tmp_path).code == 2


def test_a_folder_of_someone_else_is_left_alone(build, tmp_path):
    (tmp_path / "models/text_block_jpeg").mkdir(parents=True)
    done = build()
    assert done.code == 2 and "was not built by boxwright" in done.error
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["text_block_jpeg"]


# check


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("text_block", "max_batch_size: 8", "max_batsch_size: 8", "no configuration of Triton"),
        ("text_block", "dims: 640", "dims: 320", "in the file [3, 640, 640]"),
        ("text_block", 'name: "images"', 'name: "image"', "the file has images"),
        ("text_block", "TYPE_FP32", "TYPE_FP16", "in the file float32"),
        ("text_block", "versions: 1", "versions: 3", "version 3 is served, and not there"),
        ("text_block_end2end", "dims: 100", "dims: 50", "in the file [100, 4]"),
        ("text_block_jpeg", "text_block_postprocess", "gone", "step gone is not there"),
        ("text_block_jpeg", 'value: "tensor"', 'value: "tensors"', "is made by no step before"),
        ("text_block_gate", "max_batch_size: 8", "max_batch_size: 4", "that of its step"),
        ("text_block_dali", "TYPE_FP32", "TYPE_FP16", "takes images as"),
    ],
)  # fmt: skip
def test_check_finds(models, name, old, new, says):
    path = models / name / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    found = [f.text for f in check_repository(models) if f.level == "error"]
    assert any(says in text for text in found), found


def test_check_finds_missing_and_changed_files(models):
    (models / "text_block/labels.txt").unlink()
    (models / "text_block_image/labels.txt").write_text("a\nb\n")
    (models / "text_block_gate/1/boxwright/boxes.py").write_text("")
    (models / "text_block_dali/1/dali.py").unlink()
    shutil.rmtree(models / "text_block_decode/warmup")
    texts = {f"{f.model}: {f.text}" for f in check_repository(models)}
    for says in (
        "text_block: config.pbtxt: labels.txt is not there",
        "text_block_image: labels.txt has other names than the parameter class_names",
        "text_block_gate: version 1: boxwright/boxes.py is not as it was put there",
        "text_block_dali: version 1: dali.py is not there",
    ):
        assert says in texts, texts
    assert any("warmup/picture.jpg, which is not there" in t for t in texts)


# Plans


def plan_of(onnx: Path, folder: Path) -> Path:
    """A stand-in for a plan: bytes with the description that the builder would write."""
    plan = folder / f"{onnx.stem}.trt8.6.0-sm90.plan"
    plan.write_bytes(b"plan of " + onnx.name.encode())
    served = read_file(onnx)
    name, (_, *sides) = served.inputs[0].name, served.inputs[0].shape
    size = [640 if isinstance(s, str) else s for s in sides]
    record = EngineRecord(
        "tensorrt", "8.6.0", "NVIDIA H100", "9.0", "535", "12.2", onnx.name, sha256_of_file(onnx),
        sha256_of_bytes(plan.read_bytes()), 8, {name: tuple((n, *size) for n in (1, 4, 8))},
        {}, served.metadata, 1.0, "boxwright build", "trtexec",
    )  # fmt: skip
    sidecar_path(plan).write_bytes(record_bytes(record))
    return plan


def test_plans_are_served_with_their_description(cli, runs, tmp_path):
    raw, final = (next(runs.glob(p)) for p in ("*.fp32.onnx", "*.fp32.end2end.onnx"))
    plans = [plan_of(raw, tmp_path), plan_of(final, tmp_path)]
    out = tmp_path / "models"
    done = cli("repo", "build", runs, *plans, "--tracks", "a,b,c,d", "--out", out)
    assert done.code == 0, done.err
    config = config_of(out / "text_block_trt")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 8)
    assert (out / "text_block_trt/1/model.plan.json").is_file()
    assert not (out / "text_block_trt/configs").exists()
    steps = [
        [s.model_name for s in config_of(out / "text_block_ensemble", f).ensemble_scheduling.step]
        for f in ("config.pbtxt", "configs/cpu.pbtxt")
    ]
    assert "text_block_trt_end2end" in steps[0] and "text_block_end2end" in steps[1]
    assert cli("repo", "check", out).code == 0
    refused = cli("repo", "build", runs, *plans, "--tracks", "b", "--max-batch", 64,
                  "--out", tmp_path / "more")  # fmt: skip
    assert refused.code == 2 and "takes up to 8 pictures" in refused.error


def test_a_plan_is_warmed_up_with_a_picture_that_it_takes(cli, runs, tmp_path):
    """Its profile ends at 640 x 640; Triton does not load a model whose warm-up fails."""
    onnx = next(runs.glob("*.fp32.end2end.image.onnx"))
    plan = plan_of(onnx, tmp_path)
    out = tmp_path / "models"
    done = cli(
        "repo", "build", onnx, plan, "--formats", "trt_image", "--max-batch", 1, "--out", out
    )
    assert done.code == 0, done.err
    config = config_of(out / "text_block_trt_image")
    assert config.max_batch_size == 1
    (sample,) = config.model_warmup
    (value,) = sample.inputs.values()
    assert list(value.dims) == [640, 640, 3]
    stored = out / "text_block_trt_image/warmup/pixels.u8"
    assert stored.stat().st_size == 640 * 640 * 3
    file = read_file(out / "text_block_trt_image/1/model.plan", [onnx])
    assert file.nearest_size((8, 9000)) == (640, 640)
    assert read_file(onnx).nearest_size((8, 9000)) == (8, 9000)


def test_track_d_alone_takes_the_plan_that_was_given(cli, runs, tmp_path):
    final = next(runs.glob("*.fp32.end2end.onnx"))
    plan = plan_of(final, tmp_path)
    out = tmp_path / "models"
    done = cli("repo", "build", runs, plan, "--tracks", "d", "--no-jpeg", "--out", out)
    assert done.code == 0, done.err
    names = {p.name for p in out.iterdir()}
    assert "text_block_trt_end2end" in names and "text_block_end2end" not in names
    assert not (out / "text_block_ensemble/configs").exists()  # a plan needs a GPU
    done = cli("repo", "build", runs, "--tracks", "d", "--no-jpeg", "--out", tmp_path / "cpu")
    assert done.code == 0 and (tmp_path / "cpu/text_block_end2end").is_dir()


def test_plans_of_another_runtime_and_changed_plans_are_refused(cli, runs, tmp_path):
    plan = plan_of(next(runs.glob("*.fp32.end2end.onnx")), tmp_path)
    record = json.loads(sidecar_path(plan).read_text())
    words = ("repo", "build", plan, "--formats", "trt_end2end", "--out", tmp_path / "models")
    sidecar_path(plan).write_text(json.dumps({**record, "runtime": "tensorrt-rtx"}))
    assert "TensorRT-RTX, which Triton does not run" in cli(*words).error
    sidecar_path(plan).write_text(json.dumps(record))
    plan.write_bytes(b"another")
    assert "describes another plan" in cli(*words).error
    sidecar_path(plan).unlink()
    assert "is missing, or does not say" in cli(*words).error


def test_a_fixed_batch_is_refused_only_where_it_would_be_served(cli, runs, tmp_path):
    done = cli("export", onnx_file(), "--outputs", "raw,end2end", "--batch", 2, "--out", tmp_path)
    assert done.code == 0, done.err
    fixed = tmp_path / "text_block/text_block.fp32.b2.onnx"
    assert fixed.is_file()
    out = tmp_path / "models"
    done = cli("repo", "build", fixed, runs, "--tracks", "a", "--out", out, "--no-jpeg")
    assert done.code == 0, done.err
    assert (out / "text_block/1/model.onnx").read_bytes() != fixed.read_bytes()
    done = cli("repo", "build", fixed, "--tracks", "a", "--out", tmp_path / "more")
    assert done.code == 2 and "its batch is fixed to 2" in done.error


def test_an_end2end_plan_alone_is_enough_a_raw_one_is_not(cli, runs, tmp_path):
    for pattern, code in (("*.fp32.end2end.onnx", 0), ("*.fp32.onnx", 2)):
        folder = tmp_path / str(code)
        folder.mkdir()
        plan = plan_of(next(runs.glob(pattern)), folder)
        formats = "trt_end2end" if code == 0 else "trt"
        done = cli("repo", "build", plan, "--formats", formats, "--out", folder / "models")
        assert done.code == code, done.err
        assert code == 0 or "give the ONNX file that it was built from" in done.error


# What runs in the server


def test_copies_are_the_modules_themselves_and_need_numpy_and_opencv_alone(tmp_path):
    package = Path(serve.__file__).parents[1]
    for kind in ("preprocess", "decode", "gate", "postprocess"):
        files = python_model_files(kind)
        for name in COPIED:
            assert files[f"boxwright/{name}"] == (package / name).read_bytes()
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import importlib
for name in {[n.removesuffix(".py").replace("/", ".") for n in COPIED]!r}:
    importlib.import_module(f"boxwright.{{name}}".removesuffix(".__init__"))
import boxwright.serve.steps
third = {{n.split(".")[0] for n in sys.modules}} & {{
    "onnx", "onnxruntime", "pydantic", "click", "rich", "yaml", "google", "tritonclient"}}
print(sorted(third), boxwright.serve.steps.__file__.startswith({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[] True", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty"),
        (b"\0" * 40, "it is empty"),
        (b"hello, this is text", "not a picture"),
        (jpeg(GREY)[:300], "cut off"),
        (jpeg(GREY)[:2] + b"\x13\x37" * 400 + b"\xff\xd9", "header is damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 40 + b"IEND", "header is damaged"),
        (jpeg(np.zeros((8, 12_000), np.uint8)), "takes sides of up to 8192 pixels"),
    ],
    ids=["empty", "zeros", "text", "cut", "damaged", "png", "12000"],
)
def test_bad_pictures_are_named(data, says):
    with pytest.raises(ImageError, match=says):
        decode_picture(data, Limits())


def test_unusual_pictures_are_those_of_the_host(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    from boxwright.images import read_image

    sixteen = cv2.imencode(".png", GREY.astype(np.uint16) << 8)[1].tobytes()
    pillow.fromarray(np.dstack([GREY] * 4), "CMYK").save(tmp_path / "cmyk.jpg")
    cmyk = (tmp_path / "cmyk.jpg").read_bytes()
    for data in (jpeg(GREY), sixteen, cmyk, jpeg(GREY) + b"\0" * 99):
        (tmp_path / "picture").write_bytes(data)
        assert np.array_equal(decode_picture(data, Limits()), read_image(tmp_path / "picture"))
    assert read_header(cmyk, "cmyk").channels == 4
    assert read_header(sixteen, "16 bits").bits == 16
    check_for_dali(sixteen, Limits())
    with pytest.raises(ImageError, match="CMYK"):
        check_for_dali(cmyk, Limits())


def served_preprocess(models, monkeypatch):
    """Return the served preprocessing as the stub loads it, and how it is asked."""
    stub = ModuleType("triton_python_backend_utils")
    stub.TritonError = lambda text, code=0: text
    stub.TritonError.INVALID_ARG = 3
    stub.Tensor = lambda name, value: (name, value)
    stub.InferenceResponse = lambda output_tensors=(), error=None: error or dict(output_tensors)
    stub.get_input_tensor_by_name = lambda request, _: SimpleNamespace(as_numpy=lambda: request)
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    from google.protobuf import json_format

    config = json_format.MessageToDict(
        config_of(models / "text_block_preprocess"), preserving_proto_field_name=True
    )
    model = preprocess.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config)})

    def ask(*requests: list[bytes]) -> list:
        """Send requests of one picture or more; they are padded to one length with zeros."""
        rows = []
        for pictures in requests:
            size = max(len(p) for p in pictures)
            rows.append(np.frombuffer(b"".join(p.ljust(size, b"\0") for p in pictures), np.uint8))
            rows[-1] = rows[-1].reshape(len(pictures), size)
        return model.execute(rows)

    return ask


def test_requests_of_a_turn_share_memory_and_do_not_mix(models, monkeypatch):
    threads = cv2.getNumThreads()
    try:
        ask = served_preprocess(models, monkeypatch)
        assert cv2.getNumThreads() == 1, "two processes, one thread each"
    finally:
        cv2.setNumThreads(threads)
    images = [np.full((20 + 8 * i, 60, 3), 40 * i, np.uint8) for i in range(5)]
    files = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    spec = read_file(models / "text_block/1/model.onnx").spec

    def right(found: dict, *chosen: int) -> None:
        batch, placement = prepared([images[i] for i in chosen], spec)
        np.testing.assert_array_equal(found["images"], batch)
        np.testing.assert_array_equal(found["placement"], placement)

    first, damaged, second = ask([files[1], files[0]], [b"no picture"], [files[4]])
    right(first, 1, 0)
    right(second, 4)
    assert "it is not a picture" in damaged
    assert np.shares_memory(first["images"], ask([files[2]])[0]["images"]), "no new memory"
    again = ask([files[3]], [files[2]], [files[0]], [files[1], files[4]])
    for found, chosen in zip(again, ([3], [2], [0], [1, 4]), strict=True):
        right(found, *chosen)


def test_boxes_are_mapped_as_on_the_host():
    import onnxruntime as ort

    session = ort.InferenceSession(to_source_bytes())
    rng = np.random.default_rng(3)
    sizes = [(1, 1), (1080, 810), (480, 641), (7000, 3)]
    places = [place(s, (640, 640), Preprocess()) for s in sizes]
    boxes = rng.uniform(-50, 700, (len(sizes), 20, 4)).astype(np.float32)
    boxes[:, 10:] = 0
    rows = np.array([row_from_placement(p) for p in places], np.float32)
    assert [placement_from_row(r) for r in rows] == places
    (mapped,) = session.run(None, {INPUT_BOXES: boxes, "placement": rows})
    expected = np.stack([source_from_input(b, p) for b, p in zip(boxes, places, strict=True)])
    assert np.allclose(mapped, expected, rtol=1e-6, atol=1e-4)
    assert not mapped[:, 10:].any()


def test_dali_refuses_another_filter_and_its_file_compiles():
    spec = read_file(onnx_file_typed := onnx_file()) and read_file(onnx_file_typed).spec
    compile(dali_file(spec, 8, 2, "checked_image"), "dali.py", "exec")
    import dataclasses

    cubic = dataclasses.replace(spec.preprocess, interpolation="cubic")
    with pytest.raises(RequestError, match="bilinear only"):
        dali_file(dataclasses.replace(spec, preprocess=cubic), 8, 2, "x")


def test_a_damaged_record_is_named(models):
    (models / "text_block" / RECORD).write_text("{}")
    with pytest.raises(StoreError, match="not a record of ours"):
        list_models(models)


@pytest.mark.slow
def test_dali_places_pictures_as_the_host_does():
    """Every placement is the host's, and no pixel is off by more than a grey level."""
    python = dali_python()
    source = Path(serve.__file__).parents[2]
    there = {"BOXWRIGHT_DALI_DEVICE": "cpu", "PYTHONPATH": str(source)}
    done = subprocess.run(
        [python, Path(__file__).with_name("dali_letterbox.py")],
        capture_output=True,
        text=True,
        env={**os.environ, **there},
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout).items():
        assert found["placements"] == 0, name
        assert 0 < found["levels"] <= 1.01, (name, found)


def test_what_plans_are_built_with(cli, tmp_path, monkeypatch):
    """The settings reach the builder; a plan that takes pictures gets sizes and a small batch."""
    asked = []

    def build(onnx, settings, listener=None):
        asked.append((onnx.name, settings))
        raise BackendError("TensorRT", "this is a test", "nothing")

    monkeypatch.setattr("boxwright.serve.gathering._no_builder", lambda: "")
    monkeypatch.setattr("boxwright.build.build", build)
    done = cli("repo", "build", onnx_file(), "--formats", "onnx,trt,trt_image", "--skip-verify",
               "--runs", tmp_path / "runs", "--out", tmp_path / "models", "--max-batch", 32,
               "--timing-cache", "gpu.cache", "--optimization-level", 1, "--workspace-gib", 2,
               "--tactic-sources", "jit_convolutions")  # fmt: skip
    assert done.code == 1 and "trt_image of text_block: this is a test" in done.err
    (raw, tensors), (image, pictures) = asked
    assert raw == "text_block.fp16.onnx" and image.endswith(".image.onnx")
    assert tensors.batch == (1, 16, 32) and tensors.image_sizes is None
    assert pictures.batch == (1, 4, 8)
    assert pictures.image_sizes == ((32, 32), (1080, 1920), (2160, 3840))
    for settings in (tensors, pictures):
        assert settings.timing_cache == Path("gpu.cache") and settings.optimization_level == 1
        assert settings.tactic_sources == ("JIT_CONVOLUTIONS",) and settings.workspace_gib == 2


@pytest.mark.slow
def test_plans_of_this_gpu_are_built_and_pass_their_check(cli, tmp_path):
    """Tracks B, C and D with plans, where there is a GPU with TensorRT."""
    from boxwright.nvidia import find_gpu, module_name

    if find_gpu() is None or module_name("tensorrt") is None:
        pytest.skip("NOT TESTED: no GPU with TensorRT here")
    out = tmp_path / "models"
    done = cli("repo", "build", onnx_file(), "--tracks", "a,b,c,d", "--out", out, "--skip-verify",
               "--runs", tmp_path / "runs", "--max-batch", 4)  # fmt: skip
    assert done.code == 0, done.err
    assert (out / "text_block_trt_end2end/1/model.plan").is_file()
    checked = cli("repo", "check", out)
    assert checked.code == 0, checked.out


# The form of NMS in files that are made


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> Path:
    """A raw file of ten classes."""
    from tiny_models import ultralytics_onnx

    return ultralytics_onnx(tmp_path_factory.mktemp("ten") / "ten.onnx", classes=10)


@pytest.fixture
def made(cli, ten, tmp_path):
    """Build tracks C and F of that file (or of what was made of it); (folder, stderr)."""

    def call(*words, source=ten, name="models", formats="onnx_end2end,onnx_fused"):
        done = cli(
            "repo", "build", source, "--formats", formats, "--runs",
            tmp_path / "runs", "--out", tmp_path / name, "--skip-verify", "--no-warm-up", *words,
        )  # fmt: skip
        assert done.code == 0, done.err
        return tmp_path / name, done.err

    return call


def operators(folder: Path) -> set[str]:
    return {n.op_type for n in onnx.load(folder / "1/model.onnx").graph.node}


def test_files_that_are_made_have_the_nms_for_gpus(made, cli):
    models, said = made()
    assert "ten: end-to-end ONNX files are made with --onnx-nms portable, for GPUs" in said
    assert "waits for the GPU" not in said
    for name in ("ten_end2end", "ten_fused"):
        assert "NonMaxSuppression" not in operators(models / name)
    assert "nms_converged" in (models / "ten_end2end_jpeg/config.pbtxt").read_text()
    checked = cli("repo", "check", models)
    assert checked.code == 0 and "waits for the GPU" not in checked.out + checked.err


def test_nms_by_class_on_gpus_is_told_by_build_and_check(made, cli):
    models, said = made("--onnx-nms", "onnx")
    assert "for GPUs; where" not in said
    assert said.count("waits for the GPU after each of 10 classes") == 1  # one file, two folders
    assert "(--onnx-nms portable makes one from the raw file)" in said
    assert "NonMaxSuppression" in operators(models / "ten_end2end")
    checked = cli("repo", "check", models)
    lines = [x for x in (checked.out + checked.err).splitlines() if "waits for the GPU" in x]
    assert checked.code == 0 and len(lines) == 2
    config = models / "ten_fused/config.pbtxt"
    config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    checked = cli("repo", "check", models)
    lines = [x for x in (checked.out + checked.err).splitlines() if "waits for the GPU" in x]
    assert len(lines) == 1 and "ten_end2end" in lines[0]


def test_given_files_are_taken_as_they_are_unless_a_form_is_asked_for(made, tmp_path):
    made("--onnx-nms", "onnx", formats="onnx,onnx_end2end")
    given = tmp_path / "runs/ten"
    models, said = made(source=given, name="as_they_are")
    assert "NonMaxSuppression" in operators(models / "ten_end2end")
    assert "waits for the GPU after each of 10 classes" in said
    models, said = made("--onnx-nms", "portable", source=given, name="asked")
    assert "NonMaxSuppression" not in operators(next(models.glob("*_end2end")))
    assert "waits for the GPU" not in said


@pytest.mark.parametrize("form", ["tensor", "image"])
def test_a_file_with_the_plugin_is_never_served_by_onnx_runtime(cli, ten, tmp_path, form):
    done = cli(
        "export", ten, "--outputs", "end2end", "--nms", "efficient_nms", "--input", form,
        "--score-threshold", 0.25, "--iou-threshold", 0.45, "--keep-topk", 100,
        "--out", tmp_path / "runs",
    )  # fmt: skip
    assert done.code == 0, done.err
    name = "*.end2end.efficient_nms.image.onnx" if form == "image" else "*.efficient_nms.onnx"
    (plugin,) = (tmp_path / "runs").rglob(name)
    assert "EfficientNMS_TRT" in {n.op_type for n in onnx.load(plugin).graph.node}
    wanted = "onnx_image" if form == "image" else "onnx_end2end"
    words = ("--formats", wanted, "--skip-verify", "--no-warm-up", "--runs", tmp_path / "made")
    done = cli("repo", "build", plugin, *words, "--out", tmp_path / "alone")
    assert done.code == 1 and "EfficientNMS_TRT in it, which only TensorRT runs" in done.err
    assert not (tmp_path / "alone").exists()
    done = cli("repo", "build", plugin, ten, *words, "--out", tmp_path / "models")
    assert done.code == 0, done.err
    served = [p for p in (tmp_path / "models").rglob("model.onnx") if "to_source" not in str(p)]
    assert served and not any("EfficientNMS_TRT" in operators(p.parent.parent) for p in served)
