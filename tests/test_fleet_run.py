"""`fleet run`: one graph of steps, with the files of single runs, whatever fails or is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models

from boxwright.fleet.builds import RUN_FILE
from boxwright.store import Store, locked, sha256_of_file

MORE = ("--family", "ultralytics", "--precision", "fp32,fp16", "--outputs", "raw,end2end")
FILES = ("fp16.end2end", "fp16", "fp32.end2end", "fp32")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    place = tmp_path_factory.mktemp("sources")
    return [tiny_models.ultralytics_onnx(place / f"m{i}.onnx", seed=i) for i in range(6)]


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    import cv2

    path = tmp_path_factory.mktemp("picture") / "p.png"
    cv2.imwrite(str(path), tiny_models.picture(64, 64, 1))
    return path


def words(sources: list[Path], out: Path, picture: Path, *more: object) -> tuple[object, ...]:
    base = ("fleet", "run", *sources, *MORE, "--images", picture, "--out", out)
    return (*base, "--jobs", 2, "--json", *more)


def hashes(out: Path) -> dict[str, str]:
    return {f"{p.parent.name}/{p.name}": sha256_of_file(p) for p in sorted(out.rglob("m*.onnx"))}


@pytest.fixture(scope="module")
def undisturbed(sources, picture, tmp_path_factory) -> dict[str, str]:
    """The files of single runs, one after the other."""
    from boxwright.cli import main

    out = tmp_path_factory.mktemp("single")
    for source in sources[:2]:
        line = ("run", source, *MORE, "--images", picture, "--skip-benchmark", "--out", out)
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in line])
        assert ended.value.code == 0
    return hashes(out)


@pytest.mark.slow
def test_a_broken_branch_stops_no_other(sources, picture, undisturbed, tmp_path, cli):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    half = tmp_path / "half.yaml"
    # INT8 needs pictures that it can calibrate on: that branch breaks, its siblings do not.
    blank = tmp_path / "blank.png"
    blank.write_bytes(b"no picture")
    half.write_text(
        f"source: {sources[5]}\nfamily: ultralytics\nverify: false\n"
        "targets: [{precision: fp32}, {precision: int8}, {precision: int8, outputs: end2end}]\n"
        f"calibration: {{images: ['{blank}']}}\n"
    )
    out = tmp_path / "out"
    ran = cli(*words([*sources[:2], bad, half], out, picture))
    assert ran.code == 1, ran.err
    states = {b["file"]: b for b in json.loads(ran.out)["branches"]}
    assert {n: b["state"] for n, b in states.items()} == {
        **{f"m{i}.{n}.onnx": "made" for i in range(2) for n in FILES},
        "bad.fp32.onnx": "failed",
        **{f"bad.{n}.onnx": "left out" for n in FILES if n != "fp32"},
        "m5.fp32.onnx": "made",
        "m5.int8.onnx": "failed",
        "m5.int8.end2end.onnx": "left out",
    }
    assert "it is not an ONNX file" in states["bad.fp32.onnx"]["error"]
    assert states["m5.int8.end2end.onnx"]["error"] == "m5.int8.onnx failed"
    found = hashes(out)
    assert {n: h for n, h in found.items() if not n.startswith("m5/")} == undisturbed
    assert list(found) == [*undisturbed, "m5/m5.fp32.onnx"]
    for name, branch in states.items():
        if branch["state"] == "made":
            assert branch["sha256"] == found[f"{name.split('.')[0]}/{name}"]
    assert not list(out.glob(".fleet-*")) and not (out / "bad").exists()
    entries = Store.peek(out / "m0").entries
    assert all(e.state == "published" and e.parity and e.parity_key for e in entries.values())
    report = json.loads((out / "m0" / "report.json").read_text())
    assert not report["benchmark"]  # nothing is timed while other work runs
    again = cli("fleet", "run", "--resume", "--out", out, "--jobs", 2, "--json")
    assert {b["state"] for b in json.loads(again.out)["branches"]} == {
        "there", "failed", "left out"
    }  # fmt: skip
    assert hashes(out) == found


@pytest.mark.slow
def test_killed_half_way_and_resumed_ends_with_the_same_hashes(
    sources, picture, undisturbed, tmp_path, cli, environment
):
    out = tmp_path / "out"
    line = [str(w) for w in words(sources[:2], out, picture)]
    run = subprocess.Popen(
        [sys.executable, "-m", "boxwright", *line], env=environment, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(out.glob("*/.work/*.onnx"))) < 3:
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.kill()
    run.wait()
    while time.monotonic() < until and any(_alive(c) for c in children):
        time.sleep(0.02)
    assert not any(_alive(c) for c in children)
    made = {p.name: p.stat().st_ino for p in out.glob("*/.work/*.onnx")}
    assert 3 <= len(made) < 8
    manifests = [json.loads(p.read_text())["files"] for p in out.glob("*/manifest.json")]
    known = {name for files in manifests for name in files}
    assert known <= set(made) and len(made) - len(known) <= 1  # killed before it was written down
    ran = cli("fleet", "run", "--resume", "--out", out, "--jobs", 2, "--json")
    assert ran.code == 0, ran.err
    assert hashes(out) == undisturbed
    states = [b["state"] for b in json.loads(ran.out)["branches"]]
    assert states.count("there") == len(known)
    kept = {p.name: p.stat().st_ino for p in out.glob("*/m*.onnx")}
    assert {n: kept[n] for n in known} == {n: made[n] for n in known}  # published, not made again


def _alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_runs_on_one_store_do_not_meet(sources, picture, tmp_path, cli):
    out = tmp_path / "out"
    line = words(sources[:1], out, picture)
    with locked(out / RUN_FILE, "wait for it"):
        ran = cli(*line)
        assert ran.code == 2 and f"another process ({os.getpid()})" in ran.error
    with Store(out / "m0") as store:  # a single run is at work in one run directory
        ran = cli(*line)
        assert ran.code == 1
        (branch,) = json.loads(ran.out)["branches"]
        assert branch["state"] == "failed" and "another run (process" in branch["error"]
        assert not store.entries
    assert hashes(out) == {}


def test_requests_that_cannot_be_met_are_refused(sources, picture, tmp_path, cli):
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: {sources[0]}\nfamily: ultralytics\n")
    for line, found in (
        (("fleet", "run", "--out", out), "SOURCE: none is named"),
        (("fleet", "run", "--out", out, "--resume"), "no run of a fleet is recorded there"),
        (words(sources[:1], out, picture, "--resume"), "the recipes that --out remembers"),
        (words(sources[:1], out, picture, "--dry-run"), "they are of single runs"),
        (words(sources[:1], out, picture, "--num-cpus", 2), "engine ray"),
        (("fleet", "run", recipe, "--images", picture, "--out", out), "decides that"),
    ):
        ran = cli(*line)
        assert ran.code == 2 and found in ran.error, found
    assert not out.exists()
    twice = tmp_path / "elsewhere" / "m0.onnx"
    twice.parent.mkdir()
    twice.write_bytes(sources[1].read_bytes())
    ran = cli("fleet", "run", twice, twice, "--family", "ultralytics", "--skip-verify",
              "--out", out, "--json")  # fmt: skip
    first, second = json.loads(ran.out)["branches"]
    assert (first["state"], second["state"]) == ("made", "failed")
    assert "its files would be in" in second["error"]
