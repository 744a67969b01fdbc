"""Networks of our own: equal to the original code, and true to what their docstrings say.

Goldens (`goldens/` beside the folder that BOXWRIGHT_ASSETS names; default: ../shared) hold weights
and outputs of the original projects.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_nets import TINY, tiny_yolox

from boxwright.nets import NETWORKS, YoloxConfig, build_network, fused_network, network_name

ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)
GOLDENS = ASSETS.parent / "goldens" / "open"
REAL_NANO = ASSETS / "onnx" / "yolox_nano_416_static.onnx"
NAMES = tuple(sorted(p.name for p in GOLDENS.glob("megvii_yolox*")))
needs_goldens = pytest.mark.skipif(not NAMES, reason=f"no goldens in {GOLDENS}")

# Official sizes: depth, width, depthwise, millions of parameters at 80 classes by YOLOX's README.
SIZES = {
    "nano": (0.33, 0.25, True, "0.91"),
    "tiny": (0.33, 0.375, False, "5.06"),
    "s": (0.33, 0.5, False, "9.0"),
    "m": (0.67, 0.75, False, "25.3"),
    "l": (1.0, 1.0, False, "54.2"),
    "x": (1.33, 1.25, False, "99.1"),
}
VARIANTS = {
    "plain": TINY,
    "depthwise": dataclasses.replace(TINY, depthwise=True),
    "relu": dataclasses.replace(TINY, activation="relu"),
    "lrelu, deeper": dataclasses.replace(TINY, activation="lrelu", depth=0.67),
    "one class, narrow": YoloxConfig(1, width=0.0625),
}


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """torch on one thread."""
    pytest.importorskip("torch", reason="torch is not installed: no network can be built")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def _golden(name: str) -> tuple[dict[str, Any], Any, YoloxConfig]:
    facts = json.loads((GOLDENS / name / "facts.json").read_text(encoding="utf-8"))
    config = YoloxConfig(
        facts["num_classes"], facts["depth"], facts["width"], facts["depthwise"], facts["act"]
    )
    return facts, np.load(GOLDENS / name / "golden.npz"), config


def _raw(golden: Any, key: str) -> tuple[Any, Any, Any]:
    """Return the golden's logits as (1, A, 4), (1, A), (1, A, C)."""
    parts = []
    for part in ("reg", "obj", "cls"):
        maps = [golden[f"{key}_raw_{part}_{level}"] for level in range(3)]
        flat = np.concatenate([m.reshape(*m.shape[:2], -1) for m in maps], axis=2)
        parts.append(flat.transpose(0, 2, 1))
    return parts[0], parts[1][..., 0], parts[2]


def _training_outputs(torch: Any, model: Any, images: Any) -> Any:
    """Run with the outputs of training mode but the norms of evaluation mode."""
    model.eval()
    model.training = True  # of the outermost module alone
    with torch.inference_mode():
        outputs = model(images)
    model.eval()
    return outputs


