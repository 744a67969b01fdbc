"""What a measurement ran on, in words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["describe_environment", "package_versions"]

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
    """Return operating system, processor, usable cores, Python and library versions."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "python": platform.python_version(),
        **package_versions((*_PACKAGES, "openvino", "torch", "ultralytics")),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
