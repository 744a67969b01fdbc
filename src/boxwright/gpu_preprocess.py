"""Letterboxing on the GPU: uint8 pictures of any sizes become the network's input in one launch.

The arithmetic is OpenCV's INTER_LINEAR for 8 bits (weights of 11 bits, whole numbers), so that the
tensor is the host path's within one grey level. The kernel is CUDA C, compiled at run time by
NVRTC for the GPU that is there; a picture crosses to the GPU as uint8, a quarter of the tensor.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.errors import BackendError, MissingExtraError, RequestError
from boxwright.nvidia import cuda_driver, cuda_result
from boxwright.preprocess import Placement
from boxwright.types import Preprocess

__all__ = [
    "PICTURE",
    "RECORD",
    "SOURCE",
    "Letterbox",
    "check_rules",
    "compile_source",
    "picture_record",
]

# One picture, as the kernel reads it; height 0 leaves the place black (the rest of a fixed batch).
PICTURE = np.dtype(
    [
        ("pixels", np.uint64),
        ("scale_x", np.float64),
        ("scale_y", np.float64),
        ("pitch", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("out_height", np.int32),
        ("out_width", np.int32),
        ("top", np.int32),
        ("left", np.int32),
        ("swap", np.int32),
    ]
)
RECORD = struct.Struct("=Qdd8i")  # the same, to write a few of them
_BLOCK = (32, 8, 1)
_NAME = b"boxwright_letterbox"

SOURCE = r"""
#ifndef ON_HOST
#define MUL(a, b) __fmul_rn(a, b)  /* no fused multiply-add: the host has none either */
#define ADD(a, b) __fadd_rn(a, b)
#define ROUND(a) __float2int_rn(a)
__device__ inline void put(float* at, float value) { *at = value; }
__device__ inline void put(unsigned short* at, float value) {
    asm("{cvt.rn.f16.f32 %0, %1;}" : "=h"(*at) : "f"(value));
}
#endif

struct Picture {
    unsigned long long pixels;      /* address of row 0: interleaved, 3 bytes a pixel */
    double scale_x, scale_y;        /* source pixels per input pixel */
    int pitch;                      /* bytes from row to row */
    int height, width;              /* of the source */
    int out_height, out_width;      /* in the input */
    int top, left;
    int swap;                       /* 1: the tensor's channels run the other way round */
};

