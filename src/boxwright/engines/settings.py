"""What a plan is built with, and the same as a line of trtexec. Pure."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boxwright.engine_record import Shape
from boxwright.errors import RequestError
from boxwright.nvidia import PlanRuntime, version_numbers
from boxwright.types import LONGEST_SIDE_PX

__all__ = ["TACTIC_SOURCES", "BuildSettings", "HardwareCompatibility", "build_line", "trtexec_line"]

Size = tuple[int, int]
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
TACTIC_SOURCES = (
    "CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS",
)  # fmt: skip
_LIBRARIES_UNTIL = 11  # cuBLAS and cuDNN are no sources of kernels any more
_LEVELS = range(6)
_TRTEXEC_HARDWARE = {
    "ampere_plus": "ampere+",
    "same_compute_capability": "sameComputeCapability",
}


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How a plan is built; None and False leave TensorRT's own defaults.

    Attributes:
        batch: Smallest, best and largest number of pictures of a graph whose batch is free; None
            means 1.
        workspace_gib: The most memory that a layer may use while it runs, in GiB.
        optimization_level: 0 (fast build) to 5 (fast plan); TensorRT's default is 3.
        timing_cache: File that keeps measured kernels from build to build.
        version_compatible: The plan runs in later versions, too.
        hardware_compatibility: On which other GPUs the plan runs, at the cost of speed.
        dla_core: Deep learning accelerator of a Jetson; what it cannot do stays on the GPU.
        tactic_sources: Libraries that kernels may come from (`TACTIC_SOURCES`).
        verbose: Pass on everything that TensorRT says.
        image_sizes: Smallest, best and largest picture (height, width) of a graph that takes
            pictures of any size.
    """

    batch: tuple[int, int, int] | None = None
    workspace_gib: float | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    dla_core: int | None = None
    tactic_sources: tuple[str, ...] | None = None
    verbose: bool = False
    image_sizes: tuple[Size, Size, Size] | None = None

    def check(self, runtime: PlanRuntime) -> None:
        """Refuse values that no build can honour.

        Raises:
            RequestError: One is out of range, or the runtime has no such setting.
        """
        if self.batch is not None and not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            text = ",".join(str(n) for n in self.batch)
            raise RequestError(
                f"--batch {text}", "it is not smallest, best, largest, from 1 on", "use e.g. 1,8,32"
            )
        if self.image_sizes is not None:
            self._check_sizes(self.image_sizes)
        if self.workspace_gib is not None and not 0 < self.workspace_gib <= 1024:
            raise RequestError(
                f"--workspace-gib {self.workspace_gib:g}", "it is not between 0 and 1024", "use 4"
            )
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            raise RequestError(
                f"--optimization-level {self.optimization_level}", "it is not 0 to 5", "use e.g. 3"
            )
        if self.dla_core is not None and self.dla_core < 0:
            raise RequestError(f"--dla-core {self.dla_core}", "it is negative", "use 0 or 1")
        unknown = [s for s in self.tactic_sources or () if s not in TACTIC_SOURCES]
        if unknown:
            known = ", ".join(TACTIC_SOURCES)
            raise RequestError(f"--tactic-sources {unknown[0]}", f"known are {known}", "use these")
        if self.version_compatible and self.hardware_compatibility == "same_compute_capability":
            raise RequestError(
                "--version-compatible --hardware-compatibility same_compute_capability",
                "TensorRT does not combine them",
                "drop one of them",
            )
        if runtime == "tensorrt-rtx":
            self._check_rtx()

    @staticmethod
    def _check_sizes(sizes: tuple[Size, Size, Size]) -> None:
        for low, best, high in zip(*sizes, strict=True):
            if not 1 <= low <= best <= high <= LONGEST_SIDE_PX:
                raise RequestError(
                    f"--image-sizes {_size_words(sizes)}",
                    f"a side is not smallest, best, largest, from 1 to {LONGEST_SIDE_PX}",
                    "use e.g. 480x640,1080x1920,2160x3840",
                )

    def _check_rtx(self) -> None:
        asked = {
            "--dla-core": self.dla_core is not None,
            "--hardware-compatibility": self.hardware_compatibility != "none",
            "--tactic-sources": self.tactic_sources is not None,
            "--version-compatible": self.version_compatible,
        }
        for option, given in asked.items():
            if given:
                raise RequestError(
                    option,
                    "TensorRT-RTX chooses its kernels where the plan runs, on any GPU it supports",
                    "drop it, or use --runtime tensorrt",
                )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types of what shapes the plan: neither the cache's place nor `verbose`."""
        values = dataclasses.asdict(self)
        for key in ("timing_cache", "verbose"):
            del values[key]
        for key in ("batch", "tactic_sources"):
            values[key] = list(values[key]) if values[key] is not None else None
        sizes = values.pop("image_sizes")
        if sizes is not None:  # plans of other graphs are described as they always were
            values["image_sizes"] = [list(size) for size in sizes]
        return values


