"""What a GPU could do at best with a network: operations and bytes over measured ceilings.

    python benchmarks/gpu_limit.py ceilings --out ceilings.json       # on the GPU, with torch
    python benchmarks/gpu_limit.py count yolo11n.fp16.onnx --batch 1,64 --ceilings ceilings.json

Ceilings are measured, not read off a data sheet: a large matrix product, a copy within the GPU's
memory, and an empty kernel in a CUDA graph. Bytes are those of a plan that fuses each convolution
with its activation: every layer reads its inputs and weights and writes its output once, and
everything between layers but joins and resizes is free. Small tensors stay in the second-level
cache, so that the true traffic to memory is smaller: the bound is on the sum of both.
"""

from __future__ import annotations

import argparse
import json
from math import prod
from pathlib import Path
from typing import Any

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_MOVES = {"Concat", "Resize", "MaxPool", "Add", "Softmax", "Split"}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("ceilings", help="measure them on this GPU")
    first.add_argument("--out", type=Path, default=Path("ceilings.json"))
    second = verbs.add_parser("count", help="operations and bytes of a graph, and the bound")
    second.add_argument("model", type=Path, help="a typed raw ONNX file")
    second.add_argument("--batch", default="1")
    second.add_argument("--ceilings", type=Path)
    return parser.parse_args()


def measure_ceilings() -> dict[str, Any]:
    """Return TFLOP/s, TB/s and microseconds, each with its samples."""
    import torch

    def times(work: Any, count: int = 30) -> list[float]:
        for _ in range(5):
            work()
        torch.cuda.synchronize()
        samples = []
        for _ in range(count):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end))
        return samples

    def median(samples: list[float]) -> float:
        return sorted(samples)[len(samples) // 2]

    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    side = 8192
    kinds = {"fp32 (TF32)": torch.float32, "fp16": torch.float16}
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, dtype in kinds.items():
        a = torch.randn(side, side, device="cuda", dtype=dtype)
        b = torch.randn(side, side, device="cuda", dtype=dtype)
        samples = times(lambda a=a, b=b: a @ b)
        found[name] = {"tflops": 2 * side**3 / median(samples) / 1e9, "samples_ms": samples}
    a8 = torch.randint(-9, 9, (side, side), device="cuda", dtype=torch.int8)
    b8 = torch.randint(-9, 9, (side, side), device="cuda", dtype=torch.int8).t().contiguous().t()
    samples = times(lambda: torch._int_mm(a8, b8))
    found["int8"] = {"tflops": 2 * side**3 / median(samples) / 1e9, "samples_ms": samples}
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    samples = times(lambda: target.copy_(source))
    found["memory"] = {"tb_per_s": 2 * (1 << 30) / median(samples) / 1e9, "samples_ms": samples}
    small = torch.zeros(1, device="cuda")
    kernels = 200
    graph = torch.cuda.CUDAGraph()
    for _ in range(3):
        small.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(kernels):
            small.add_(1)
    samples = times(graph.replay)
    found["kernel"] = {"us_in_a_graph": 1e3 * median(samples) / kernels, "samples_ms": samples}
    return found


def count(model: Path, batch: int) -> dict[str, Any]:
    """Return the operations, bytes and layers of one call."""
    import onnx
    from onnx import TensorProto

    from boxwright.graph.flops import count_flops
    from boxwright.graph.io import model_from_file
    from boxwright.graph.shapes import dimensions, set_batch

    graph_model = model_from_file(model)
    flops = count_flops(graph_model)
    graph = onnx.shape_inference.infer_shapes(set_batch(graph_model, batch), data_prop=True).graph
    width = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1}
    sizes: dict[str, int] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shape = dimensions(value)
        if all(isinstance(d, int) for d in shape):
            element = value.type.tensor_type.elem_type
            sizes[value.name] = prod(int(d) for d in shape) * width.get(element, 4)
    for stored in graph.initializer:
        sizes[stored.name] = prod(stored.dims) * width.get(stored.data_type, 4)
    layers = [n for n in graph.node if n.op_type in _LAYERS]
    moves = [n for n in graph.node if n.op_type in _MOVES]
    moved = sum(
        sizes.get(name, 0) for n in (*layers, *moves) for name in (*n.input[:2], n.output[0])
    )
    weights = sum(sizes[i.name] for i in graph.initializer)
    return {
        "model": model.name,
        "batch": batch,
        "gflop": (flops or 0) * batch / 1e9,
        "mb_moved": moved / 1e6,
        "mb_weights": weights / 1e6,
        "layers": len(layers),
        "kernels_at_least": len(layers) + len(moves),
    }


def bound(counted: dict[str, Any], ceilings: dict[str, Any], precision: str) -> dict[str, float]:
    """Return the times that arithmetic, traffic and launches need at least, in ms."""
    compute = counted["gflop"] / ceilings[precision]["tflops"]
    memory = counted["mb_moved"] / ceilings["memory"]["tb_per_s"] / 1e3
    launches = counted["kernels_at_least"] * ceilings["kernel"]["us_in_a_graph"] / 1e3
    return {
        "compute_ms": compute,
        "memory_ms": memory,
        "launches_ms": launches,
        "bound_ms": max(compute, memory),
    }


def main() -> None:
    """Measure or count."""
    wishes = arguments()
    if wishes.verb == "ceilings":
        found = measure_ceilings()
        wishes.out.write_text(json.dumps(found))
        short = {
            k: {a: round(b, 2) for a, b in v.items() if a != "samples_ms"}
            for k, v in found.items()
            if isinstance(v, dict)
        }
        print(json.dumps(short, indent=1))
        return
    name = wishes.model.name
    precision = next((p for p in ("fp16", "int8") if f".{p}" in name), "fp32 (TF32)")
    for batch in (int(n) for n in wishes.batch.split(",")):
        row = count(wishes.model, batch)
        if wishes.ceilings:
            row |= bound(row, json.loads(wishes.ceilings.read_text()), precision)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    main()
