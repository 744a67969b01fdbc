"""The main job: what is there is skipped, what is broken is caught, and no crash costs a file."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import numpy_helper

import boxwright.graph.end2end
import boxwright.quantization
from boxwright.store import MANIFEST, Store, sha256_of_file

ALL = ["--precision", "fp32,fp16", "--outputs", "raw,end2end"]
SETTLED = {MANIFEST, "report.json", "report.html", "recipe.yaml", ".lock"}


def _published(folder: Path) -> dict[str, str]:
    return {p.name: sha256_of_file(p) for p in sorted(folder.glob("*.onnx"))}


def _assert_consistent(folder: Path) -> None:
    """Every file under a final name is whole and the one that the manifest tells of."""
    if not folder.exists():
        return
    names = {p.name for p in folder.iterdir()}
    entries = {}
    if MANIFEST in names:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name, digest in _published(folder).items():
        assert name in entries, f"{name} is under its final name and not in the manifest"
        assert entries[name]["state"] == "published"
        assert entries[name]["sha256"] == digest
    if "report.json" in names:
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
    unknown = names - SETTLED - {".work"} - set(entries) - {f"{n}.rejected" for n in entries}
    assert all(n.startswith(".") and n.endswith(".part") for n in unknown), unknown


def _assert_settled(folder: Path) -> None:
    """Nothing is left but published files and what tells of them."""
    _assert_consistent(folder)
    assert {p.name for p in folder.iterdir()} == SETTLED | set(_published(folder))


# -- what runs make -------------------------------------------------------------------------------

MODELS = {
    "ultralytics": tiny_models.ultralytics_onnx,
    "nms-free": tiny_models.nms_free_onnx,
    "yolox": tiny_models.yolox_onnx,
    "yolov5": tiny_models.yolov5_onnx,
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", ["batch", 1])
def test_every_family_is_proven(model, batch, place, cli):
    MODELS[model](place / "m.onnx", batch=batch)
    ran = cli("run", "m.onnx", "--out", "out", *ALL, "--nms", "onnx,portable", "--images", "pics",
              "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    files = json.loads(ran.out)["files"]
    assert len(files) == 6
    for file in files:
        assert file["parity"]["passed"]
        assert file["parity"]["detections"] > 20, "too few detections to prove anything"
        assert sha256_of_file(Path(file["path"])) == file["sha256"]
    _assert_settled(place / "out/m")


@pytest.mark.parametrize("opset", [11, 13, 20])
def test_opsets(opset, place, cli):
    tiny_models.ultralytics_onnx(place / "m.onnx", opset=opset)
    ran = cli("run", "m.onnx", "--out", "out", *ALL, "--opset", opset, "--images", "pics")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("name", ["größe 1", "a b", "模型", "-x", "a.b", "a'b", ".hidden"])
def test_names_with_spaces_and_unicode(name, place, cli):
    shutil.copy("tiny.onnx", f"{name}.onnx")
    folder = f"out {name}"
    for action in ("made", "skipped"):
        ran = cli("export", "--json", "--out", folder, "--", f"{name}.onnx")
        assert ran.code == 0, ran.err
        [file] = json.loads(ran.out)["files"]
        assert file["path"] == f"{folder}/{name}/{name}.fp32.onnx"
        assert file["action"] == action
    assert cli("predict", f"{folder}/{name}/{name}.fp32.onnx", "pics").code == 0


def test_dry_run_writes_nothing(place, cli, snapshot):
    before = snapshot(place)
    ran = cli("run", "tiny.onnx", "--out", "out", *ALL, "--dry-run")
    assert ran.code == 0
    assert ran.out.count("make ") == 4
    assert snapshot(place) == before
    assert cli("run", "tiny.onnx", "--out", "out").code == 0
    before = snapshot(place)
    ran = cli("run", "tiny.onnx", "--out", "out", *ALL, "--dry-run", "--json")
    actions = {step["file"]: step["action"] for step in json.loads(ran.out)["plan"]}
    assert actions.pop("tiny.fp32.onnx") == "skip"
    assert set(actions.values()) == {"make"}
    assert snapshot(place) == before


def test_a_source_of_a_fixed_batch(place, cli):
    tiny_models.ultralytics_onnx(place / "m.onnx", batch=4)
    ran = cli("run", "m.onnx", "--out", "out", "--batch", 4, "--outputs", "raw,end2end")
    assert ran.code == 0, ran.err


# -- what is there already ------------------------------------------------------------------------


def test_what_is_there_is_skipped_without_torch(place, cli, snapshot, environment):
    assert cli("run", "tiny.onnx", "--out", "out", *ALL, "--images", "pics").code == 0
    before = snapshot(place)
    times = {p: p.stat().st_mtime_ns for p in Path("out/tiny").iterdir() if p.name != ".lock"}
    program = (
        "import sys\nfrom boxwright.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as ended:\n"
        "    heavy = {'torch', 'ultralytics', 'openvino', 'onnxruntime', 'onnxslim'}\n"
        "    print(sorted(heavy & set(sys.modules)), ended.code, file=sys.stderr)\n"
    )
    words = [sys.executable, "-c", program, "run", "tiny.onnx", "--out", "out", *ALL]
    words += ["--skip-benchmark"]
    ran = subprocess.run(
        [*words, "--images", "pics", "--json"], capture_output=True, text=True, env=environment
    )
    assert "torch" not in ran.stderr
    assert "ultralytics" not in ran.stderr
    assert ran.stderr.endswith("] 0\n"), ran.stderr
    assert {f["action"] for f in json.loads(ran.stdout)["files"]} == {"skipped"}
    assert {p: p.stat().st_mtime_ns for p in times} == times
    lock = str(Path("out/tiny/.lock"))
    after = snapshot(place)
    assert {k: v for k, v in after.items() if k != lock} == {
        k: v for k, v in before.items() if k != lock
    }


CHANGES = {
    "opset": (["--opset", "16"], "opset: 17 or its own -> 16"),
    "name of classes": (["--labels", "names.json"], "labels: own -> "),
    "simplify": (["--no-simplify"], "simplify: True -> False"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_settings_are_refused_and_named(case, place, cli, snapshot):
    options, expected = CHANGES[case]
    (place / "names.json").write_text('["x", "y", "z"]')
    assert cli("export", "tiny.onnx", "--out", "out").code == 0
    before = snapshot(place)
    ran = cli("export", "tiny.onnx", "--out", "out", *options)
    assert ran.code == 2
    assert f"made with other settings ({expected}" in ran.error
    assert "--force-convert" in ran.error
    before.pop("out/tiny/.lock")
    after = snapshot(place)
    after.pop("out/tiny/.lock")
    assert after == before
    assert cli("export", "tiny.onnx", "--out", "out", *options, "--force-convert").code == 0
    assert cli("export", "tiny.onnx", "--out", "out", *options, "--json").code == 0
    assert _published(place / "out/tiny")["tiny.fp32.onnx"] != before["out/tiny/tiny.fp32.onnx"]
    _assert_settled(place / "out/tiny")


def test_changed_nms_settings_are_named(place, cli):
    words = ["export", "tiny.onnx", "--out", "out", "--outputs", "end2end", "--iou-threshold"]
    assert cli(*words, "0.6").code == 0
    ran = cli(*words, "0.5")
    assert ran.code == 2
    assert "iou_threshold: 0.6 -> 0.5" in ran.error


def test_another_source_of_the_same_name_is_refused(place, cli):
    assert cli("export", "tiny.onnx", "--out", "out").code == 0
    tiny_models.ultralytics_onnx(place / "tiny.onnx", seed=5)
    ran = cli("export", "tiny.onnx", "--out", "out")
    assert ran.code == 2
    assert "source: " in ran.error


def test_a_corrupted_published_file_is_refused(place, cli):
    assert cli("run", "tiny.onnx", "--out", "out").code == 0
    file = place / "out/tiny/tiny.fp32.onnx"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    changed = file.read_bytes()
    ran = cli("run", "tiny.onnx", "--out", "out")
    assert ran.code == 2
    assert "tiny.fp32.onnx: it was changed after it was made; move it" in ran.error
    assert file.read_bytes() == changed
    assert cli("run", "tiny.onnx", "--out", "out", "--force-convert").code == 0
    assert file.read_bytes() == good
    file.unlink()
    assert cli("run", "tiny.onnx", "--out", "out").code == 0, "a missing file is made again"
    assert file.read_bytes() == good


@pytest.mark.parametrize("already_rejected", [False, True])
def test_a_strangers_file_in_the_way(already_rejected, place, cli, monkeypatch):
    folder = place / "out/tiny"
    folder.mkdir(parents=True)
    if already_rejected:
        with monkeypatch.context() as patch:
            _break_weights(patch)
            assert cli("run", "tiny.onnx", "--out", "out", "--precision", "fp16").code == 1
    file = folder / "tiny.fp16.onnx"
    file.write_text("mine")
    ran = cli("run", "tiny.onnx", "--out", "out", "--precision", "fp16")
    assert ran.code == 2
    assert "tiny.fp16.onnx: this file is not from a run of ours; move it" in ran.error
    assert file.read_text() == "mine"
    if not already_rejected:
        assert [p.name for p in folder.iterdir()] == ["tiny.fp16.onnx"]
    words = ["run", "tiny.onnx", "--out", "out", "--precision", "fp16", "--force-convert"]
    assert cli(*words).code == 0
    onnx.checker.check_model(str(file))


def test_a_second_run_is_refused_at_once(place, cli, snapshot):
    assert cli("export", "tiny.onnx", "--out", "out").code == 0
    with Store(place / "out/tiny"):
        before = snapshot(place)
        ran = cli("run", "tiny.onnx", "--out", "out", *ALL)
        assert ran.code == 2
        assert "another run (process " in ran.error
        assert snapshot(place) == before
    assert cli("run", "tiny.onnx", "--out", "out").code == 0


def test_exported_files_are_proven_later(place, cli):
    assert cli("export", "tiny.onnx", "--out", "out", *ALL).code == 0
    hashes = _published(place / "out/tiny")
    ran = cli("run", "tiny.onnx", "--out", "out", *ALL, "--images", "pics", "--json")
    assert ran.code == 0
    assert {f["action"] for f in json.loads(ran.out)["files"]} == {"verified"}
    assert _published(place / "out/tiny") == hashes


# -- what is broken -------------------------------------------------------------------------------


def _zero_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that passes onnx.checker and detects nothing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {n.input[i] for n in copy.graph.node if n.op_type == "Conv" for i in (1, 2)}
    for tensor in copy.graph.initializer:
        if tensor.name in stored:
            values = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values - 50 * (values.ndim == 1), tensor.name))
    onnx.checker.check_model(copy, full_check=True)
    return copy


def _break_weights(patch: pytest.MonkeyPatch) -> None:
    convert = boxwright.quantization.fp16_from_fp32

    def broken(model: onnx.ModelProto, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
        return _zero_weights(convert(model, keep_fp32))

    patch.setattr(boxwright.quantization, "fp16_from_fp32", broken)


def _break_end2end(change: Callable[[onnx.ModelProto], None]) -> Callable[..., None]:
    def apply(patch: pytest.MonkeyPatch) -> None:
        real = boxwright.graph.end2end.add_end2end

        def broken(*args: Any) -> onnx.ModelProto:
            model = real(*args)
            change(model)
            return model

        patch.setattr(boxwright.graph.end2end, "add_end2end", broken)

    return apply


def _set(name: str, value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        [tensor] = [i for i in model.graph.initializer if i.name == name]
        tensor.CopyFrom(numpy_helper.from_array(np.array([value], np.float32), name))

    return change


def _shift_boxes(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "det_boxes" in n.output)
    node.output[0] = "det_boxes_before"
    shift = numpy_helper.from_array(np.array([1.5], np.float32), "shift")
    model.graph.initializer.append(shift)
    model.graph.node.append(
        onnx.helper.make_node("Add", ["det_boxes_before", "shift"], ["det_boxes"])
    )


def _swap_classes(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "det_classes" in n.output)
    node.output[0] = "det_classes_before"
    table = numpy_helper.from_array(np.array([1, 0, 2, -1], np.int32), "table")
    model.graph.initializer.append(table)
    model.graph.node.append(
        onnx.helper.make_node("Gather", ["table", "det_classes_before"], ["det_classes"])
    )


def _poison(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "det_scores" in n.output)
    node.output[0] = "det_scores_before"
    model.graph.initializer.append(numpy_helper.from_array(np.array([np.nan], np.float32), "nan"))
    model.graph.node.append(
        onnx.helper.make_node("Mul", ["det_scores_before", "nan"], ["det_scores"])
    )


END2END = ["--outputs", "end2end"]
BROKEN = {
    "FP16 that detects nothing": (
        _break_weights,
        ["--precision", "fp16"],
        "tiny.fp16.onnx",
        ["raw scores", "it detects nothing that the source detects"],
    ),
    "end-to-end that detects nothing": (
        _break_end2end(lambda m: m.CopyFrom(_zero_weights(m))),
        END2END,
        "tiny.fp32.end2end.onnx",
        ["detections missing", "it detects nothing that the source detects"],
    ),
    "score threshold too high": (
        _break_end2end(_set("score_threshold", 0.9)),
        END2END,
        "tiny.fp32.end2end.onnx",
        ["detections missing"],
    ),
    "score threshold too low": (
        _break_end2end(_set("score_threshold", 0.05)),
        END2END,
        "tiny.fp32.end2end.onnx",
        [],
    ),
    "IoU threshold too low": (
        _break_end2end(_set("iou_threshold", 0.0)),
        END2END,
        "tiny.fp32.end2end.onnx",
        ["detections missing"],
    ),
    "IoU threshold too high": (
        _break_end2end(_set("iou_threshold", 1.0)),
        END2END,
        "tiny.fp32.end2end.onnx",
        ["detections too many"],
    ),
    "boxes shifted": (
        _break_end2end(_shift_boxes),
        END2END,
        "tiny.fp32.end2end.onnx",
        ["1 - IoU of matched boxes"],
    ),
    "classes swapped": (
        _break_end2end(_swap_classes),
        END2END,
        "tiny.fp32.end2end.onnx",
        ["detections"],
    ),
    "scores not a number": (
        _break_end2end(_poison),
        END2END,
        "tiny.fp32.end2end.onnx",
        ["values that are not finite"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_rejected_and_made_again(case, place, cli, monkeypatch):
    break_it, options, file, expected = BROKEN[case]
    words = ["run", "tiny.onnx", "--out", "out", *options, "--images", "pics"]
    folder = place / "out/tiny"
    with monkeypatch.context() as patch:
        break_it(patch)
        ran = cli(*words)
        if case == "score threshold too low":
            # What scores below the threshold is cut again by the reader: no detection differs.
            assert ran.code == 0
            return
        assert ran.code == 1
        assert ran.error.startswith(f"{file}: parity failed: ")
        for text in expected:
            assert text in ran.error
        assert (folder / f"{file}.rejected").is_file()
        assert not (folder / file).exists()
        assert cli(*words).code == 1, "it is tried again, and fails again"
    _assert_consistent(folder)
    ran = cli(*words)
    assert ran.code == 0
    assert (folder / file).is_file()
    assert not (folder / f"{file}.rejected").exists()
    _assert_consistent(folder)


def test_a_rejected_replacement_does_not_leave_the_old_file(place, cli, monkeypatch):
    words = ["run", "tiny.onnx", "--out", "out", "--precision", "fp32,fp16", "--images", "pics"]
    assert cli(*words).code == 0
    with monkeypatch.context() as patch:
        _break_weights(patch)
        assert cli(*words, "--force-convert").code == 1
    _assert_consistent(place / "out/tiny")
    assert set(_published(place / "out/tiny")) == {"tiny.fp32.onnx"}


def test_verify_finds_a_file_that_detects_nothing(place, cli):
    assert cli("verify", "tiny.onnx", "tiny.onnx", "--images", "pics").code == 0
    onnx.save(_zero_weights(onnx.load("tiny.onnx")), "broken.onnx")
    ran = cli("verify", "tiny.onnx", "broken.onnx", "--images", "pics", "--json")
    assert ran.code == 1
    result = json.loads(ran.out)
    assert not result["passed"]
    failed = {c["name"]: c["note"] for c in result["checks"] if c["passed"] is False}
    assert "raw scores" in failed
    assert "detects nothing" in failed["detections missing"]
    ran = cli("verify", "tiny.onnx", "broken.onnx", "--images", "pics")
    assert ran.code == 1
    assert "FAILED" in ran.out


def test_a_source_that_detects_nothing_is_said_so(place, cli):
    tiny_models.ultralytics_onnx(place / "silent.onnx", offset=-200)
    ran = cli("run", "silent.onnx", "--out", "out", *ALL, "--images", "pics")
    assert ran.code == 0
    assert ran.err.count("the source detects nothing on these pictures") == 1
    assert "ok (only runs)" in ran.out
    assert "│ ok │" not in ran.out


# -- crashes --------------------------------------------------------------------------------------


class Runner:
    """Runs the command line in forked children that die when they are told to."""

    def __init__(self, environment: dict[str, str], errors: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "killed_run.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def __call__(self, folder: Path, words: list[str], **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"folder": str(folder), "words": words, **request})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture
def memory(place: Path) -> Iterator[Path]:
    """A copy of `place` in memory where there is such a disk, since every step flushes files."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        shutil.copytree(place, name, dirs_exist_ok=True)
        yield Path(name)


