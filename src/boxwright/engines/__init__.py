"""Typed ONNX to TensorRT or TensorRT-RTX plans: one code base for 8.6, 10, 11 and RTX 1.7.

Precision is in the graph (float16 tensors, Q/DQ pairs), so that the strongly typed versions need no
switch; 8.6, which knows no strong typing, gets the switches that match the graph. Only calls that
all of these versions have are made; what some lack is looked up with `hasattr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.engine_record import EngineRecord, Shape
from boxwright.engines.inspection import (
    GraphFacts,
    float32_node_names,
    profile_for,
    read_facts,
    refuse_unbuildable,
)
from boxwright.engines.progress import Progress, Watcher, monitor_for
from boxwright.engines.settings import BuildSettings, build_line, trtexec_line
from boxwright.engines.timing_cache import (
    CacheKey,
    load_timing_cache,
    refused_cache,
    save_timing_cache,
)
from boxwright.engines.typing_before_10 import keep_types
from boxwright.environment import package_versions
from boxwright.errors import BackendError, GraphError, RequestError
from boxwright.nvidia import TITLES, Gpu, PlanRuntime, find_gpu, load_tensorrt, logger_class
from boxwright.store import sha256_of_bytes, sha256_of_file

__all__ = [
    "BuildSettings",
    "BuiltPlan",
    "Request",
    "build_plan",
    "build_prepared",
    "plan_name",
    "prepare",
    "trtexec_line",
]

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A plan and what is known of it.

    Attributes:
        data: The plan's bytes, without a header of ours.
        record: For its sidecar.
    """

    data: bytes
    record: EngineRecord


@dataclass(frozen=True, slots=True)
class Request:
    """A build that was checked: everything that can be refused without building was looked at.

    Attributes:
        facts: Of the graph.
        settings, runtime: As asked for.
        profile: Shapes of the inputs whose batch is free.
        trt: TensorRT's module.
        gpu: The GPU; None where TensorRT-RTX builds without one.
        cache_part: Where this process keeps its own timings; None: in the file of the settings.
    """

    facts: GraphFacts
    settings: BuildSettings
    runtime: PlanRuntime
    profile: Mapping[str, tuple[Shape, Shape, Shape]]
    trt: Any
    gpu: Gpu | None
    cache_part: Path | None = None

    @property
    def version(self) -> str:
        """Of TensorRT."""
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """Runtime and version, in words."""
        return f"{TITLES[self.runtime]} {self.version}"

    def name_for(self, onnx: Path) -> str:
        """Return the name of the plan's file."""
        return plan_name(onnx, self.runtime, self.version, self.gpu)

    def trtexec(self, plan: Path) -> str:
        """Return the line of trtexec that builds the same."""
        return trtexec_line(
            self.settings,
            self.facts.path,
            plan,
            runtime=self.runtime,
            version=self.version,
            profile=self.profile,
            half=self.facts.half,
            quantised=self.facts.quantised,
        )


def plan_name(onnx: Path, runtime: PlanRuntime, version: str, gpu: Gpu | None) -> str:
    """Return the file name of a plan; those of TensorRT-RTX run on any GPU that it supports.

    >>> plan_name(Path("a.fp16.onnx"), "tensorrt", "8.6.0", Gpu("H100", "9.0"))
    'a.fp16.trt8.6.0-sm90.plan'
    >>> plan_name(Path("a.fp16.onnx"), "tensorrt-rtx", "1.7.1.116", None)
    'a.fp16.rtx1.7.1.116.plan'
    """
    if runtime == "tensorrt-rtx" or gpu is None:
        return f"{onnx.stem}.{'rtx' if runtime == 'tensorrt-rtx' else 'trt'}{version}.plan"
    return f"{onnx.stem}.trt{version}-{gpu.architecture}.plan"


def prepare(onnx: Path, settings: BuildSettings, runtime: PlanRuntime) -> Request:
    """Check a build as far as that is possible without building.

    Raises:
        RequestError: A setting is wrong, or the graph's NMS or INT8 form is not for this runtime.
        SourceError: The file is missing or damaged.
        GraphError: A size other than the batch is free.
        MissingExtraError, BackendError: TensorRT or the GPU is not there, or lacks a setting.
    """
    settings.check(runtime)
    facts = read_facts(onnx)
    refuse_unbuildable(facts, runtime)
    profile = profile_for(facts, settings.batch, settings.image_sizes)
    trt = load_tensorrt(runtime)
    gpu = find_gpu(with_driver=True)
    if runtime == "tensorrt" and gpu is None:
        raise BackendError(
            "TensorRT", "there is no GPU here, and it builds only where a plan shall run",
            "build on such a machine, or use --runtime tensorrt-rtx",
        )  # fmt: skip
    _check_tactics(trt, settings)
    if settings.dla_core is not None and not (facts.half or facts.quantised):
        raise RequestError(
            f"--dla-core {settings.dla_core}",
            f"{facts.path.name} is FP32, which DLA does not compute",
            "give an FP16 or INT8 file",
        )
    return Request(facts, settings, runtime, profile, trt, gpu)


