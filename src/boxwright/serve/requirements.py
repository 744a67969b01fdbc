"""Which packages the models of a repository need in the server's Python."""

from __future__ import annotations

from pathlib import Path

from boxwright.engine_record import read_record
from boxwright.gpus import cuda_from_banner, run_nvidia_smi

__all__ = ["requirements_of"]

# The last OpenCV that goes with NumPy 1.
_OPENCV = "opencv-python-headless==4.11.0.86"


def requirements_of(
    repository: Path, backends: tuple[str, ...], *, on_gpu: bool
) -> tuple[str, ...]:
    """Return what pip installs for the Python backends that a repository uses.

    Args:
        repository: Folder of models; plans tell their TensorRT in the description beside them.
        backends: Of its models.
        on_gpu: Whether there is a GPU.

    Raises:
        SourceError: The description of a plan is damaged.
    """
    found: set[str] = set()
    if "onnxruntime" in backends:
        found.add("onnxruntime-gpu[cuda,cudnn]" if on_gpu else "onnxruntime")
    if "python" in backends:
        found.add(_OPENCV)
    if "dali" in backends:
        found.add(f"nvidia-dali-cuda{'130' if _cuda_major(on_gpu) >= 13 else '120'}")
    fused = [
        p.parent for p in repository.glob("*/*/model.py") if not (p.parent / "boxwright").is_dir()
    ]
    if any((folder / "model.onnx").is_file() for folder in fused):
        found.add("onnxruntime-gpu[cuda,cudnn]" if on_gpu else "onnxruntime")
    plans = sorted(repository.glob("*/*/*.plan"))
    if plans and on_gpu:
        found |= {_OPENCV, "cuda-bindings"}
        if any((folder / "model.plan").is_file() for folder in fused):
            found.add(f"nvidia-cuda-nvrtc{'' if _cuda_major(on_gpu) >= 13 else '-cu12'}")
        for plan in plans:
            record = read_record(plan)
            if record is None:
                continue
            if record.runtime == "tensorrt":
                found.add(f"tensorrt=={record.version}")
            else:
                found |= {"tensorrt-rtx-cu13-libs>=1.7", "tensorrt-rtx-cu13-bindings>=1.7"}
    return tuple(sorted(found))


def _cuda_major(on_gpu: bool) -> int:
    banner = run_nvidia_smi() if on_gpu else None
    version = cuda_from_banner(banner) if banner else ""
    return int(version.split(".")[0]) if version else 12
