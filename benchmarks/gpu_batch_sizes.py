"""Turns of changing batch size through our onnxruntime backend: one session, and one for each size.

Runs the backend's own `model.py` without a server, on stand-ins for Triton's side of it, on a GPU
(`--cpu`: without, where both are one session). Prints milliseconds for each setting: opening, the
median and the slowest turn; then the largest difference of their answers. One JSON file with every
turn.

    python benchmarks/gpu_batch_sizes.py yolo11n.fp32.onnx --max-batch 64 --out batch_sizes.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import boxwright.serve.backends
from boxwright.onnx_fields import read_graph
from boxwright.serve.backends import joining

Array = npt.NDArray[Any]
_FOLDER = Path(boxwright.serve.backends.__file__).parent
_TYPES = {text: name for name, text in joining.NUMPY_TYPES.items()}


def _backend() -> Any:
    """Load the backend as Triton's stub does."""
    stub = ModuleType("triton_python_backend_utils")
    stub.__dict__.update(
        TritonModelException=RuntimeError,
        TritonError=str,
        Tensor=lambda name, value: (name, value),
        InferenceResponse=lambda output_tensors, error=None: (dict(output_tensors), error),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(
            as_numpy=lambda: request.given[name]
        ),
    )
    sys.modules["triton_python_backend_utils"] = stub
    sys.modules["joining"] = joining
    spec = importlib.util.spec_from_file_location("served", _FOLDER / "onnxruntime" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _config(file: Path, most: int, sizes: str | None) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def entry(value: Any, kinds: dict[str, str]) -> dict[str, Any]:
        dims = [str(d) if isinstance(d, int) else "-1" for d in value.shape[1:]]
        return {"name": value.name, "data_type": _TYPES[kinds[value.type]], "dims": dims}

    kinds = _backend()._TYPES
    told = {"cudnn_conv_algo_search": "1"} | ({} if sizes is None else {"batch_sizes": sizes})
    return {
        "max_batch_size": most,
        "input": [entry(session.get_inputs()[0], kinds)],
        "output": [entry(value, kinds) for value in session.get_outputs()],
        "parameters": {key: {"string_value": value} for key, value in told.items()},
    }


def _turns(options: argparse.Namespace, shape: list[int], dtype: str) -> list[list[Array]]:
    """Return the requests of each turn: of one picture each, as many as chance says."""
    random = np.random.default_rng(0)
    pool = (random.random((options.max_batch, 1, *shape)) * 255).astype(dtype)
    if dtype != "uint8":
        pool /= 255
    return [list(pool[: random.integers(1, options.max_batch + 1)]) for _ in range(options.turns)]


def _timed(
    folder: Path, config: dict[str, Any], turns: list[list[Array]], kind: str
) -> tuple[dict[str, Any], list[dict[str, Array]]]:
    """Open the model and run all turns: the times, and of each turn its last request's answer."""
    name, outputs = config["input"][0]["name"], [entry["name"] for entry in config["output"]]
    start = perf_counter()
    model = _backend().TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": kind,
            "model_instance_device_id": "0",
        }
    )
    opened, times, seen = perf_counter() - start, [], []
    for turn in turns:
        requests = [
            SimpleNamespace(given={name: picture}, requested_output_names=lambda: outputs)
            for picture in turn
        ]
        start = perf_counter()
        answers = model.execute(requests)
        times.append((perf_counter() - start) * 1e3)
        wrong = [error for _, error in answers if error is not None]
        if wrong:
            raise RuntimeError(wrong[0])
        seen.append({n: np.array(value) for n, value in answers[-1][0].items()})
    pictures = [len(turn) for turn in turns]
    return {"opened_ms": opened * 1e3, "pictures": pictures, "turn_ms": times}, seen


def main() -> int:
    """Time both settings; the exit status is 0."""
    parser = argparse.ArgumentParser(description="One session, and one for each batch size.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--sizes", default=None, help="As the parameter batch_sizes.")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    shape = next(iter(read_graph(options.file)[1].values()))[1:]
    found: dict[str, Any] = {"file": options.file.name, "onnxruntime": onnxruntime.__version__}
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "1").mkdir()
        shutil.copyfile(options.file, Path(folder) / "1/model.onnx")
        for label, sizes in (("one session", "any"), ("sizes", options.sizes)):
            config = _config(options.file, options.max_batch, sizes)
            dtype = joining.NUMPY_TYPES[config["input"][0]["data_type"]]
            turns = _turns(options, [int(str(side)) for side in shape], dtype)
            facts, seen = _timed(Path(folder), config, turns, "CPU" if options.cpu else "GPU")
            answers.append(seen)
            found[label], times = facts, facts["turn_ms"]
            print(
                f"{label}: opened in {facts['opened_ms']:.0f} ms; a turn of "
                f"{np.mean(facts['pictures']):.1f} pictures takes {np.median(times):.1f} ms "
                f"(median), {max(times):.1f} (slowest)"
            )
    found["largest_difference"] = {
        name: max(
            float(np.abs(a[name].astype(np.float64) - b[name]).max())
            for a, b in zip(*answers, strict=True)
        )
        for name in answers[0][0]
    }
    print(f"largest difference: {found['largest_difference']}")
    if options.out is not None:
        options.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
