"""Accuracy and latency inside of `run`: what is measured, kept, left out, and recommended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_models import ultralytics_onnx

from boxwright.budget import search_budget
from boxwright.graph.precision import fp16_from_fp32, half_layers
from boxwright.overflow import layers_beyond_half
from boxwright.quantization import Converter
from boxwright.recipe import recipe_from_file, recipe_from_mapping, text_from_recipe
from boxwright.report import SOURCE, Report
from boxwright.report.choice import choose
from boxwright.sample import onnx_file
from boxwright.sample.pages_on_disk import coco_bytes, png_bytes, sample_pages
from boxwright.types import Change


@pytest.fixture
def labelled(tmp_path):
    """Three labelled pages as a COCO data set, and two others to calibrate on."""
    for folder, seeds in (("data", (20_000, 20_001, 20_002)), ("calib", (30_000, 30_001))):
        (tmp_path / folder).mkdir()
        pages = sample_pages(seeds)
        for page in pages:
            (tmp_path / folder / page.name).write_bytes(png_bytes(page.page))
        (tmp_path / folder / "truth.json").write_bytes(coco_bytes(pages))
    return tmp_path


def report_of(folder: Path) -> Report:
    return Report.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_run_measures_every_file_and_only_what_changed(cli, labelled, place):
    words = [
        "run", onnx_file(), "--precision", "fp32,int8", "--outputs", "raw,end2end", "--out", "o",
        "--calib-images", labelled / "calib", "--data", labelled / "data" / "truth.json",
        "--runtimes", "onnxruntime", "--seconds", "0.05", "--deploy", "cpu,tensorrt",
    ]  # fmt: skip
    done = cli(*words)
    assert done.code == 0, done.err
    folder = place / "o" / "text_block"
    report = report_of(folder)
    files = {a.artifact.path.name: a for a in report.artifacts}
    assert next(iter(files)) == "text_block.fp32.onnx"
    assert report.accuracy[0].file == SOURCE
    rows = {r.file: r for r in report.accuracy}
    assert set(rows) == {SOURCE, *files}, "the TensorRT file, too, is measured in ONNX Runtime"
    assert all(r.accuracy.pictures == 3 and r.runtime == "onnxruntime" for r in report.accuracy)
    whole = rows["text_block.fp32.onnx"]
    assert whole.accuracy.map50_95 == pytest.approx(rows[SOURCE].accuracy.map50_95, abs=1e-6)
    assert whole.change is not None and whole.change.baseline == SOURCE
    assert rows["text_block.fp32.end2end.onnx"].change is None, "its curve ends at its threshold"
    twin = rows["text_block.int8.end2end.onnx"].change
    assert twin is not None and twin.baseline.startswith("text_block.fp32.end2end.onnx")
    assert report.benchmark is not None
    timed = [m.name for m in report.benchmark.measured]
    assert timed[0] == SOURCE
    assert set(timed) == {SOURCE, *(n for n in files if "tensorrt" not in n)}
    assert any("tensorrt.onnx was not timed" in n for n in report.notes)
    assert any("tensorrt.onnx is that of ONNX Runtime" in n for n in report.notes)
    assert len(report.pictures) == 3 and report.pictures[0].truth
    assert set(report.pictures[0].found) == {SOURCE, *files}
    assert report.choice is not None and report.choice.file in files
    assert report.choice.file in done.out and "0.9" in done.out
    again = cli(*words)
    assert again.code == 0 and "accuracy of" not in again.err and "latency of" not in again.err
    assert report_of(folder) == report
    anew = cli(*words, "--force-measure", "--skip-evaluate")
    assert "accuracy of" not in anew.err and "latency of" in anew.err
    recipe = recipe_from_file(folder / "recipe.yaml")
    assert recipe.data == str(labelled / "data" / "truth.json")


def test_what_cannot_be_measured_is_told(cli, place):
    done = cli(
        "run", "tiny.onnx", "--out", "o", "--outputs", "raw,end2end", "--nms",
        "efficient_nms,portable", "--seconds", "0.02", "--runtimes", "onnxruntime",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = report_of(place / "o" / "tiny")
    assert any("efficient_nms.onnx was only verified" in n for n in report.notes)
    assert any("--data" in n for n in report.notes)
    assert report.accuracy == ()
    assert report.benchmark is not None
    assert {Path(m.file).name for m in report.benchmark.measured} == {
        "tiny.onnx", "tiny.fp32.onnx", "tiny.fp32.end2end.portable.onnx",
    }  # fmt: skip


def test_a_recipe_survives_its_file(tmp_path):
    data = {
        "source": "a.onnx",
        "targets": [{"precision": "fp16"}, {"precision": "int8", "deployment": "tensorrt"}],
        "images": ["a b/"],
        "measure": {"seconds": 0.5, "runtimes": ["openvino"]},
        "max_drop": 0.01,
        "image_size": [320, 640],
    }
    recipe = recipe_from_mapping(data, "test")
    (tmp_path / "r.yaml").write_text(text_from_recipe(recipe), encoding="utf-8")
    assert recipe_from_file(tmp_path / "r.yaml") == recipe


def test_a_missing_runtime_is_refused_before_any_work(cli, place, snapshot, monkeypatch):
    from boxwright import catalog

    kind = dataclasses.replace(catalog.backend("openvino"), missing=lambda: "openvino")
    asked = catalog.backend
    monkeypatch.setattr(catalog, "backend", lambda n: kind if n == "openvino" else asked(n))
    before = snapshot(place)
    done = cli("run", "tiny.onnx", "--out", "o", "--runtimes", "openvino")
    assert done.code == 2 and "boxwright[openvino]" in done.error
    assert snapshot(place) == before


# -- FP16 within a budget


def overflowing(model: onnx.ModelProto, place: int) -> tuple[onnx.ModelProto, str]:
    """Scale one tensor up past float16's range and back: nothing changes in float32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    convolutions = [n for n in result.graph.node if n.op_type == "Conv"]
    node = convolutions[place]
    tensor = node.output[0]
    readers = [n for n in result.graph.node if tensor in n.input]
    for name, value in (("up", 2.0**15), ("down", 2.0**-15)):
        result.graph.initializer.append(
            numpy_helper.from_array(np.array(value, np.float32), f"overflow_{name}")
        )
    for reader in readers:
        for position, read in enumerate(reader.input):
            if read == tensor:
                reader.input[position] = f"{tensor}_back"
    index = list(result.graph.node).index(node)
    result.graph.node.insert(
        index + 1, helper.make_node("Mul", [tensor, "overflow_up"], [f"{tensor}_big"], "grow")
    )
    result.graph.node.insert(
        index + 2,
        helper.make_node("Mul", [f"{tensor}_big", "overflow_down"], [f"{tensor}_back"], "shrink"),
    )
    return result, node.name