@pytest.fixture
def runner(environment: dict[str, str], tmp_path: Path) -> Iterator[Runner]:
    with (tmp_path / "runner.txt").open("w") as errors:
        running = Runner(environment, errors)
        yield running
        running.close()


WORDS = ["run", "--skip-benchmark", "tiny.onnx", "--out", "out", "--outputs", "raw,end2end",
         "--images", "pics/p0.png", "--threads", "1", "--no-simplify"]  # fmt: skip
FORCED = [*WORDS, "--opset", "16", "--force-convert"]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("start", ["nothing", "an older run"])
def test_killed_at_every_file_operation(start, every, memory, runner):
    words = WORDS if start == "nothing" else FORCED
    folder = memory / "out/tiny"
    before = None
    if start == "an older run":
        assert runner(memory, WORDS)["code"] == 0
        before = memory / "before"
        shutil.copytree(memory / "out", before)
    whole = runner(memory, words)
    assert whole["code"] == 0, (memory / "stderr.txt").read_text()
    expected = _published(folder)
    assert len(expected) == 2
    assert whole["operations"] > 15
    for moment in range(1, whole["operations"] + 1, every):
        shutil.rmtree(memory / "out")
        if before is not None:
            shutil.copytree(before, memory / "out")
        assert runner(memory, words, moment=moment)["killed"], f"operation {moment}"
        _assert_consistent(folder)
        assert runner(memory, words)["code"] == 0, (moment, (memory / "stderr.txt").read_text())
        _assert_settled(folder)
        assert _published(folder) == expected, f"operation {moment}"