def _check_tactics(trt: Any, settings: BuildSettings) -> None:
    for name in settings.tactic_sources or ():
        if not hasattr(trt.TacticSource, name):
            raise RequestError(
                f"--tactic-sources {name}",
                f"TensorRT {trt.__version__} has no such source any more",
                "leave it out",
            )


class _Silent:
    """Keeps what it is told to itself."""

    def note(self, text: str) -> None:
        pass

    def count(self, label: str, done: int, total: int) -> None:
        pass


def build_plan(
    onnx: Path,
    settings: BuildSettings,
    runtime: PlanRuntime = "tensorrt",
    listener: Watcher | None = None,
) -> BuiltPlan:
    """Build a plan from a typed ONNX file.

    Args:
        onnx: The file; precision is what its graph carries.
        settings: Everything else.
        runtime: Which TensorRT.
        listener: Told what happens.

    Raises:
        RequestError, SourceError, GraphError, MissingExtraError: See `prepare`; also a timing cache
            of another machine, or an operator that the parser does not take.
        BackendError: TensorRT cannot build it.
    """
    return build_prepared(prepare(onnx, settings, runtime), listener or _Silent())


def build_prepared(request: Request, watcher: Watcher) -> BuiltPlan:
    """Build what was checked.

    Raises:
        GraphError, RequestError, BackendError: See `build_plan`.
    """
    trt, facts = request.trt, request.facts
    tell = watcher.note if request.settings.verbose else None
    log = logger_class(trt)(tell)
    if hasattr(trt, "init_libnvinfer_plugins") and request.runtime == "tensorrt":
        trt.init_libnvinfer_plugins(log, "")
    builder = _builder(trt, log, request)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(facts.path)):
        raise _parser_error(parser, request, log.errors)
    config = builder.create_builder_config()
    notes = _configure(request, builder, network, config)
    cache = _set_timing_cache(request, config, notes)
    for note in notes:
        watcher.note(f"{facts.path.name}: {note}")
    with Progress(facts.path.name, watcher) as progress:
        monitor = monitor_for(trt, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        seconds = progress.seconds
    if progress.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        cause = log.errors[-1][:240] if log.errors else "it gives no reason"
        raise BackendError(
            facts.path.name, f"{request.title} cannot build it ({cause})", _build_advice(cause)
        )
    place = request.cache_part or request.settings.timing_cache
    if cache is not None and place is not None:
        save_timing_cache(place, bytes(memoryview(config.get_timing_cache().serialize())), cache)
    data = bytes(memoryview(plan))
    return BuiltPlan(data, _record(request, data, seconds, notes))


def _builder(trt: Any, log: Any, request: Request) -> Any:
    try:
        return trt.Builder(log)
    except TypeError:  # what its bindings raise when CUDA does not start
        cause = (log.errors or log.warnings or ["it gives no reason"])[-1][:160]
        raise BackendError(
            request.title, f"its builder does not start ({cause})", "check nvidia-smi"
        ) from None


def _network_flags(trt: Any) -> int:
    """Return the flags that this version has: an explicit batch, types as the graph has them."""
    known = trt.NetworkDefinitionCreationFlag
    names = [n for n in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, n)]
    return sum(1 << int(getattr(known, n)) for n in names)


def _configure(request: Request, builder: Any, network: Any, config: Any) -> list[str]:
    """Hand the settings to TensorRT; return what a reader should know of them."""
    trt, settings, facts = request.trt, request.settings, request.facts
    notes: list[str] = []
    if settings.workspace_gib is not None:
        limit = int(settings.workspace_gib * _GIB)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatibility != "none":
        levels, name = trt.HardwareCompatibilityLevel, settings.hardware_compatibility.upper()
        if not hasattr(levels, name):
            raise RequestError(
                f"--hardware-compatibility {settings.hardware_compatibility}",
                f"{request.title} does not know it",
                "use ampere_plus, or drop it",
            )
        config.hardware_compatibility_level = getattr(levels, name)
    if settings.tactic_sources is not None:
        config.set_tactic_sources(
            sum(1 << int(getattr(trt.TacticSource, n)) for n in settings.tactic_sources)
        )
    if settings.dla_core is not None:
        _choose_dla(trt, settings.dla_core, builder, config)
    if request.profile:
        profile = builder.create_optimization_profile()
        for name, shapes in request.profile.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        if settings.batch is None and any(not isinstance(s[0], int) for _, s in facts.inputs):
            notes.append("its batch is free, the plan takes 1 picture; --batch 1,8,32 takes more")
    if facts.stamp is None:
        notes.append(
            "it does not say what model it is, so boxwright cannot run the plan; export it"
        )
    if request.runtime == "tensorrt" and not hasattr(
        trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"
    ):
        names = float32_node_names(facts.path) if facts.half else frozenset()
        notes += keep_types(
            trt,
            network,
            config,
            half=facts.half,
            quantised=facts.quantised,
            float32_nodes=names,
        )
    return notes


