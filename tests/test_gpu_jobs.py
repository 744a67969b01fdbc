"""Work over several GPUs: real processes, and an nvidia-smi that lists GPUs which are not there."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from boxwright.engine_record import read_record
from boxwright.engines.timing_cache import (
    CacheKey,
    load_timing_cache,
    merge_timing_caches,
    save_timing_cache,
)
from boxwright.errors import RequestError, StoreError
from boxwright.gpu_jobs import Gate, Job, run_jobs
from boxwright.measurement.merging import merged
from boxwright.measurement.records import BenchmarkResult
from boxwright.outcome import Listener
from boxwright.sample import onnx_file
from boxwright.store import locked, sha256_of_file

PYTHON = (sys.executable, "-c")
DEVICES = ((0, "GPU-a"), (1, "GPU-b"))
KEY = CacheKey("8.6.0", "NVIDIA H100", "9.0")
NVIDIA_SMI = """#!/bin/sh
case "$1" in
--query-gpu=name,compute_cap*) echo "Fake A, 8.6, 500.1" ;;
--query-gpu=index*)
  tail="100 MiB, 1 MiB, 500.1, Enabled, 1 MHz, 2 MHz, 3 MHz, 4 W, 8.6, Disabled"
  echo "0, Fake A, GPU-a, $tail"; echo "1, Fake B, GPU-b, $tail" ;;
*) echo "Fake" ;;
esac
"""


class Ears(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def two_gpus(tmp_path_factory, monkeypatch):
    """An nvidia-smi that lists two GPUs."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


# -- the processes


def test_work_is_spread_and_comes_back_in_order(tmp_path, two_gpus):
    """Each process sees its GPU before it starts; never two at once on one."""
    code = """
import os, sys, time
seen = os.environ["CUDA_VISIBLE_DEVICES"]
place = os.path.join(sys.argv[1], seen)
os.close(os.open(place, os.O_CREAT | os.O_EXCL))
time.sleep(0.1)
os.unlink(place)
print(sys.argv[2], seen, os.environ["CUDA_DEVICE_ORDER"])
"""
    jobs = [Job(str(i), (code, str(tmp_path), str(i))) for i in range(5)]
    done = run_jobs(jobs, DEVICES, listener=Ears(), program=PYTHON)
    assert [one.out.split()[0] for one in done] == list("01234")
    assert {(one.device, one.out.split()[1]) for one in done} == set(DEVICES)
    assert all(one.code == 0 and one.error == "" for one in done)
    assert all(one.out.split()[2] == "PCI_BUS_ID" for one in done)


def test_a_failure_is_told_with_its_line_and_the_others_finish():
    ears = Ears()
    jobs = [
        Job(
            "bad", ("import sys; print('boxwright: error: a: b; c', file=sys.stderr); sys.exit(2)",)
        ),
        Job("good", ("import sys; print('boxwright: hm', file=sys.stderr); print('yes')",)),
        Job("odd", ("raise ValueError('odd')",)),
        Job("killed", ("import os; os.kill(os.getpid(), 9)",)),
    ]
    done = run_jobs(jobs, DEVICES[:1], listener=ears, program=PYTHON)
    assert [one.code for one in done] == [2, 0, 1, 137]
    assert done[0].error == "a: b; c" and done[1].out == "yes\n"
    assert "ValueError: odd" in done[2].error and "status 137" in done[3].error
    assert "GPU 0: bad failed: a: b; c" in ears.notes and "GPU 0: hm" in ears.notes


def test_work_stays_on_the_gpu_that_it_names():
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    jobs = [Job("x", (code,), 1), Job("y", (code,), 1), Job("z", (code,), 0)]
    done = run_jobs(jobs, DEVICES, listener=Ears(), program=PYTHON)
    assert [one.out.strip() for one in done] == ["GPU-b", "GPU-b", "GPU-a"]


def test_an_interruption_ends_all(tmp_path, environment):
    """Ctrl-C reaches this process alone, as from a terminal; no process of it stays."""
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
from boxwright.gpu_jobs import Job, run_jobs
from boxwright.outcome import Listener
child = "import os, time; open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w'); time.sleep(60)"
jobs = [Job(str(i), (child,)) for i in range(3)]
try:
    run_jobs(jobs, [(0, "0"), (1, "1")], listener=Listener(), program=(sys.executable, "-c"))
