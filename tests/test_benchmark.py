"""The benchmark's structure: turns, spans, formats, refusals and budgets. Nothing is timed here."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from boxwright.backends import BackendOptions
from boxwright.benchmark import BenchmarkResult, BenchmarkSettings, Entry, benchmark
from boxwright.benchmark.comparison import baseline_name, compared
from boxwright.benchmark.memory import measure_peak_memory
from boxwright.benchmark.settings import entries_named
from boxwright.benchmark.throughput import steady_state
from boxwright.benchmark.timing import Timed, measure_latency, time_call
from boxwright.benchmark.turns import block_sizes, turn_orders
from boxwright.contenders import expand_braces
from boxwright.detector import Detector
from boxwright.environment import describe_environment, describe_machine
from boxwright.errors import BoxwrightError
from boxwright.graph.io import bytes_from_model, model_from_file
from boxwright.loading import load
from boxwright.measurement.records import Measured, Noise, Round
from boxwright.measurement.tables import csv_from_result, markdown_from_result, noise_lines
from boxwright.types import SPANS, Latency

WORDS = ["benchmark", "tiny.onnx"]
FAST = ["--runtime", "onnxruntime", "--threads", "1", "--quick"]
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


def test_braces():
    for text, wanted in (
        ("yolov8{n,s,m}.yaml", ["yolov8n.yaml", "yolov8s.yaml", "yolov8m.yaml"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("x{,y}.onnx", ["x.onnx", "xy.onnx"]),
        ("x{a,a}", ["xa"]),
        ("no{braces}", ["no{braces}"]),
        ("half{a,b", ["half{a,b"]),
    ):
        assert expand_braces(text) == wanted, text


def test_every_file_has_every_place_equally_often():
    orders = list(islice(turn_orders(4, seed=3), 40))
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    for place in range(4):
        assert [sum(o[place] == f for o in orders) for f in range(4)] == [10] * 4
    assert len(set(orders[::4])) > 3, "neighbours change"
    assert orders == list(islice(turn_orders(4, seed=3), 40))
    assert orders != list(islice(turn_orders(4, seed=4), 40))


def test_blocks_are_small_and_complete():
    for iterations in (1, 4, 5, 7, 24, 25, 52, 100):
        sizes = block_sizes(iterations)
        assert sum(sizes) == iterations
        assert max(sizes) <= 5
        assert len(sizes) >= min(iterations, 5)


@pytest.fixture
def pictures(place) -> list[Path]:
    return sorted((place / "pics").iterdir())


def _open(path="tiny.onnx") -> Detector:
    return load(path, "onnxruntime", threads=1, quiet=True)


def test_files_run_in_blocks_in_turn(place, pictures, monkeypatch):
    calls: list[tuple[str, int]] = []
    real = Timed.call

    def call(self, shown, index):
        calls.append((names[id(self.detector)], index))
        return real(self, shown, index)

    monkeypatch.setattr(Timed, "call", call)
    with _open() as one, _open() as two:
        names = {id(one): "a", id(two): "b"}
        files = [Timed(one, 1), Timed(two, 1)]
        settings = BenchmarkSettings(iterations=10, warmup=1, settle_s=0.0, seed=1)
        measure_latency(files, pictures, settings, now=lambda: 0.0, advance=lambda *_: None)
    assert calls[:2] == [("a", 0), ("b", 0)], "the warm-up"
    turns = [calls[2 + 3 * i : 5 + 3 * i] for i in range(10)]  # one lost call, a block of two
    for number, pair in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        assert {turn[0][0] for turn in pair} == {"a", "b"}
        for turn in pair:
            assert len({name for name, _ in turn}) == 1
            assert [index for _, index in turn] == [2 * number, 2 * number, 2 * number + 1]
    for file in files:
        assert file.sample_rounds == [i // 2 for i in range(10)]
        assert [r.number for r in file.rounds] == list(range(5))
        assert all(len(file.samples[s]) == 10 for s in SPANS)


@pytest.mark.parametrize("batch", [1, 3])
def test_spans_make_up_the_total(batch, place, pictures):
    with _open() as detector:
        spans = time_call(detector, (pictures * 3)[:batch])
    assert set(spans) == set(SPANS)
    parts = sum(spans[s] for s in SPANS if s != "total")
    assert all(value >= 0 for value in spans.values())
    assert parts <= spans["total"] + 1e-6
    assert spans["copy_in"] == spans["copy_out"] == 0, "float32 in and out: nothing is copied"


class _Half:
    """A backend that wants and returns float16."""

    description, metadata = "half", {}

    def __init__(self, inner):
        self._inner = inner
        self.inputs = tuple(dataclasses.replace(i, dtype="float16") for i in inner.inputs)
        self.outputs = inner.outputs

    def infer(self, feed):
        feed = {name: value.astype(np.float32) for name, value in feed.items()}
        return {n: v.astype(np.float16) for n, v in self._inner.infer(feed).items()}

    def close(self):
        """The inner one is closed by whoever opened it."""


def test_casts_count_as_copies(place, pictures):
    with _open() as single, Detector(_Half(single.backend), single.spec) as half:
        spans = time_call(half, pictures[:1])
        assert spans["copy_in"] > 0 < spans["copy_out"]


def test_timing_detects_what_the_detector_detects(place, pictures, monkeypatch):
    seen = []
    real = Detector.postprocess
    monkeypatch.setattr(
        Detector, "postprocess", lambda self, *a: seen.append(real(self, *a)) or seen[-1]
    )
    with _open() as detector:
        time_call(detector, pictures)
        wanted = detector(pictures)
    assert [d.as_dicts() for d in seen[0]] == [d.as_dicts() for d in wanted]
    assert sum(map(len, wanted)) > 10


def test_the_steady_state_leaves_out_both_ends():
    times = [(0.0, 1.0), (0.0, 1.2), (1.0, 2.0), (1.2, 2.2), (2.0, 3.0), (2.2, 3.4)]
    latencies, rate = steady_state(times, 2, 4)
    assert latencies == [1000.0, 1000.0]  # to end at 2.0 and 2.2; the others are ramp-up and tail
    assert rate == pytest.approx(2 * 4 / (2.2 - 1.2))
    assert steady_state(times[:2], 2, 1) == ([], 0.0)
    assert steady_state([], 2, 1) == ([], 0.0)


def _measured(name="a", *, level=10.0, count=6, verdict="quiet", **changes) -> Measured:
    samples = tuple(level + 0.01 * i for i in range(count * 2))
    facts = {
        "name": name, "file": f"{name}.onnx", "size_bytes": 10, "runtime": "onnxruntime",
        "description": "onnxruntime 1", "precision": "fp32", "outputs": "raw", "threads": None,
        "batch": 1, "mode": "latency", "concurrency": 1, "warmup": 1,
        "latencies": {s: Latency(s, 1, samples) for s in SPANS},
        "sample_rounds": tuple(i // 2 for i in range(count * 2)),
        "rounds": tuple(Round(i, float(i)) for i in range(count)),
        "images_per_s": 100.0,
        "noise": Noise(verdict, ("drift: much",) if verdict == "noisy" else (), "wait"),
    }  # fmt: skip
    return Measured(**{**facts, **changes})


def _result(*measured: Measured) -> BenchmarkResult:
    return BenchmarkResult("2026-01-01T00:00:00+00:00", {"cores": "2"}, {}, "none", measured)


def test_speed_ups_are_against_the_same_setting():
    found = compared(
        [_measured("a"), _measured("b", level=5.0), _measured("b", level=4.0, batch=8)], None, 0
    )
    assert [m.speed_up is not None for m in found] == [False, True, False]
    faster = found[1].speed_up
    assert faster.baseline == "a"
    assert faster.ratio == pytest.approx(2.0, abs=0.02)
    assert faster.low > 1.9 and not faster.within_noise
    equal = compared([_measured("a"), _measured("b")], "b", 0)[0].speed_up
    assert (equal.baseline, equal.within_noise) == ("b", True)
    few = compared([_measured("a", count=2), _measured("b", count=2)], None, 0)[1].speed_up
    assert (few.low, few.within_noise) == (None, True)


def test_a_noisy_row_is_marked_and_explained():
    result = _result(_measured("a"), _measured("b", verdict="noisy"))
    text = markdown_from_result(result)
    row = next(line for line in text.splitlines() if line.startswith("| b "))
    assert "~10.05" in row and "NOISY" in row
    assert "~" not in next(line for line in text.splitlines() if line.startswith("| a "))
    assert noise_lines(result) == [
        "noisy: b, onnxruntime, threads default, batch 1: drift: much -> wait"
    ]


def test_results_travel():
    throughput = _measured("c", mode="throughput", latencies={"infer": Latency("infer", 1, (1.0,))},
                           sample_rounds=(0,), rounds=(Round(0, 0.0, 5.0),))  # fmt: skip
    found = compared([_measured("a"), _measured("b", level=5.0)], None, 0)
    result = _result(*found, throughput)
    assert BenchmarkResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result


def test_one_comparison_in_every_format(place, cli):
    ran = cli(*WORDS, *FAST, "--images", "pics", "--batch", "1,2", "--format", "json",
              "--save", "all.json")  # fmt: skip
    assert ran.code == 0, ran.err
    result = BenchmarkResult.from_dict(json.loads(ran.out))
    assert json.loads(Path("all.json").read_text(encoding="utf-8")) == json.loads(ran.out)
    assert [m.batch for m in result.measured] == [1, 2]
    for m in result.measured:
        assert set(m.latencies) == set(SPANS)
        assert {len(latency.samples_ms) for latency in m.latencies.values()} == {10}
        assert len(m.sample_rounds) == 10 and len(m.rounds) == 5
        assert (m.threads, m.warmup, m.peak_memory_mb) == (1, 2, None)
        assert m.cost.input_size == (64, 64) and m.cost.flops > 0
    for key in ("processor", "instructions", "load_average", "governor", "memory_gib"):
        assert result.environment[key]
    rows = list(csv.DictReader(io.StringIO(csv_from_result(result))))
    for row, m in zip(rows, result.measured, strict=True):
        assert float(row["p95_ms"]) == pytest.approx(m.main.p95, abs=1e-3)
        assert float(row["infer_p50_ms"]) == pytest.approx(m.latencies["infer"].p50, abs=1e-3)
        assert int(row["parameters"]) == m.cost.parameters
        assert row["noise"] == m.noise.verdict
    ran = cli(*WORDS, *FAST, "--images", "pics", "--format", "csv")
    assert ran.code == 0
    assert [r["name"] for r in csv.DictReader(io.StringIO(ran.out))] == ["tiny.onnx"]
    for style, start in (("markdown", "**total, per call**"), ("text", "total, per call")):
        ran = cli(*WORDS, *FAST, "--format", style)
        assert ran.code == 0
        assert ran.out.startswith(start)
        assert "tiny.onnx" in ran.out and "postprocess" in ran.out
    tables = [b for b in markdown_from_result(result).split("\n\n") if b.startswith("| ")]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.skipif(not HAS_OPENVINO, reason="NOT TESTED, openvino is not installed")
def test_runtimes_are_compared_on_one_file(place, cli):
    ran = cli(*WORDS, "--runtime", "onnxruntime,openvino", "--threads", 1, "--quick", "--baseline",
              "tiny.onnx (openvino)", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    first, second = BenchmarkResult.from_dict(json.loads(ran.out)).measured
    assert (first.name, second.name) == ("tiny.onnx (onnxruntime)", "tiny.onnx (openvino)")
    assert first.speed_up.baseline == second.name and second.speed_up is None
    assert [r.number for r in first.rounds] == [r.number for r in second.rounds]


@pytest.mark.parametrize("length", [["--iterations", "10"], ["--seconds", "0.05"]])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_throughput(runtime, length, place, cli):
    if runtime == "openvino" and not HAS_OPENVINO:
        pytest.skip("NOT TESTED, openvino is not installed")
    ran = cli(*WORDS, "--runtime", runtime, "--concurrency", 2, "--warmup", 1, "--no-memory",
              "--batch", 2, *length, "--format", "json")  # fmt: skip
    assert ran.code == 0, ran.err
    found = BenchmarkResult.from_dict(json.loads(ran.out)).measured[0]
    assert (found.mode, found.concurrency, found.batch) == ("throughput", 2, 2)
    assert set(found.latencies) == {"infer"}
    assert len(found.sample_rounds) == len(found.latencies["infer"].samples_ms) >= 5
    assert len(found.rounds) == 5
    assert found.images_per_s == pytest.approx(
        np.median([r.images_per_s for r in found.rounds]), abs=1e-3
    )


def test_openvino_queue_stops_when_told(place):
    if not HAS_OPENVINO:
        pytest.skip("NOT TESTED, openvino is not installed")
    from boxwright import catalog

    backend = catalog.backend("openvino").open(Path("tiny.onnx"), BackendOptions(1, streams=2))
    left = iter([True] * 7 + [False])
    feed = {backend.inputs[0].name: np.zeros((1, 3, 64, 64), np.float32)}
    times = backend.infer_queued(feed, lambda: next(left))
    backend.close()
    assert len(times) == 7
    assert all(begin < end for begin, end in times)


def test_seconds_keep_the_pairs(place, pictures):
    settings = BenchmarkSettings(
        images=("pics",), seconds=0.05, warmup=1, memory=False, threads=(1,), settle_s=0.0
    )
    Path("other.onnx").write_bytes(Path("tiny.onnx").read_bytes())
    entries = [Entry(Path(n), "onnxruntime") for n in ("tiny.onnx", "other.onnx")]
    one, two = benchmark(entries, settings=settings).measured
    assert {r.number for r in one.rounds} == {r.number for r in two.rounds}
    assert set(one.sample_rounds) == set(two.sample_rounds)
    assert min(sum(m.main.samples_ms) for m in (one, two)) >= 50


def test_peak_memory_is_of_a_fresh_process(place, pictures):
    entry = Entry(Path("tiny.onnx"), "onnxruntime")
    peak = measure_peak_memory(entry, pictures, threads=1, batch=2, device="cpu")
    if peak is None:
        pytest.skip("NOT TESTED, this system does not tell a process's peak memory")
    assert 20 < peak < 2000
    Path("broken.onnx").write_text("x")
    broken = Entry(Path("broken.onnx"), "onnxruntime")
    assert measure_peak_memory(broken, pictures, threads=1, batch=1, device="cpu") is None


def test_names_tell_files_apart(place):
    Path("sub").mkdir()
    Path("sub/tiny.onnx").write_bytes(Path("tiny.onnx").read_bytes())
    one, two = Path("tiny.onnx"), Path("sub/tiny.onnx")
    both = [Entry(one, "onnxruntime"), Entry(two, "onnxruntime")]
    assert [e.name for e in entries_named(both, "cpu")] == ["tiny.onnx", str(two)]
    runtimes = ("onnxruntime", "openvino")
    names = [e.name for e in entries_named([Entry(one, r) for r in runtimes], "cpu")]
    assert names == ["tiny.onnx (onnxruntime)", "tiny.onnx (openvino)"]
    assert baseline_name("tiny", names[:1]) == names[0]


# name: (words, part of the error)
BAD = {
    "missing": (["no.onnx"], "no.onnx: there is no such file"),
    "folder": (["pics"], "pics: it is a folder"),
    "kind": (["pics/p0.png"], "model file of kind .png"),
    "runtime": (["tiny.onnx", "--runtime", "onnxruntim"], "did you mean onnxruntime?"),
    "auto and more": (["tiny.onnx", "--runtime", "auto,openvino"], "auto stands alone"),
    "unreadable": (["tiny.onnx", "--runtime", "pytorch"], "none of them reads tiny.onnx"),
    "useless": (["tiny.onnx", "--runtime", "onnxruntime,pytorch"], "it reads none of the files"),
    "twice": (["tiny.onnx", "tiny.onnx"], "given twice"),
    "batch": (["tiny.onnx", "--batch", "1,x"], "'x' is no positive number"),
    "batch 0": (["tiny.onnx", "--batch", "0"], "'0' is no positive number"),
    "batch huge": (["tiny.onnx", "--batch", "99999"], "it is not 1 to 4096"),
    "threads": (["tiny.onnx", "--threads", "-1"], "'-1' is no positive number"),
    "iterations": (["tiny.onnx", "--iterations", "0"], "--iterations 0: it is less than 1"),
    "warmup": (["tiny.onnx", "--warmup", "0"], "--warmup 0: it is less than 1"),
    "concurrency": (
        ["tiny.onnx", "--concurrency", "0"],
        "--concurrency 0: '0' is no positive number",
    ),
    "seconds": (["tiny.onnx", "--seconds", "nan"], "--seconds nan"),
    "both": (["tiny.onnx", "--seconds", "1", "--iterations", "5"], "in two ways"),
    "baseline": (["tiny.onnx", "--baseline", "tony.onnx"], "did you mean tiny.onnx?"),
    "budget": (["tiny.onnx", "--max-latency-ms", "0"], "it is not positive"),
    "format": (["tiny.onnx", "--format", "xml"], "known are text, markdown, json, csv"),
    "images": (["tiny.onnx", "--images", "nowhere"], "nowhere: there is no such file"),
    "configuration": (["yolov8q.yaml"], "did you mean yolov8x?"),
    "save": (["tiny.onnx", "--save", "pics"], "it is a folder"),
    "device": (["tiny.onnx", "--runtime", "openvino", "--device", "cuda"], "OpenVINO"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_in_one_line(name, place, cli, snapshot):
    words, part = BAD[name]
    before = snapshot(place)
    ran = cli("benchmark", *words)
    assert ran.code == 2, ran.err
    assert part in ran.error
    assert not ran.out
    assert snapshot(place) == before


def test_a_fixed_batch_is_not_stretched(place, cli):
    tiny_models.ultralytics_onnx("two.onnx", batch=2)
    ran = cli("benchmark", "two.onnx", *FAST, "--batch", "1,2")
    assert ran.code == 2
    assert "--batch 1: two.onnx takes 2 pictures only" in ran.error
    ran = cli("benchmark", "two.onnx", *FAST, "--format", "json")
    assert ran.code == 0
    assert json.loads(ran.out)["measured"][0]["batch"] == 2


def test_results_are_replaced_only_by_force(place, cli):
    Path("all.json").write_text("mine")
    ran = cli(*WORDS, *FAST, "--save", "all.json")
    assert ran.code == 2
    assert "all.json: it is there already" in ran.error
    assert Path("all.json").read_text() == "mine"
    assert cli(*WORDS, *FAST, "--save", "all.json", "--force").code == 0
    assert json.loads(Path("all.json").read_text())["measured"]


def test_a_budget_that_is_exceeded(place, cli):
    ran = cli(*WORDS, *FAST, "--max-latency-ms", "0.000001", "--format", "csv")
    assert ran.code == 1
    last = ran.err.splitlines()[-1]
    assert last.startswith("boxwright: error: --max-latency-ms 1e-06: the p95 of total is more for")
    assert "tiny.onnx in onnxruntime, batch 1 (" in last
    assert list(csv.DictReader(io.StringIO(ran.out))), "the numbers are printed all the same"
    assert cli(*WORDS, *FAST, "--max-latency-ms", "1e9").code == 0


@pytest.mark.parametrize(("verdict", "code"), [("noisy", 1), ("quiet", 0)])
def test_strict_minds_noise(verdict, code, place, cli, monkeypatch):
    import boxwright.benchmark as package

    noise = Noise(verdict, ("drift: much",) if verdict == "noisy" else (), "wait")
    monkeypatch.setattr(package, "judge_noise", lambda *_: noise)
    ran = cli(*WORDS, *FAST, "--strict")
    assert ran.code == code
    if code:
        assert "the machine was noisy for tiny.onnx in onnxruntime (drift: much)" in ran.error
    assert cli(*WORDS, *FAST).code == 0, "without --strict the numbers are only marked"


def test_end2end_files_are_measured(place, cli):
    assert cli("export", "tiny.onnx", "--outputs", "end2end", "--precision", "fp16").code == 0
    file = "runs/tiny/tiny.fp16.end2end.onnx"
    ran = cli("benchmark", file, *FAST, "--format", "json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["measured"][0]
    assert (found["precision"], found["outputs"]) == ("fp16", "end2end")


def test_the_environment_says_what_numbers_depend_on():
    facts = describe_environment()
    assert all(isinstance(v, str) and v for v in facts.values())
    assert {"processor", "cores", "cores_physical", "cores_quota", "instructions"} <= set(facts)
    assert set(describe_machine()) >= {*facts, "load_average", "clock_mhz"}
    assert "load_average" not in facts, "facts are the same from run to run"


def test_a_damaged_file_among_good_ones(place, cli):
    model = model_from_file(Path("tiny.onnx"))
    Path("cut.onnx").write_bytes(bytes_from_model(model, "x")[:500])
    ran = cli("benchmark", "tiny.onnx", "cut.onnx", *FAST)
    assert ran.code == 2
    assert "cut.onnx" in ran.error
    with pytest.raises(BoxwrightError):
        benchmark([])
