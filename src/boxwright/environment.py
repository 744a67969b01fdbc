"""What a measurement ran on, in words."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from boxwright.machine import (
    gpu_facts,
    machine_conditions,
    machine_facts,
    processor_name,
    usable_cores,
)

__all__ = ["describe_environment", "describe_machine", "package_versions"]

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxslim", "opencv-python-headless")


def package_versions(names: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the versions of installed packages, without importing them."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_environment() -> dict[str, str]:
    """Return operating system, processor, cores, memory, Python and library versions."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": str(usable_cores()),
        **machine_facts(),
        "python": platform.python_version(),
        **package_versions((*_PACKAGES, "openvino", "torch", "ultralytics")),
    }


def describe_machine() -> dict[str, str]:
    """Return `describe_environment`, the GPUs, and what changes: load average and clock."""
    return {**describe_environment(), **gpu_facts(), **machine_conditions()}
