"""Tuning: what is pruned, the front, the winner, refusals, and whole sweeps on the sample.

Nothing here depends on how fast this machine is.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.cli.options import recipe_data_from_options
from boxwright.errors import CheckFailedError, RequestError
from boxwright.measurement.statistics import median_interval
from boxwright.recipe import Recipe, TargetOptions, recipe_from_mapping
from boxwright.sample import checkpoint_file, onnx_file
from boxwright.sample.pages_on_disk import coco_bytes, png_bytes, sample_pages
from boxwright.store import sha256_of_file
from boxwright.tune import Budgets, Combination, Sweep, tune
from boxwright.tune import files as tune_files
from boxwright.tune.commands import run_words
from boxwright.tune.front import (
    DROP_TOLERANCE,
    Choice,
    Point,
    Rival,
    choose,
    dominates,
    excesses,
    front,
    prune,
)
from boxwright.tune.request import in_flight

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
HAS_TORCH = importlib.util.find_spec("torch") is not None
NAN = math.nan


# -- pruning


def point(name: str, cost: float | None, **more: float | None) -> Point:
    """A point whose interval is 1 ms wide, and whose p95 is its median plus 1."""
    facts: dict[str, float | None] = {}
    if cost is not None:
        facts = {"low_ms": cost - 0.5, "high_ms": cost + 0.5, "call_low_ms": cost - 0.5}
        facts["p95_ms"] = cost + 1
    return Point(name, cost, **{**facts, **more})


PRUNED = {
    "slower and as accurate": ([point("a", 10), point("b", 12)], {}, {"b"}),
    "intervals that meet decide nothing": ([point("a", 10), point("b", 11)], {}, set()),
    "slower but more accurate stays": (
        [point("a", 10, drop=0.01), point("b", 12, drop=0.0)], {}, set()
    ),
    "a difference below the tolerance is none": (
        [point("a", 10, drop=DROP_TOLERANCE / 2), point("b", 12, drop=0.0)], {}, {"b"}
    ),
    "a difference above the tolerance is one": (
        [point("a", 10, drop=DROP_TOLERANCE * 2), point("b", 12, drop=0.0)], {}, set()
    ),
    "unknown accuracy is not as good as a known one": (
        [point("a", 10, drop=None), point("b", 12, drop=0.3)], {}, set()
    ),
    "NaN accuracy is unknown": ([point("a", 10, drop=NAN), point("b", 12, drop=0.3)], {}, set()),
    "accuracy unknown of both is equal": (
        [point("a", 10, drop=NAN), point("b", 12, drop=None)], {}, {"b"}
    ),
    "less memory stays": (
        [point("a", 10, memory_mb=200.0), point("b", 12, memory_mb=100.0)], {}, set()
    ),
    "hardly less memory goes": (
        [point("a", 10, memory_mb=101.0), point("b", 12, memory_mb=100.0)], {}, {"b"}
    ),
    "not measured": ([point("a", None), point("b", NAN), point("c", 5)], {}, {"a", "b"}),
    "too few rounds decide nothing": (
        [point("a", 10, low_ms=None, high_ms=None), point("b", 99, low_ms=None, high_ms=None)],
        {}, set(),
    ),
    "over the latency budget beyond doubt": (
        [point("a", 10), point("b", 12, drop=None)], {"max_latency_ms": 9.0}, {"a", "b"}
    ),
    "over it perhaps": ([point("a", 10)], {"max_latency_ms": 9.8}, set()),
    "who breaks a budget does not prune others": (
        [point("a", 10, p95_ms=40.0), point("b", 12)], {"max_latency_ms": 20.0}, set()
    ),
    "who loses too much does not prune others": (
        [point("a", 10, drop=0.02), point("b", 12, drop=0.03)], {"max_drop": 0.01}, set()
    ),
    "a tie": ([point("a", 10), point("b", 10)], {}, set()),
    "nobody": ([], {}, set()),
}  # fmt: skip


@pytest.mark.parametrize("name", PRUNED)
def test_pruning(name):
    points, limits, gone = PRUNED[name]
    reasons = prune(points, Budgets(**limits))
    assert set(reasons) == gone
    assert all(reasons.values())


def test_a_pruned_candidate_knows_its_better():
    reasons = prune([point("slow", 20), point("quick", 10), point("middle", 12)], Budgets())
    assert set(reasons) == {"slow", "middle"}
    assert all(r.startswith("quick is no less accurate and faster") for r in reasons.values())
    assert "9.50-10.50 ms against 19.50-20.50" in reasons["slow"]


FRONTS = {
    "one axis": ([point("a", 2), point("b", 1), point("c", 3)], ("b",)),
    "two axes": (
        [point("a", 3, drop=0.0), point("b", 1, drop=0.02), point("c", 2, drop=0.03)], ("b", "a")
    ),
    "three axes": (
        [
            point("a", 1, drop=0.0, memory_mb=300.0),
            point("b", 2, drop=0.0, memory_mb=100.0),
            point("c", 3, drop=0.0, memory_mb=200.0),
        ],
        ("a", "b"),
    ),
    "equals both stay": ([point("a", 1, drop=0.1), point("b", 1, drop=0.1)], ("a", "b")),
    "equally fast, one more accurate": ([point("a", 1, drop=0.1), point("b", 1, drop=0.0)], ("b",)),
    "not measured is not on it": ([point("a", None), point("b", NAN), point("c", 9)], ("c",)),
    "nothing measured": ([point("a", None)], ()),
}  # fmt: skip


@pytest.mark.parametrize("name", FRONTS)
def test_front(name):
    points, wanted = FRONTS[name]
    assert front(points) == wanted


numbers = st.one_of(st.none(), st.just(NAN), st.floats(0.001, 5))


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=8))
def test_the_front_is_what_nothing_dominates(values):
    points = [
        Point(f"p{i}", cost, drop=drop, memory_mb=memory)
        for i, (cost, drop, memory) in enumerate(values)
    ]
    best = front(points)
    measured = [p for p in points if p.cost_ms is not None and not math.isnan(p.cost_ms)]
    assert bool(best) == bool(measured)
    for p in measured:
        assert (p.name in best) == (not any(dominates(o, p) for o in measured))
        assert not dominates(p, p)


def test_what_exceeds_the_budgets():
    budgets = Budgets(max_drop=0.01, max_latency_ms=20.0, max_memory_mb=100.0)
    good = Point("a", p95_ms=20.0, drop=0.01, memory_mb=100.0)
    assert excesses(good, budgets) == ()
    assert excesses(good, Budgets()) == ()
    bad = excesses(Point("b", p95_ms=20.5, drop=0.0123, memory_mb=NAN), budgets)
    assert bad == (
        "loses 0.0123 mAP50-95, at most 0.01 allowed",
        "p95 20.50 ms, at most 20 allowed",
        "memory unknown",
    )
    assert excesses(Point("c", p95_ms=1.0, drop=-0.02, memory_mb=1.0), budgets) == ()
    assert excesses(Point("d"), Budgets(max_drop=0.1)) == ("accuracy unknown",)


# -- the winner


def steady(level: float) -> list[list[float]]:
    """Ten rounds around a level that never meet those of one 2 % away."""
    return [[level * f for f in (0.999, 1.0, 1.001)] for _ in range(10)]


def shaky(level: float) -> list[list[float]]:
    """Ten rounds of which half are fast and half are slow."""
    return [[level * (0.8 if i % 2 else 1.2)] * 3 for i in range(10)]


CHOICES = {
    "the fastest": (
        [Rival("a", steady(10), (9,)), Rival("b", steady(12), (1,))], ("a", "a", ())
    ),
    "the simpler of two alike": (
        [Rival("a", shaky(10), (2,)), Rival("b", steady(10.2), (1,))], ("b", "a", ("b",))
    ),
    "the fastest is the simplest": (
        [Rival("a", shaky(10), (1,)), Rival("b", steady(10.2), (2,))], ("a", "a", ("b",))
    ),
    "alike in noise but far slower": (
        [Rival("a", shaky(10), (2,)), Rival("b", shaky(10.8)[::-1], (1,))], ("a", "a", (), ("b",))
    ),
    "close but told apart": (
        [Rival("a", steady(10), (2,)), Rival("b", steady(10.3), (1,))], ("a", "a", ())
    ),
    "too few rounds to tell": (
        [Rival("a", [[10.0]], (2,)), Rival("b", [[10.1]], (1,))], ("b", "a", ("b",))
    ),
    "equal in everything": (
        [Rival("b", steady(10), (1,)), Rival("a", steady(10), (1,))], ("a", "a", ("b",))
    ),
    "alone": ([Rival("a", steady(10), (1,))], ("a", "a", ())),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_choice(name):
    rivals, wanted = CHOICES[name]
    assert choose(rivals) == Choice(*wanted)


def test_nobody_wins_among_none():
    assert choose([]) is None


def test_what_is_simpler():
    def which(precision: str, runtime: str, threads: int, outputs: str = "raw") -> Combination:
        return Combination("f", Path("f"), precision, outputs, "onnx", runtime, threads)

    wanted = [
        which("fp32", "onnxruntime", 1),
        which("fp32", "onnxruntime", 1, "end2end"),
        which("fp32", "openvino", 1),
        which("fp16", "onnxruntime", 1),
        which("int8", "onnxruntime", 1),
        which("int8", "openvino", 1),
        which("fp32", "onnxruntime", 2),
    ]
    mixed = wanted[::2] + wanted[1::2]
    assert sorted(mixed, key=lambda c: c.simplicity) == wanted


def test_the_interval_of_a_median():
    rounds = [[v, v + 1.0] for v in (10.0, 11.0, 12.0, 13.0, 14.0)]
    low, high = median_interval(rounds)
    assert low < 12.5 < high
    assert low >= 10.0 and high <= 15.0
    assert median_interval(rounds, seed=3) == median_interval(rounds, seed=3)
    assert median_interval(rounds[:4]) is None


def test_calls_in_flight(monkeypatch):
    monkeypatch.setattr("boxwright.tune.request.usable_cores", lambda: 8)
    assert in_flight(Sweep(), 2) == 1
    load = Sweep(objective="throughput")
    assert [in_flight(load, t) for t in (1, 3, 8, 16, None)] == [8, 2, 1, 1, 1]
    assert in_flight(Sweep(objective="throughput", concurrency=5), 8) == 5


# -- the command that makes a file again


def recipe_from_words(words: list[str]) -> Recipe:
    """Read `boxwright run ...` as the command line does."""
    from boxwright.cli.run import command

    assert words[:2] == ["boxwright", "run"]
    context: click.Context = command.make_context(
        "run", words[2:], help_option_names=["-h", "--help"]
    )
    options = dict(context.params)
    data = recipe_data_from_options(options.pop("source"), options)
    return recipe_from_mapping(
        {**data, "images": options["images"], "max_images": options["max_images"] or 200}, "words"
    )


TARGETS = [
    TargetOptions(precision="fp32"),
    TargetOptions(precision="fp16", outputs="end2end"),
    TargetOptions(precision="int8", outputs="end2end", nms="portable"),
]
RECIPES = {
    "plain": {},
    "everything": {
        "name": "other name", "image_size": (320, 480), "batch": 4, "opset": 18, "simplify": False,
        "head": "one2many", "family": "yolox", "labels": "coco", "trust_checkpoint": True,
        "seed": 7, "data": "some data.yaml", "max_drop": 0.0125, "data_split": "test",
        "data_images": "x y", "max_data": 77, "images": ("a b/", "c.jpg"),
        "max_images": 12,
        "nms": {
            "score_threshold": 0.125, "iou_threshold": 0.5, "pre_topk": 500, "keep_topk": 20,
            "class_agnostic": True, "multi_label": True, "dynamic_thresholds": True,
            "iterations": 8,
        },
        "calibration": {
            "images": ("x/*.jpg", "y"), "count": 9, "batch": 2, "method": "entropy",
            "cache": "k.json", "allow_overlap": True,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.precision} {t.outputs}")
@pytest.mark.parametrize("name", RECIPES)
def test_the_printed_command_asks_for_the_same_file(name, target):
    keys = {**RECIPES[name], "source": "m.onnx", "targets": TARGETS}
    recipe = recipe_from_mapping(keys, "test")
    words = run_words(recipe, target, Path("o"))
    again = recipe_from_words(shlex.split(shlex.join(words)))
    assert [t.model_dump() for t in again.targets] == [target.model_dump()]
    depends = {"image_size", "batch", "opset", "simplify", "head", "family", "labels", "name"}
    depends |= {"trust_checkpoint", "seed", "images", "max_images"}
    depends |= {"data", "data_split", "data_images", "max_data"}
    if target.outputs == "end2end":
        depends.add("nms")
    if target.precision == "int8":
        depends.add("calibration")
    if target.precision != "fp32":
        depends.add("max_drop")
    for key in depends:
        assert getattr(again, key) == getattr(recipe, key), key


# -- wrong requests


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Labelled pages to measure on, and other pages to calibrate on."""
    for folder, seeds in (("data", range(20_000, 20_004)), ("calib", range(30_000, 30_003))):
        (tmp_path / folder).mkdir()
        pages = sample_pages(seeds)
        for page in pages:
            (tmp_path / folder / page.name).write_bytes(png_bytes(page.page))
        (tmp_path / folder / "truth.json").write_bytes(coco_bytes(pages))
    return tmp_path


