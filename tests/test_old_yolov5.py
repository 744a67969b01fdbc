"""YOLOv5 before v6.0 (Focus, BottleneckCSP, SPP behind the stem) against definitions of its own.

No release of these is at hand. The layers below were written anew for this test from what the
project publishes of them (the model files v2.0, v3.0 and v5.0 list the layers; CSP is
arXiv:1911.11929), in plain torch and apart from `boxwright.nets`, with which they share nothing.
They are pickled under the project's names, as its checkpoints are, in float16.
"""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from boxwright import catalog  # noqa: E402
from boxwright.backends import BackendOptions  # noqa: E402
from boxwright.graph.io import bytes_from_model  # noqa: E402
from boxwright.sources import SourceRequest  # noqa: E402
from boxwright.sources.native import SOURCE  # noqa: E402

CLASSES, SIZE = 3, (64, 96)
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
ACTS = {"v2.0": lambda: nn.LeakyReLU(0.1), "v3.0": nn.Hardswish, "v5.0": nn.SiLU}


class Conv(nn.Module):
    def __init__(self, c1, c2, k, s, act):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3)
        self.act = act()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Focus(nn.Module):
    def __init__(self, c2, k, act):
        super().__init__()
        self.conv = Conv(12, c2, k, 1, act)

    def forward(self, x):
        even, odd = x[..., ::2, :], x[..., 1::2, :]
        parts = [even[..., ::2], odd[..., ::2], even[..., 1::2], odd[..., 1::2]]
        return self.conv(torch.cat(parts, 1))


class Bottleneck(nn.Module):
    def __init__(self, c, shortcut, act):
        super().__init__()
        self.cv1, self.cv2 = Conv(c, c, 1, 1, act), Conv(c, c, 3, 1, act)
        self.add = shortcut

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    def __init__(self, c1, c2, n, shortcut, act):
        super().__init__()
        half = c2 // 2
        self.cv1 = Conv(c1, half, 1, 1, act)
        self.cv2 = nn.Conv2d(c1, half, 1, bias=False)
        self.cv3 = nn.Conv2d(half, half, 1, bias=False)
        self.cv4 = Conv(2 * half, c2, 1, 1, act)
        self.bn = nn.BatchNorm2d(2 * half, eps=1e-3)
        self.act = nn.LeakyReLU(0.1)  # here, whatever the other layers have
        self.m = nn.Sequential(*[Bottleneck(half, shortcut, act) for _ in range(n)])

    def forward(self, x):
        deep = self.cv3(self.m(self.cv1(x)))
        return self.cv4(self.act(self.bn(torch.cat([deep, self.cv2(x)], 1))))


class C3(nn.Module):
    def __init__(self, c1, c2, n, shortcut, act):
        super().__init__()
        half = c2 // 2
        self.cv1, self.cv2 = Conv(c1, half, 1, 1, act), Conv(c1, half, 1, 1, act)
        self.cv3 = Conv(2 * half, c2, 1, 1, act)
        self.m = nn.Sequential(*[Bottleneck(half, shortcut, act) for _ in range(n)])

    def forward(self, x):
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class SPP(nn.Module):
    def __init__(self, c1, c2, act):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2, 1, 1, act), Conv(c1 // 2 * 4, c2, 1, 1, act)
        self.m = nn.ModuleList([nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13)])

    def forward(self, x):
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.d = 1

    def forward(self, xs):
        return torch.cat(xs, 1)


