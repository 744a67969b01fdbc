"""From what a machine is to what it can do: can or cannot, because, do. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from boxwright.doctor.jetson import workspace_advice
from boxwright.doctor.records import Machine, Provider, Verdict
from boxwright.nvidia import runs_rtx_plans, version_numbers

__all__ = ["judge"]

_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_LEAST_DISK_GIB = 2.0
_NO_GPU = "use a machine with an NVIDIA GPU, or mend its driver"


def judge(machine: Machine) -> tuple[Verdict, ...]:
    """Return what a machine can and cannot do, best known first."""
    return (
        *_onnx(machine),
        *_plans(machine),
        *_torch(machine),
        *_jetson(machine),
        *_rest(machine),
    )


def _no_gpu(machine: Machine) -> str:
    return f"there is no GPU here ({machine.gpu_problem})" if machine.gpu_problem else "no GPU"


def _has_gpu(machine: Machine) -> bool:
    return bool(machine.gpus) or machine.jetson is not None


def _onnx(machine: Machine) -> Iterator[Verdict]:
    broken = machine.provider("onnxruntime")
    if broken is not None:
        do = "reinstall it: pip install --force-reinstall onnxruntime"
        yield Verdict("run ONNX files", False, f"onnxruntime: {broken.problem}", do)
    else:
        version = machine.packages.get("onnxruntime") or machine.packages.get("onnxruntime-gpu", "")
        yield Verdict("run ONNX files on the CPU", True, f"onnxruntime {version}".strip())
        yield _onnx_on_cuda(machine)
        yield _onnx_on_tensorrt(machine)
    builds = [n for n in machine.packages if n in _BUILDS]
    if len(builds) > 1:
        yield Verdict(
            "rely on ONNX Runtime",
            False,
            f"{' and '.join(builds)} are installed side by side and overwrite each other's files",
            f"pip uninstall -y {' '.join(builds)}, then install the one that is wanted",
        )
    openvino = machine.runtime("openvino")
    if openvino is not None:
        words = "run ONNX files in OpenVINO"
        if openvino.missing:
            yield Verdict(words, False, openvino.missing, openvino.install)
        else:
            yield Verdict(words, True, f"openvino {next(iter(openvino.versions.values()), '')}")


_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


def _onnx_on_cuda(machine: Machine) -> Verdict:
    words = "run ONNX files on the GPU (--device cuda)"
    provider = machine.provider(_CUDA)
    if not _has_gpu(machine):
        return Verdict(words, False, _no_gpu(machine), _NO_GPU)
    if provider is None:
        return Verdict(
            words,
            False,
            "this ONNX Runtime has no CUDA provider",
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        )
    return _loadable(words, provider)


def _loadable(words: str, provider: Provider) -> Verdict:
    if not provider.problem:
        return Verdict(words, True)
    do = "pip install nvidia-cudnn-cu12 nvidia-cublas-cu12 nvidia-cufft-cu12 (of ONNX Runtime's "
    do += 'CUDA: "onnxruntime-gpu[cuda,cudnn]" brings them), or mend LD_LIBRARY_PATH'
    if "nvinfer" in provider.problem:
        do = "install the TensorRT that this ONNX Runtime was built for, or use --device cuda"
    return Verdict(words, False, f"its libraries do not load: {provider.problem}", do)


def _onnx_on_tensorrt(machine: Machine) -> Verdict:
    words = "run ONNX files in ONNX Runtime's TensorRT provider (--device tensorrt)"
    provider = machine.provider(_TENSORRT)
    if not _has_gpu(machine):
        return Verdict(words, False, _no_gpu(machine), _NO_GPU)
    if provider is None:
        do = "install onnxruntime-gpu, or build a plan: boxwright build"
        return Verdict(words, False, "this ONNX Runtime has no TensorRT provider", do)
    return _loadable(words, provider)


def _plans(machine: Machine) -> Iterator[Verdict]:
    problems = {p.name: p.problem for p in machine.plan_libraries}
    yield from _tensorrt(machine, problems.get("tensorrt", "it was not looked for"))
    library = machine.library("tensorrt-rtx")
    if library is None:
        because, _, do = problems.get("tensorrt-rtx", "it was not looked for").partition("; ")
        yield Verdict("build and run plans of TensorRT-RTX", False, because, do)
        return
    yield Verdict("build plans of TensorRT-RTX", True, f"{library.version}; it needs no GPU")
    words = "run plans of TensorRT-RTX"
    fits = [g for g in machine.gpus if runs_rtx_plans(g.compute_capability)]
    if not _has_gpu(machine):
        yield Verdict(words, False, _no_gpu(machine), _NO_GPU)
    elif not fits:
        here = ", ".join(f"{g.name} is {g.compute_capability or 'unknown'}" for g in machine.gpus)
        because = f"it runs on compute capability 8.0, 8.6, 8.9 and 12.x only ({here or 'Jetson'})"
        yield Verdict(words, False, because, "build for TensorRT: --runtime tensorrt")
    else:
        yield from _bindings(machine, words)


def _tensorrt(machine: Machine, problem: str) -> Iterator[Verdict]:
    library = machine.library("tensorrt")
    if library is None:
        because, _, do = problem.partition("; ")
        yield Verdict("build and run plans of TensorRT", False, because, do)
        return
    words = "build plans of TensorRT"
    if not _has_gpu(machine):
        do = "build where a plan shall run, or use --runtime tensorrt-rtx"
        yield Verdict(words, False, _no_gpu(machine), do)
        yield Verdict("run plans of TensorRT", False, _no_gpu(machine), _NO_GPU)
        return
    gpu = machine.gpus[0] if machine.gpus else None
    where = f", for {gpu.name} ({gpu.compute_capability})" if gpu else ""
    yield Verdict(words, True, f"{library.version}{where}")
    numpy = version_numbers(machine.packages.get("numpy", ""))
    if version_numbers(library.version)[:1] < (10,) and numpy[:1] >= (2,):
        yield Verdict(
            "trust TensorRT's own NumPy calls",
            False,
            f"the bindings of TensorRT {library.version} are older than NumPy 2",
            'pip install "numpy<2"',
        )
    yield from _bindings(machine, "run plans of TensorRT")


def _bindings(machine: Machine, words: str) -> Iterator[Verdict]:
    if not {"cuda-bindings", "cuda-python"} & set(machine.packages):
        yield Verdict(words, False, "cuda-bindings is not installed", "pip install cuda-bindings")
    else:
        yield Verdict(words, True)


def _torch(machine: Machine) -> Iterator[Verdict]:
    torch = machine.packages.get("torch")
    words = "export checkpoints"
    extras = [n for n in ("torch", "ultralytics") if n not in machine.packages]
    if extras:
        because = f"{' and '.join(extras)} {'is' if len(extras) == 1 else 'are'} not installed"
        yield Verdict(words, False, because, 'pip install "boxwright[export]"')
    else:
        yield Verdict(words, True, f"torch {torch}, ultralytics {machine.packages['ultralytics']}")
    if torch and _has_gpu(machine) and not machine.torch_cuda:
        yield Verdict(
            "run checkpoints on the GPU",
            False,
            f"torch {torch} is a CPU build, while a GPU is here",
            "install torch's CUDA build (see its own start page)",
        )
    served, built = version_numbers(machine.cuda_served), version_numbers(machine.torch_cuda)
    if served and built and built[:1] > served[:1]:
        yield Verdict(
            "run checkpoints on the GPU",
            False,
            f"torch {torch} wants CUDA {machine.torch_cuda}, the driver serves up to "
            f"{machine.cuda_served}",
            "update the driver, or install a torch for an older CUDA",
        )


def _jetson(machine: Machine) -> Iterator[Verdict]:
    jetson = machine.jetson
    if jetson is None:
        return
    try:
        memory = float(machine.processor.get("memory_gib", ""))
    except ValueError:
        memory = None
    advice = workspace_advice(jetson.board, memory)
    if advice:
        yield Verdict(
            "build plans within this board's memory", True, "", f"--workspace-gib {advice}"
        )
    if jetson.dla_cores:
        because = f"{jetson.dla_cores} cores"
        yield Verdict("use the DLA", True, because, "--dla-core 0, with an FP16 or INT8 file")
    else:
        yield Verdict("use the DLA", False, "the device tree enables none", "drop --dla-core")
    if jetson.power_mode and "MAXN" not in jetson.power_mode:
        yield Verdict(
            "measure its full speed",
            False,
            f"the power mode is {jetson.power_mode}",
            "sudo nvpmodel -m 0 && sudo jetson_clocks",
        )


def _rest(machine: Machine) -> Iterator[Verdict]:
    for gpu in machine.gpus:
        if gpu.mig == "Enabled":
            do = "name an instance in CUDA_VISIBLE_DEVICES"
            yield Verdict(f"use all of GPU {gpu.index}", False, "MIG divides it", do)
    words = "serve models with Triton"
    if machine.tritonserver:
        yield Verdict(words, True, machine.tritonserver)
    else:
        do = "pip install --no-deps nvidia-pytriton==0.7.0, or use NVIDIA's container"
        yield Verdict(words, False, "tritonserver is not there", do)
    if machine.disk_free_gib is not None and machine.disk_free_gib < _LEAST_DISK_GIB:
        because = f"the disk here has {machine.disk_free_gib:g} GiB free"
        yield Verdict("make many files", False, because, "free some, or use --out elsewhere")