def test_a_layer_of_half_precision_is_all_that_follows_its_product():
    model = onnx.load(onnx_file())
    changed, name = overflowing(model, 3)
    layers = half_layers(changed)
    assert {"grow", "shrink"} <= set(layers[name])
    products = [n.name for n in model.graph.node if n.op_type == "Conv"]
    assert set(layers) <= set(products) and len(layers) > 20
    others = {n for key, nodes in layers.items() if key != name for n in nodes}
    assert "grow" not in others


def test_fp16_that_overflows_gets_its_layer_back(labelled):
    from boxwright.datasets import open_dataset
    from boxwright.outcome import Listener
    from boxwright.sources import SourceRequest
    from boxwright.sources.onnx_file import SOURCE as ONNX

    raw = ONNX.export(SourceRequest(onnx_file(), "t"))
    changed, name = overflowing(raw.model, 5)
    truth = labelled / "data" / "truth.json"
    recipe = recipe_from_mapping({"source": "x", "data": str(truth), "max_drop": 0.01}, "test")
    dataset = open_dataset(str(truth), class_names=raw.spec.class_names)
    pages = [i.path for i in dataset.items if i.path]
    converter = Converter(raw.spec, recipe, [], dataset, Listener())
    assert layers_beyond_half(raw.model, raw.spec, pages) == {}
    graph, record = converter.half(changed, pages)
    assert record is not None and set(record["overflow"]) == {name}
    assert record["overflow"][name] > 65504
    assert record["within"] and record["kept_float"] == []
    assert converter.measure(graph) == pytest.approx(record["measured"])
    inside = {o for n in graph.graph.node if n.name in ("grow", "shrink") for o in n.output}
    assert not any(n.op_type == "Cast" and set(n.output) & inside for n in graph.graph.node)
    made = {o: n for n in graph.graph.node for o in n.output}
    assert {
        made[i].attribute[0].i
        for n in graph.graph.node
        if n.name == name
        for i in n.input[:1]
        if made[i].op_type == "Cast"
    } <= {1}, "it computes in float32"


