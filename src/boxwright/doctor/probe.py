"""Looks at the machine. What may crash, hang or load CUDA is asked in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from boxwright import catalog
from boxwright.doctor.jetson import (
    board_from_device_tree,
    count_dla_cores,
    jetpack_from_l4t,
    l4t_from_release,
    power_mode_from_nvpmodel,
)
from boxwright.doctor.records import Jetson, Machine, PlanLibrary, Provider, Runtime
from boxwright.gpus import GpuFacts, cuda_from_banner, query_gpus, run_nvidia_smi
from boxwright.machine import machine_conditions, machine_facts, processor_name, usable_cores
from boxwright.nvidia import RUNTIMES

__all__ = [
    "answer_of",
    "instruction_words",
    "look_at_machine",
    "problem_from_loader",
    "torch_cuda_from_source",
]

_PATIENCE_S = 60
_ROOT = Path("/")
_PACKAGES = re.compile(
    r"onnxruntime.*|onnx|numpy|torch|torchvision|ultralytics|openvino|tensorrt.*|cuda-bindings"
    r"|cuda-python|nvidia-cudnn-cu\d+|nvidia-cublas.*|nvidia-cuda-runtime.*|tritonclient"
)
# A provider's library refers to the rest of ONNX Runtime, so that a load of it alone ends at a
# symbol; what matters is which library the loader misses before that.
_ASK_ONNXRUNTIME = """
import ctypes, json
from pathlib import Path
import onnxruntime
from boxwright.ort_binding import preload_libraries
found = {}
preload_libraries(onnxruntime)
for name in onnxruntime.get_available_providers():
    stem = name.removesuffix("ExecutionProvider").lower()
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{stem}.so"
    found[name] = ""
    if library.is_file():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            found[name] = str(error)
print(json.dumps(found))
"""
_ASK_CUDA = """
import dataclasses, json
from boxwright.nvidia import find_gpu
gpu = find_gpu()
print(json.dumps(dataclasses.asdict(gpu) if gpu else {}))
"""
_ASK_TENSORRT = """
import json, sys
from boxwright.errors import BoxwrightError
from boxwright.nvidia import load_tensorrt
try:
    print(json.dumps({"version": str(load_tensorrt(sys.argv[1]).__version__), "problem": ""}))
except BoxwrightError as error:
    print(json.dumps({"version": "", "problem": f"{error.found}; {error.do}"}))
"""


def look_at_machine(root: Path = _ROOT) -> Machine:
    """Return what this machine is; nothing of it raises, what is not told is empty.

    Args:
        root: Of the file system; another one in tests.
    """
    packages = _packages()
    listed = query_gpus()
    cuda = cuda_from_banner(run_nvidia_smi() or "") if listed else ""
    gpus, problem = listed or (), ""
    if not gpus:
        gpus, cuda = _gpus_by_cuda()
    if not gpus:
        if shutil.which("nvidia-smi") is None:
            problem = "nvidia-smi is not there"
        else:
            problem = "nvidia-smi does not answer" if listed is None else "nvidia-smi lists none"
    return Machine(
        system={
            "system": platform.platform(),
            "architecture": platform.machine(),
            "python": f"{platform.python_version()} ({sys.executable})",
        },
        processor={
            "name": processor_name(),
            "usable_cores": str(usable_cores()),
            **(facts := machine_facts()),
            "speeds_int8": instruction_words(facts["instructions"]),
            **machine_conditions(),
        },
        runtimes=tuple(_runtime(name) for name in catalog.backend_names()),
        packages=packages,
        torch_cuda=_torch_cuda(),
        providers=_providers(),
        plan_libraries=tuple(_plan_library(name) for name in RUNTIMES),
        gpus=gpus,
        gpu_problem=problem,
        cuda_served=cuda,
        jetson=_jetson(root),
        disk_free_gib=_disk_free_gib(),
        tritonserver=_tritonserver(root),
    )


def _gpus_by_cuda() -> tuple[tuple[GpuFacts, ...], str]:
    """Return the GPU that CUDA itself finds (a Jetson, a container without nvidia-smi)."""
    found, _ = answer_of(_ASK_CUDA)
    if not isinstance(found, dict) or not found:
        return (), ""
    gpu = GpuFacts(0, found["name"], compute_capability=found["compute_capability"])
    return (gpu,), str(found["cuda"])


def instruction_words(flags: str) -> str:
    """Say which instructions that matter to networks a processor has, x86's and Arm's.

    >>> instruction_words("avx avx2 avx512f avx512_vnni fma")
    'AVX2, AVX-512, VNNI; not AMX'
    >>> instruction_words("asimd asimddp i8mm")
    'dotprod, i8mm'
    """
    words = set(flags.split())
    if any(w.startswith("asimd") for w in words):
        known = {"dotprod": "asimddp" in words, "i8mm": "i8mm" in words}
    else:
        known = {
            "AVX2": "avx2" in words,
            "AVX-512": "avx512f" in words,
            "VNNI": bool(words & {"avx512_vnni", "avx_vnni"}),
            "AMX": any(w.startswith("amx") for w in words),
        }
    has, lacks = ([n for n, is_there in known.items() if is_there is v] for v in (True, False))
    return (", ".join(has) or "none") + (f"; not {', '.join(lacks)}" if lacks else "")


def answer_of(code: str, *arguments: str) -> tuple[Any, str]:
    """Run Python code in a process of its own that prints JSON on its last line.

    Returns:
        What it printed and "", or None and why there is nothing, in words.
    """
    home = str(Path(__file__).resolve().parents[2])
    places = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"it does not answer within {_PATIENCE_S} s"
    except OSError as error:
        return None, f"its process does not start ({error.strerror})"
    lines = done.stderr.strip().splitlines()
    if done.returncode != 0:
        last = lines[-1][:200] if lines else "no message"
        crashed = f"its process ended by signal {-done.returncode}"
        return None, crashed if done.returncode < 0 else last
    try:
        return json.loads(done.stdout.strip().splitlines()[-1]), ""
    except (ValueError, IndexError):
        return None, f"it answers oddly ({done.stdout.strip()[:80]!r})"


def _runtime(name: str) -> Runtime:
    kind = catalog.backend(name)
    if name != "tensorrt":
        extra = kind.missing()
        if extra is None:
            return Runtime(name, kind.suffixes, kind.versions())
        install = f'pip install "boxwright[{extra}]"'
        return Runtime(name, kind.suffixes, {}, "it is not installed", install)
    versions, extra = kind.versions(), kind.missing()
    if extra is None:
        return Runtime(name, kind.suffixes, versions)
    missing = "TensorRT, cuda-bindings or a GPU is not there"
    return Runtime(name, kind.suffixes, versions, missing, f'pip install "boxwright[{extra}]"')


def _packages() -> dict[str, str]:
    """Return the versions of installed distributions that matter; damaged ones are left out."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name and _PACKAGES.fullmatch(name):
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def _torch_cuda() -> str:
    """Return the CUDA version of PyTorch's build, without importing it."""
    spec = find_spec("torch")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        try:
            return torch_cuda_from_source(Path(place, "version.py").read_text(encoding="utf-8"))
        except OSError:
            continue
    return ""


