"""Checkpoints of projects that are not installed: written here with weights of our own shapes.

The goldens (`test_goldens`) compare the networks with their projects; here are the ways in which a
file can be wrong, and what is read from configurations and pickles.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from boxwright import catalog  # noqa: E402
from boxwright.backends import BackendOptions  # noqa: E402
from boxwright.errors import BoxwrightError, SourceError  # noqa: E402
from boxwright.graph.io import bytes_from_model  # noqa: E402
from boxwright.nets.blocks import Rep, Unit  # noqa: E402
from boxwright.nets.weights import Weights, WeightsDifferError  # noqa: E402
from boxwright.sources import SourceRequest  # noqa: E402
from boxwright.sources.native import SOURCE, claims, openmmlab_preprocess  # noqa: E402
from boxwright.sources.native_files import read_native  # noqa: E402
from boxwright.sources.openmmlab_config import (  # noqa: E402
    config_from_file,
    config_from_text,
    network_config,
)

CLASSES, WIDTH = 3, 8

CONFIG = """
widen = 0.125
model = dict(
    type='YOLODetector',
    data_preprocessor=dict(mean=[0., 0., 0.], std=[255., 255., 255.], bgr_to_rgb=True),
    backbone=dict(type='YOLOv8CSPDarknet', widen_factor=widen,
                  norm_cfg=dict(type='BN', momentum=0.03, eps=0.001), act_cfg=dict(type='SiLU')),
    neck=dict(type='YOLOv8PAFPN', norm_cfg=dict(type='BN', eps=0.001)),
    bbox_head=dict(type='YOLOv8Head',
        head_module=dict(type='YOLOv8HeadModule', num_classes=3, featmap_strides=[8, 16, 32])))
test_pipeline = [dict(type='LoadImageFromFile'),
    dict(type='YOLOv5KeepRatioResize', scale=(128, 64)),
    dict(type='LetterResize', scale=(128, 64), allow_scale_up=False, pad_val=dict(img=114))]
"""


class Store:
    """Makes the weights of units under their names, from a seed."""

    def __init__(self):
        self.rng, self.tensors = torch.Generator().manual_seed(0), {}

    def conv(self, name, inputs, outputs, kernel, bias=False):
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=self.rng)
        self.tensors[f"{name}.weight"] = weight / (inputs * kernel * kernel) ** 0.5
        if bias:
            self.tensors[f"{name}.bias"] = torch.randn(outputs, generator=self.rng)

    def norm(self, name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            self.tensors[f"{name}.{part}"] = torch.rand(channels, generator=self.rng) + 0.5

    def unit(self, name, inputs, outputs, kernel):
        self.conv(f"{name}.conv", inputs, outputs, kernel)
        self.norm(f"{name}.bn", outputs)

    def split(self, name, inputs, outputs):
        half = outputs // 2
        self.unit(f"{name}.main_conv", inputs, outputs, 1)
        for part in ("conv1", "conv2"):
            self.unit(f"{name}.blocks.0.{part}", half, half, 3)
        self.unit(f"{name}.final_conv", 3 * half, outputs, 1)


def yolov8_weights():
    """MMYOLO's YOLOv8 of widths 8, 16, 24, 32, 40, which no configuration has."""
    s, widths = Store(), (8, 16, 24, 32, 40)
    s.unit("backbone.stem", 3, 8, 3)
    for index in range(4):
        before, after = widths[index], widths[index + 1]
        s.unit(f"backbone.stage{index + 1}.0", before, after, 3)
        s.split(f"backbone.stage{index + 1}.1", after, after)
    s.unit("backbone.stage4.2.conv1", 40, 20, 1)
    s.unit("backbone.stage4.2.conv2", 80, 40, 1)
    s.split("neck.top_down_layers.0", 72, 32)
    s.split("neck.top_down_layers.1", 56, 24)
    s.unit("neck.downsample_layers.0", 24, 24, 3)
    s.split("neck.bottom_up_layers.0", 56, 32)
    s.unit("neck.downsample_layers.1", 32, 32, 3)
    s.split("neck.bottom_up_layers.1", 72, 40)
    for level, width in enumerate((24, 32, 40)):
        for kind, outputs in (("cls", CLASSES), ("reg", 64)):
            place = f"bbox_head.head_module.{kind}_preds.{level}"
            s.unit(f"{place}.0", width, 16, 3)
            s.unit(f"{place}.1", 16, 16, 3)
            s.conv(f"{place}.2", 16, outputs, 1, bias=True)
    return s.tensors


