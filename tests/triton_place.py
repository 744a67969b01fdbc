"""The real Triton server of the tests, and a small repository for it.

The server is the one that `BOXWRIGHT_TEST_TRITON` names, else one on PATH or in an installed
nvidia-pytriton; otherwise the tests are skipped, and say so. The variable names an nvidia-pytriton
wheel, which is unpacked and given a Python as `boxwright serve` does it, or a folder with `srv/`
(an unpacked wheel), `venv/` (a Python with NumPy below 2, ONNX Runtime, OpenCV 4.11 and, for track
D, DALI), and `client/` (tritonclient) where that is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from boxwright import sample
from boxwright.graph.io import model_from_file
from boxwright.serve.server import ServeRequest

PLACE = Path(os.environ.get("BOXWRIGHT_TEST_TRITON", os.devnull))
HOW = (
    "NOT TESTED, no Triton server: BOXWRIGHT_TEST_TRITON names no wheel or folder (see "
    "tests/triton_place.py), and nvidia-pytriton is not installed"
)
MODEL = "text_block"
MAX_BATCH = 4


def client_on_path() -> None:
    """Let tritonclient be found in `client/`, where it is not installed."""
    if importlib.util.find_spec("tritonclient") is None and (PLACE / "client").is_dir():
        sys.path.append(str(PLACE / "client"))
        importlib.invalidate_caches()


def require_client() -> None:
    """Skip loudly without tritonclient, which writes the configurations and speaks gRPC."""
    client_on_path()
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip('NOT TESTED, no tritonclient: pip install "boxwright[triton]"')


def prepared_python() -> Path | None:
    """Return the Python in `venv/`; None where one is to be made as a user's is."""
    python = PLACE / "venv" / "bin" / "python3"
    return python if python.exists() else None


def has_dali() -> bool:
    """Whether the prepared Python has DALI."""
    python = prepared_python()
    folders = "lib/*/site-packages/nvidia/dali"
    return python is not None and any(python.parents[1].glob(folders))


def dali_python() -> Path:
    """Return a prepared Python with DALI, or skip loudly: its 200 MB are not fetched here."""
    python = prepared_python()
    if python is None or not has_dali():
        pytest.skip("NOT TESTED, no DALI: BOXWRIGHT_TEST_TRITON names no folder with it in venv/")
    return python


def served(repository: Path, **options: object) -> ServeRequest:
    """Return a request on free ports, or skip loudly without a server."""
    require_client()
    named = PLACE if PLACE.is_file() else PLACE / "srv"
    if named.exists():
        server = named
    elif shutil.which("tritonserver") or importlib.util.find_spec("pytriton"):
        server = None
    else:
        pytest.skip(HOW)
    return ServeRequest(
        repository,
        server=server,
        python=prepared_python(),
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