def _choose_dla(trt: Any, core: int, builder: Any, config: Any) -> None:
    if core >= builder.num_DLA_cores:
        raise RequestError(
            f"--dla-core {core}", f"this machine has {builder.num_DLA_cores} DLA cores", "drop it"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_timing_cache(request: Request, config: Any, notes: list[str]) -> CacheKey | None:
    """Give TensorRT its cache; return whose it is, or None where there is none."""
    path = request.settings.timing_cache
    if path is None:
        return None
    if request.runtime == "tensorrt-rtx" or request.gpu is None:
        notes.append("a timing cache has no effect on TensorRT-RTX, which measures nothing")
        return None
    key = CacheKey.of(request.version, request.gpu)
    part = request.cache_part
    data = load_timing_cache(part if part is not None and part.exists() else path, key)
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise refused_cache(path, f"{request.title} does not take it on {request.gpu.name}")
    return key


def _parser_error(parser: Any, request: Request, logged: list[str]) -> GraphError:
    """Word the parser's first complaint: node, operator, what to do."""
    facts = request.facts
    if parser.num_errors == 0:
        cause = logged[-1][:200] if logged else "it gives no reason"
        return GraphError(facts.path.name, f"{request.title} cannot parse it ({cause})", "check it")
    error = parser.get_error(0)
    index = int(error.node())
    name, operator = facts.nodes[index] if 0 <= index < len(facts.nodes) else ("", "")
    name = (error.node_name() if hasattr(error, "node_name") else "") or name
    operator = (error.node_operator() if hasattr(error, "node_operator") else "") or operator
    return parser_complaint(facts.path.name, request.title, name, operator, str(error.desc()))


def parser_complaint(what: str, title: str, node: str, operator: str, cause: str) -> GraphError:
    """Return the one line that says which node a parser does not take, and what to do.

    >>> str(parser_complaint("a.onnx", "TensorRT 8.6.0", "/det", "Foo", "no importer"))
    'a.onnx: TensorRT 8.6.0 cannot parse node /det (Foo): no importer; replace the operator, or \
export with another --opset'
    """
    if operator == "EfficientNMS_TRT":
        do = "export with --nms portable, or install TensorRT's plugin library"
    elif operator == "NonMaxSuppression":
        do = "export with --nms portable"
    elif operator in ("QuantizeLinear", "DequantizeLinear"):
        do = "export with --precision int8 --deploy tensorrt"
    else:
        do = "replace the operator, or export with another --opset"
    place = f"node {node or '(no name)'} ({operator})" if operator else "it"
    return GraphError(what, f"{title} cannot parse {place}: {' '.join(cause.split())[:200]}", do)


def _build_advice(cause: str) -> str:
    if "memory" in cause.lower() or "workspace" in cause.lower():
        return "give more --workspace-gib, or a smaller --batch"
    return "see all of it with --verbose"


def _record(request: Request, data: bytes, seconds: float, notes: list[str]) -> EngineRecord:
    facts, gpu = request.facts, request.gpu
    plan = facts.path.with_name(request.name_for(facts.path))
    settings: dict[str, Any] = request.settings.as_dict()
    return EngineRecord(
        runtime=request.runtime,
        version=request.version,
        gpu=gpu.name if gpu else "",
        compute_capability=gpu.compute_capability if gpu else "",
        driver=gpu.driver if gpu else "",
        cuda=gpu.cuda if gpu else "",
        source=facts.path.name,
        source_sha256=sha256_of_file(facts.path),
        plan_sha256=sha256_of_bytes(data),
        size_bytes=len(data),
        profile=dict(request.profile) or {n: (s, s, s) for n, s in _fixed(facts)},
        settings=settings,
        metadata=facts.metadata,
        build_seconds=round(seconds, 3),
        command=build_line(request.settings, facts.path, request.runtime),
        trtexec=request.trtexec(plan),
        notes=tuple(notes),
        made_with=package_versions(),
    )


def _fixed(facts: GraphFacts) -> list[tuple[str, Shape]]:
    return [(name, tuple(int(d) for d in shape)) for name, shape in facts.inputs]
