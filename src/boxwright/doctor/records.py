"""What a machine is, as the doctor found it; and what it can do, as the doctor says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boxwright.gpus import GpuFacts

__all__ = ["Jetson", "Machine", "PlanLibrary", "Provider", "Runtime", "Verdict"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime of the catalog.

    Attributes:
        name: As `--runtime` takes it.
        suffixes: Of the files that it runs.
        versions: Of its libraries; empty where it is not installed.
        missing: What is not there, in words; empty where it can run.
        install: The command that mends it.
    """

    name: str
    suffixes: tuple[str, ...]
    versions: Mapping[str, str]
    missing: str = ""
    install: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider of the installed ONNX Runtime.

    Attributes:
        name: `CUDAExecutionProvider`.
        problem: Why its library does not load (what the loader says); empty where it does.
    """

    name: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PlanLibrary:
    """TensorRT or TensorRT-RTX.

    Attributes:
        name: `tensorrt` or `tensorrt-rtx`.
        version: Of the module that loads; empty where none does.
        problem: Why none does.
    """

    name: str
    version: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Jetson:
    """What a Jetson says of itself; a text is empty where it does not.

    Attributes:
        board: Its model.
        l4t: Release of Jetson Linux (L4T): `36.4.3`.
        jetpack: Release of JetPack.
        dla_cores: Deep learning accelerators that the device tree enables.
        power_mode: By nvpmodel.
    """

    board: str
    l4t: str = ""
    jetpack: str = ""
    dla_cores: int = 0
    power_mode: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that the doctor looked at.

    Attributes:
        system: Operating system, architecture, Python, by name.
        processor: Name, cores, memory and instructions, by name.
        runtimes: Of the catalog.
        packages: Versions of distributions that matter, by name.
        torch_cuda: CUDA version of PyTorch's build; empty for a CPU build or none.
        providers: Of ONNX Runtime.
        plan_libraries: TensorRT and TensorRT-RTX.
        gpus: By nvidia-smi.
        gpu_problem: Why there are none, in words.
        cuda_served: Newest CUDA version of the driver; empty where not told.
        jetson: None on other machines.
        disk_free_gib: Where this process stands.
        tritonserver: Path of the program; empty where it is not there.
    """

    system: Mapping[str, str]
    processor: Mapping[str, str]
    runtimes: tuple[Runtime, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    torch_cuda: str = ""
    providers: tuple[Provider, ...] = ()
    plan_libraries: tuple[PlanLibrary, ...] = ()
    gpus: tuple[GpuFacts, ...] = ()
    gpu_problem: str = ""
    cuda_served: str = ""
    jetson: Jetson | None = None
    disk_free_gib: float | None = None
    tritonserver: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return dataclasses.asdict(self)

    def runtime(self, name: str) -> Runtime | None:
        """Return a runtime by name."""
        return next((r for r in self.runtimes if r.name == name), None)

    def provider(self, name: str) -> Provider | None:
        """Return a provider of ONNX Runtime by name."""
        return next((p for p in self.providers if p.name == name), None)

    def library(self, name: str) -> PlanLibrary | None:
        """Return TensorRT or TensorRT-RTX where its module loads."""
        return next((p for p in self.plan_libraries if p.name == name and p.version), None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that this machine can or cannot do.

    Attributes:
        subject: What, in words.
        can: Whether it can.
        because: Why not, or what to know.
        do: What to do about it.
    """

    subject: str
    can: bool
    because: str = ""
    do: str = ""

    def __str__(self) -> str:
        """Return one line.

        >>> str(Verdict("run plans", False, "there is no GPU", "use a machine with one"))
        'cannot run plans: there is no GPU; use a machine with one'
        """
        line = f"{'can' if self.can else 'cannot'} {self.subject}"
        line += f": {self.because}" if self.because else ""
        return line + (f"; {self.do}" if self.do else "")
