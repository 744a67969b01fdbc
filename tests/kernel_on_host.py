"""The letterbox kernel as plain C: the same source, its threads a loop, for the host's compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeCuda

from boxwright.gpu_preprocess import SOURCE

_BEFORE = r"""
#include <math.h>
#define ON_HOST
#define __global__
#define MUL(a, b) ((a) * (b))
#define ADD(a, b) ((a) + (b))
#define ROUND(a) ((int)lrintf(a))
#define OUT float
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static void put(float* at, float value) { *at = value; }
struct Three { int x, y, z; };
static Three blockIdx, blockDim, threadIdx;
"""
_AFTER = r"""
extern "C" void run(const Picture* pictures, float* tensor, int count, int height, int width,
                    int pad, const float* factors, const float* shifts)
{
    blockDim = {1, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < count; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < height; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < width; ++blockIdx.x)
                boxwright_letterbox(pictures, tensor, height, width, pad, factors[0], factors[1],
                                    factors[2], shifts[0], shifts[1], shifts[2]);
}
"""


class HostKernel:
    """The kernel; `run` writes a batch."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            pytest.skip("NOT TESTED, there is no C++ compiler for the kernel's arithmetic")
        (folder / "kernel.cpp").write_text(_BEFORE + SOURCE + _AFTER)
        library = folder / "kernel.so"
        words = ["-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o", str(library)]
        subprocess.run([compiler, *words, str(folder / "kernel.cpp")], check=True)
        self._run = ctypes.CDLL(str(library)).run

    def run(self, pictures, tensor, rules) -> None:
        """Args: records of `PICTURE` (B,), a tensor (B, 3, H, W) float32, the family's rules."""
        factors = np.array([rules.scale / s for s in rules.std], np.float32)
        shifts = np.array([-m / s for m, s in zip(rules.mean, rules.std, strict=True)], np.float32)
        sizes = (*tensor.shape[:1], *tensor.shape[2:], rules.pad_value)
        self.run_at(pictures.ctypes.data, tensor.ctypes.data, sizes, factors, shifts)

    def run_at(self, pictures: int, tensor: int, sizes, factors, shifts) -> None:
        """Args: addresses; count, height, width, grey of the padding; three and three numbers."""
        self._run(
            ctypes.c_void_p(pictures),
            ctypes.c_void_p(tensor),
            *(ctypes.c_int(n) for n in sizes),
            ctypes.c_void_p(factors.ctypes.data),
            ctypes.c_void_p(shifts.ctypes.data),
        )


class FakeDriver:
    """The part of `cuda.bindings.driver` that launches the kernel; it runs on the host."""

    def __init__(self, kernel: HostKernel, cuda: FakeCuda) -> None:
        self._kernel, self._cuda = kernel, cuda
        self.launches: list[int] = []

    def cuModuleLoadData(self, code: bytes) -> tuple[int, int]:  # noqa: N802
        return 0, 1

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[int, int]:  # noqa: N802
        return 0, 2

    def cuModuleUnload(self, module: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cuLaunchKernel(self, kernel: int, *words: int) -> tuple[int]:  # noqa: N802
        """Read the kernel's arguments where they lie, as the driver does."""
        (_, _, count), parameters = words[:3], words[8]
        kinds = [ctypes.c_void_p] * 2 + [ctypes.c_int] * 3 + [ctypes.c_float] * 6
        places = (ctypes.c_void_p * len(kinds)).from_address(parameters)
        values = [k.from_address(p).value for k, p in zip(kinds, places, strict=True)]
        numbers = np.array(values[5:], np.float32)
        sizes = (count, *values[2:5])

        def work() -> None:
            self._kernel.run_at(values[0], values[1], sizes, numbers[:3], numbers[3:].copy())
            self.launches.append(count)

        self._cuda.do("letterbox", work)
        return (0,)
