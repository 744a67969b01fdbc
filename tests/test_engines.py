"""Builds of plans: settings, refusals, the timing cache, and real builds with TensorRT-RTX."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import pictures

from boxwright import catalog, engines
from boxwright.calibrate import calibrate
from boxwright.engine_record import read_record, sidecar_path
from boxwright.engines import build_plan
from boxwright.engines.inspection import float32_node_names, read_facts, refuse_unbuildable
from boxwright.engines.progress import Progress, monitor_for
from boxwright.engines.settings import BuildSettings, build_line, trtexec_line
from boxwright.engines.timing_cache import CacheKey, load_timing_cache, save_timing_cache
from boxwright.engines.typing_before_10 import keep_types
from boxwright.errors import BackendError, BoxwrightError, GraphError, RequestError, SourceError
from boxwright.graph.end2end import add_end2end
from boxwright.graph.io import write_stamp
from boxwright.graph.precision import fp16_from_fp32
from boxwright.graph.quantize import int8_from_fp32
from boxwright.nvidia import Gpu, refuse_broken
from boxwright.sample import generate_page, onnx_file
from boxwright.sources import SourceRequest
from boxwright.stamps import Stamp, stamp_from_metadata
from boxwright.store import sha256_of_file
from boxwright.types import NmsSettings, Target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NOT TESTED: TensorRT-RTX is not installed",
)
NO_TENSORRT = importlib.util.find_spec("tensorrt") is None
KEY = CacheKey("8.6.0", "NVIDIA H100", "9.0")
FORMS = {
    "fp32": Target("fp32"),
    "fp16": Target("fp16"),
    "int8": Target("int8", deployment="tensorrt"),
    "int8.cpu": Target("int8"),
    "fp32.end2end.portable": Target("fp32", "end2end", "portable"),
    "fp16.end2end.portable": Target("fp16", "end2end", "portable"),
    "int8.end2end.portable": Target("int8", "end2end", "portable", deployment="tensorrt"),
    "fp32.end2end.onnx": Target("fp32", "end2end", "onnx"),
    "fp32.end2end.efficient_nms": Target("fp32", "end2end", "efficient_nms"),
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """Return a function that makes the embedded sample in a typed form, once."""
    folder = tmp_path_factory.mktemp("typed")
    raw = catalog.source_for(".onnx").export(SourceRequest(onnx_file(), "sample"))

    def make(form: str) -> Path:
        path = folder / f"sample.{form}.onnx"
        if path.exists():
            return path
        target, model = FORMS[form], raw.model
        if target.precision == "fp16":
            model = fp16_from_fp32(model)
        if target.precision == "int8":
            ranges = calibrate(model, raw.spec, [generate_page(30_000).image], target.deployment)
            model = int8_from_fp32(model, ranges.ranges, target.deployment)
        nms = NmsSettings()
        if target.outputs == "end2end":
            model = add_end2end(model, raw.spec, nms, target)
        write_stamp(model, Stamp(raw.spec, target, nms))
        path.write_bytes(model.SerializeToString())
        return path

    return make


def tiny_graph(folder: Path, operator: str = "Relu", shape: tuple = ("n", 3, 8, 8), **more) -> Path:
    """A graph of one node."""
    node = helper.make_node(operator, ["x"], ["y"], name="/one", **more)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17)]
    if "domain" in more:
        opsets.append(helper.make_opsetid(more["domain"], 1))
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


# -- pure: settings, lines


@pytest.mark.parametrize(
    ("settings", "more", "words"),
    [
        (BuildSettings(), {"version": "8.6.0", "half": True}, "--fp16"),
        (
            BuildSettings(),
            {"version": "8.6.0", "half": True, "quantised": True},
            "--fp16 --int8",
        ),
        (BuildSettings(), {"version": "10.3.0", "half": True}, "--stronglyTyped"),
        (BuildSettings(), {"version": "11.1.0", "quantised": True}, ""),
        (
            BuildSettings(batch=(1, 8, 32)),
            {"version": "11.1", "profile": {"images": ((1, 3, 6, 4), (8, 3, 6, 4), (32, 3, 6, 4))}},
            "--minShapes=images:1x3x6x4 --optShapes=images:8x3x6x4 "
            "--maxShapes=images:32x3x6x4",
        ),
        (BuildSettings(workspace_gib=1.5), {"version": "11"}, "--memPoolSize=workspace:1536"),
        (BuildSettings(optimization_level=5), {"version": "11"}, "--builderOptimizationLevel=5"),
        (BuildSettings(timing_cache=Path("c")), {"version": "11"}, "--timingCacheFile=c"),
        (
            BuildSettings(version_compatible=True, hardware_compatibility="ampere_plus"),
            {"version": "11"},
            "--versionCompatible --hardwareCompatibilityLevel=ampere+",
        ),
        (
            BuildSettings(hardware_compatibility="same_compute_capability"),
            {"version": "11"},
            "--hardwareCompatibilityLevel=sameComputeCapability",
        ),
        (BuildSettings(dla_core=1), {"version": "11"}, "--useDLACore=1 --allowGPUFallback"),
        (
            BuildSettings(tactic_sources=("JIT_CONVOLUTIONS",)),
            {"version": "8.6"},
            "--tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN,-EDGE_MASK_CONVOLUTIONS,+JIT_CONVOLUTIONS "
            "",
        ),
        (
            BuildSettings(tactic_sources=("JIT_CONVOLUTIONS",)),
            {"version": "11.0"},
            "--tacticSources=-EDGE_MASK_CONVOLUTIONS,+JIT_CONVOLUTIONS",
        ),
        (BuildSettings(verbose=True), {"version": "11"}, "--verbose"),
    ],
)  # fmt: skip
def test_every_setting_has_its_word_in_trtexec(settings, more, words):
    line = trtexec_line(settings, Path("a.onnx"), Path("b.plan"), **more)
    expected = [
        "trtexec",
        "--onnx=a.onnx",
        "--saveEngine=b.plan",
        *words.split(),
        "--skipInference",
    ]
    assert line.split() == expected


def test_rtx_has_a_tool_of_its_own_and_no_timing_cache():
    settings = BuildSettings(timing_cache=Path("c"))
    line = trtexec_line(
        settings, Path("a b.onnx"), Path("b"), runtime="tensorrt-rtx", version="1.7"
    )
    assert line == "tensorrt_rtx '--onnx=a b.onnx' --saveEngine=b --skipInference"


def test_the_build_line_says_everything_that_shapes_a_plan():
    """Each field but `verbose` changes the line."""
    values = {
        "batch": (1, 2, 4),
        "workspace_gib": 2.0,
        "optimization_level": 1,
        "timing_cache": Path("c"),
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
        "dla_core": 0,
        "tactic_sources": ("CUDNN",),
        "image_sizes": ((1, 1), (2, 2), (3, 3)),
    }
    assert {f.name for f in dataclasses.fields(BuildSettings)} == {*values, "verbose"}
    bare = build_line(BuildSettings(), Path("a.onnx"), "tensorrt")
    lines = {
        build_line(BuildSettings(**{k: v}), Path("a.onnx"), "tensorrt") for k, v in values.items()
    }
    assert len(lines | {bare}) == len(values) + 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (BuildSettings(batch=(2, 1, 4)), "--batch 2,1,4"),
        (BuildSettings(batch=(0, 1, 4)), "--batch 0,1,4"),
        (BuildSettings(workspace_gib=0), "--workspace-gib 0"),
        (BuildSettings(workspace_gib=float("nan")), "--workspace-gib nan"),
        (BuildSettings(optimization_level=6), "--optimization-level 6"),
        (BuildSettings(dla_core=-1), "--dla-core -1"),
        (BuildSettings(tactic_sources=("CUDA",)), "--tactic-sources CUDA"),
        (
            BuildSettings(
                version_compatible=True, hardware_compatibility="same_compute_capability"
            ),
            "--version-compatible --hardware-compatibility",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(RequestError, match=words):
        settings.check("tensorrt")


@pytest.mark.parametrize(
    "settings",
    [
        BuildSettings(dla_core=0),
        BuildSettings(hardware_compatibility="ampere_plus"),
        BuildSettings(tactic_sources=("JIT_CONVOLUTIONS",)),
        BuildSettings(version_compatible=True),
    ],
)
def test_what_rtx_does_not_have_is_refused(settings):
    settings.check("tensorrt")
    with pytest.raises(RequestError, match="TensorRT-RTX chooses its kernels where the plan runs"):
        settings.check("tensorrt-rtx")


def test_the_broken_release_is_refused():
    refuse_broken("10.3.0")
    with pytest.raises(BackendError, match=r"10\.2\.0.*; update to 10\.3"):
        refuse_broken("10.2.0.post1")


# -- pure: the timing cache


def test_a_timing_cache_comes_back(tmp_path):
    path = tmp_path / "gpu.cache"
    assert load_timing_cache(path, KEY) == b""
    save_timing_cache(path, b"timings", KEY)
    assert load_timing_cache(path, KEY) == b"timings"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu.cache", "gpu.cache.json"]


@pytest.mark.parametrize(
    "changes",
    [{"version": "8.6.1"}, {"gpu": "NVIDIA H200"}, {"compute_capability": "8.6"}],
    ids=["version", "gpu", "architecture"],
)
def test_a_foreign_timing_cache_is_refused(tmp_path, changes):
    path = tmp_path / "gpu.cache"
    save_timing_cache(path, b"timings", dataclasses.replace(KEY, **changes))
    with pytest.raises(RequestError, match=r"it is of TensorRT .* this is TensorRT 8\.6\.0 on"):
        load_timing_cache(path, KEY)


def test_a_cache_that_trtexec_wrote_is_for_tensorrt_to_judge(tmp_path):
    path = tmp_path / "gpu.cache"
    path.write_bytes(b"of trtexec")
    assert load_timing_cache(path, KEY) == b"of trtexec"
    save_timing_cache(path, b"ours", dataclasses.replace(KEY, version="9"))
    path.write_bytes(b"of trtexec, later")  # what is beside it no longer describes it
    assert load_timing_cache(path, KEY) == b"of trtexec, later"


def test_a_damaged_description_or_a_missing_folder_is_told(tmp_path):
    path = tmp_path / "gpu.cache"
    path.write_bytes(b"x")
    path.with_name("gpu.cache.json").write_text("[]")
    with pytest.raises(SourceError, match="not the description of a timing cache"):
        load_timing_cache(path, KEY)
    with pytest.raises(RequestError, match="its folder does not exist"):
        load_timing_cache(tmp_path / "no" / "gpu.cache", KEY)


# -- graphs that no build takes


@pytest.mark.parametrize(
    ("form", "runtime", "words"),
    [
        ("int8.cpu", "tensorrt", "INT8 is made for cpu, not for TensorRT; .*--deploy tensorrt"),
        ("fp32.end2end.efficient_nms", "tensorrt-rtx", "no EfficientNMS_TRT.*--nms portable"),
        ("fp32.end2end.onnx", "tensorrt-rtx", "NonMaxSuppression but cannot build.*--nms portable"),
    ],
)
def test_graphs_for_another_runtime_are_refused(typed, form, runtime, words):
    with pytest.raises(RequestError, match=words):
        build_plan(typed(form), BuildSettings(), runtime)


@pytest.mark.parametrize("form", ["fp32.end2end.efficient_nms", "fp32.end2end.onnx", "int8"])
def test_tensorrt_itself_takes_them(typed, form):
    refuse_unbuildable(read_facts(typed(form)), "tensorrt")


def test_a_foreign_asymmetric_graph_is_refused(typed, tmp_path):
    """It has no stamp; the zero points give it away."""
    model = onnx.load(typed("int8.cpu"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(RequestError, match="zero points other than 0"):
        build_plan(tmp_path / "foreign.onnx", BuildSettings(), "tensorrt-rtx")


def test_free_sides_are_refused(tmp_path):
    path = tiny_graph(tmp_path, shape=("n", 3, "h", "w"))
    with pytest.raises(GraphError, match=r"input x: h, w.*fixed picture sides"):
        build_plan(path, BuildSettings(), "tensorrt-rtx")


def test_a_batch_that_contradicts_a_fixed_one_is_refused(tmp_path):
    path = tiny_graph(tmp_path, shape=(2, 3, 8, 8))
    with pytest.raises(RequestError, match=r"--batch 1,2,4: tiny\.onnx takes 2 pictures only"):
        build_plan(path, BuildSettings(batch=(1, 2, 4)), "tensorrt-rtx")


def test_dla_does_not_compute_fp32(typed, monkeypatch):
    monkeypatch.setattr(engines, "load_tensorrt", lambda runtime: SimpleNamespace(__version__="10"))
    monkeypatch.setattr(engines, "find_gpu", lambda **_: Gpu("Orin", "8.7"))
    with pytest.raises(RequestError, match="is FP32, which DLA does not compute"):
        engines.prepare(typed("fp32"), BuildSettings(dla_core=0), "tensorrt")


# -- TensorRT 8.6, which knows no types


class _Layer:
    """A layer of a network of TensorRT 8.6: what it reads, what it writes."""

    def __init__(self, kind: str, name: str, *writes: str, reads: str = "") -> None:
        self.type, self.name = kind, name
        self.precision: str | None = None
        self.output_types: dict[int, str] = {}
        self._reads = [SimpleNamespace(name=reads)] if reads else [None]
        self._writes = [
            SimpleNamespace(name=w, dtype="int32" if "indices" in w else "float32") for w in writes
        ]
        self.num_inputs, self.num_outputs = 1, len(writes)
        self.get_input = self._reads.__getitem__
        self.get_output = self._writes.__getitem__
        self.set_output_type = self.output_types.__setitem__


def test_before_10_the_switches_follow_the_graph(typed):
    """Layers that are float32 in an FP16 graph are held to it, the others are not."""
    path = typed("fp16.end2end.portable")
    names = float32_node_names(path)
    nodes = [n.name for n in onnx.load(path).graph.node]
    assert 0 < len(names) < len(nodes)
    held = next(n for n in nodes if n in names)
    free = next(n for n in nodes if n not in names)
    layers = [
        _Layer("UNARY", held, "a"),
        _Layer("UNARY", f"{held}_3", "b"),
        _Layer("SHUFFLE", held, "c"),
        _Layer("SHUFFLE", "(Unnamed Layer* 7) [Shuffle]", "d", reads="c"),
        _Layer("SHUFFLE", "(Unnamed Layer* 8) [Shuffle]", "e", reads="x"),
        _Layer("TOPK", held, "f", "f indices"),
        _Layer("UNARY", free, "g", reads="d"),
        _Layer("CAST", held, "h"),
        _Layer("PLUGIN_V2", "nms", "n indices", "boxes", reads="d"),
    ]
    flags: list[str] = []
    trt = SimpleNamespace(
        float32="float32",
        LayerType=SimpleNamespace(
            **{n: n for n in ("UNARY", "SHUFFLE", "TOPK", "CAST", "PLUGIN_V2")}
        ),
        BuilderFlag=SimpleNamespace(
            INT8="INT8", FP16="FP16", PREFER_PRECISION_CONSTRAINTS="PREFER"
        ),
    )
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])
    config = SimpleNamespace(set_flag=flags.append)
    notes = keep_types(trt, network, config, half=True, quantised=False, float32_nodes=names)
    assert flags == ["FP16", "PREFER"] and "6 layers" in notes[0]
    assert [layer.precision for layer in layers] == [
        *["float32"] * 4, None, "float32", None, None, "float32"
    ]  # fmt: skip
    # What it writes is held as well, but never the indices of a TopK.
    assert [sorted(layer.output_types) for layer in layers] == [
        *[[0]] * 4, [], [0], [], [], [1]
    ]  # fmt: skip
    flags.clear()
    keep_types(trt, network, config, half=False, quantised=True, float32_nodes=names)
    assert flags == ["INT8"]


def _seen(layer):
    """Return a stand-in of a layer that keeps what it is told; the real one is strongly typed."""
    types: dict[int, object] = {}
    return SimpleNamespace(
        name=layer.name, type=layer.type, precision=None, wanted=layer.get_output(0).dtype,
        named=not layer.name.startswith("(Unnamed"), types=types,
        num_inputs=layer.num_inputs, num_outputs=layer.num_outputs,
        get_input=layer.get_input, get_output=layer.get_output, set_output_type=types.__setitem__,
    )  # fmt: skip


@needs_rtx
@pytest.mark.parametrize("form", ["fp16", "fp16.end2end.portable"])
def test_before_10_what_strong_typing_makes_float32_is_held_to_it(typed, form):
    """By name, the layers that 8.6 is held to are those that are float32 in a typed build."""
    import tensorrt_rtx_bindings as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(typed(form)))
    layers = [
        _seen(layer)
        for layer in (network.get_layer(i) for i in range(network.num_layers))
        if layer.get_output(0).dtype in (trt.float32, trt.float16)
    ]
    flags = SimpleNamespace(FP16=0, PREFER_PRECISION_CONSTRAINTS=1)
    weak = SimpleNamespace(float32=trt.float32, LayerType=trt.LayerType, BuilderFlag=flags)
    seen = SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])
    config = SimpleNamespace(set_flag=lambda flag: None)
    names = float32_node_names(typed(form))
    keep_types(weak, seen, config, half=True, quantised=False, float32_nodes=names)
    held = [x for x in layers if x.precision is not None]
    assert len(held) > 3 and all(x.wanted == trt.float32 for x in held)
    half = [x for x in layers if x.wanted == trt.float16]
    assert len(half) > 50 and all(x.precision is None for x in half)
    computing = (trt.LayerType.SOFTMAX, trt.LayerType.ACTIVATION, trt.LayerType.UNARY)
    left = [x.name for x in layers if x.wanted == trt.float32 and x.type in computing and x.named]
    assert {x.name for x in held}.issuperset(left)
    assert all(x.types[0] == trt.float32 for x in held)


@pytest.mark.parametrize(
    ("form", "half", "quantised"),
    [("fp32", False, False), ("fp16", True, False), ("int8", False, True)],
)
def test_what_a_graph_carries(typed, form, half, quantised):
    facts = read_facts(typed(form))
    assert (facts.half, facts.quantised, facts.symmetric) == (half, quantised, True)


# -- progress


def test_progress_tells_phases_and_stops_when_asked():
    told: list[tuple[str, int, int]] = []
    watcher = SimpleNamespace(
        note=lambda text: None, count=lambda label, done, total: told.append((label, done, total))
    )
    with Progress("a.onnx", watcher) as progress:
        monitor = monitor_for(SimpleNamespace(IProgressMonitor=object), progress)
        monitor.phase_start("Building", "", 3)
        monitor.phase_start("Timing", "Building", 9)
        assert monitor.step_complete("Timing", 0) and monitor.step_complete("Building", 0)
        assert progress.phase == "Building"
        monitor.phase_finish("Timing")
        monitor.phase_finish("Building")
        assert told == [("build: Building", n, 3) for n in (0, 1, 3)]
        progress.interrupted = True
        assert monitor.step_complete("Building", 1) is False
    assert monitor_for(SimpleNamespace(), progress) is None


# -- real builds


@needs_rtx
@pytest.mark.parametrize("form", [f for f in FORMS if "." not in f or "portable" in f])
def test_typed_graphs_build(typed, form):
    path = typed(form)
    built = build_plan(path, BuildSettings(batch=(1, 2, 4)), "tensorrt-rtx")
    record = built.record
    assert len(built.data) == record.size_bytes > 10_000
    assert record.runtime == "tensorrt-rtx" and record.version.startswith("1.")
    assert record.source_sha256 == sha256_of_file(path)
    shapes = record.profile[next(iter(record.profile))]
    assert [s[0] for s in shapes] == [1, 2, 4]
    stamp = stamp_from_metadata(record.metadata, "plan")
    assert stamp is not None and stamp.target == FORMS[form] and stamp.nms == NmsSettings()


@needs_rtx
def test_half_the_bytes_are_in_half_the_plan(typed):
    """Precision is in the graph: the FP16 plan holds half-sized weights."""
    sizes = {
        form: build_plan(typed(form), BuildSettings(), "tensorrt-rtx").record.size_bytes
        for form in ("fp32", "fp16")
    }
    assert sizes["fp16"] < 0.8 * sizes["fp32"]


@needs_rtx
def test_an_unsupported_operator_is_named(tmp_path):
    path = tiny_graph(tmp_path, "Nonsense", (1, 3, 8, 8), domain="my.own")
    with pytest.raises(GraphError, match=r"cannot parse node /one \(Nonsense\): .*; replace the"):
        build_plan(path, BuildSettings(), "tensorrt-rtx")


@needs_rtx
def test_build_writes_a_plan_and_its_description(cli, typed, tmp_path):
    path = typed("fp16")
    ran = cli("build", path, "--runtime", "tensorrt-rtx", "--batch", "1,2,4", "--out", tmp_path)
    assert ran.code == 0, ran.err
    (plan,) = tmp_path.glob("*.plan")
    assert plan.name.startswith("sample.fp16.rtx1.") and str(plan) in ran.out
    record = read_record(plan)
    assert record is not None and record.plan_sha256 == sha256_of_file(plan)
    assert f"--saveEngine={plan}" in record.trtexec and record.trtexec in ran.out
    assert "--minShapes=" in record.trtexec and "--batch 1,2,4" in record.command
    assert json.loads(sidecar_path(plan).read_text())["stamp"]["target"]["precision"] == "fp16"
    assert {p.name for p in tmp_path.iterdir()} == {plan.name, f"{plan.name}.json"}


@needs_rtx
def test_an_unchanged_plan_is_skipped_and_another_is_not_replaced(cli, typed, tmp_path, snapshot):
    words = ("build", typed("fp32"), "--runtime", "tensorrt-rtx", "--out", tmp_path)
    assert cli(*words).code == 0
    before = snapshot(tmp_path)
    again = cli(*words, "--json")
    assert json.loads(again.out)["action"] == "skipped" and snapshot(tmp_path) == before
    other = cli(*words, "--batch", "1,2,4")
    assert other.code == 2 and "built with other settings (batch: None -> [1, 2, 4])" in other.error
    assert snapshot(tmp_path) == before
    assert cli(*words, "--batch", "1,2,4", "--force").code == 0
    assert snapshot(tmp_path) != before
    (plan,) = tmp_path.glob("*.plan")
    plan.write_bytes(b"mine")
    assert "not from a build of ours" in cli(*words).error


@needs_rtx
def test_inspect_reads_the_description(cli, typed, tmp_path):
    words = ("build", typed("fp16"), "--runtime", "tensorrt-rtx", "--out", tmp_path)
    assert cli(*words).code == 0
    (plan,) = tmp_path.glob("*.plan")
    seen = json.loads(cli("inspect", plan, "--json").out)
    assert seen["runtime"] == "tensorrt-rtx" and seen["stamp"]["target"]["precision"] == "fp16"
    sidecar_path(plan).unlink()
    assert f"{plan.name}.json is missing" in cli("inspect", plan).error


@needs_rtx
def test_a_graph_without_a_stamp_is_built_with_a_note(cli, tmp_path):
    path = tiny_graph(tmp_path, shape=(2, 3, 8, 8))
    ran = cli("build", path, "--runtime", "tensorrt-rtx")
    assert ran.code == 0 and "it does not say what model it is" in ran.err


@needs_rtx
def test_a_dry_run_writes_nothing(cli, typed, tmp_path):
    words = ("build", typed("fp32"), "--runtime", "tensorrt-rtx", "--out", tmp_path / "new")
    ran = cli(*words, "--dry-run")
    assert ran.code == 0 and ran.out.startswith(f"planned {tmp_path}/new/sample.fp32.rtx")
    assert "tensorrt_rtx --onnx=" in ran.out and not (tmp_path / "new").exists()


@needs_rtx
def test_a_failed_build_leaves_nothing(cli, tmp_path):
    path = tiny_graph(tmp_path, "Nonsense", (1, 3, 8, 8), domain="my.own")
    out = tmp_path / "out"
    ran = cli("build", path, "--runtime", "tensorrt-rtx", "--out", out)
    assert ran.code == 2 and "node /one (Nonsense)" in ran.error and not out.exists()


@needs_rtx
def test_a_full_disk_leaves_nothing_half_written(cli, typed, tmp_path, monkeypatch):
    import os

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    ran = cli("build", typed("fp32"), "--runtime", "tensorrt-rtx", "--out", tmp_path)
    assert ran.code == 2 and "the disk is full" in ran.error and not list(tmp_path.iterdir())


@needs_rtx
def test_a_timing_cache_has_no_effect_on_rtx(cli, typed, tmp_path):
    cache = tmp_path / "gpu.cache"
    words = ("--runtime", "tensorrt-rtx", "--out", tmp_path, "--timing-cache", cache)
    ran = cli("build", typed("fp32"), *words)
    assert ran.code == 0 and "no effect on TensorRT-RTX" in ran.err and not cache.exists()


@needs_rtx
def test_the_fp16_switch_makes_a_typed_graph_first(cli, tmp_path):
    words = ("build", onnx_file(), "--runtime", "tensorrt-rtx", "--out", tmp_path, "--fp16")
    planned = cli(*words, "--dry-run", "--json")
    assert not list(tmp_path.iterdir())
    ran = cli(*words)
    assert ran.code == 0 and "precision is in the graph" in ran.err
    (plan,) = tmp_path.glob("*.plan")
    assert json.loads(planned.out)["plan"] == str(plan) and ".fp16.rtx" in plan.name
    assert '"--fp16' not in read_record(plan).command


@needs_rtx
def test_the_int8_switch_calibrates_for_tensorrt(cli, tmp_path):
    import cv2

    (tmp_path / "pics").mkdir()
    for index, picture in enumerate(pictures(2)):
        cv2.imwrite(str(tmp_path / "pics" / f"{index}.png"), picture)
    words = ("--runtime", "tensorrt-rtx", "--out", tmp_path / "out")
    ran = cli("build", onnx_file(), *words, "--int8", "--calib-images", tmp_path / "pics")
    assert ran.code == 0, ran.err
    (plan,) = (tmp_path / "out").glob("*.plan")
    assert ".int8.tensorrt.rtx" in plan.name


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--fp16", "--int8"], "--fp16 --int8: "),
        (["--int8"], "--int8: it needs pictures to calibrate on"),
        (["--calib-images", "x"], "--calib-images: no INT8 is asked for"),
        (["--batch", "1,2"], "--batch 1,2: it is not smallest, best, largest"),
        (["--batch", "4,2,1"], "--batch 4,2,1: "),
        (["--tactic-sources", "cudn"], "--tactic-sources cudn: .*did you mean cudnn"),
        (["--runtime", "tensort"], "--runtime tensort: .*did you mean tensorrt"),
        (["--optimization-level", "9"], "--optimization-level 9: it is not 0 to 5"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_options_are_refused_in_one_line(cli, typed, words, found):
    import re

    ran = cli("build", typed("fp32"), *words)
    assert ran.code == 2 and re.search(found, ran.error), ran.error


def test_a_missing_file_is_told(cli, tmp_path):
    ran = cli("build", tmp_path / "no.onnx")
    assert ran.code == 2 and "there is no such file" in ran.error


@pytest.mark.skipif(not NO_TENSORRT, reason="TensorRT is installed")
def test_tensorrt_that_is_not_installed_is_told(cli, typed):
    ran = cli("build", typed("fp32"))
    assert ran.code == 2
    assert "TensorRT: its Python module is not installed; install the version" in ran.error
    with pytest.raises(BoxwrightError):
        build_plan(typed("fp32"), BuildSettings())


def test_trt_plans_are_named_after_version_and_architecture():
    name = engines.plan_name(Path("a.int8.tensorrt.onnx"), "tensorrt", "10.3.0", Gpu("Orin", "8.7"))
    assert name == "a.int8.tensorrt.trt10.3.0-sm87.plan"