except KeyboardInterrupt:
    sys.exit(130)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    until = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    children = [int(p.name) for p in tmp_path.iterdir()]
    assert len(children) == 2
    parent.send_signal(signal.SIGINT)
    assert parent.wait(20) == 130
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert len(list(tmp_path.iterdir())) == 2, "the third was begun"


def test_a_gate_opens_for_all_and_does_not_wait_for_the_dead(tmp_path):
    """Two measure at once, twice; the third fails before it is ready."""
    code = """
import sys, time
from pathlib import Path
from boxwright.gpu_jobs import Gate
gate = Gate(Path(sys.argv[1]))
time.sleep(float(sys.argv[2]))
for _ in range(2):
    gate.wait()
    print(time.monotonic())
"""
    jobs = [
        Job("a", (code, str(tmp_path), "0"), 0),
        Job("b", (code, str(tmp_path), "0.3"), 1),
        Job("c", ("import sys; sys.exit(3)",), 2),
    ]
    devices = (*DEVICES, (2, "2"))
    done = run_jobs(jobs, devices, listener=Ears(), gate=Gate(tmp_path), program=PYTHON)
    assert [one.code for one in done] == [0, 0, 3]
    (first, second), (third, fourth) = ([float(t) for t in one.out.split()] for one in done[:2])
    assert first < fourth and third < second, "one had ended its turns before the other began"


# -- build


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(onnx_file().read_bytes())
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    return tmp_path


def test_build_over_two_gpus(cli, two_gpus, sources):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    words = ("a.onnx", "bad.onnx", "b.onnx", "--runtime", "tensorrt-rtx", "--devices", "0,1")
    ran = cli("build", *words, "--batch", "1,2,4", "--out", "plans", "--json")
    assert ran.code == 2
    assert "bad.onnx failed: bad.onnx: " in ran.err
    built = json.loads(ran.out)
    assert [b.get("action", "failed") for b in built] == ["built", "failed", "built"]
    assert {b["device"] for b in built} == {0, 1}
    for one in (built[0], built[2]):
        plan = sources / one["plan"]
        assert read_record(plan).plan_sha256 == sha256_of_file(plan)
        assert [s[0] for s in one["record"]["profile"]["images"]] == [1, 2, 4]
    again = cli("build", *words[:1], *words[2:], "--batch", "1,2,4", "--out", "plans")
    assert again.code == 0 and again.out.count("skipped: unchanged") == 2
    assert sorted(p.suffix for p in (sources / "plans").iterdir()) == [".json"] * 2 + [".plan"] * 2


def test_build_of_several_files_goes_on_after_a_failure(cli, sources):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    ran = cli("build", "bad.onnx", "a.onnx", "--runtime", "tensorrt-rtx", "--out", "plans")
    assert ran.code == 2 and "boxwright: bad.onnx failed: bad.onnx: " in ran.err
    assert "built in" in ran.out
    ran = cli("build", "a.onnx", "a.onnx", "--runtime", "tensorrt-rtx")
    assert ran.code == 2 and "a file is named twice" in ran.error


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("7", "--devices 7: there is no GPU 7; here are 0 (Fake A), 1 (Fake B)"),
        ("a", "--devices a: 'a' is no number of a GPU; here are 0 (Fake A)"),
        ("0,0", "--devices 0,0: a GPU is named twice; here are"),
    ],
)
def test_bad_lists_are_one_line(cli, two_gpus, sources, devices, words):
    for verb in ("build", "benchmark"):
        ran = cli(verb, "a.onnx", "--devices", devices)
        assert ran.code == 2 and ran.error.startswith(words)