@needs_goldens
@pytest.mark.parametrize("fuse", [False, True], ids=["as trained", "fused"])
@pytest.mark.parametrize("key", ["a", "b"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_original(torch: Any, name: str, key: str, fuse: bool) -> None:
    facts, golden, config = _golden(name)
    model = build_network(config)
    path = next((GOLDENS / name).glob("*.pth"))
    state = torch.load(path, weights_only=True)["model"]
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in model.parameters()) == facts["num_params"]
    model = fused_network(model) if fuse else model
    images = torch.from_numpy(golden[f"{key}_input"])
    outputs = _training_outputs(torch, model, images)
    for found, wanted in zip(outputs, _raw(golden, key), strict=True):
        assert tuple(found.shape) == wanted.shape
        assert np.abs(found.numpy() - wanted).max() < 1e-3
    if key == "b":
        with torch.inference_mode():
            official = model(images)[0, :, :5].numpy()
        assert np.abs(official - golden["b_head_output_undecoded_first5"]).max() < 1e-3


@needs_goldens
@pytest.mark.parametrize("name", NAMES)
def test_decoded_by_its_family_it_equals_the_original(torch: Any, name: str) -> None:
    from boxwright.boxes import decode
    from boxwright.sources.safetensors_file import new_spec

    _, golden, config = _golden(name)
    model = build_network(config)
    path = next((GOLDENS / name).glob("*.pth"))
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    images = golden["b_input"]
    spec = new_spec(config, name, [str(i) for i in range(config.class_count)], images.shape[2:])
    with torch.inference_mode():
        raw = model.eval()(torch.from_numpy(images)).numpy()
    boxes, scores = decode(raw, spec.layout, spec.input_size)
    assert np.abs(boxes[0] - golden["b_boxes_xyxy"]).max() < 0.05
    assert np.abs(scores[0] - golden["b_scores"]).max() < 1e-3


@pytest.mark.skipif(not REAL_NANO.is_file(), reason=f"{REAL_NANO} is not there")
def test_real_weights_give_the_official_output(torch: Any) -> None:
    """The official ONNX of YOLOX-nano, its convolutions put into our network one by one."""
    import cv2
    import onnx
    import onnxruntime

    graph = onnx.load(REAL_NANO).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    convs = [[arrays[n] for n in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    config = YoloxConfig(80, 0.33, 0.25, depthwise=True)
    model = fused_network(build_network(config))
    order: list[Any] = []
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, i, o: order.append(m)) for m in layers]
    with torch.no_grad():
        model(torch.zeros(1, 3, 416, 416))
        for hook in hooks:
            hook.remove()
        for layer, (weight, bias) in zip(order, convs, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
        bus = cv2.resize(cv2.imread(str(ASSETS / "images" / "bus.jpg")), (416, 416))
        images = bus.transpose(2, 0, 1)[None].astype(np.float32)
        found = model(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(REAL_NANO, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {graph.input[0].name: images})
    assert wanted[..., 4].max() > 0.9
    assert np.abs(found - wanted).max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_official_sizes_have_the_published_parameters(torch: Any, size: str) -> None:
    depth, width, depthwise, published = SIZES[size]
    with torch.device("meta"):
        model = build_network(YoloxConfig(80, depth, width, depthwise))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert f"{count:.{len(published.split('.')[1])}f}" == published


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_and_modes_agree(torch: Any, name: str) -> None:
    config = VARIANTS[name]
    model = tiny_yolox(config)
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        official = model(images)
    boxes, objectness, classes = _training_outputs(torch, model, images)
    cells = sum((96 // s) * (160 // s) for s in model.strides)
    assert model.strides == (8, 16, 32) and cells == 315
    assert official.shape == (2, cells, 5 + config.class_count)
    assert (boxes.shape, objectness.shape) == ((2, cells, 4), (2, cells))
    assert classes.shape == (2, cells, config.class_count)
    joined = torch.cat((boxes, objectness.sigmoid()[..., None], classes.sigmoid()), dim=2)
    assert (official - joined).abs().max() < 1e-6  # a sigmoid rounds by how wide it is run


def test_cells_are_ordered_by_stride_then_row(torch: Any) -> None:
    model = tiny_yolox()
    maps: list[Any] = []
    for layer in model.head.obj_preds:
        layer.register_forward_hook(lambda module, inputs, output: maps.append(output))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    _, objectness, _ = _training_outputs(torch, model, images)
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (4, 6), (2, 3)]
    assert objectness[0, 8 * 12 + 3 * 6 + 5] == maps[1][0, 0, 3, 5]


@pytest.mark.parametrize("name", VARIANTS)
def test_fused_equals_unfused(torch: Any, name: str) -> None:
    model = tiny_yolox(VARIANTS[name])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    other = fused_network(model)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        assert (model(images) - other(images)).abs().max() < 1e-4
    assert not [m for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not other.training and list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_loss_reaches_every_parameter(torch: Any) -> None:
    model = tiny_yolox().train()
    outputs = model(torch.rand(2, 3, 64, 64))
    assert all(o.requires_grad for o in outputs)
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_fresh_weights(torch: Any) -> None:
    """Norm constants of the original, scores near the prior, and a seed that repeats."""
    from boxwright.nets.yolox import build_yolox

    torch.manual_seed(4)
    model = build_yolox(TINY)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all((m.eps, m.momentum) == (1e-3, 0.03) for m in norms)
    for layer in (*model.head.cls_preds, *model.head.obj_preds):
        assert layer.bias.sigmoid().tolist() == pytest.approx([0.01] * len(layer.bias))
    assert model.training and model.config == TINY
    torch.manual_seed(4)
    again = build_yolox(TINY).state_dict()
    assert all(torch.equal(t, again[n]) for n, t in model.state_dict().items())


WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no classes": ({"class_count": 0}, "class_count 0"),
    "many classes": ({"class_count": 10**9}, "class_count 1000000000"),
    "classes as text": ({"class_count": "3"}, "class_count '3'"),
    "classes true": ({"class_count": True}, "class_count True"),
    "width 0": ({"width": 0}, "width 0"),
    "width nan": ({"width": math.nan}, "width nan"),
    "width inf": ({"width": math.inf}, "width inf"),
    "width huge": ({"width": 1e6}, "width 1000000.0"),
    "width between channels": ({"width": 0.3}, "width 0.3 gives no whole number"),
    "depth negative": ({"depth": -1}, "depth -1"),
    "depth huge": ({"depth": 1e9}, "depth 1000000000.0"),
    "depth as list": ({"depth": [1]}, r"depth \[1\]"),
    "depthwise 1": ({"depthwise": 1}, "depthwise 1"),
    "activation": ({"activation": "mish"}, "activation 'mish'"),
    "activation as list": ({"activation": []}, r"activation \[\]"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_wrong_config_is_refused(name: str) -> None:
    values, message = WRONG_CONFIGS[name]
    with pytest.raises(ValueError, match=message):
        YoloxConfig(**{"class_count": 3, **values})


def test_config_round_trip() -> None:
    for config in VARIANTS.values():
        assert YoloxConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
        assert NETWORKS[network_name(config)] is YoloxConfig
    for values, message in (({"class_count": 1, "dept": 1}, "'dept'"), ({}, "class_count")):
        with pytest.raises(TypeError, match=message):
            YoloxConfig.from_dict(values)


def test_configs_need_no_torch(environment: dict[str, str]) -> None:
    code = (
        "import sys, boxwright.nets as n, boxwright.sources.safetensors_file; n.YoloxConfig(3); "
        "print(sorted({'torch', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
