"""Checkpoints of our own networks as sources: the whole way, and everything that is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from conftest import Cli
from tiny_models import pictures
from tiny_nets import CLASS_NAMES, TINY, tiny_yolox

import boxwright
from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.errors import SourceError, StoreError
from boxwright.nets import YoloxConfig
from boxwright.sources import SourceRequest
from boxwright.sources.safetensors_file import new_spec, read_header, save_checkpoint
from boxwright.types import ModelSpec

for _package in ("torch", "safetensors"):
    pytest.importorskip(_package, reason=f"{_package} is not installed: no network can be built")
torch = pytest.importorskip("torch")

SIZE = (96, 160)
SPEC = new_spec(TINY, "tiny", CLASS_NAMES, SIZE)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small for more
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_yolox()


@pytest.fixture
def checkpoint(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds `tiny.safetensors` and `pics/`."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Path("tiny.safetensors"), model.state_dict(), TINY, SPEC)
    Path("pics").mkdir()
    for index, picture in enumerate(pictures(4)):
        cv2.imwrite(f"pics/p{index}.png", picture)
    return tmp_path / "tiny.safetensors"


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def _assemble(path: Path, header: dict[str, Any], tensors: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)


# The whole way


def test_run_exports_and_proves_everything(cli: Cli, checkpoint: Path) -> None:
    words = ("--precision", "fp32,fp16", "--outputs", "raw,end2end", "--images", "pics")
    done = cli("run", checkpoint.name, *words, "--out", "out", "--json")
    assert done.code == 0, done.err
    report = json.loads(Path("out/tiny/report.json").read_text(encoding="utf-8"))
    assert len(report["parity"]) == 4
    for parity in report["parity"].values():
        assert parity["detections"] > 20
        assert all(check["passed"] for check in parity["checks"]), parity
    again = cli("run", checkpoint.name, *words, "--out", "out", "--json")
    assert again.code == 0 and "export" not in again.err
    for name in ("fp32", "fp16", "fp32.end2end", "fp16.end2end"):
        proof = cli("verify", checkpoint.name, f"out/tiny/tiny.{name}.onnx", "--images", "pics")
        assert proof.code == 0, proof.err


def test_raw_graph_is_that_of_the_official_export(checkpoint: Path, model: Any) -> None:
    raw = catalog.source_for(".safetensors").export(SourceRequest(checkpoint, "other"))
    graph = raw.model.graph
    assert raw.spec == dataclasses.replace(SPEC, name="other")
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["batch", 3, *SIZE], "output": ["batch", 315, 8]}
    kinds = {n.op_type for n in graph.node}
    assert "BatchNormalization" not in kinds and "Shape" not in kinds and "Exp" not in kinds
    from boxwright.graph.io import bytes_from_model, signature_of

    found, match = catalog.recognise(signature_of(raw.model), None, "it")
    assert (found.name, match.layout, match.certain) == ("yolox", SPEC.layout, True)
    images = np.random.default_rng(0).random((3, 3, *SIZE), np.float32) * 255
    options = BackendOptions(device="cpu")
    session = catalog.backend("onnxruntime").open_bytes(bytes_from_model(raw.model, "it"), options)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images)).numpy()
    assert np.abs(session.infer({"images": images})["output"] - wanted).max() < 1e-4


def test_options_are_honoured(cli: Cli, checkpoint: Path) -> None:
    words = ["--name", "renamed", "--image-size", "64,96", "--opset", 13, "--batch", 2]
    Path("names.json").write_text('["x", "y", "z"]', encoding="utf-8")
    done = cli("run", checkpoint.name, *words, "--labels", "names.json", "--out", "o", "--json")
    assert done.code == 0, done.err
    file = "o/renamed/renamed.fp32.b2.onnx"
    found = onnx.load(file)
    assert [d.dim_value for d in found.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 64, 96]
    assert found.opset_import[0].version == 13
    with boxwright.load(file, "onnxruntime", quiet=True) as detector:
        assert detector.spec.class_names == ("x", "y", "z")
        assert detector.spec.input_size == (64, 96)


def test_unsimplified(cli: Cli, checkpoint: Path) -> None:
    done = cli("run", checkpoint.name, "--no-simplify", "--out", "o", "--json")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "config",
    [
        YoloxConfig(2, width=0.0625, depthwise=True),
        YoloxConfig(1, width=0.0625, activation="lrelu"),
        YoloxConfig(5, width=0.0625, depth=0.67, activation="relu"),
    ],
    ids=["depthwise", "one class", "relu, deeper"],
)
def test_other_configs(cli: Cli, tmp_path: Path, config: YoloxConfig) -> None:
    names = [f"c{i}" for i in range(config.class_count)]
    path = tmp_path / "other.safetensors"
    spec = new_spec(config, "other", names, (64, 64))
    save_checkpoint(path, tiny_yolox(config).state_dict(), config, spec)
    done = cli("run", path, "--outputs", "raw,end2end", "--out", tmp_path / "o", "--json")
    assert done.code == 0, done.err


def test_load_and_inspect(cli: Cli, checkpoint: Path, capsys: Any) -> None:
    with boxwright.load(checkpoint) as detector:
        assert "pytorch" in detector.description
        found = detector(pictures(1)[0])
        assert len(found) and set(found.class_names) == set(CLASS_NAMES)
    facts = json.loads(cli("inspect", checkpoint.name, "--json").out)
    assert facts["network"] == "yolox" and facts["config"] == TINY.as_dict()
    assert facts["class_names"] == list(CLASS_NAMES) and facts["input_size"] == list(SIZE)


def test_describing_needs_no_torch(checkpoint: Path, environment: dict[str, str]) -> None:
    code = (
        "import sys; from pathlib import Path; from boxwright import catalog; "
        "from boxwright.sources import SourceRequest; "
        "spec = catalog.source_for('.safetensors').describe(SourceRequest(Path(sys.argv[1]), 'n'));"
        "print(spec.class_names, 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(checkpoint)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == f"{CLASS_NAMES} False"


# Writing


def test_round_trip_is_exact_and_repeats(checkpoint: Path, model: Any) -> None:
    header = read_header(checkpoint)
    assert (header.config, header.spec) == (TINY, SPEC)
    assert set(header.tensors) == set(model.state_dict())
    from safetensors.torch import load_file

    stored = load_file(checkpoint)
    assert all(torch.equal(stored[n], t) for n, t in model.state_dict().items())
    before = checkpoint.read_bytes()
    assert (8 + int.from_bytes(before[:8], "little")) % 8 == 0
    for _ in range(3):  # the library alone shuffles the header
        save_checkpoint(checkpoint, model.state_dict(), TINY, SPEC)
        assert checkpoint.read_bytes() == before
    assert [p.name for p in checkpoint.parent.glob(".*")] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_weights_are_widened(checkpoint: Path, model: Any, dtype: Any) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    save_checkpoint(checkpoint, state, TINY, SPEC)
    request = SourceRequest(checkpoint, "half")
    backend = catalog.source_for(".safetensors").reference(request, BackendOptions(device="cpu"))
    found = backend.infer({"images": np.full((1, 3, *SIZE), 114, np.float32)})["output"]
    assert found.dtype == np.float32 and found.shape == (1, 315, 8)


def test_a_write_that_fails_leaves_the_old_file(
    checkpoint: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            save_checkpoint(checkpoint, tiny_yolox(seed=1).state_dict(), TINY, SPEC)
    assert checkpoint.read_bytes() == before
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["pics", "tiny.safetensors"]
    with pytest.raises(StoreError):
        save_checkpoint(Path("nowhere/x.safetensors"), model.state_dict(), TINY, SPEC)


WRONG_WRITES: dict[str, tuple[YoloxConfig, ModelSpec, str]] = {
    "class names": (TINY, dataclasses.replace(SPEC, class_names=("a",)), "names 1 classes"),
    "size": (TINY, dataclasses.replace(SPEC, input_size=(100, 96)), "100,96 is not made of mult"),
    "weights": (dataclasses.replace(TINY, width=0.25), SPEC, "weights do not fit the yolox"),
}


@pytest.mark.parametrize("name", WRONG_WRITES)
def test_a_wrong_write_is_refused(tmp_path: Path, model: Any, name: str) -> None:
    config, spec, message = WRONG_WRITES[name]
    with pytest.raises(SourceError, match=message):
        save_checkpoint(tmp_path / "x.safetensors", model.state_dict(), config, spec)
    assert list(tmp_path.iterdir()) == []


# What is refused: requests


REQUESTS: dict[str, tuple[list[object], str]] = {
    "family": (["--family", "yolox"], "--family yolox: a checkpoint says its family itself"),
    "head": (["--head", "one2one"], "--head one2one: tiny.safetensors has a single head"),
    "trust": (["--trust-checkpoint"], "--trust-checkpoint: a safetensors file holds no code"),
    "size": (["--image-size", "100"], "--image-size 100,100: sides must be multiples of 32"),
    "opset": (["--opset", "22"], "--opset 22: the exporter writes opsets 11 to 20"),
    "labels": (["--labels", "coco"], "it has 3 classes, but 80 names were given"),
}


@pytest.mark.parametrize("verb", ["run", "export"])
@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_refused(cli: Cli, checkpoint: Path, verb: str, name: str) -> None:
    words, message = REQUESTS[name]
    done = cli(verb, checkpoint.name, *words, "--out", "out")
    assert done.code == 2 and message in done.error
    assert not list(Path().glob("out/**/*.onnx"))


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_missing_extra_names_its_command(
    cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else found(n)
    )
    done = cli("run", checkpoint.name)
    assert done.code == 2
    assert done.error == (
        f"{package}, for tiny.safetensors: it is not installed; "
        'install it with: pip install "boxwright[export]"'
    )


def test_missing_safetensors_while_inspecting(
    cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    done = cli("inspect", checkpoint.name)
    assert done.code == 2 and 'pip install "boxwright[export]"' in done.error


def test_missing_file(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("run", "inspect"):
        done = cli(verb, "gone.safetensors")
        assert done.code == 2
        assert done.error == "gone.safetensors: there is no such file; check the path"


# What is refused: files

DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "not a whole safetensors file"),
    "cut": (lambda data: data[:-7], "not a whole safetensors file"),
    "cut in the header": (lambda data: data[:300], "not a whole safetensors file"),
    "longer": (lambda data: data + b"\0", "not a whole safetensors file"),
    "text": (lambda data: b"hello there, this is no model", "not a whole safetensors file"),
    "zip": (lambda data: b"PK\x03\x04" + bytes(99), "not a whole safetensors file"),
    "git-lfs": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "git lfs pull",
    ),
    "header that is no JSON": (
        lambda data: data[:8] + b"[" * 9 + data[17:],
        "not a whole safetensors file",
    ),
    "huge header": (lambda data: b"\xff" * 8 + data[8:], "not a whole safetensors file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file(cli: Cli, checkpoint: Path, name: str) -> None:
    change, message = DAMAGE[name]
    checkpoint.write_bytes(change(checkpoint.read_bytes()))
    for verb in ("run", "inspect"):
        done = cli(verb, checkpoint.name)
        assert done.code == 2 and message in done.error


def test_folder_and_unreadable(cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.safetensors").mkdir()
    for verb in ("run", "inspect"):
        assert cli(verb, "folder.safetensors").code == 2


def _network(**changes: Any) -> str:
    return json.dumps({"name": "yolox", "config": {**TINY.as_dict(), **changes}})


def _spec(**changes: Any) -> str:
    return json.dumps({**SPEC.as_dict(), **changes})


PREPROCESS = SPEC.preprocess.as_dict()
# Metadata that replaces the file's; None takes the key out.
HEADERS: dict[str, tuple[dict[str, str | None], str]] = {
    "no network": ({"boxwright.network": None}, "does not say what network it is of"),
    "no spec": ({"boxwright.spec": None}, "does not say what network it is of"),
    "network no JSON": ({"boxwright.network": "{"}, "its header is no JSON of ours"),
    "network deep": ({"boxwright.network": "[" * 100_000}, "its header is no JSON of ours"),
    "network a list": ({"boxwright.network": "[1]"}, "not an object of name and config"),
    "network with more": (
        {"boxwright.network": '{"name": "yolox", "config": {}, "x": 1}'},
        "not an object of name and config",
    ),
    "unknown network": (
        {"boxwright.network": '{"name": "yolocks", "config": {}}'},
        "no network 'yolocks', perhaps yolox is meant (known: yolox)",
    ),
    "network a number": ({"boxwright.network": '{"name": 3, "config": {}}'}, "no network '3'"),
    "config a list": ({"boxwright.network": '{"name": "yolox", "config": []}'}, "not an object"),
    "config empty": ({"boxwright.network": '{"name": "yolox", "config": {}}'}, "is missing"),
    "unknown config key": ({"boxwright.network": _network(dept=1)}, "unknown key 'dept'"),
    "config type": ({"boxwright.network": _network(width="wide")}, "width 'wide'"),
    "config NaN": ({"boxwright.network": _network(width=float("nan"))}, "width nan"),
    "config huge": ({"boxwright.network": _network(depth=1e12)}, "depth 1000000000000.0"),
    "spec no JSON": ({"boxwright.spec": "{"}, "Boxwright metadata cannot be read"),
    "spec deep": ({"boxwright.spec": "[" * 100_000}, "its header is no JSON of ours"),
    "spec a number": ({"boxwright.spec": "5"}, "Boxwright metadata cannot be read"),
    "unknown spec key": ({"boxwright.spec": _spec(more=1)}, "Boxwright metadata cannot be read"),
    "spec without size": (
        {"boxwright.spec": json.dumps({"name": "x"})},
        "Boxwright metadata cannot be read",
    ),
    "spec task": ({"boxwright.spec": _spec(task="dance")}, "no valid spec (task:"),
    "spec threshold type": (
        {"boxwright.spec": _spec(score_threshold="high")},
        "no valid spec (score_threshold:",
    ),
    "spec threshold NaN": ({"boxwright.spec": _spec(iou_threshold=float("nan"))}, "thresholds"),
    "spec colour": (
        {"boxwright.spec": _spec(preprocess={**PREPROCESS, "color": "cmyk"})},
        "no valid spec (preprocess.color:",
    ),
    "spec deviation 0": (
        {"boxwright.spec": _spec(preprocess={**PREPROCESS, "std": [0, 1, 1]})},
        "preprocessing is not made of usable numbers",
    ),
    "spec family": ({"boxwright.spec": _spec(family="yolov5")}, "of family yolov5"),
    "spec layout": (
        {"boxwright.spec": _spec(layout={**SPEC.layout.as_dict(), "strides": [8, 16]})},
        "layout is not that of yolox",
    ),
    "spec classes": ({"boxwright.spec": _spec(class_names=["a"])}, "its network has 3"),
    "spec size": ({"boxwright.spec": _spec(input_size=[0, 32])}, "size 0,32 is not made of"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_wrong_header(cli: Cli, checkpoint: Path, name: str) -> None:
    changes, message = HEADERS[name]
    header, tensors = _parts(checkpoint)
    metadata = {**header["__metadata__"], **changes}
    header["__metadata__"] = {k: v for k, v in metadata.items() if v is not None}
    _assemble(checkpoint, header, tensors)
    for verb in ("run", "inspect"):
        done = cli(verb, checkpoint.name)
        assert done.code == 2 and message in done.error


def test_file_of_somebody_else(cli: Cli, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"model.weight": np.zeros((2, 3), np.float32)}, path, metadata={"format": "pt"})
    done = cli("run", path)
    assert done.code == 2 and "give a .safetensors that Boxwright wrote" in done.error
    save_file({}, path)
    assert cli("run", path).code == 2


def _drop(state: dict[str, Any]) -> None:
    for name in [n for n in state if n.startswith("head.stems.")][:6]:
        del state[name]


def _retype(state: dict[str, Any]) -> None:
    name = "head.cls_preds.0.bias"
    state[name] = state[name].to(torch.int32)


def _diverge(state: dict[str, Any]) -> None:
    state["head.obj_preds.1.bias"][0] = float("nan")


WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "six missing": (
        _drop,
        "6 weights do not fit the yolox network of its header: head.stems.0.conv.weight is "
        "missing, head.stems.0.bn.weight is missing, head.stems.0.bn.bias is missing, "
        "head.stems.0.bn.running_mean is missing, ...",
    ),
    "one more": (
        lambda state: state.update(extra=torch.zeros(1)),
        "1 weights do not fit the yolox network of its header: extra is not of the network;",
    ),
    "shape": (
        lambda state: state.update({"head.cls_preds.0.bias": torch.zeros(4)}),
        "head.cls_preds.0.bias is [4], not [3]",
    ),
    "type": (_retype, "head.cls_preds.0.bias is of type I32, not F32"),
    "NaN": (_diverge, "1 of its weights hold NaN or infinity (head.obj_preds.1.bias is the first)"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fit(cli: Cli, checkpoint: Path, model: Any, name: str) -> None:
    from safetensors.torch import save_file

    change, message = WEIGHTS[name]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    change(state)
    save_file(state, checkpoint, metadata=_parts(checkpoint)[0]["__metadata__"])
    done = cli("run", checkpoint.name)
    assert done.code == 2 and message in done.error
    assert not list(Path().glob("**/*.onnx"))


def test_a_wrong_width_costs_no_memory(cli: Cli, checkpoint: Path) -> None:
    """The widest network that a header may name has a billion weights; none is allocated."""
    header, tensors = _parts(checkpoint)
    header["__metadata__"]["boxwright.network"] = _network(width=4, depth=2)
    _assemble(checkpoint, header, tensors)
    done = cli("run", checkpoint.name)
    assert done.code == 2 and "weights do not fit" in done.error