def torch_cuda_from_source(text: str) -> str:
    """Return the CUDA version that `torch/version.py` states; "" for a CPU build.

    >>> torch_cuda_from_source("cuda: Optional[str] = '13.0'\\nhip = None")
    '13.0'
    >>> torch_cuda_from_source("cuda: Optional[str] = None")
    ''
    """
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.M)
    return match.group(1) if match else ""


def _providers() -> tuple[Provider, ...]:
    found, problem = answer_of(_ASK_ONNXRUNTIME)
    if not isinstance(found, dict):
        return (Provider("onnxruntime", f"it does not import ({problem})"),)
    return tuple(Provider(name, problem_from_loader(text)) for name, text in found.items())


def problem_from_loader(text: str) -> str:
    """Return which library the loader misses; "" where nothing but symbols is left open.

    >>> problem_from_loader("libcudnn.so.9: cannot open shared object file: No such file")
    'libcudnn.so.9 is not found'
    >>> problem_from_loader("x.so: undefined symbol: Provider_GetHost")
    ''
    """
    match = re.match(r"(\S+): cannot open shared object file", text)
    if match:
        return f"{Path(match.group(1)).name} is not found"
    return "" if not text or "undefined symbol" in text else " ".join(text.split())[:160]


def _plan_library(name: str) -> PlanLibrary:
    found, problem = answer_of(_ASK_TENSORRT, name)
    if not isinstance(found, dict):
        return PlanLibrary(name, "", f"its module does not load ({problem})")
    return PlanLibrary(name, str(found["version"]), str(found["problem"]))


def _jetson(root: Path) -> Jetson | None:
    board = board_from_device_tree(_text(root / "proc/device-tree/model"))
    l4t = l4t_from_release(_text(root / "etc/nv_tegra_release"))
    if not l4t and "jetson" not in board.lower():
        return None
    return Jetson(
        board=board or "a Jetson that does not name its board",
        l4t=l4t,
        jetpack=_jetpack(l4t),
        dla_cores=count_dla_cores(root),
        power_mode=power_mode_from_nvpmodel(_output("nvpmodel", "-q")),
    )


def _jetpack(l4t: str) -> str:
    """Return JetPack's release by its package, or else by the release of Jetson Linux."""
    told = _output("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")
    match = re.match(r"\d+(?:\.\d+)+", told.strip())
    return match.group() if match else jetpack_from_l4t(l4t)


def _output(*words: str) -> str:
    """Return what a program prints, or "" where it is missing, fails or does not answer."""
    program = shutil.which(words[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *words[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _disk_free_gib() -> float | None:
    try:
        return round(shutil.disk_usage(Path.cwd()).free / 2**30, 1)
    except OSError:
        return None


def _tritonserver(root: Path) -> str:
    beside = root / "opt/tritonserver/bin/tritonserver"
    return shutil.which("tritonserver") or (str(beside) if beside.is_file() else "")