extern "C" __global__ void boxwright_letterbox(
    const Picture* pictures, OUT* tensor, int height, int width, int pad,
    float factor0, float factor1, float factor2, float shift0, float shift1, float shift2)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const Picture p = pictures[blockIdx.z];
    const long long plane = (long long)height * width;
    OUT* at = tensor + (long long)blockIdx.z * 3 * plane + (long long)y * width + x;
    if (p.height == 0) {
        for (int c = 0; c < 3; ++c) put(at + c * plane, 0.0f);
        return;
    }
    int level[3] = {pad, pad, pad};
    const int ox = x - p.left, oy = y - p.top;
    if (ox >= 0 && oy >= 0 && ox < p.out_width && oy < p.out_height) {
        const unsigned char* pixels = (const unsigned char*)p.pixels;
        int sx = ox, sy = oy, sx1 = ox, sy1 = oy, a0 = 2048, a1 = 0, b0 = 2048, b1 = 0;
        if (p.out_width != p.width || p.out_height != p.height) {
            float fx = (float)((ox + 0.5) * p.scale_x - 0.5);
            sx = (int)floorf(fx);
            fx -= sx;
            if (sx < 0) { fx = 0.0f; sx = 0; }
            if (sx >= p.width - 1) { fx = 0.0f; sx = p.width - 1; }
            a0 = ROUND((1.0f - fx) * 2048.0f);
            a1 = ROUND(fx * 2048.0f);
            float fy = (float)((oy + 0.5) * p.scale_y - 0.5);
            sy = (int)floorf(fy);
            fy -= sy;
            b0 = ROUND((1.0f - fy) * 2048.0f);
            b1 = ROUND(fy * 2048.0f);
            sx1 = min(sx + 1, p.width - 1);
            sy1 = min(max(sy + 1, 0), p.height - 1);
            sy = min(max(sy, 0), p.height - 1);
        }
        const unsigned char* row0 = pixels + (long long)sy * p.pitch;
        const unsigned char* row1 = pixels + (long long)sy1 * p.pitch;
        for (int c = 0; c < 3; ++c) {
            const int upper = row0[3 * sx + c] * a0 + row0[3 * sx1 + c] * a1;
            const int lower = row1[3 * sx + c] * a0 + row1[3 * sx1 + c] * a1;
            const int sum = ((b0 * (upper >> 4)) >> 16) + ((b1 * (lower >> 4)) >> 16);
            level[p.swap ? 2 - c : c] = (sum + 2) >> 2;
        }
    }
    put(at, ADD(MUL((float)level[0], factor0), shift0));
    put(at + plane, ADD(MUL((float)level[1], factor1), shift1));
    put(at + 2 * plane, ADD(MUL((float)level[2], factor2), shift2));
}
"""
_TYPES = {"float32": "float", "float16": "unsigned short"}


def check_rules(rules: Preprocess, dtype: str) -> None:
    """Refuse what the kernel does not do.

    Raises:
        RequestError: Another filter than linear, or a tensor that is neither float32 nor float16.
    """
    if rules.interpolation != "linear":
        raise RequestError(
            "--preprocess gpu",
            f"this model's pictures are resized by {rules.interpolation} interpolation",
            "use --preprocess host",
        )
    if dtype not in _TYPES:
        raise RequestError(
            "--preprocess gpu", f"the network's input is {dtype}", "use --preprocess host"
        )


def picture_record(
    address: int, pitch: int, where: Placement, *, swap: bool
) -> tuple[int | float, ...]:
    """Return one record of `PICTURE`.

    Args:
        address: Of the pixels on the device.
        pitch: Bytes from row to row.
        where: Place of the picture in the input.
        swap: The tensor's channels run the other way round than the picture's.
    """
    (height, width), (out_height, out_width) = where.source_size, where.resized_size
    # OpenCV's own order of operations: the inverse of the inverse, in double precision.
    scale_x, scale_y = 1.0 / (out_width / width), 1.0 / (out_height / height)
    return (
        address, scale_x, scale_y, pitch, height, width, out_height, out_width,
        where.top, where.left, int(swap),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Launch:
    """A call of `cuLaunchKernel`; the driver reads the arguments at each, where they lie."""

    driver: Any
    words: tuple[Any, ...]
    arguments: tuple[Any, ...]

    def __call__(self) -> None:
        cuda_result(self.driver.cuLaunchKernel(*self.words), "cuLaunchKernel")


class Letterbox:
    """The compiled kernel for one model's rules."""

    def __init__(
        self, rules: Preprocess, size: tuple[int, int], dtype: str, compute_capability: str
    ) -> None:
        """Compile and load it into the current CUDA context.

        Args:
            rules: The family's preprocessing.
            size: Network input (height, width) in pixels.
            dtype: Of the input: float32 or float16.
            compute_capability: `9.0`.

        Raises:
            RequestError: The kernel does not do what the rules say.
            MissingExtraError: cuda-bindings is not installed.
            BackendError: There is no NVRTC, or it or the driver refuses the kernel.
        """
        check_rules(rules, dtype)
        driver = cuda_driver()
        if driver is None:
            raise MissingExtraError("cuda-bindings", "tensorrt")
        self._driver, self._size = driver, size
        code = compile_source(SOURCE, {"OUT": _TYPES[dtype]}, compute_capability)
        self._module = cuda_result(driver.cuModuleLoadData(code), "cuModuleLoadData")
        self._kernel = cuda_result(
            driver.cuModuleGetFunction(self._module, _NAME), "cuModuleGetFunction"
        )
        factors = [np.float32(rules.scale / s) for s in rules.std]
        shifts = [np.float32(-m / s) for m, s in zip(rules.mean, rules.std, strict=True)]
        self._rest = [ctypes.c_int(n) for n in (*size, rules.pad_value)]
        self._numbers = [ctypes.c_float(float(f)) for f in (*factors, *shifts)]

    def launch(self, pictures: int, tensor: int, count: int, stream: Any) -> None:
        """Start it on a stream; the arguments are those of `launcher`.

        Raises:
            BackendError: The driver refuses.
        """
        self.launcher(pictures, tensor, count, stream)()

    def launcher(self, pictures: int, tensor: int, count: int, stream: Any) -> Callable[[], None]:
        """Return what starts it with these arguments; it may be captured into a CUDA graph.

        A call raises `BackendError` where the driver refuses.

        Args:
            pictures: Address of so many records of `PICTURE` on the device.
            tensor: Address of the input (count, 3, height, width) on the device.
            count: Pictures.
            stream: CUDA stream.
        """
        values = [ctypes.c_void_p(pictures), ctypes.c_void_p(tensor), *self._rest, *self._numbers]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        height, width = self._size
        grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]), count)
        words = (self._kernel, *grid, *_BLOCK, 0, int(stream), ctypes.addressof(addresses), 0)
        return _Launch(self._driver, words, (values, addresses))

    def close(self) -> None:
        """Unload it; a second call does nothing."""
        if self._module is not None:
            self._driver.cuModuleUnload(self._module)
            self._module = self._kernel = None


