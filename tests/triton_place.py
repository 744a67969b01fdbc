"""The real Triton server of the tests, and a small repository for it.

The server is one on PATH, in an installed nvidia-pytriton, or unpacked in the folder that
`BOXWRIGHT_TEST_TRITON` names: `srv/` holds the unpacked wheel, `venv/` a Python with NumPy below 2
and ONNX Runtime, `client/` tritonclient where it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from boxwright import sample
from boxwright.graph.io import model_from_file
from boxwright.serve.server import ServeRequest

ROOT = Path(os.environ.get("BOXWRIGHT_TEST_TRITON", Path(tempfile.gettempdir()) / "triton-dev"))
MODEL = "text_block"
MAX_BATCH = 4


def require_client() -> None:
    """Skip loudly without tritonclient, which writes the configurations and speaks gRPC."""
    if importlib.util.find_spec("tritonclient") is None and (ROOT / "client").is_dir():
        sys.path.append(str(ROOT / "client"))
        importlib.invalidate_caches()
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip('no tritonclient: pip install "boxwright[triton]"')


def served(repository: Path, **options: object) -> ServeRequest:
    """Return a request on free ports, or skip loudly without a server."""
    require_client()
    place = ROOT / "srv"
    found = shutil.which("tritonserver") or importlib.util.find_spec("pytriton")
    if not found and not place.is_dir():
        pytest.skip(f"no Triton server: set BOXWRIGHT_TEST_TRITON (now {ROOT}), see {__name__}.py")
    python = ROOT / "venv" / "bin" / "python3"
    return ServeRequest(
        repository,
        server=None if found else place,
        python=python if python.exists() else None,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        **options,
    )


def model_config(name: str, backend: str, max_batch: int = 0):
    """Return an empty configuration."""
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=max_batch)


def add_tensor(config, kind: str, name: str, dtype: str, dims: tuple[int, ...], **more: object):
    """Add an input or output to a configuration."""
    from tritonclient.grpc import model_config_pb2

    getattr(config, kind).add(
        name=name, data_type=getattr(model_config_pb2, f"TYPE_{dtype}"), dims=dims, **more
    )


def write_config(folder: Path, config) -> None:
    """Write MODEL/config.pbtxt."""
    from google.protobuf import text_format

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def add_sample(repository: Path, name: str = MODEL, max_batch: int = MAX_BATCH) -> Path:
    """Add the embedded detector, its raw head, with dynamic batching; one instance."""
    model = model_from_file(sample.onnx_file())
    config = model_config(name, "onnxruntime", max_batch)
    batch = () if max_batch else (1,)
    add_tensor(config, "input", "images", "FP32", (*batch, 3, 640, 640))
    add_tensor(config, "output", "output", "FP32", (*batch, 8400, 6))
    config.instance_group.add(count=1)
    if max_batch:
        config.dynamic_batching.max_queue_delay_microseconds = 5000
    metadata = {p.key: p.value for p in model.metadata_props}
    config.parameters["boxwright"].string_value = json.dumps(metadata)
    folder = repository / name
    write_config(folder, config)
    (folder / "1").mkdir()
    shutil.copyfile(sample.onnx_file(), folder / "1" / "model.onnx")
    return folder


def add_python(repository: Path, name: str, code: str, max_batch: int = 0) -> None:
    """Add a python model of one FP32 input `x` and output `y` of any length."""
    config = model_config(name, "python", max_batch)
    add_tensor(config, "input", "x", "FP32", (-1,))
    add_tensor(config, "output", "y", "FP32", (-1,))
    write_config(repository / name, config)
    (repository / name / "1").mkdir()
    (repository / name / "1" / "model.py").write_text(code, encoding="utf-8")
