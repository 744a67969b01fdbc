"""The accuracy budget: the search, the sensitivities, and the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_quantize import pairs_before, raw_model
from tiny_models import pictures

from boxwright.budget import Lossy, Sensitivity, measure_sensitivities, search_budget
from boxwright.calibrate import calibrate
from boxwright.graph.quantize import Range, int8_from_fp32, quantisable_layers
from boxwright.sample import generate_page, onnx_file
from boxwright.sample.pages_on_disk import coco_bytes, png_bytes, sample_pages


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny detector, its ranges, and its layers."""
    raw = raw_model(tmp_path_factory.mktemp("b"), "sample")
    ranges = calibrate(raw.model, raw.spec, [generate_page(30_000).image], "cpu").ranges
    return raw, ranges, quantisable_layers(raw.model)


def integer(model, ranges, deployment: str) -> Lossy:
    """INT8, as the search sees it."""

    def build(kept):
        return int8_from_fp32(model, ranges, deployment, keep_float=kept)

    return Lossy("INT8", tuple(quantisable_layers(model)), build)


def float_layers(model, layers: list[str]) -> set[str]:
    return {
        n.name for n in model.graph.node if n.name in layers and not pairs_before(model, n.input[1])
    }


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8, 13])
def test_the_search_finds_the_fewest_float_layers(tiny, needed):
    raw, ranges, layers = tiny
    guilty = set(layers[10 : 10 + needed])
    order = [*guilty, *(name for name in layers if name not in guilty)]
    asked = []

    def measure(model) -> float:
        return 0.5 - 0.01 * len(guilty - float_layers(model, layers))

    def ranked():
        asked.append(True)
        return [Sensitivity(name, 1.0 / (i + 1)) for i, name in enumerate(order)]

    result = search_budget(integer(raw.model, ranges, "cpu"), ranked, measure, 0.5, 0.005)
    assert result.within and result.drop <= 0.005
    assert set(result.kept) == guilty == float_layers(result.model, layers)
    assert bool(asked) == (needed > 0), "layers are measured only when they have to be"
    assert len(result.tried) <= 10


def test_a_budget_that_cannot_hold_says_so(tiny):
    raw, ranges, layers = tiny
    result = search_budget(
        integer(raw.model, ranges, "cpu"), lambda: [Sensitivity(n, 1.0) for n in layers],
        lambda _: 0.1, 0.5, 0.005,
    )  # fmt: skip
    assert not result.within and result.drop == pytest.approx(0.4)
    assert result.kept == () and result.layers == len(layers)


def test_the_broken_layer_is_the_most_sensitive(tmp_path):
    raw = raw_model(tmp_path, "ultralytics")
    ranges = dict(calibrate(raw.model, raw.spec, pictures(3), "tensorrt").ranges)
    layers = quantisable_layers(raw.model)
    victim = next(n for n in raw.model.graph.node if n.name == layers[1])
    seen = ranges[victim.input[0]]
    ranges[victim.input[0]] = Range(seen.low / 50, seen.high / 50)
    readers = {
        n.name for n in raw.model.graph.node if n.name in layers and n.input[0] == victim.input[0]
    }
    found = measure_sensitivities(
        raw.model, raw.spec, integer(raw.model, ranges, "tensorrt"), pictures(2)
    )
    assert sorted(s.layer for s in found) == sorted(layers)
    assert found[0].layer in readers
    assert [s.error for s in found] == sorted((s.error for s in found), reverse=True)
    assert all(np.isfinite(s.error) and s.error >= 0 for s in found)


# -- through the command line


@pytest.fixture
def labelled(tmp_path):
    """Two labelled pages as a COCO data set, and other pages to calibrate on."""
    for folder, seeds in (("data", (20_000, 20_001)), ("calib", (30_000, 30_001))):
        (tmp_path / folder).mkdir()
        pages = sample_pages(seeds)
        for page in pages:
            (tmp_path / folder / page.name).write_bytes(png_bytes(page.page))
        (tmp_path / folder / "truth.json").write_bytes(coco_bytes(pages))
    return tmp_path


def words(folder: Path, *more: object) -> list[object]:
    return [
        "run", onnx_file(), "--precision", "int8", "--out", "o", "--skip-verify",
        "--calib-images", folder / "calib", "--data", folder / "data" / "truth.json", *more,
    ]  # fmt: skip


def test_run_keeps_a_budget_and_records_how(cli, place, labelled):
    done = cli(*words(labelled, "--max-drop", "0.2"))
    assert done.code == 0, done.err
    assert "INT8 for cpu loses" in done.err
    manifest = json.loads((place / "o" / "text_block" / "manifest.json").read_text())
    budget = manifest["files"]["text_block.int8.onnx"]["record"]["budget"]
    assert budget["within"] and budget["reference"] - budget["measured"] <= 0.2
    assert budget["kept_float"] == [] and budget["layers"] == 74


def test_a_budget_out_of_reach_makes_nothing(cli, place, labelled, monkeypatch):
    from boxwright import quantization

    accuracy = iter([0.9, *[0.1] * 50])
    monkeypatch.setattr(quantization, "_accuracy", lambda *_: next(accuracy))
    monkeypatch.setattr(
        quantization,
        "measure_sensitivities",
        lambda model, *_, **__: [Sensitivity(n, 1.0) for n in quantisable_layers(model)],
    )
    done = cli(*words(labelled, "--max-drop", "0.005"))
    assert done.code == 1
    assert "mAP50-95 drops by 0.8000" in done.error and "0.005 is allowed" in done.error
    assert not list((place / "o").rglob("*.int8*.onnx"))