WRONG = {
    "no such file": (["missing.onnx"], "missing.onnx: there is no such file"),
    "a recipe": (["recipe.yaml"], "recipe.yaml: it is a recipe"),
    "int8 without pictures": (["tiny.onnx", "--precision", "int8"], "--precision int8: it needs"),
    "int8 without data": (
        ["tiny.onnx", "--precision", "int8", "--calib-images", "pics"],
        "--precision int8: without --data nothing would measure what it loses",
    ),
    "calibration for nothing": (
        ["tiny.onnx", "--precision", "fp32", "--calib-images", "pics"], "--calib-images: no INT8"
    ),
    "a drop of nothing": (["tiny.onnx", "--max-drop", "0.1"], "--max-drop: it needs --data"),
    "a drop over 1": (
        ["tiny.onnx", "--max-drop", "3", "--data", "sample"], "--max-drop 3"
    ),
    "latency below 0": (["tiny.onnx", "--max-latency-ms", "-1"], "--max-latency-ms -1: it is not"),
    "memory NaN": (["tiny.onnx", "--max-memory-mb", "nan"], "--max-memory-mb nan: it is not"),
    "efficient_nms": (["tiny.onnx", "--nms", "efficient_nms"], "--nms efficient_nms: it is Tensor"),
    "nms of raw files": (["tiny.onnx", "--outputs", "raw", "--nms", "portable"], "--nms portable"),
    "unknown runtime": (["tiny.onnx", "--runtimes", "tensorrt"], "--runtimes tensorrt: known are"),
    "pytorch alone": (["tiny.onnx", "--runtimes", "pytorch"], "--runtimes pytorch: none of them"),
    "no threads": (["tiny.onnx", "--threads", "0"], "--threads 0"),
    "long in two ways": (["tiny.onnx", "--iterations", "3", "--seconds", "1"], "--iterations --se"),
    "concurrency of latency": (["tiny.onnx", "--concurrency", "2"], "--concurrency 2: latency"),
    "memory under load": (
        ["tiny.onnx", "--max-memory-mb", "9", "--objective", "throughput"], "--max-memory-mb: mem"
    ),
    "no such data": (["tiny.onnx", "--data", "nowhere.json"], "nowhere.json"),
    "data of other classes": (["tiny.onnx", "--data", "sample"], "sample"),
    "no such pictures": (["tiny.onnx", "--images", "nowhere"], "nowhere"),
    "a word that is none": (["tiny.onnx", "--precision", "fp8"], "--precision fp8"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_before_any_work(cli, place, snapshot, name):
    (place / "recipe.yaml").write_text("source: tiny.onnx\n")
    before = snapshot(place)
    words, error = WRONG[name]
    done = cli("tune", *words)
    assert done.code == 2, done.err
    assert done.error.startswith(error), done.error
    assert snapshot(place) == before, "nothing was made"


def test_pytorch_is_a_baseline_of_checkpoints(cli, place):
    pytest.importorskip("torch")
    done = cli("tune", "tiny.onnx", "--runtimes", "onnxruntime,pytorch")
    assert done.code == 2 and "it is the baseline of a checkpoint" in done.error


def test_calibrated_pictures_are_not_measured_on(cli, labelled, snapshot):
    before = snapshot(labelled)
    done = cli(
        "tune", onnx_file(), "--data", labelled / "data" / "truth.json", "--max-drop", "0.1",
        "--calib-images", labelled / "calib", "--calib-images", labelled / "data",
        "--out", labelled / "o",
    )  # fmt: skip
    assert done.code == 2 and "4 of 7 pictures are in --data too" in done.error
    assert snapshot(labelled) == before


def test_files_for_tensorrt_are_never_candidates(place):
    keys = {"source": "tiny.onnx", "calibration": {"images": ["pics"]}}
    target = {"precision": "int8", "deployment": "tensorrt"}
    recipe = recipe_from_mapping({**keys, "targets": [target]}, "test")
    with pytest.raises(RequestError, match="INT8 for tensorrt"):
        tune(recipe, place / "o", sweep=Sweep(allow_unmeasured_int8=True))
    assert not (place / "o").exists()


def test_a_limit_is_said_in_one_place(place):
    recipe = recipe_from_mapping({"source": "tiny.onnx", "data": "sample", "max_drop": 0.1}, "test")
    with pytest.raises(RequestError, match=r"the recipe says 0\.1"):
        tune(recipe, place / "o", budgets=Budgets(max_drop=0.2))


# -- whole sweeps

FAST = ["--threads", "1", "--iterations", "5", "--runtimes", "onnxruntime"]


def tuned(folder: Path) -> dict:
    return json.loads((folder / "tuned.json").read_text())


def test_a_dry_run_makes_nothing(cli, place, snapshot):
    before = snapshot(place)
    done = cli("tune", "tiny.onnx", "--dry-run", "--threads", "1,2", "--runtimes", "onnxruntime")
    assert done.code == 0, done.err
    assert "INT8 is left out" in done.err
    assert done.out.count("make ") == 4 and done.out.count("measure ") == 8
    assert "measure tiny.fp16.end2end.onnx (onnxruntime, threads 2)" in done.out
    done = cli("tune", "tiny.onnx", "--dry-run", *FAST[:2], *FAST[4:], "--outputs", "end2end",
               "--json")  # fmt: skip
    data = json.loads(done.out)
    assert [c.split(" ")[0] for c in data["candidates"]] == [
        "tiny.fp32.end2end.onnx", "tiny.fp16.end2end.onnx"
    ]  # fmt: skip
    assert "tiny.fp32.onnx" in {s["file"] for s in data["plan"]}, "the baseline is made, too"
    assert snapshot(place) == before


def test_speed_alone(cli, place):
    done = cli("tune", "tiny.onnx", "--images", "pics", *FAST, "--no-memory", "--out", "o")
    assert done.code == 0, done.err
    assert "accuracy was not measured" in done.out
    data = tuned(place / "o" / "tiny")
    assert data["winner"]["sha256"] == sha256_of_file(Path(data["winner"]["file"]))
    assert data["winner"]["threads"] == 1 and data["winner"]["runtime"] == "onnxruntime"
    rows = data["candidates"]
    assert sum(not r["baseline"] for r in rows) == 4
    assert [r["name"] for r in rows if r["baseline"]] == [
        "tiny.fp32.onnx (onnxruntime, threads default)"
    ]
    assert all(r["drop"] is None and r["peak_memory_mb"] is None for r in rows)
    stages = [m["stage"] for m in data["measurements"]]
    assert stages == ["round 1", "final"], "round 1 is enough where few are left"
    final = data["measurements"][-1]
    assert {m["name"] for m in final["measured"]} == {r["name"] for r in rows if not r["dropped"]}
    for m in final["measured"]:
        assert len(m["latencies"]["total"]["samples_ms"]) == 5
    assert set(data["front"]) <= {r["name"] for r in rows if not r["dropped"]}
    assert data["winner"]["name"] in {r["name"] for r in rows if not r["over"]}


def test_throughput(cli, place):
    done = cli(
        "tune", "tiny.onnx", "--images", "pics", *FAST, "--precision", "fp32", "--outputs", "raw",
        "--objective", "throughput", "--concurrency", "2", "--batch", "2", "--out", "o",
    )  # fmt: skip
    assert done.code == 0, done.err
    data = tuned(place / "o" / "tiny")
    assert data["winner"]["in_flight"] == 2 and data["winner"]["batch"] == 2
    measured = data["measurements"][-1]["measured"]
    assert [m["mode"] for m in measured] == ["throughput", "throughput"]
    assert all(m["concurrency"] == 2 and m["images_per_s"] > 0 for m in measured)
    assert "--batch 2" in dict(data["commands"])["use it"]


@pytest.mark.parametrize(
    ("option", "value", "stage"),
    [("--max-latency-ms", "0.000001", "round 1"), ("--max-memory-mb", "1", "memory")],
)
def test_budgets_out_of_reach(cli, place, option, value, stage):
    done = cli(
        "tune", "tiny.onnx", "--images", "pics", "--precision", "fp32", "--threads", "1",
        "--runtimes", "onnxruntime", "--iterations", "20", option, value, "--out", "o",
    )  # fmt: skip
    assert done.code == 1
    assert done.error.startswith(f"{option} "), done.error
    assert "none of 2 candidates keeps it; the nearest is tiny.fp32" in done.error
    data = tuned(place / "o" / "tiny")
    assert data["winner"] is None and data["commands"] == [] and data["front"] == []
    assert {r["dropped"]["stage"] for r in data["candidates"]} == {stage}
    assert (place / "o" / "tiny" / "tiny.fp32.onnx").is_file(), "what was proven stays"


def test_int8_out_of_its_budget_leaves_the_others(labelled, monkeypatch):
    real, asked = tune_files.run, []

    def run(recipe: Recipe, *words, **more):
        asked.append({t.precision for t in recipe.targets})
        if "int8" in asked[-1]:
            raise CheckFailedError("text_block in INT8 for cpu", "mAP50-95 drops by 0.8000", "")
        return real(recipe, *words, **more)

    monkeypatch.setattr(tune_files, "run", run)
    recipe = recipe_from_mapping(
        {
            "source": str(onnx_file()),
            "targets": [{"precision": "fp32"}, {"precision": "int8"}],
            "calibration": {"images": [str(labelled / "calib")]},
            "data": str(labelled / "data" / "truth.json"),
        },
        "test",
    )
    result = tune(
        recipe,
        labelled / "o",
        budgets=Budgets(max_drop=0.1),
        sweep=Sweep(("onnxruntime",), (1,), iterations=2, memory=False),
    )
    assert asked == [{"fp32", "int8"}, {"fp32"}]
    gone = [c for c in result.candidates if c.dropped]
    assert [c.combination.precision for c in gone] == ["int8"]
    assert gone[0].dropped.stage == "files" and "drops by 0.8000" in gone[0].dropped.reason
    assert result.winner.combination.file == "text_block.fp32.onnx"
    assert any("int8" in n and "drops by 0.8000" in n for n in result.notes)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_OPENVINO, reason="needs openvino")
@pytest.mark.parametrize(
    ("precisions", "outputs", "count"),
    [
        (("fp32", "int8"), ("raw",), 5),
        pytest.param(("fp32", "fp16", "int8"), ("raw", "end2end"), 14, marks=pytest.mark.long),
    ],
    ids=["a part", "all"],
)
def test_the_sweep_on_the_sample(cli, labelled, precisions, outputs, count):
    words = [
        "tune", onnx_file(), "--data", labelled / "data" / "truth.json",
        "--calib-images", labelled / "calib", "--max-drop", "0.5",
        "--threads", "1", "--iterations", "5", "--out", labelled / "o",
        "--precision", ",".join(precisions), "--outputs", ",".join(outputs),
    ]  # fmt: skip
    done = cli(*words)
    assert done.code == 0, done.err
    folder = labelled / "o" / "text_block"
    data = tuned(folder)
    tried = [c for c in data["candidates"] if not c["baseline"]]
    assert len({c["name"] for c in tried}) == len(tried) == count, (
        "INT8 for ONNX Runtime is tried in both, INT8 for OpenVINO there alone"
    )
    assert {(c["precision"], c["outputs"], c["runtime"]) for c in tried} == {
        (p, o, r) for p in precisions for o in outputs for r in ("onnxruntime", "openvino")
    }
    for c in tried:
        assert (c["peak_memory_mb"] is None) == (c["dropped"] is not None), c["name"]
        assert c["drop"] is not None and c["drop"] <= 0.5
        body = ("precision", "deployment", "runtime")
        same = [o["drop"] for o in tried if all(o[k] == c[k] for k in body)]
        assert len(set(same)) == 1, "end-to-end files share the figure of their body"
        assert c["sha256"] == sha256_of_file(folder / c["file"])
    exact = {c["drop"] for c in tried if c["precision"] == "fp32" and c["runtime"] == "onnxruntime"}
    assert exact == {0.0}, "the drop is against FP32 in ONNX Runtime"
    assert data["data"]["pictures"] == 4 and len(data["data"]["fingerprint"]) == 64
    assert "shares the figure of its body" in done.out or outputs == ("raw",)

    made = {p: p.stat().st_mtime_ns for p in folder.glob("*.onnx")}
    commands = dict(data["commands"])
    again = shlex.split(commands["make it again"])
    again[again.index("--out") + 1] = str(labelled / "fresh")
    ran = cli(*again[1:])
    assert ran.code == 0, ran.err
    name = Path(data["winner"]["file"]).name
    assert sha256_of_file(labelled / "fresh" / "text_block" / name) == data["winner"]["sha256"]
    assert cli(*shlex.split(commands["use it"])[1:]).code == 0

    done = cli(*words, "--max-latency-ms", "0.000001", "--json")
    assert done.code == 1 and f"none of {count} candidates" in done.error
    assert json.loads(done.out)["winner"] is None
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*.onnx")} == made, "files were kept"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_the_source_in_pytorch_is_a_baseline(labelled):
    recipe = recipe_from_mapping({"source": str(checkpoint_file())}, "test")
    sweep = Sweep(threads=(1,), iterations=5, memory=False)
    result = tune(recipe, labelled / "o", sweep=sweep)
    bases = [c for c in result.candidates if c.baseline]
    assert [c.combination.runtime for c in bases] == ["onnxruntime", "pytorch"]
    assert [s.baseline for s in result.winner.speed_ups] == [c.name for c in bases]
    assert result.winner not in bases and not any(c.eligible or c.on_front for c in bases)


def test_generated_pages_as_data(cli, place):
    """Pages of `--data sample` lie in memory; the pictures to time on are others."""
    done = cli(
        "tune", onnx_file(), "--data", "sample", "--max-data", "4", "--max-drop", "0.01",
        "--precision", "fp32", "--outputs", "raw", *FAST, "--no-memory", "--out", "o",
    )  # fmt: skip
    assert done.code == 0, done.err
    data = tuned(place / "o" / "text_block")
    assert data["data"]["pictures"] == 4
    assert data["candidates"][0]["map50_95"] > 0.85
    assert data["candidates"][0]["drop"] == 0.0