def test_a_plan_is_made_by_one_process_at_a_time(cli, sources, environment):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    words = ("build", "a.onnx", "--runtime", "tensorrt-rtx", "--out", "plans")
    ran = cli(*words, "--dry-run")
    plan = sources / ran.out.split()[1]
    with locked(plan, "wait"):
        ran = cli(*words)
        assert ran.code == 2
        assert f"another process ({os.getpid()}) is working on it; wait for it" in ran.error
    assert not (sources / "plans").exists(), "what stays empty goes"
    # Two at once: at least one builds, what is there is whole, and nothing else is left.
    line = [sys.executable, "-m", "boxwright", *words]
    both = [subprocess.Popen(line, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    codes = sorted(one.wait(60) for one in both)
    for one in both:
        one.stderr.close()
    assert codes in ([0, 0], [0, 2])
    assert read_record(plan).plan_sha256 == sha256_of_file(plan)
    assert {p.name for p in plan.parent.iterdir()} == {plan.name, f"{plan.name}.json"}


def test_a_lock_ends_with_what_it_guards(tmp_path):
    path = tmp_path / "new" / "file"
    with locked(path, "wait"):
        path.write_text("x")
        with pytest.raises(StoreError, match=r"is working on it; wait"), locked(path, "wait"):
            pass
    with locked(path, "wait"):
        pass
    assert [p.name for p in path.parent.iterdir()] == ["file"]


# -- timing caches


class Cache:
    """Timings as a set of letters."""

    def __init__(self, data: bytes) -> None:
        self.letters = set(data)

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.letters |= other.letters
        return ord("!") not in other.letters

    def serialize(self) -> bytes:
        return bytes(sorted(self.letters))


def fake_trt():
    config = SimpleNamespace(create_timing_cache=Cache)
    builder = SimpleNamespace(create_builder_config=lambda: config)
    severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)
    logger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
    return SimpleNamespace(Builder=lambda log: builder, ILogger=logger)


def test_parts_of_a_timing_cache_are_merged(tmp_path):
    whole = tmp_path / "gpu.cache"
    parts = [tmp_path / f"gpu.cache.part{i}" for i in range(2)]
    save_timing_cache(whole, b"ab", KEY)
    for part, data in zip(parts, (b"bc", b"ad"), strict=True):
        save_timing_cache(part, data, KEY)
    merge_timing_caches(fake_trt(), whole, parts)
    assert load_timing_cache(whole, KEY) == b"abcd"
    assert {p.name for p in tmp_path.iterdir()} == {"gpu.cache", "gpu.cache.json"}


def test_parts_that_do_not_fit_stay(tmp_path):
    whole, parts = tmp_path / "c", [tmp_path / "c.part0", tmp_path / "c.part1"]
    save_timing_cache(parts[0], b"a", KEY)
    save_timing_cache(parts[1], b"b", dataclasses.replace(KEY, gpu="NVIDIA L4"))
    with pytest.raises(RequestError, match=r"its parts are of TensorRT 8\.6\.0 on NVIDIA"):
        merge_timing_caches(fake_trt(), whole, parts)
    save_timing_cache(parts[1], b"!", KEY)
    with pytest.raises(RequestError, match=r"does not take c\.part1"):
        merge_timing_caches(fake_trt(), whole, parts)
    assert all(p.exists() for p in parts) and not whole.exists()


# -- benchmark


QUICK = ("--images", "pics", "--runtime", "onnxruntime", "--device", "cpu", "--threads", 1,
         "--iterations", 5, "--warmup", 1, "--no-memory")  # fmt: skip


def test_benchmark_of_several_files_over_two_gpus(cli, two_gpus, place):
    (place / "b.onnx").write_bytes((place / "tiny.onnx").read_bytes())
    (place / "bad.onnx").write_bytes(b"no model")
    words = ("tiny.onnx", "bad.onnx", "b.onnx", *QUICK, "--devices", "1,0")
    ran = cli("benchmark", *words, "--save", "all.json")
    assert ran.code == 2 and "bad.onnx failed: bad.onnx: " in ran.err
    result = BenchmarkResult.from_dict(json.loads((place / "all.json").read_text()))
    first, second = (m.name for m in result.measured)
    assert first == "tiny.onnx [GPU 1]" and second.startswith("b.onnx [GPU ")
    assert first in ran.out and all(m.speed_up is None for m in result.measured)
    ran = cli("benchmark", *words, "--baseline", "b.onnx")
    assert ran.code == 2 and "different GPUs are not compared" in ran.error


def test_benchmark_of_one_file_over_two_gpus_adds_their_rates(cli, two_gpus, place):
    ran = cli("benchmark", "tiny.onnx", *QUICK, "--devices", "all", "--format", "json")
    assert ran.code == 0, ran.err
    assert "--concurrency 1 on each" in ran.err
    result = BenchmarkResult.from_dict(json.loads(ran.out))
    one, other, both = result.measured
    assert [m.name.split(" ", 1)[1] for m in result.measured] == [
        "[GPU 0]", "[GPU 1]", "[GPUs 0+1 together]",
    ]  # fmt: skip
    assert both.images_per_s == pytest.approx(one.images_per_s + other.images_per_s, abs=1e-3)
    assert both.mode == "throughput" and both.concurrency == 2
    assert len(both.main.samples_ms) == len(one.main.samples_ms) + len(other.main.samples_ms)
    assert result.environment["devices"] == "0,1"
    with pytest.raises(ValueError, match="no result"):
        merged([], together=False)