class Detect(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.nc, self.no, self.nl, self.na = CLASSES, CLASSES + 5, 3, 3
        self.stride = torch.tensor([8.0, 16.0, 32.0])
        pixels = torch.tensor(ANCHORS, dtype=torch.float32).view(3, -1, 2)
        self.register_buffer("anchors", pixels / self.stride.view(-1, 1, 1))
        self.register_buffer("anchor_grid", pixels.clone().view(3, 1, -1, 1, 1, 2))
        self.m = nn.ModuleList([nn.Conv2d(c, self.no * 3, 1) for c in widths])

    def forward(self, xs):
        found = []
        for level, x in enumerate(xs):
            stride, anchors = float(self.stride[level]), self.anchor_grid[level].flatten(0, 4)
            raw = self.m[level](x)
            height, width = raw.shape[2:]
            rows = torch.arange(height).view(-1, 1).expand(height, width)
            columns = torch.arange(width).view(1, -1).expand(height, width)
            cell = torch.stack([columns, rows], -1).reshape(-1, 2)
            for a in range(3):
                one = raw[:, a * self.no : (a + 1) * self.no].flatten(2).transpose(1, 2)
                one = one.sigmoid()
                centre = (one[..., :2] * 2 - 0.5 + cell) * stride
                sides = (one[..., 2:4] * 2) ** 2 * anchors.view(-1, 2)[a]
                found.append(torch.cat([centre, sides, one[..., 4:]], 2))
        return torch.cat(found, 1)


class Model(nn.Module):
    """The layers of `yolov5s.yaml` before v6.0, an eighth as wide."""

    def __init__(self, release):
        super().__init__()
        act = ACTS[release]
        block = C3 if release == "v5.0" else BottleneckCSP
        last = -1

        def up():
            return nn.Upsample(scale_factor=2, mode="nearest")

        rows = [
            (last, Focus(8, 3, act)),
            (last, Conv(8, 16, 3, 2, act)),
            (last, block(16, 16, 1, True, act)),
            (last, Conv(16, 24, 3, 2, act)),
            (last, block(24, 24, 2, True, act)),
            (last, Conv(24, 32, 3, 2, act)),
            (last, block(32, 32, 2, True, act)),
            (last, Conv(32, 48, 3, 2, act)),
            (last, SPP(48, 48, act)),
            (last, block(48, 48, 1, False, act)),
            (last, Conv(48, 32, 1, 1, act)),
            (last, up()),
            ([-1, 6], Concat()),
            (last, block(64, 32, 1, False, act)),
            (last, Conv(32, 24, 1, 1, act)),
            (last, up()),
            ([-1, 4], Concat()),
            (last, block(48, 24, 1, False, act)),
            (last, Conv(24, 24, 3, 2, act)),
            ([-1, 14], Concat()),
            (last, block(48, 32, 1, False, act)),
            (last, Conv(32, 32, 3, 2, act)),
            ([-1, 10], Concat()),
            (last, block(64, 48, 1, False, act)),
            ([17, 20, 23], Detect([24, 32, 48])),
        ]
        for index, (source, layer) in enumerate(rows):
            layer.i, layer.f, layer.type, layer.np = index, source, "models.common", 0
        self.model = nn.Sequential(*[layer for _, layer in rows])
        self.stride = self.model[-1].stride
        self.names = ["ant", "bee", "cat"]
        self.yaml = {"nc": CLASSES}

    def forward(self, x):
        seen = []
        for layer in self.model:
            source = layer.f
            if isinstance(source, int):
                x = layer(x if source == -1 else seen[source])
            else:
                x = layer([x if s == -1 else seen[s] for s in source])
            seen.append(x)
        return x


def checkpoint(path, release):
    """Write one as the project does; returns the network of the stored weights, in float32."""
    torch.manual_seed(3)
    network = Model(release)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.uniform_(0.2, 0.8)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    network.half().eval()
    places = {"models.yolo": (Model, Detect)}
    places["models.common"] = (Conv, Focus, Bottleneck, BottleneckCSP, C3, SPP, Concat)
    kept = {kind: kind.__module__ for kinds in places.values() for kind in kinds}
    sys.modules["models"] = types.ModuleType("models")
    try:
        for name, kinds in places.items():
            sys.modules[name] = types.ModuleType(name)
            for kind in kinds:
                setattr(sys.modules[name], kind.__name__, kind)
                kind.__module__ = name
        torch.save({"model": network, "ema": None, "epoch": -1}, path)
    finally:
        for kind, module in kept.items():
            kind.__module__ = module
        for name in ("models", *places):
            del sys.modules[name]
    return network.float()


@pytest.mark.parametrize("release", ACTS)
def test_an_old_network_says_what_its_definition_says(release, tmp_path):
    path = tmp_path / "old.pt"
    network = checkpoint(path, release)
    request = SourceRequest(path, "old", image_size=SIZE)
    assert catalog.source_of(path) is SOURCE
    spec = SOURCE.describe(request)
    assert spec.class_names == ("ant", "bee", "cat") and spec.family == "yolov5"
    picture = np.random.default_rng(1).random((2, 3, *SIZE), np.float32)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(picture)).numpy()
    plain = SOURCE.reference(request, BackendOptions(device="cpu")).infer({"images": picture})
    results = [plain["output"]]
    if release == "v3.0":  # the export is the same for all
        data = bytes_from_model(SOURCE.export(request).model, "old")
        exported = catalog.backend("onnxruntime").open_bytes(data, BackendOptions())
        results.append(exported.infer({"images": picture})["output"])
    for found in results:
        assert found.shape == wanted.shape
        assert np.abs(found[..., :4] - wanted[..., :4]).max() <= 0.05
        assert np.abs(found[..., 4:] - wanted[..., 4:]).max() <= 1e-4
    assert wanted[..., 4:].std() > 0.01  # not all the same