def write(path, weights=None, **fields):
    content = {"meta": {"cfg": CONFIG, "dataset_meta": {"CLASSES": ("a", "b", "c")}}}
    content["state_dict"] = yolov8_weights() if weights is None else weights
    content.update(fields)
    torch.save(content, path)
    return path


def request(path, **extra):
    return SourceRequest(path, "tiny", **extra)


def test_a_checkpoint_becomes_a_graph_that_says_the_same(tmp_path):
    asked = request(write(tmp_path / "tiny.pth"))
    raw = SOURCE.export(asked)
    assert raw.spec.class_names == ("a", "b", "c")
    assert raw.spec.input_size == (64, 128) and raw.spec.preprocess.rounding == "floor"
    picture = np.random.default_rng(0).random((2, 3, 64, 128), np.float32)
    graph = catalog.backend("onnxruntime").open_bytes(
        bytes_from_model(raw.model, "tiny"), BackendOptions()
    )
    plain = SOURCE.reference(asked, BackendOptions(device="cpu"))
    found, wanted = (b.infer({"images": picture})["output"] for b in (graph, plain))
    assert found.shape == wanted.shape == (2, 168, 4 + CLASSES)
    assert np.abs(found - wanted).max() <= 0.01


def refused(action, *words):
    with pytest.raises(BoxwrightError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("neck.top_down_layers.1.final_conv.conv.weight"), ("is missing",)),
        (lambda w: w.update({"neck.extra.weight": torch.ones(1)}), ("no place", "neck.extra")),
        (
            lambda w: w.update({"backbone.stage2.0.conv.weight": torch.ones(24, 9, 3, 3)}),
            ("backbone.stage2.0.conv.weight is 24 x 9 x 3 x 3", "any x 16 x 3 x 3"),
        ),
        (
            lambda w: w["backbone.stem.bn.bias"].fill_(float("nan")),
            ("backbone.stem.bn.bias holds NaN",),
        ),
    ],
    ids=["missing", "left over", "another shape", "nan"],
)
def test_weights_that_do_not_fit_are_named(change, words, tmp_path):
    weights = yolov8_weights()
    change(weights)
    path = write(tmp_path / "odd.pth", weights)
    refused(lambda: SOURCE.export(request(path)), "not those of yolov8", *words)


def test_the_wrong_family_lists_the_first_names(tmp_path):
    path = write(tmp_path / "tiny.pth")
    refused(
        lambda: SOURCE.export(request(path, family="rtmdet")),
        "not those of rtmdet",
        "backbone.stem.0.conv.weight is missing",
        "backbone.stem.conv.weight",
    )


def test_without_a_configuration_it_is_asked_for(tmp_path):
    path = write(tmp_path / "bare.pth", meta={})
    refused(lambda: SOURCE.describe(request(path)), "meta.cfg", "--config")
    bare = tmp_path / "weights.pth"
    torch.save(yolov8_weights(), bare)
    refused(lambda: SOURCE.describe(request(bare)), "no meta", "--config")
    config = tmp_path / "given.py"
    config.write_text(CONFIG)
    assert SOURCE.describe(request(bare, config=config)).input_size == (64, 128)


def test_configurations_build_on_one_another_and_run_nothing(tmp_path):
    (tmp_path / "base.py").write_text(CONFIG)
    over = tmp_path / "over.py"
    over.write_text(
        "_base_ = './base.py'\n"
        "import os\nos.abort()\n"
        "count = 2 * 3 + 1\n"
        "model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN')),\n"
        "             bbox_head=dict(head_module=dict(num_classes=count)))\n"
    )
    config = network_config(config_from_file(over), "over.py")
    assert config.class_count == 7 and config.eps == (1e-5, 1e-3, 1e-3)


@pytest.mark.parametrize(
    "text",
    ["1 / 0", f"{'9' * 400} / 3", "1e308 // 1e-308", "'x' * 10 ** 9", "__import__('os').getcwd()",
     "[0] * 10 * 10", "(lambda: 1)()"],
)  # fmt: skip
def test_what_a_configuration_cannot_compute_is_left_out(text):
    found = config_from_text(f"a = {text}\nb = 2 * (3 + 1)", "x.py")
    assert found["b"] == 8 and not isinstance(found.get("a"), (str, list))