@pytest.mark.parametrize("start", ["nothing", "an older run"])
def test_interrupted_at_every_file_operation(start, memory, runner):
    words = WORDS if start == "nothing" else FORCED
    folder = memory / "out/tiny"
    if start == "an older run":
        assert runner(memory, WORDS)["code"] == 0
        shutil.copytree(memory / "out", memory / "before")
    whole = runner(memory, words)
    expected = _published(folder)
    for moment in range(1, whole["operations"] + 1, 5):
        shutil.rmtree(memory / "out")
        if start == "an older run":
            shutil.copytree(memory / "before", memory / "out")
        ran = runner(memory, words, moment=moment, kind="interrupt")
        assert ran["code"] in (130, 0), (moment, ran)
        said = (memory / "stderr.txt").read_text()
        assert "Traceback" not in said, (moment, said)
        if ran["code"] == 130:
            assert said.splitlines()[-1].startswith("boxwright: error: interrupted")
        _assert_consistent(folder)
        assert not list(memory.rglob("*.part")), f"operation {moment}"
        assert runner(memory, words)["code"] == 0
        _assert_settled(folder)
        assert _published(folder) == expected


def test_killed_at_random_moments(memory, runner):
    whole = runner(memory, WORDS)
    expected = _published(memory / "out/tiny")
    rng = random.Random(0)
    shutil.rmtree(memory / "out")
    killed = 0
    for _ in range(6):  # in one folder: each goes on where the last was killed
        ran = runner(memory, WORDS, delay_s=rng.uniform(0.01, whole["seconds"]))
        killed += ran["killed"]
        _assert_consistent(memory / "out/tiny")
        if not ran["killed"]:
            shutil.rmtree(memory / "out")
    assert killed
    assert runner(memory, WORDS)["code"] == 0
    _assert_settled(memory / "out/tiny")
    assert _published(memory / "out/tiny") == expected


