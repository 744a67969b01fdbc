"""Which TensorRT and which GPU this process has; nothing is loaded before it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from boxwright.errors import BackendError, MissingExtraError
from boxwright.gpus import run_nvidia_smi

__all__ = [
    "RUNTIMES",
    "TITLES",
    "Gpu",
    "PlanRuntime",
    "allocator_class",
    "cuda_driver",
    "cuda_result",
    "cuda_runtime",
    "find_gpu",
    "load_tensorrt",
    "logger_class",
    "module_name",
    "refuse_broken",
    "runs_rtx_plans",
    "version_numbers",
]

PlanRuntime: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
RUNTIMES: tuple[PlanRuntime, ...] = ("tensorrt", "tensorrt-rtx")
# In order: NVIDIA's meta package first, then the wheel of the bindings alone.
_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_BROKEN = ((10, 2, 0),)  # builds wrong engines of quantised networks
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and what drives it.

    Attributes:
        name: As the driver gives it.
        compute_capability: `9.0`.
        driver: Version of the driver.
        cuda: Newest CUDA version that the driver serves.
    """

    name: str
    compute_capability: str
    driver: str = _UNKNOWN
    cuda: str = _UNKNOWN

    @property
    def architecture(self) -> str:
        """The part of a plan's file name: `sm90`."""
        return f"sm{self.compute_capability.replace('.', '')}"


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version.

    >>> version_numbers("8.6.0"), version_numbers("10.2.0.post1"), version_numbers("1.7.1.116")
    ((8, 6, 0), (10, 2, 0), (1, 7, 1, 116))
    """
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(n) for n in match.group().split(".")) if match else ()


def module_name(runtime: PlanRuntime) -> str | None:
    """Return the name of the installed Python module, or None."""
    return next((n for n in _MODULES[runtime] if importlib.util.find_spec(n) is not None), None)


def load_tensorrt(runtime: PlanRuntime) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
        BackendError: TensorRT is not installed, its libraries are missing, or its version is known
            to be broken.
    """
    title = TITLES[runtime]
    name = module_name(runtime)
    if name is None and runtime == "tensorrt-rtx":
        raise MissingExtraError(title, "tensorrt")
    if name is None:
        raise BackendError(
            title,
            "its Python module is not installed",
            "install the version of your machine (pip install tensorrt, or JetPack's package), or "
            "use --runtime tensorrt-rtx",
        )
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise BackendError(
            title,
            f"its module {name} does not load ({' '.join(str(error).split())[:160]})",
            "install its libraries, or mend LD_LIBRARY_PATH",
        ) from None
    if not hasattr(module, "Builder"):
        raise BackendError(
            title, f"the module {name} is an empty shell", "install NVIDIA's own package"
        )
    if runtime == "tensorrt":
        refuse_broken(str(module.__version__))
    return module


def refuse_broken(version: str) -> None:
    """Refuse a TensorRT whose plans are known to be wrong.

    Raises:
        BackendError: It is 10.2.0.
    """
    if version_numbers(version)[:3] in _BROKEN:
        raise BackendError(
            f"TensorRT {version}", "this release is known to be broken", "update to 10.3 or newer"
        )


def cuda_runtime() -> Any | None:
    """Return the CUDA runtime's bindings (cuda-bindings, or an older cuda-python), or None."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def cuda_driver() -> Any | None:
    """Return the CUDA driver's bindings (cuda-bindings, or an older cuda-python), or None."""
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def cuda_result(answer: tuple[Any, ...], what: str) -> Any:
    """Return what a CUDA call returned besides its status.

    Args:
        answer: The tuple of status and values.
        what: The call, for the error.

    Raises:
        BackendError: The status is not success.
    """
    status, *values = answer
    if int(status) != 0:
        name = getattr(status, "name", str(status))
        advice = "use a smaller --batch" if "MemoryAllocation" in name else "check nvidia-smi"
        raise BackendError("CUDA", f"{what} failed ({name})", advice)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def find_gpu(*, with_driver: bool = False) -> Gpu | None:
    """Return the GPU that CUDA uses by default, or None where there is none.

    Args:
        with_driver: Ask nvidia-smi for the driver's version, too, which takes a moment.
    """
    cudart = cuda_runtime()
    if cudart is None:
        return _from_nvidia_smi()
    try:
        status, count = cudart.cudaGetDeviceCount()
    except RuntimeError:  # no driver at all
        return None
    if int(status) != 0 or count == 0:
        return None
    device = cuda_result(cudart.cudaGetDevice(), "cudaGetDevice")
    facts = cuda_result(cudart.cudaGetDeviceProperties(device), "cudaGetDeviceProperties")
    name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
    cuda = int(cuda_result(cudart.cudaDriverGetVersion(), "cudaDriverGetVersion"))
    listed = _from_nvidia_smi() if with_driver else None
    return Gpu(
        name.strip("\0 "),
        f"{facts.major}.{facts.minor}",
        listed.driver if listed else _UNKNOWN,
        f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def _from_nvidia_smi() -> Gpu | None:
    """Return the first GPU that nvidia-smi lists, or None."""
    text = run_nvidia_smi("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
    words = [w.strip() for w in text.splitlines()[0].split(",")] if text else []
    return Gpu(*words) if len(words) == 3 else None


def runs_rtx_plans(compute_capability: str) -> bool:
    """Whether TensorRT-RTX runs plans on such a GPU (it builds them anywhere).

    >>> [runs_rtx_plans(c) for c in ("8.0", "8.7", "9.0", "12.1")]
    [True, False, False, True]
    """
    return compute_capability in ("8.0", "8.6", "8.9") or compute_capability.startswith("12.")


def logger_class(trt: Any) -> Any:
    """Return a logger that keeps warnings and errors, and passes all on where that is asked for."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self, tell: Any | None = None) -> None:
            trt.ILogger.__init__(self)
            self.tell = tell
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            text = " ".join(str(msg).split())
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(text)
            if self.tell is not None:
                self.tell(f"{str(severity).rsplit('.', 1)[-1].lower()}: {text}")

    return Log


def allocator_class(trt: Any) -> Any:
    """Return what TensorRT asks for memory for an output whose size only it knows.

    It is made from a function of a number of bytes that returns an address.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self, reserve: Callable[[int], int]) -> None:
            trt.IOutputAllocator.__init__(self)
            self._reserve = reserve
            self.shape: tuple[int, ...] = ()

        def reallocate_output(
            self, tensor_name: str, memory: int | None, size: int, alignment: int
        ) -> int:
            return self._reserve(int(size))

        def reallocate_output_async(
            self, tensor_name: str, memory: int | None, size: int, alignment: int, stream: int
        ) -> int:
            return self._reserve(int(size))

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(int(d) for d in shape)

    return Allocator