@pytest.fixture
def planned(monkeypatch):
    """TensorRT and a GPU seem to be there, and a plan is what ONNX Runtime computes."""
    from contextlib import contextmanager

    from boxwright import catalog, plan_budget, quantization
    from boxwright.backends import BackendOptions
    from boxwright.nvidia import Gpu

    monkeypatch.setattr(plan_budget, "load_tensorrt", lambda _: None)
    monkeypatch.setattr(plan_budget, "find_gpu", lambda: Gpu("H100", "9.0"))
    opened = []

    @contextmanager
    def as_plan(data, options, watcher):
        opened.append(options)
        yield catalog.backend("onnxruntime").open_bytes(data, BackendOptions())

    monkeypatch.setattr(quantization, "opened_as_plan", as_plan)
    return opened


def test_the_budget_of_a_file_for_tensorrt_is_measured_in_plans(cli, place, labelled, planned):
    done = cli(*words(
        labelled, "--max-drop", "0.2", "--deploy", "tensorrt", "--timing-cache", "gpu.cache",
        "--optimization-level", "1", "--tactic-sources", "jit_convolutions,cublas",
    ))  # fmt: skip
    assert done.code == 0, done.err
    assert "is measured in plans, built here" in done.err
    (options,) = planned
    assert options.timing_cache == "gpu.cache" and options.optimization_level == 1
    assert options.tactic_sources == ("jit_convolutions", "cublas")
    manifest = json.loads((place / "o" / "text_block" / "manifest.json").read_text())
    record = manifest["files"]["text_block.int8.tensorrt.onnx"]
    assert record["record"]["budget"]["measured_in"] == "tensorrt"
    assert record["settings"]["budget_runtime"] == "tensorrt"


def test_a_plans_float_layers_are_looked_for_in_fours(tiny):
    raw, ranges, layers = tiny
    guilty = set(layers[10:21])
    order = [*guilty, *(name for name in layers if name not in guilty)]
    result = search_budget(
        integer(raw.model, ranges, "tensorrt"), lambda: [Sensitivity(n, 1.0) for n in order],
        lambda model: 0.5 - 0.01 * len(guilty - float_layers(model, layers)), 0.5, 0.005, 4,
    )  # fmt: skip
    assert result.within and [count for count, _ in result.tried] == [0, 4, 8, 16, 12]
    assert len(result.kept) == 12 and guilty < set(result.kept)


def test_where_a_budget_was_measured_is_said(cli, place, labelled):
    done = cli(*words(labelled, "--max-drop", "0.2", "--deploy", "tensorrt"))
    assert done.code == 0, done.err
    assert "measured in ONNX Runtime; its plan may lose more" in done.err
    manifest = json.loads((place / "o" / "text_block" / "manifest.json").read_text())
    budget = manifest["files"]["text_block.int8.tensorrt.onnx"]["record"]["budget"]
    assert budget["measured_in"] == "onnxruntime"


def test_a_budget_in_plans_that_nothing_builds_is_refused_first(cli, place, labelled, monkeypatch):
    monkeypatch.setattr("boxwright.nvidia.module_name", lambda runtime: None)
    asked = words(labelled, "--max-drop", "0.2", "--deploy", "tensorrt")
    done = cli(*asked, "--budget-runtime", "tensorrt")
    assert done.code == 2 and "not installed" in done.error, done.err
    assert not (place / "o").exists()


def test_measuring_on_calibrated_pictures_is_refused_unless_told(cli, place, labelled):
    both = words(labelled, "--max-drop", "0.2", "--calib-images", labelled / "data")
    done = cli(*both)
    assert done.code == 2
    assert "2 of 4 pictures are in --data too" in done.error
    assert not list((place / "o").rglob("*.int8*.onnx"))
    done = cli(*both, "--allow-calibration-overlap", "--calib-cache", "c.json")
    assert done.code == 0, done.err
    done = cli(*words(labelled, "--max-drop", "0.2", "--calib-cache", "c.json", "--force-convert"))
    assert done.code == 2, "the cache remembers which pictures it was made of"
    assert "2 of 4 pictures are in --data too" in done.error


def test_data_that_shows_nothing_holds_no_budget(cli, place, labelled):
    truth = labelled / "data" / "truth.json"
    empty = json.loads(truth.read_text()) | {"annotations": []}
    truth.write_text(json.dumps(empty))
    done = cli(*words(labelled, "--max-drop", "0.2"))
    assert done.code == 2 and "no object of the model's classes" in done.error
    assert not list((place / "o").rglob("*.int8*.onnx"))


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--precision", "int8", "--calib-images", "pics", "--max-drop", "0.01"], "needs --data"),
        (["--precision", "int8", "--calib-images", "pics", "--data", "d"], "no such"),
        (["--data", "d", "--max-drop", "0.01"], "no INT8 or FP16 file is asked for"),
        (["--max-data", "5"], "it needs --data"),
        (["--precision", "int8", "--calib-images", "pics", "--calib-method", "auto"], "--data"),
        (["--precision", "int8", "--calib-images", "pics", "--data", "d", "--max-drop", "2"], "2"),
        (["--precision", "fp16", "--budget-runtime", "tensorrt"], "none is asked for"),
        (["--precision", "int8", "--deploy", "tensorrt", "--timing-cache", "c"], "none is asked"),
    ],
)
def test_bad_budget_requests_make_nothing(cli, place, snapshot, more, found):
    before = snapshot(place)
    done = cli("run", "tiny.onnx", "--out", "o", *more)
    assert done.code == 2 and found in done.error, done.err
    assert snapshot(place) == before