DISK_BYTES = 8 << 20


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which the files of a run and its page fit into."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED, a full disk needs the right to mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_bytes", [0, 4096, 16384, 36864, 53248])
def test_run_on_a_full_disk(free_bytes, full_disk, place, cli):
    ballast = full_disk / "ballast"
    ballast.write_bytes(bytes(DISK_BYTES - free_bytes - 4096))
    words = ["run", "tiny.onnx", "--out", full_disk / "out", *ALL, "--images", "pics"]
    ran = cli(*words)
    assert ran.code == 2
    assert "the disk is full; free some space" in ran.error
    folder = full_disk / "out/tiny"
    _assert_consistent(folder)
    assert not list(full_disk.rglob("*.part"))
    ballast.unlink()
    assert cli(*words).code == 0
    _assert_settled(folder)


@pytest.mark.parametrize("option", ["--save-json", "--save-coco", "--out", "--save-txt"])
def test_predict_on_a_full_disk(option, full_disk, place, cli):
    (full_disk / "ballast").write_bytes(bytes(DISK_BYTES))
    ran = cli("predict", "tiny.onnx", "pics", option, full_disk / "result")
    assert ran.code == 2
    assert "the disk is full" in ran.error or "No space left" in ran.error
    assert not [p for p in full_disk.rglob("*") if p.is_file() and p.name != "ballast"]


def test_run_on_a_read_only_disk(full_disk, place, cli):
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    for words in (
        ["run", "tiny.onnx", "--out", full_disk],
        ["predict", "tiny.onnx", "pics", "--save-json", full_disk / "a.json"],
        ["predict", "tiny.onnx", "pics", "--out", full_disk / "drawn"],
    ):
        ran = cli(*words)
        assert ran.code == 2
        assert "cannot be written" in ran.error
