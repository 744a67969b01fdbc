"""Bad input and full memory on a GPU machine with TensorRT: what a user sees, and that it survives.

    python benchmarks/gpu_faults.py model.fp16.onnx model.fp16.trt8.6.0-sm90.plan picture.jpg \
        --timing-cache gpu.cache --out gpu_faults.json

Each case is a command of Boxwright in a process of its own with the exit status that it must have
and a word that its line must hold; or, for memory, work in this process: the GPU is filled, the
work must fail with Boxwright's own error, the memory is freed, and the same work must succeed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from boxwright import load
from boxwright.engines import BuildSettings, build_plan
from boxwright.errors import BoxwrightError
from boxwright.nvidia import cuda_result, cuda_runtime
from boxwright.store import write_atomic

_SOURCES = "edge_mask_convolutions,jit_convolutions"
_LEAVE_BYTES = 4 << 20  # of free memory: less than any plan; 96 MiB were enough for one of 8 MB


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("onnx", type=Path, help="the typed file of the plan")
    parser.add_argument("plan", type=Path, help="a plan for batch 1 with its .plan.json")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("gpu_faults.json"))
    return parser.parse_args()


class Faults:
    """The cases and what became of them."""

    def __init__(self, wishes: argparse.Namespace, folder: Path) -> None:
        """Keep results in the file of the wishes."""
        self.wishes, self.folder = wishes, folder
        self.cases: list[dict[str, Any]] = []

    def note(self, name: str, passed: bool, **facts: Any) -> None:
        """Keep a case, and write what there is."""
        self.cases.append({"case": name, "passed": passed, **facts})
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {facts}"[:600], flush=True)
        write_atomic(self.wishes.out, json.dumps(self.cases, indent=1).encode())

    def command(self, name: str, words: list[str], status: int, word: str) -> None:
        """Run `boxwright WORDS`; it must end with a status and one line that holds a word."""
        done = _run(words)
        lines = done.stderr.strip().splitlines()
        said = [line for line in lines if line.startswith("boxwright: error:")]
        clear = done.returncode == status and len(said) == 1 and word.lower() in said[0].lower()
        self.note(name, clear, command=words[0], exit=done.returncode, said=said or lines[-3:])

    def altered(self, name: str, **values: Any) -> Path:
        """Return a copy of the plan whose description says something else."""
        copy = self.folder / name
        copy.mkdir()
        plan: Path = copy / self.wishes.plan.name
        shutil.copy(self.wishes.plan, plan)
        side = self.wishes.plan.with_name(self.wishes.plan.name + ".json")
        data = json.loads(side.read_text())
        unknown = set(values) - set(data)
        if unknown:
            raise KeyError(f"{side.name} has no {unknown}")
        plan.with_name(side.name).write_text(json.dumps({**data, **values}))
        return plan

    def while_full(self, name: str, work: Callable[[], Any]) -> None:
        """Do work while the GPU is full, and again when it is not."""
        ballast = _fill()
        begin = perf_counter()
        try:
            work()
            failed, said = False, "it succeeded"
        except BoxwrightError as error:
            failed, said = True, str(error)
        finally:
            for address in ballast:
                cuda_result(_cuda().cudaFree(address), "cudaFree")
        seconds = round(perf_counter() - begin, 2)
        try:
            work()
            again = "succeeds"
        except BoxwrightError as error:
            again = str(error)
        clear = failed and again == "succeeds"
        self.note(name, clear, said=said, seconds=seconds, freed_again=again)


def _cuda() -> Any:
    cuda = cuda_runtime()
    assert cuda is not None
    return cuda


def _fill() -> list[int]:
    """Allocate the GPU's memory but a little; return the addresses."""
    cuda, taken = _cuda(), []
    size = 8 << 30
    while size >= 1 << 20:
        free, _ = cuda_result(cuda.cudaMemGetInfo(), "cudaMemGetInfo")  # and the card's total
        if free - size < _LEAVE_BYTES:
            size //= 2
            continue
        error, address = cuda.cudaMalloc(size)
        if int(error):
            cuda.cudaGetLastError()
            size //= 2
        else:
            taken.append(int(address))
    return taken


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "boxwright", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def _plans(faults: Faults) -> None:
    """Plans that are damaged, or belong elsewhere."""
    wishes = faults.wishes

    def predict(plan: Path) -> list[str]:
        drawn = faults.folder / f"drawn{len(faults.cases)}"
        return ["predict", str(plan), str(wishes.picture), "--out", str(drawn)]

    def try_on(name: str, plan: Path, word: str) -> None:
        faults.command(name, predict(plan), 2, word)

    whole = faults.altered("whole")
    done = _run(predict(whole))
    faults.note("the plan itself runs", done.returncode == 0, said=done.stderr[-300:])
    for share in (0.5, 0.999):
        cut = faults.altered(f"cut{share}")
        cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * share)])
        try_on(f"truncated to {share:.1%}", cut, "plan")
    bare = faults.altered("bare")
    bare.with_name(bare.name + ".json").unlink()
    bare.write_bytes(bare.read_bytes()[:4096])
    try_on("truncated, without its description", bare, "plan")
    try_on("built by TensorRT 10.3.0", faults.altered("version", version="10.3.0"), "10.3.0")
    other = faults.altered("gpu", compute_capability="8.6", gpu="NVIDIA A10")
    try_on("built for another GPU", other, "A10")
    try_on("built by TensorRT-RTX", faults.altered("rtx", runtime="tensorrt-rtx"), "rtx")
    posing = faults.folder / "posing.onnx"
    shutil.copy(wishes.plan, posing)
    try_on("a plan called .onnx", posing, "onnx")
    posing = faults.folder / "posing.plan"
    shutil.copy(wishes.onnx, posing)
    try_on("an ONNX file called .plan", posing, "plan")
    words = ["benchmark", str(wishes.plan), "--batch", "8", "--iterations", "3"]
    faults.command("batch beyond the profile", words, 2, "batch")


