"""ONNX Runtime and PyTorch on a GPU, with and without CUDA graphs: one table.

    python benchmarks/gpu_onnxruntime.py yolo11n.fp32.onnx yolo11n.fp16.onnx --batch 1,8,32,64 \
        --warmup 100 --iterations 1000 --out results.json --torch-checkpoint yolo11n.pt

A row is a file (or the checkpoint in FP32 or FP16), a batch, and with or without a CUDA graph. Two
things are timed in each: `network`, the network alone with its input on the GPU (CUDA events; the
row says what timed it), and `host_to_host`, from an array in host memory to arrays in host memory
(the host's clock). All rows of a batch are open at once and take turns in blocks, so that drift
hits them alike. Results are written after every block; a row that fails keeps its error and is
skipped. FP32 in PyTorch is as torch has it by default (TF32 in convolutions); the results say so.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends import BackendOptions
from boxwright.environment import describe_machine, package_versions
from boxwright.errors import BoxwrightError
from boxwright.gpus import run_nvidia_smi
from boxwright.ort_providers import facts_of_graph
from boxwright.store import sha256_of_file, write_atomic
from boxwright.types import Latency

Array = npt.NDArray[Any]
_CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu,memory.used"
# What a row may end with; the others go on. Torch without CUDA asserts.
_FAILURES = (
    BoxwrightError, RuntimeError, ValueError, TypeError, ImportError, OSError, AssertionError,
    AttributeError, LookupError,
)  # fmt: skip
_WARM_TORCH = 3  # runs on a side stream before a capture, as torch's documentation has it


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files")
    parser.add_argument("--batch", default="1", help="a comma list (default 1)")
    parser.add_argument("--size", type=int, default=640, help="of inputs whose sides are free")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--block", type=int, default=50, help="calls of one turn (default 50)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or tensorrt")
    parser.add_argument("--torch-checkpoint", type=Path, help="needs torch and ultralytics")
    parser.add_argument(
        "--check", action="store_true", help="compare with the CPU's outputs, two inputs in turn"
    )
    parser.add_argument("--limit-s", type=float, default=1e9, help="begin no batch after this")
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    wishes = parser.parse_args()
    if not wishes.files and wishes.torch_checkpoint is None:
        parser.error("name an ONNX file or --torch-checkpoint")
    return wishes


@dataclass
class Row:
    """A line of the table.

    Attributes:
        name, kind, batch, graph: File; `onnxruntime` or `torch fp16`; pictures; CUDA graph asked.
        open_it: Opens what runs it.
    """

    name: str
    kind: str
    batch: int
    graph: bool
    open_it: Callable[[], OnnxSide | TorchSide]
    side: OnnxSide | TorchSide | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(
        default_factory=lambda: {"network": [], "host_to_host": []}
    )
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types: what is derived beside the raw samples."""
        data: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "batch": self.batch,
            "cuda_graph": self.graph,
            **self.facts,
        }
        if self.error:
            data["error"] = self.error
        for what, samples in self.samples.items():
            if samples:
                latency = Latency("infer", self.batch, tuple(samples))
                fps = round(1e3 * self.batch / latency.mean, 2)
                data[what] = {**latency.as_dict(), "images_per_s": fps}
        return data

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something, and keep the error of what fails."""
        if self.error:
            return
        try:
            work()
        except _FAILURES as error:
            self.error = "".join(traceback.format_exception_only(error)).strip()
            print(f"{label(self)}: {self.error}", file=sys.stderr, flush=True)
            self.close()

    def close(self) -> None:
        """Free what runs it."""
        if self.side is not None:
            self.side.close()
        self.side = None


def random_input(shape: tuple[int, ...], dtype: str) -> Array:
    """Return the same random input for every row of one shape."""
    values = np.random.default_rng(0).random(shape, np.float32)
    return (values * 255).astype(np.uint8) if dtype == "uint8" else values.astype(dtype)


class OnnxSide:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path: Path, batch: int, graph: bool, wishes: argparse.Namespace) -> None:
        from boxwright.backends.onnxruntime import OnnxRuntimeBackend

        profile = (batch, batch, batch) if wishes.device.startswith("tensorrt") else None
        options = BackendOptions(device=wishes.device, cuda_graph=graph, profile_batch=profile)
        self._backend = OnnxRuntimeBackend(path, options)
        self._path = path
        shapes = facts_of_graph(path, path.name).inputs
        infos = {info.name: info for info in self._backend.inputs}
        self._feed: dict[str, Array] = {}
        for name, shape in shapes.items():
            first = shape[0] if shape else None
            if isinstance(first, int) and first != batch:
                self._backend.close()
                raise ValueError(f"{path.name} takes {first} pictures only")
            sides = [d if isinstance(d, int) else wishes.size for d in shape[1:]]
            self._feed[name] = random_input((batch, *sides), infos[name].dtype)
        self._differences = self._check() if wishes.check else {}

    def _check(self) -> dict[str, dict[str, float]]:
        """Return the largest differences from the CPU, after another input went before.

        A replay that read the input of its capture would show here.
        """
        from boxwright.backends.onnxruntime import OnnxRuntimeBackend

        other = {name: value[..., ::-1].copy() for name, value in self._feed.items()}
        for feed in (self._feed, other, self._feed):
            found = self._backend.infer(feed)
        reference = OnnxRuntimeBackend(self._path, BackendOptions(device="cpu"))
        expected = reference.infer(self._feed)
        reference.close()
        return {
            name: {
                "largest_difference": float(
                    np.max(np.abs(found[name].astype(np.float64) - value.astype(np.float64)))
                ),
                "largest_value": float(np.max(np.abs(value.astype(np.float64)))),
            }
            for name, value in expected.items()
            if value.size and found[name].shape == value.shape
        }

    def facts(self) -> dict[str, Any]:
        """Return what it runs on, in words."""
        facts = {"runs_on": self._backend.description, "network_by": self._backend.launch_clock}
        return {**facts, **({"against_cpu": self._differences} if self._differences else {})}

    def network(self, count: int) -> list[float]:
        """Return ms of the network alone."""
        return self._backend.launch_times(self._feed, count)

    def host_to_host(self, count: int) -> list[float]:
        """Return ms from arrays to arrays."""
        times = []
        for _ in range(count):
            begin = perf_counter()
            self._backend.infer(self._feed)
            times.append((perf_counter() - begin) * 1e3)
        return times

    def close(self) -> None:
        """Free the session."""
        self._backend.close()


class TorchSide:
    """A checkpoint in PyTorch, its layers fused."""

    def __init__(self, path: Path, batch: int, half: bool, graph: bool, size: int) -> None:
        import torch
        from ultralytics import YOLO

        self._torch = torch
        module = YOLO(str(path)).model.fuse().eval().to("cuda")
        self._module = module.half() if half else module.float()
        dtype = "float16" if half else "float32"
        self._host = torch.from_numpy(random_input((batch, 3, size, size), dtype))
        self._input = self._host.to("cuda")
        self._graph: Any = None
        with torch.inference_mode():
            if graph:
                self._capture()
            else:
                self._output = self._run()
        torch.cuda.synchronize()

    def _run(self) -> Any:
        found = self._module(self._input)
        return found[0] if isinstance(found, (tuple, list)) else found

    def _capture(self) -> None:
        torch = self._torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_TORCH):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._run()

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self._output = self._run()

    def facts(self) -> dict[str, Any]:
        """Return versions and the switches that change speed or precision."""
        torch = self._torch
        return {
            "runs_on": f"torch {torch.__version__} (CUDA {torch.version.cuda}, "
            f"{torch.cuda.get_device_name()})",
            "network_by": "CUDA events around the module or the replay",
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn": torch.backends.cudnn.version(),
        }

    def network(self, count: int) -> list[float]:
        """Return ms of the network alone."""
        torch, times = self._torch, []
        first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode():
            for _ in range(count):
                first.record()
                self._launch()
                second.record()
                second.synchronize()
                times.append(float(first.elapsed_time(second)))
        return times

    def host_to_host(self, count: int) -> list[float]:
        """Return ms from a host tensor to a host tensor, pageable memory both."""
        times = []
        with self._torch.inference_mode():
            for _ in range(count):
                begin = perf_counter()
                self._input.copy_(self._host)
                self._launch()
                self._output.cpu()
                times.append((perf_counter() - begin) * 1e3)
        return times

    def close(self) -> None:
        """Free the GPU's memory."""
        self._graph = self._output = self._input = self._module = None
        self._torch.cuda.empty_cache()


