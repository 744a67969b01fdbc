"""`fleet predict` on one machine: one row an input, the same whatever the way, and none lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models
from test_light import run_blocked

from boxwright.detector import Detector
from boxwright.errors import ImageError
from boxwright.fleet.folder import JOB_FILE, check_shard
from boxwright.fleet.inputs import FleetPicture, addresses
from boxwright.fleet.job import Job, Pace, Settings
from boxwright.fleet.listing import open_listing, write_listing
from boxwright.fleet.rows import Row
from boxwright.fleet.shard_files import bytes_from_rows, rows_from_file, shard_name
from boxwright.fleet.synthetic import synthetic_from_text
from boxwright.fleet.worker import Task, Worker, _batch_check
from boxwright.loading import load
from boxwright.store import locked, sha256_of_file
from boxwright.stream.decoding import image_from_picture
from boxwright.types import Detections

COUNT = 61
TEXT = f"synthetic://{COUNT}?seed=5&size=48x80&corrupt=0.15"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_models.ultralytics_onnx(tmp_path_factory.mktemp("model") / "tiny.onnx", offset=-5)


@pytest.fixture(scope="module")
def expected(model) -> list[Detections | None]:
    """What a plain loop finds in each picture; None where it cannot be read."""
    found: list[Detections | None] = []
    with load(model, "onnxruntime", quiet=True) as detector:
        for index, address in enumerate(addresses(TEXT)):
            try:
                image = image_from_picture(FleetPicture(index, address, False))
            except ImageError:
                found.append(None)
                continue
            found.append(detector(image))
    return found


def read(out: Path) -> list[Row]:
    job = Job.from_dict(json.loads((out / JOB_FILE).read_text()))
    shards = range(job.shards)
    return [r for s in shards for r in rows_from_file(job, out / "shards" / shard_name(job, s))]


def words(model: Path, out: Path, *more: object, text: str = TEXT) -> tuple[object, ...]:
    base = ("fleet", "predict", model, text, "--out", out, "--runtime", "onnxruntime", "--json")
    return (*base, "--threads", 1, *(("--workers", 1) if "--workers" not in more else ()), *more)


@pytest.mark.parametrize(
    "more",
    [
        ("--format", "jsonl"),
        ("--format", "jsonl", "--batch", 8, "--shard-size", 7),
        ("--format", "jsonl", "--batch", 5, "--decoders", 2, "--shard-size", 11),
        ("--format", "jsonl", "--workers", 2, "--shard-size", 10, "--batch", 3),
        ("--format", "parquet", "--batch", 4, "--shard-size", 13),
        ("--format", "coco", "--shard-size", 20),
    ],
    ids=["plain", "batch", "threads", "processes", "parquet", "coco"],
)
def test_every_input_once_with_what_a_plain_loop_finds(more, model, expected, tmp_path, cli):
    if "parquet" in more:
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    ran = cli(*words(model, out, *more))
    rows = read(out)
    assert ran.code == 1, ran.err  # pictures failed
    assert [r.id for r in rows] == list(range(COUNT))
    assert [r.path for r in rows] == [f"{TEXT}#{i}" for i in range(COUNT)]
    whole = synthetic_from_text(TEXT)
    assert [bool(r.error) for r in rows] == [whole.is_corrupt(i) for i in range(COUNT)]
    assert 0 < sum(bool(r.error) for r in rows) < COUNT
    for row, found in zip(rows, expected, strict=True):
        if found is None:
            assert "cut off" in row.error and len(row) == 0 and row.size is None
            continue
        assert row.size == (48, 80)
        np.testing.assert_array_equal(row.xyxy, found.xyxy)
        np.testing.assert_array_equal(row.scores, found.scores)
        np.testing.assert_array_equal(row.class_ids, found.class_ids)
    summary = json.loads(ran.out)
    assert summary["rows"] == COUNT and summary["detections"] == sum(map(len, rows)) > COUNT
    assert summary["results_sha256"] == known_hash(model, tmp_path, cli)
    assert summary["artifact_sha256"] == sha256_of_file(model)
    assert not list(out.rglob("*.part"))


def known_hash(model: Path, place: Path, cli: Callable[..., object]) -> str:
    ran = cli(*words(model, place / "known", "--format", "jsonl"))
    found: str = json.loads(ran.out)["results_sha256"]
    return found


def test_the_hash_tells_a_change_of_one_bit():
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    first = Row(0, "a", (5, 6), boxes, np.array([0.5], np.float32), np.array([1], np.int32))
    nudged = np.nextafter(boxes, np.float32(9))
    others = [
        Row(1, "a", (5, 6), boxes, first.scores, first.class_ids),
        Row(0, "b", (5, 6), boxes, first.scores, first.class_ids),
        Row(0, "a", (5, 7), boxes, first.scores, first.class_ids),
        Row(0, "a", (5, 6), nudged, first.scores, first.class_ids),
        Row(0, "a", (5, 6), boxes, first.scores, first.class_ids, error="e"),
        Row(0, "a", (5, 6), boxes, first.scores, np.array([2], np.int32)),
        Row(0, "a", (5, 6), boxes, first.scores, first.class_ids, masks=("13",)),
        Row(0, "a", (5, 6), boxes, first.scores, first.class_ids, rotated=np.ones((1, 5))),
    ]
    digests = {r.digest() for r in (first, *others)}
    assert len(digests) == 1 + len(others)
    elsewhere = Row(0, "a", (5, 6), boxes, first.scores, first.class_ids, runs_on="x")
    assert elsewhere.digest() == first.digest()


def job_of(task: str, form: str) -> Job:
    names = ("ant", "bee")
    return Job("i", 3, "h", 3, form, "m", "s", task, names, Settings(), "0")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_rows_are_read_back_as_they_were(task, form, tmp_path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)

    def row(index: int, count: int) -> Row:
        return Row(
            id=index,
            path=f"é/{index}",
            size=(40, 50),
            xyxy=rng.random((count, 4), np.float32),
            scores=rng.random(count, np.float32),
            class_ids=rng.integers(0, 2, count).astype(np.int32),
            masks=tuple(f"{i}a" for i in range(count)) if task == "segment" else None,
            keypoints=rng.random((count, 17, 3), np.float32) if task == "pose" else None,
            rotated=rng.random((count, 5), np.float32) if task == "obb" else None,
            runs_on="here",
        )

    job = job_of(task, form)
    rows = [row(0, 3), Row(1, "bad", error="it is no picture", runs_on="here"), row(2, 0)]
    path = tmp_path / shard_name(job, 0)
    path.write_bytes(bytes_from_rows(job, rows))
    back = list(rows_from_file(job, path))
    assert [b.digest() for b in back] == [r.digest() for r in rows]
    assert [b.runs_on for b in back] == ["here"] * 3


def test_a_killed_command_goes_on_without_doing_work_twice(model, tmp_path, cli, environment):
    out = tmp_path / "out"
    more = ("--format", "jsonl", "--shard-size", 20)
    text = "synthetic://900?seed=5&size=200x200&jpeg=1&corrupt=0.01"
    line = [str(w) for w in words(model, out, *more, text=text)]
    shards = out / "shards"
    run = subprocess.Popen(
        [sys.executable, "-m", "boxwright", *line], env=environment, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(shards.glob("shard-*"))) < 5:
        time.sleep(0.01)
    run.kill()
    run.wait()
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in shards.glob("shard-*")}
    assert 5 <= len(before) < 45
    ran = cli(*line)
    summary = json.loads(ran.out)
    assert summary["done_before"] == 20 * len(before)
    after = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in shards.glob("shard-*")}
    assert len(after) == 45 and {n: after[n] for n in before} == before  # not written again
    assert not list(shards.glob(".*"))
    whole = cli(*words(model, tmp_path / "whole", "--format", "jsonl", text=text))
    assert json.loads(whole.out)["results_sha256"] == summary["results_sha256"]
    again = json.loads(cli(*line).out)
    assert again["done_before"] == 900
    assert again["results_sha256"] == summary["results_sha256"]


def test_a_killed_process_is_replaced(model, tmp_path, environment):
    out = tmp_path / "out"
    text = "synthetic://800?seed=5&size=200x200&jpeg=1"
    more = ("--workers", 2, "--format", "jsonl", "--shard-size", 25)
    line = [str(w) for w in words(model, out, *more, text=text)]
    run = subprocess.Popen(
        [sys.executable, "-m", "boxwright", *line], env=environment, stdout=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list((out / "shards").glob("shard-*"))) < 3:
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0
    assert json.loads(said)["rows"] == 800
    assert [r.id for r in read(out)] == list(range(800))


def test_workers_end_when_their_driver_is_killed(model, tmp_path, environment):
    text = "synthetic://200000?seed=5"
    more = ("--workers", 2, "--format", "jsonl", "--shard-size", 50)
    line = [str(w) for w in words(model, tmp_path / "out", *more, text=text)]
    run = subprocess.Popen([sys.executable, "-m", "boxwright", *line], env=environment)
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(tmp_path.glob("out/shards/shard-*")):
        time.sleep(0.02)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    run.kill()
    run.wait()
    while time.monotonic() < until and any(_alive(c) for c in children):
        time.sleep(0.02)
    assert not any(_alive(c) for c in children)


def _alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_damaged_shard_is_done_again(form, model, tmp_path, cli):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    line = words(model, out, "--format", form, "--shard-size", 20)
    known = json.loads(cli(*line).out)["results_sha256"]
    shard = sorted((out / "shards").iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    ran = cli(*line)
    assert "1 shards are damaged and done again" in ran.err
    assert json.loads(ran.out)["results_sha256"] == known
    lines = sorted((out / "shards").iterdir())
    lines[0].write_bytes(lines[2].read_bytes())  # whole, but of other inputs
    ran = cli(*line)
    assert "rows, not those numbered 0 to 19" in ran.err
    assert json.loads(ran.out)["results_sha256"] == known


def test_another_job_in_the_folder_is_refused(model, tmp_path, cli):
    out = tmp_path / "out"
    line = words(model, out, "--format", "jsonl", "--shard-size", 20)
    assert cli(*line).code == 1
    other = tiny_models.ultralytics_onnx(tmp_path / "tiny.onnx", seed=1)
    cases = {
        "artifact_sha256": words(other, out, "--format", "jsonl", "--shard-size", 20),
        "batch: 1 -> 2": (*line, "--batch", 2),
        "score_threshold: None -> 0.5": (*line, "--score-threshold", 0.5),
        "class_ids: None -> [1]": (*line, "--classes", 1),
        "shard_size: 20 -> 21": (*line, "--shard-size", 21),
    }
    for found, case in cases.items():
        ran = cli(*case)
        assert ran.code == 2 and found in ran.error, found
    ran = cli(*words(model, out, "--format", "jsonl", text="synthetic://62"))
    assert ran.code == 2 and "listing of 61 inputs is not that" in ran.error
    with locked(out / JOB_FILE, "wait"):
        ran = cli(*line)
    assert ran.code == 2 and "another process" in ran.error
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("mine")
    ran = cli(*words(model, stranger, "--format", "jsonl"))
    assert ran.code == 2 and "it holds other files (thesis.txt)" in ran.error
    assert [p.name for p in stranger.iterdir()] == ["thesis.txt"]


def test_failed_pictures_are_looked_at_again_when_asked(model, tmp_path, cli):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), tiny_models.picture(40, 50, index))
    good = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(good[:50])
    line = words(model, tmp_path / "out", "--format", "jsonl", "--shard-size", 2, text=str(folder))
    first = cli(*line)
    assert first.code == 1 and json.loads(first.out)["failed"] == 1
    (folder / "3.png").write_bytes(good)
    assert json.loads(cli(*line).out)["failed"] == 1
    second = cli(*line, "--redo-failed")
    assert second.code == 0 and json.loads(second.out)["failed"] == 0
    assert json.loads(second.out)["done_before"] == 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("in")
    for index, name in enumerate(("b/2.png", "b/10.png", "a/z.jpg", "a/c/y.bmp", "x.webp")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / name), tiny_models.picture(40, 50 + index, index))
    (place / "notes.md").write_text("no picture")
    return place


def test_folders_globs_and_lists_are_listed_in_one_order(pictures, tmp_path, monkeypatch):
    names = [p.removeprefix(f"{pictures}/") for p in addresses(str(pictures))]
    assert names == ["x.webp", "a/z.jpg", "a/c/y.bmp", "b/10.png", "b/2.png"]
    assert list(addresses(f"{pictures}/b/*.png")) == [
        f"{pictures}/b/{n}" for n in ("10.png", "2.png")
    ]
    assert list(addresses(f"{pictures}/x.webp")) == [f"{pictures}/x.webp"]
    listed = pictures / "list.txt"
    listed.write_text("# a comment\n\nb/2.png\n/abs/p.png\ns3://bucket/k.png\nb/2.png\n")
    assert list(addresses(str(listed))) == [
        f"{pictures}/b/2.png", "/abs/p.png", "s3://bucket/k.png", f"{pictures}/b/2.png"
    ]  # fmt: skip
    listed.unlink()
    for text, found in (("nowhere", "no such file"), (str(tmp_path), "no pictures")):
        with pytest.raises(ImageError, match=found):
            list(addresses(text))


def test_urls_and_parquet_files_give_the_same_pictures(pictures, model, tmp_path, cli):
    fsspec = pytest.importorskip("fsspec")
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = sorted(addresses(str(pictures)))
    data = [Path(p).read_bytes() for p in paths]
    parquet.write_table(pa.table({"path": paths}), tmp_path / "paths.parquet")
    parquet.write_table(
        pa.table({"n": list(range(80)), "image": data * 16}),
        tmp_path / "bytes.parquet",
        row_group_size=33,
    )
    structs = [{"bytes": d, "path": p} for d, p in zip(data, paths, strict=True)]
    parquet.write_table(pa.table({"image": structs}), tmp_path / "hugging.parquet")
    store = fsspec.filesystem("memory")
    for path, one in zip(paths, data, strict=True):
        store.pipe(f"/fleet/{Path(path).name}", one)
    by_name = sorted(paths, key=lambda p: Path(p).name)

    def found(text: str, *more: object) -> list[bytes]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        ran = cli(*words(model, out, "--format", "jsonl", *more, text=text))
        assert ran.code == 0, ran.err
        return [r.xyxy.tobytes() + r.scores.tobytes() for r in read(out)]

    by_path = dict(zip(paths, found(str(tmp_path / "paths.parquet")), strict=True))
    assert found(str(tmp_path / "hugging.parquet"), "--decoders", 3) == list(by_path.values())
    more = ("--decoders", 3, "--batch", 4)
    assert found(str(tmp_path / "bytes.parquet"), *more) == list(by_path.values()) * 16
    assert found(f"file://{tmp_path}/paths.parquet") == list(by_path.values())
    assert sorted(found(f"file://{pictures}")) == sorted(by_path.values())
    assert found("memory://fleet") == [by_path[p] for p in by_name]
    missing = tmp_path / "missing.txt"
    missing.write_text("memory://fleet/none.png\n")
    ran = cli(*words(model, tmp_path / "m", "--format", "jsonl", text=str(missing)))
    assert ran.code == 1
    assert "there is no such object" in read(tmp_path / "m")[0].error


def test_a_listing_is_read_in_parts(tmp_path):
    names = [f"p/{i}\n\u2028é" for i in range(1000)]
    written = write_listing(tmp_path / "l.txt", names)
    assert written == open_listing(tmp_path / "l.txt")
    for first, count in ((0, 5), (255, 3), (256, 300), (999, 1)):
        assert written.part(first, count) == names[first : first + count]


def test_a_picture_that_spoils_its_batch_is_its_own_error(model, tmp_path, cli):
    """A graph that takes pictures of one size refuses the others only when they are its batch."""
    assert cli("export", model, "--family", "ultralytics", "--input", "image", "--source-size",
               "40,50", "--out", tmp_path / "runs").code == 0  # fmt: skip
    (artifact,) = (tmp_path / "runs").rglob("*.image*.onnx")
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(9):
        size = (41, 50) if index == 4 else (40, 50)
        cv2.imwrite(str(folder / f"{index}.png"), tiny_models.picture(*size, index))
    for number, more in enumerate(((), ("--decoders", 2))):
        out = tmp_path / f"out{number}"
        line = words(artifact, out, "--batch", 2, "--shard-size", 3, *more, text=str(folder))
        assert cli(*line, "--format", "jsonl").code == 1
        rows = read(out)
        assert [r.id for r in rows if r.error] == [4]
        assert "pictures of 40x50 only" in rows[4].error
        assert all(len(r) for r in rows if r.id != 4)


class _Moody(Detector):
    """A detector whose scores depend on the size of the batch."""

    def __init__(self) -> None:
        pass

    def __call__(self, images, **_):  # type: ignore[no-untyped-def, override]
        score = np.array([0.5 + 0.125 * (len(images) - 1)], np.float32)
        one = Detections(np.ones((1, 4), np.float32), score, np.zeros(1, np.int64))
        return [one for _ in images]


def test_a_runtime_whose_batches_change_results_is_found_out(model):
    pictures = [FleetPicture(i, f"synthetic://9#{i}", False) for i in range(3)]
    check = _batch_check(_Moody(), pictures)
    assert (check.pictures, check.differ, check.score) == (3, 3, 0.25)
    with load(model, "onnxruntime", quiet=True) as detector:
        assert _batch_check(detector, pictures).differ == 0


def test_no_batch_crosses_the_end_of_a_shard(model, monkeypatch):
    """So that a picture has the same neighbours whoever does its shard."""
    sizes: list[int] = []
    infer = Detector.infer

    def counted(self, batch, settings=None):  # type: ignore[no-untyped-def]
        sizes.append(len(batch))
        return infer(self, batch, settings)

    monkeypatch.setattr(Detector, "infer", counted)
    whole = list(addresses("synthetic://14"))
    tasks = [Task(i, i * 7, whole[i * 7 : i * 7 + 7]) for i in range(2)]
    for decoders in (0, 2):
        with Worker(
            model, sha256_of_file(model), Settings(batch=4), Pace(decoders=decoders)
        ) as worker:
            first = len(sizes)
            assert [d.task.shard for d in worker.run(iter(tasks))] == [0, 1]
        tried = 5  # four alone, and once all four, to see whether batches matter
        assert sizes[first + tried :] == [4, 3, 4, 3]


def test_the_coco_files_hold_every_row(model, tmp_path, cli):
    from faster_coco_eval import COCO

    out = tmp_path / "out"
    cli(*words(model, out, "--format", "coco", "--shard-size", 25))
    rows = read(out)
    data = COCO(str(out / "coco.json"))
    assert len(data.imgs) == COUNT
    assert [i["id"] for i in data.imgs.values() if "error" in i] == [
        r.id + 1 for r in rows if r.error
    ]
    results = json.loads((out / "coco_results.json").read_text())
    assert len(results) == len(data.anns) == sum(map(len, rows))
    row = next(r for r in rows if len(r))
    first = next(r for r in results if r["image_id"] == row.id + 1)
    x1, y1, x2, y2 = row.xyxy[0].tolist()
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
    assert first["category_id"] == row.class_ids[0]
    assert len(data.loadRes(str(out / "coco_results.json")).anns) == len(results)


def test_options_that_do_not_go_together_are_refused(model, tmp_path, cli):
    out = tmp_path / "out"
    for more, found in (
        (("--actors", 2), "engine ray"),
        (("--num-gpus", 1), "engine ray"),
        (("--devices", "0"), "GPU"),
        (("--decode", "gpu"), "--preprocess gpu"),
        (("--classes", "zebra"), "no such class"),
        (("--shard-size", 0), "shard-size"),
    ):
        ran = cli(*words(model, out, "--format", "jsonl", *more))
        assert ran.code == 2 and found in ran.error, more
    ran = cli("fleet", "predict", "triton://h:1/m", TEXT, "--out", out)
    assert ran.code == 2 and "hash" in ran.error
    ran = cli(*words(model, out, "--format", "jsonl", text="synthetic://10?sed=1"))
    assert ran.code == 2 and "did you mean seed?" in ran.error
    assert not out.exists()


def test_json_lines_need_no_extra_and_parquet_names_its_own(model, tmp_path):
    """On a machine with the base dependencies alone."""
    line = [str(w) for w in words(model, tmp_path / "out", "--format", "jsonl")]
    done = run_blocked(f"from boxwright.cli import main; main({line!r})")
    assert done.returncode == 1 and f'"rows": {COUNT}' in done.stdout, done.stderr
    base = ["fleet", "predict", str(model), TEXT, "--out", str(tmp_path / "other")]
    for more in (["--format", "parquet"], ["--format", "jsonl", "--engine", "ray"]):
        line = [*base, *more]
        done = run_blocked(f"from boxwright.cli import main; main({line!r})")
        assert done.returncode == 2 and 'pip install "boxwright[ray]"' in done.stderr, done.stderr
        assert not (tmp_path / "other").exists()


def test_check_shard_says_what_is_wrong(tmp_path):
    job = job_of("detect", "jsonl")
    listing = write_listing(tmp_path / "inputs.txt", ["a", "b", "c"])
    from boxwright.fleet.folder import JobFolder, Tally

    folder = JobFolder(tmp_path, listing, False)
    folder.shards.mkdir()
    path = folder.shards / shard_name(job, 0)
    rows = [Row(i, n, (1, 1), runs_on="x") for i, n in enumerate("abc")]
    for case, found in (
        (rows, ""),
        (rows[:2], "2 rows"),
        ([*rows[:2], rows[1]], "3 rows, not those numbered 0 to 2"),
        ([rows[0], Row(1, "z", (1, 1)), rows[2]], "not those of the listing"),
    ):
        path.write_bytes(bytes_from_rows(job, case))
        tally = Tally.empty()
        said = check_shard(folder, job, 0, tally)
        assert found in said and bool(found) == bool(said)
        assert tally.rows == (0 if found else 3)