def _memory(faults: Faults) -> None:
    """No memory to build, to load, to run."""
    wishes = faults.wishes
    cache = wishes.timing_cache
    sources = tuple(s.upper() for s in _SOURCES.split(","))
    settings = BuildSettings(
        optimization_level=wishes.level, timing_cache=cache, tactic_sources=sources
    )
    faults.while_full("no memory to load a plan", lambda: load(wishes.plan, quiet=True))

    def detect() -> None:
        load(wishes.plan, quiet=True)(str(wishes.picture))

    faults.while_full("no memory to run a plan", detect)
    faults.while_full("no memory to build", lambda: build_plan(wishes.onnx, settings))


def _together(faults: Faults) -> None:
    """Two processes build into one place."""
    wishes, out = faults.wishes, faults.folder / "together"
    words = ["build", str(wishes.onnx), "--optimization-level", str(wishes.level)]
    words += ["--tactic-sources", _SOURCES, "--out", str(out)]
    words += ["--timing-cache", str(wishes.timing_cache)] if wishes.timing_cache else []
    line = [sys.executable, "-m", "boxwright", *words]
    both = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    plans = list(out.glob("*.plan"))
    strays = sorted(p.name for p in out.iterdir() if p.suffix not in (".plan", ".json"))
    drawn = str(faults.folder / "drawn")
    found = _run(["predict", *map(str, plans), str(wishes.picture), "--out", drawn])
    codes = [process.returncode for process in both]
    clear = found.returncode == 0 and len(plans) == 1 and set(codes) <= {0, 2} and 0 in codes
    faults.note(
        "two processes build into one place", clear, exits=codes, strays=strays,
        said=[(o[-200:], e[-200:]) for o, e in said], then=found.stderr[-200:],
    )  # fmt: skip


def main() -> int:
    """Run every case; return 1 when one is not as it must be."""
    wishes = arguments()
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(wishes, Path(folder))
        _plans(faults)
        _memory(faults)
        _together(faults)
    return 0 if all(case["passed"] for case in faults.cases) else 1


if __name__ == "__main__":
    sys.exit(main())