# -- NVRTC, by ctypes: its eight functions are the same in every version, so that the library of any
# CUDA that is there serves, be it a toolkit's, a wheel's or the one that PyTorch brought.


def compile_source(source: str, macros: dict[str, str], compute_capability: str) -> bytes:
    """Compile CUDA C to a cubin; to PTX where NVRTC is older than the GPU.

    Args:
        source: CUDA C without includes.
        macros: Defined before it.
        compute_capability: `9.0`.

    Raises:
        BackendError: There is no NVRTC, or it refuses the source.
    """
    nvrtc = _open_nvrtc()
    kind, architecture = _architecture(nvrtc, compute_capability)
    options = [f"--gpu-architecture={kind}_{architecture}".encode(), b"--std=c++14"]
    options += [f"-D{name}={value}".encode() for name, value in macros.items()]
    program = ctypes.c_void_p()
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"boxwright.cu", 0, None, None
    )
    _check(nvrtc, made, "nvrtcCreateProgram")
    try:
        words = (ctypes.c_char_p * len(options))(*options)
        status = nvrtc.nvrtcCompileProgram(program, len(options), words)
        if status != 0:
            log = _text(nvrtc, program, "ProgramLog").decode(errors="replace")
            raise BackendError("NVRTC", f"it refuses the kernel ({log[:300]})", "please report it")
        return _text(nvrtc, program, "CUBIN" if kind == "sm" else "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def _check(nvrtc: ctypes.CDLL, status: int, what: str) -> None:
    if status != 0:
        words = nvrtc.nvrtcGetErrorString
        words.restype = ctypes.c_char_p
        raise BackendError("NVRTC", f"{what} failed ({words(status).decode()})", "reinstall CUDA")


def _architecture(nvrtc: ctypes.CDLL, compute_capability: str) -> tuple[str, int]:
    """Return what to compile for: the GPU itself, or the newest before it that NVRTC knows."""
    here = int(compute_capability.replace(".", ""))
    count = ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    known = (ctypes.c_int * count.value)()
    _check(nvrtc, nvrtc.nvrtcGetSupportedArchs(known), "nvrtcGetSupportedArchs")
    older = [n for n in known if n <= here]
    if not older:
        raise BackendError(
            "NVRTC",
            f"it does not know compute capability {compute_capability} any more",
            "use an older CUDA, or --preprocess host",
        )
    return ("sm" if here in older else "compute"), max(older)


def _open_nvrtc() -> ctypes.CDLL:
    """Load the first NVRTC that is found.

    Raises:
        BackendError: There is none.
    """
    for place in _places():
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise BackendError(
        "--preprocess gpu",
        "NVRTC is not installed",
        "install it with: pip install nvidia-cuda-nvrtc (nvidia-cuda-nvrtc-cu12 for CUDA 12)",
    )


def _places() -> Iterator[str]:
    windows = sys.platform == "win32"
    names: Sequence[str] = (
        ("nvrtc64_130_0.dll", "nvrtc64_120_0.dll")
        if windows
        else ("libnvrtc.so.13", "libnvrtc.so.12")
    )
    yield from names
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    roots = [f / part for f in folders for part in ("cu13", "cuda_nvrtc")]
    roots += [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ]
    for root in roots:
        for below in ("bin", "bin/x86_64") if windows else ("lib", "lib64"):
            yield from (str(root / below / name) for name in names)