def test_the_best_calibration_is_chosen_by_its_accuracy(cli, labelled, place):
    done = cli(
        "run", onnx_file(), "--precision", "int8", "--out", "o", "--skip-verify", "--skip-evaluate",
        "--calib-images", labelled / "calib", "--data", labelled / "data" / "truth.json",
        "--calib-method", "auto", "--calib-cache", "c.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = json.loads((place / "o" / "text_block" / "manifest.json").read_text())
    budget = manifest["files"]["text_block.int8.onnx"]["record"]["budget"]
    tried = budget["methods"]
    assert set(tried) == {"minmax", "percentile", "entropy"}
    assert tried[budget["method"]] == max(tried.values())
    cache = json.loads(Path("c.json").read_text())
    assert cache["deployments"]["cpu"]["method"] == budget["method"]


# -- which file to ship


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small real report."""
    from boxwright.pipeline import run

    folder = tmp_path_factory.mktemp("choice")
    pages = sample_pages((20_003, 20_004))
    for page in pages:
        (folder / page.name).write_bytes(png_bytes(page.page))
    (folder / "truth.json").write_bytes(coco_bytes(pages))
    recipe = recipe_from_mapping(
        {
            "source": str(onnx_file()),
            "targets": [{"precision": "fp32"}, {"precision": "fp32", "outputs": "end2end"}],
            "data": str(folder / "truth.json"),
            "measure": {"seconds": 0.05, "runtimes": ["onnxruntime"]},
        },
        "test",
    )
    report = run(recipe, folder / "o").report
    assert report is not None and report.benchmark is not None
    return report


def slower(report: Report, factors: dict[str, float]) -> Report:
    """Multiply the times of some files."""
    assert report.benchmark is not None
    rows = []
    for m in report.benchmark.measured:
        factor = next((f for n, f in factors.items() if m.file.endswith(n)), 1.0)
        latencies = {
            s: dataclasses.replace(v, samples_ms=tuple(x * factor for x in v.samples_ms))
            for s, v in m.latencies.items()
        }
        rows.append(dataclasses.replace(m, latencies=latencies))
    benchmark = dataclasses.replace(report.benchmark, measured=tuple(rows))
    return dataclasses.replace(report, benchmark=benchmark)


def chosen(report: Report, max_drop: float | None = None) -> str:
    found = choose(report.artifacts, report.parity, report.accuracy, report.benchmark, max_drop)
    return found.file


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"fp32.onnx": 0.1}, "text_block.fp32.onnx"),
        ({"end2end.onnx": 0.1}, "text_block.fp32.end2end.onnx"),
    ],
)
def test_the_fastest_sound_file_is_chosen(measured, factors, expected):
    assert chosen(slower(measured, factors)) == expected


def test_a_file_over_the_budget_or_unproven_is_not_chosen(measured):
    report = slower(measured, {"end2end.onnx": 10.0})
    accuracy = tuple(
        dataclasses.replace(r, change=dataclasses.replace(r.change, difference=-0.2))
        if r.file == "text_block.fp32.onnx" and r.change
        else r
        for r in report.accuracy
    )
    lossy = dataclasses.replace(report, accuracy=accuracy)
    assert chosen(lossy) == "", "the end-to-end file has the very same body"
    assert chosen(lossy, max_drop=0.3) == "text_block.fp32.onnx"
    names = [n for n in report.parity if "end2end" in n]
    proven = dataclasses.replace(report, parity={n: report.parity[n] for n in names})
    assert chosen(proven) == names[0]
    assert chosen(dataclasses.replace(report, parity={})) == ""


def test_without_times_the_file_of_the_network_tensor_is_named_before_the_one_of_pictures(measured):
    tensor = next(a for a in measured.artifacts if a.artifact.target.outputs == "end2end")
    target = dataclasses.replace(tensor.artifact.target, input="image")
    name = f"text_block.{target.suffix}.onnx"
    artifact = dataclasses.replace(tensor.artifact, path=Path(name), target=target)
    pictures = dataclasses.replace(tensor, artifact=artifact)
    known = tensor.artifact.path.name
    parity = {known: measured.parity[known], name: measured.parity[known]}
    found = choose((pictures, tensor), parity, (), None, None)
    assert (found.file, found.runtime) == (known, "")
    assert choose((pictures,), parity, (), None, None).file == name


def test_the_file_to_ship_has_no_runtime_where_nothing_was_timed(cli, place):
    done = cli("run", ultralytics_onnx(place / "tiny.onnx"), "--no-simplify", "--outputs", "raw")
    assert done.code == 0, done.err
    assert "ship tiny.fp32.onnx: Verified" in done.out


def test_an_end_to_end_file_that_a_runtime_breaks_is_not_chosen(measured):
    report = slower(measured, {"end2end.onnx": 0.1})
    assert chosen(report) == "text_block.fp32.end2end.onnx"

    def lost(row, low: float, high: float):
        change = Change("text_block.fp32.end2end.onnx", (low + high) / 2, low, high)
        return dataclasses.replace(row, change=change) if "end2end" in row.file else row

    broken = tuple(lost(r, -0.4, -0.2) for r in report.accuracy)
    assert chosen(dataclasses.replace(report, accuracy=broken)) == "text_block.fp32.onnx"
    doubtful = tuple(lost(r, -0.02, 0.01) for r in report.accuracy)
    assert chosen(dataclasses.replace(report, accuracy=doubtful)).endswith("end2end.onnx")


def test_int8_of_unknown_accuracy_is_not_chosen(measured):
    report = slower(measured, {"fp32.onnx": 0.1})
    artifacts = tuple(
        dataclasses.replace(
            a,
            artifact=dataclasses.replace(
                a.artifact, target=dataclasses.replace(a.artifact.target, precision="int8")
            ),
        )
        if a.artifact.path.name == "text_block.fp32.onnx"
        else a
        for a in report.artifacts
    )
    blind = dataclasses.replace(report, artifacts=artifacts, accuracy=())
    assert chosen(blind) == "text_block.fp32.end2end.onnx"


def test_the_search_tries_fp16_like_int8():
    model = onnx.load(onnx_file())
    layers = half_layers(model)
    from boxwright.budget import Lossy, Sensitivity

    lossy = Lossy(
        "FP16",
        tuple(layers),
        lambda kept: fp16_from_fp32(model, {n for k in kept for n in layers[k]}),
    )
    order = [Sensitivity(name, 1.0) for name in layers]
    answers = iter([0.1, 0.5])
    result = search_budget(lossy, lambda: order, lambda _: next(answers), 0.5, 0.005)
    assert result.kept == (next(iter(layers)),)
    half = {i.name for i in result.model.graph.initializer if i.data_type == 10}
    first = next(n for n in model.graph.node if n.name == result.kept[0])
    assert f"{first.input[1]}/fp16" not in half and len(half) > 20