def _size_words(sizes: tuple[Size, Size, Size]) -> str:
    return ",".join(f"{height}x{width}" for height, width in sizes)


def build_line(settings: BuildSettings, onnx: Path, runtime: PlanRuntime) -> str:
    """Return the `boxwright build` line of a plan.

    >>> build_line(BuildSettings(batch=(1, 8, 32)), Path("a.onnx"), "tensorrt")
    'boxwright build a.onnx --batch 1,8,32'
    """
    words = ["boxwright", "build", str(onnx)]
    if runtime != "tensorrt":
        words += ["--runtime", runtime]
    if settings.batch is not None:
        words += ["--batch", ",".join(str(n) for n in settings.batch)]
    if settings.image_sizes is not None:
        words += ["--image-sizes", _size_words(settings.image_sizes)]
    if settings.workspace_gib is not None:
        words += ["--workspace-gib", f"{settings.workspace_gib:g}"]
    if settings.optimization_level is not None:
        words += ["--optimization-level", str(settings.optimization_level)]
    if settings.timing_cache is not None:
        words += ["--timing-cache", str(settings.timing_cache)]
    if settings.version_compatible:
        words.append("--version-compatible")
    if settings.hardware_compatibility != "none":
        words += ["--hardware-compatibility", settings.hardware_compatibility]
    if settings.dla_core is not None:
        words += ["--dla-core", str(settings.dla_core)]
    if settings.tactic_sources is not None:
        words += ["--tactic-sources", ",".join(settings.tactic_sources)]
    return shlex.join(words)


def trtexec_line(
    settings: BuildSettings,
    onnx: Path,
    plan: Path,
    *,
    runtime: PlanRuntime = "tensorrt",
    version: str = "10",
    profile: Mapping[str, tuple[Shape, Shape, Shape]] | None = None,
    half: bool = False,
    quantised: bool = False,
) -> str:
    """Return the line of trtexec (of TensorRT-RTX: tensorrt_rtx) that builds the same plan.

    Args:
        settings: Of the build.
        onnx, plan: Files.
        runtime, version: Of TensorRT; up to 9 precision is a switch, later it is in the graph.
        profile: By input of free shape, the smallest, best and largest; None when all are fixed.
        half, quantised: What the graph carries.

    >>> trtexec_line(BuildSettings(workspace_gib=4), Path("a.onnx"), Path("a.plan"), version="10.3")
    'trtexec --onnx=a.onnx --saveEngine=a.plan --stronglyTyped --memPoolSize=workspace:4096 \
--skipInference'
    """
    major = (version_numbers(version) or (0,))[0]
    words = ["trtexec" if runtime == "tensorrt" else "tensorrt_rtx"]
    words += [f"--onnx={onnx}", f"--saveEngine={plan}"]
    if runtime == "tensorrt" and major < 10:
        words += ["--fp16"] if half else []
        words += ["--int8"] if quantised else []
    elif runtime == "tensorrt" and major == 10:
        words.append("--stronglyTyped")
    for index, name in enumerate(("minShapes", "optShapes", "maxShapes")):
        if profile:
            shapes = (
                f"{tensor}:{'x'.join(str(n) for n in s[index])}" for tensor, s in profile.items()
            )
            words.append(f"--{name}={','.join(shapes)}")
    if settings.workspace_gib is not None:
        words.append(f"--memPoolSize=workspace:{round(settings.workspace_gib * 1024)}")
    if settings.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if settings.timing_cache is not None and runtime == "tensorrt":
        words.append(f"--timingCacheFile={settings.timing_cache}")
    if settings.version_compatible:
        words.append("--versionCompatible")
    if settings.hardware_compatibility != "none":
        level = _TRTEXEC_HARDWARE[settings.hardware_compatibility]
        words.append(f"--hardwareCompatibilityLevel={level}")
    if settings.dla_core is not None:
        words += [f"--useDLACore={settings.dla_core}", "--allowGPUFallback"]
    if settings.tactic_sources is not None:
        kept = settings.tactic_sources
        known = TACTIC_SOURCES if major < _LIBRARIES_UNTIL else TACTIC_SOURCES[3:]
        signs = (f"{'+' if name in kept else '-'}{name}" for name in known)
        words.append(f"--tacticSources={','.join(signs)}")
    if settings.verbose:
        words.append("--verbose")
    words.append("--skipInference")
    return shlex.join(words)