def rows_of(batch: int, wishes: argparse.Namespace) -> list[Row]:
    """Return the rows of a batch, closed."""
    rows = []
    for path in wishes.files:
        for graph in (False, True):

            def opener(path: Path = path, graph: bool = graph) -> OnnxSide:
                return OnnxSide(path, batch, graph, wishes)

            rows.append(Row(path.name, "onnxruntime", batch, graph, opener))
    checkpoint: Path | None = wishes.torch_checkpoint
    if checkpoint is not None:
        for half in (False, True):
            for graph in (False, True):

                def opening(
                    path: Path = checkpoint, half: bool = half, graph: bool = graph
                ) -> TorchSide:
                    return TorchSide(path, batch, half, graph, wishes.size)

                kind = f"torch {'fp16' if half else 'fp32'}"
                rows.append(Row(checkpoint.name, kind, batch, graph, opening))
    return rows


def measure(rows: list[Row], wishes: argparse.Namespace, keep: Callable[[], None]) -> None:
    """Open, warm up and time the rows of a batch, in turns of a block."""
    for row in rows:

        def begin(row: Row = row) -> None:
            row.side = row.open_it()
            row.side.network(wishes.warmup)
            row.side.host_to_host(max(wishes.warmup // 10, 1))
            row.facts = row.side.facts()

        row.attempt(begin)
        keep()
    for what in ("network", "host_to_host"):
        done = 0
        while done < wishes.iterations:
            count = min(wishes.block, wishes.iterations - done)
            for row in rows:

                def turn(row: Row = row, what: str = what, count: int = count) -> None:
                    assert row.side is not None
                    samples = getattr(row.side, what)(count)
                    row.samples[what] += [round(s, 5) for s in samples]

                row.attempt(turn)
                keep()
            done += count
    for row in rows:
        if row.side is not None:
            row.facts = row.side.facts()
        row.close()
    keep()


def environment(wishes: argparse.Namespace) -> dict[str, Any]:
    """Return what it runs on."""
    names = ("onnxruntime-gpu", "onnxruntime", "torch", "ultralytics", "cuda-bindings", "numpy")
    return {
        "python": platform.python_version(),
        "machine": describe_machine(),
        "packages": package_versions(names),
        "files": {str(p): sha256_of_file(p) for p in wishes.files if p.is_file()},
    }


def clocks() -> str:
    """Return clocks, temperature and power of now."""
    asked = (f"--query-gpu={_CLOCKS}", "--format=csv,noheader")
    return (run_nvidia_smi(*asked) or "nvidia-smi does not answer").strip()


def label(row: Row) -> str:
    """Return a row in words."""
    return f"{row.name} {row.kind} b{row.batch} {'graph' if row.graph else 'launches'}"


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    graph = "yes" if row["cuda_graph"] else "no"
    cells = [row["name"], row["kind"], str(row["batch"]), graph]
    if "error" in row:
        return "| " + " | ".join([*cells, row["error"].replace("|", "/")[:120]]) + " |"
    for what in ("network", "host_to_host"):
        found = row.get(what)
        if found is None:
            cells += ["-"] * 9
            continue
        keys = ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "std_ms")
        cells += [f"{found[key]:.3f}" for key in keys]
        cells += [f"{found['cv_percent']:.1f}", f"{found['images_per_s']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Measure every batch; return 1 when a row failed."""
    wishes = arguments()
    begun = perf_counter()
    if wishes.torch_checkpoint is not None:
        # First, so that ONNX Runtime finds the CUDA libraries that torch has loaded.
        try:
            import torch  # noqa: F401
        except ImportError as error:
            print(f"torch: {error}", file=sys.stderr)
    result: dict[str, Any] = {
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(wishes),
        "settings": {k: str(v) for k, v in vars(wishes).items()},
        "clocks": [],
        "rows": [],
    }
    for batch in (int(n) for n in wishes.batch.split(",")):
        if perf_counter() - begun > wishes.limit_s:
            print(f"batch {batch}: not begun, the time is up", flush=True)
            break
        rows = rows_of(batch, wishes)
        before: list[dict[str, Any]] = list(result["rows"])
        result["clocks"].append({"batch": batch, "before": clocks()})

        def keep(rows: list[Row] = rows, before: list[dict[str, Any]] = before) -> None:
            result["rows"] = [*before, *(row.as_dict() for row in rows)]
            write_atomic(wishes.out, json.dumps(result).encode())

        measure(rows, wishes, keep)
        result["clocks"][-1]["after"] = clocks()
        keep()
        print("\n".join(line_of(row.as_dict()) for row in rows), flush=True)
    titles = ["mean", "p50", "p95", "p99", "min", "max", "std", "CV%", "FPS"]
    head = ["file", "runtime", "batch", "graph"]
    head += [f"{what} {t}" for what in ("net", "h2h") for t in titles]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    print("\n".join(line_of(row) for row in result["rows"]))
    return 1 if any("error" in row for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