def test_a_loop_of_configurations_is_refused(tmp_path):
    (tmp_path / "loop.py").write_text("_base_ = ['loop.py']\n")
    refused(lambda: config_from_file(tmp_path / "loop.py"), "no end")


def test_an_unknown_head_is_named():
    text = CONFIG.replace("YOLOv8HeadModule", "SomethingHead")
    refused(lambda: network_config(config_from_text(text, "x.py"), "x.py"), "SomethingHead")


@pytest.mark.parametrize(
    ("steps", "resize", "interpolation"),
    [
        ("[dict(type='YOLOv5KeepRatioResize'), dict(type='LetterResize')]", "letterbox", "area"),
        (
            "[dict(type='mmdet.FixShapeResize', keep_ratio=False, interpolation='bicubic')]",
            "stretch",
            "cubic",
        ),
        (
            "[dict(type='Resize', keep_ratio=True), dict(type='Pad')]",
            "letterbox_top_left",
            "linear",
        ),
    ],
)
def test_the_test_pipeline_decides_the_preprocessing(steps, resize, interpolation):
    start = CONFIG[: CONFIG.index("test_pipeline")]
    settings = config_from_text(f"{start}\ntest_pipeline = {steps}\n", "x.py")
    rules = openmmlab_preprocess(settings, network_config(settings, "x.py"), (64, 64))
    assert (rules.resize, rules.interpolation) == (resize, interpolation)
    assert rules.color == "rgb" and rules.std == (255.0, 255.0, 255.0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("identity", [False, True])
def test_branches_become_one_convolution(stride, identity):
    store = Store()
    for branch, kernel in (("rbr_dense", 3), ("rbr_1x1", 1)):
        store.unit(branch, WIDTH, WIDTH, kernel)
    store.tensors["alpha"] = torch.tensor([0.7])
    if identity and stride == 1:
        store.norm("rbr_identity", WIDTH)
    x = torch.randn(1, WIDTH, 12, 10, generator=store.rng)
    plain, folded = (
        Rep(Weights(store.tensors, fused=f), WIDTH, stride).eval() for f in (False, True)
    )
    with torch.no_grad():
        difference = (plain(x) - folded(x)).abs().max()
    assert difference <= 1e-5 and len(list(folded.children())) == 2


def test_a_unit_refuses_other_inputs():
    store = Store()
    store.unit("a", 4, 8, 3)
    with pytest.raises(WeightsDifferError, match="8 x 4 x 3 x 3 where any x 5 x 3 x 3"):
        Unit(Weights(store.tensors).at("a"), 5, 3)


def pickled(path, module, name):
    """Write a checkpoint whose pickle names a class of a project, without the project."""
    body = b"\x80\x02}X\x05\x00\x00\x00modelc" + f"{module}\n{name}\n".encode() + b")\x81s."
    assert pickle.PROTO in body
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
    return path


def test_project_pickles_are_told_from_ultralytics(tmp_path):
    assert claims(pickled(tmp_path / "five.pt", "models.yolo", "Model"))
    assert claims(pickled(tmp_path / "six.pt", "yolov6.models.yolo", "Model"))
    assert not claims(pickled(tmp_path / "eight.pt", "ultralytics.nn.tasks", "DetectionModel"))
    assert not claims(pickled(tmp_path / "evil.pt", "os", "system"))


def test_what_no_project_has_is_still_refused(tmp_path):
    refused(lambda: read_native(pickled(tmp_path / "evil.pth", "os", "system")), "os.system")


def test_a_network_without_layers_is_one_clear_error(tmp_path):
    path = pickled(tmp_path / "empty.pt", "models.yolo", "Model")
    with pytest.raises(SourceError):
        SOURCE.export(request(path))


def test_options_that_do_not_apply_are_refused(tmp_path):
    path = write(tmp_path / "tiny.pth")
    refused(lambda: SOURCE.check(request(path, head="one2one")), "--head")
    refused(lambda: SOURCE.check(request(path, trust_checkpoint=True)), "--trust-checkpoint")
    refused(lambda: SOURCE.check(request(path, config=Path("none.py"))), "none.py")
    refused(lambda: SOURCE.describe(request(path, family="rfdetr")), "--family rfdetr")
