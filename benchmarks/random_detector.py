"""Gives a detector that has no public weights here weights that detect: for speed and for equality.

    python benchmarks/random_detector.py yolo12s.yaml pictures/ --out yolo12s.pt

Weights are drawn at random. The statistics of the batch normalisations are then taken from the
pictures, so that each layer's values have the spread that a trained network's have, and FP16 and
INT8 are tried under fair conditions; and the class branches are scaled and shifted until about
SHARE of all anchors score over 0.25. What it detects means nothing: no accuracy can be read from
it, but the same boxes must come out of every file that is made of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics import YOLO

_SHARE = 0.002  # of the anchors; 17 of 8400
_OVER = 0.25
# Values spread around one, not around zero, keep SiLU nearly linear: with its bend in their midst a
# deep random network is chaotic, and a last digit of the input moves its scores by a half.
_NORM_SCALE, _NORM_SHIFT = 0.5, 1.5
_CLASS_GAIN = 30.0
_SPREAD = 1.0  # standard deviation of the best logit of each anchor


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="NAME.yaml of Ultralytics")
    parser.add_argument("images", type=Path, help="folder of pictures")
    parser.add_argument("--count", type=int, default=16, help="pictures (default 16)")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def tensor_of(paths: list[Path]) -> torch.Tensor:
    """Return pictures stretched to 640 by 640, (N, 3, 640, 640) float32 RGB 0..1."""
    read = [cv2.imread(str(p)) for p in paths]
    pictures = [cv2.resize(p, (640, 640))[..., ::-1] for p in read if p is not None]
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255)


def settle(network: Any, pictures: torch.Tensor) -> None:
    """Set the batch statistics to those of the pictures, layer behind layer."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.fill_(_NORM_SCALE)
        norm.bias.data.fill_(_NORM_SHIFT)
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    network.train()
    with torch.no_grad():
        for first in range(0, len(pictures), 4):
            network(pictures[first : first + 4])
    network.eval()
    for norm in norms:
        norm.momentum = 0.03


def class_scores(network: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return the scores of some pictures: (N, classes, anchors); of a classifier (N, classes)."""
    raw = network(pictures[:8])[0]
    raw = raw[0] if isinstance(raw, tuple) else raw  # prototypes stand behind it
    head = network.model[-1]
    return raw if hasattr(head, "linear") else raw[:, 4 : 4 + head.nc]


def sharpen(network: Any, pictures: torch.Tensor) -> None:
    """Scale and shift the class branches of the head."""
    head = network.model[-1]
    if hasattr(head, "linear"):  # a classifier: far apart classes, no threshold
        head.linear.weight.data.mul_(_CLASS_GAIN)
        return
    with torch.no_grad():
        best = torch.logit(class_scores(network, pictures).clamp(1e-12, 1 - 1e-7)).amax(1)
        gain = _SPREAD / float(best.std())
        for branch in head.cv3:
            branch[-1].weight.mul_(gain)
            branch[-1].bias.mul_(gain)
        scores = class_scores(network, pictures)
        best = torch.logit(scores.clamp(1e-12, 1 - 1e-7)).amax(1).flatten()
        shift = float(np.log(_OVER / (1 - _OVER)) - torch.quantile(best, 1 - _SHARE))
        for branch in head.cv3:
            branch[-1].bias.add_(shift)


def main() -> None:
    """Make the checkpoint."""
    wishes = arguments()
    torch.manual_seed(0)
    paths = sorted(wishes.images.rglob("*.jpg"))[: wishes.count]
    model = YOLO(wishes.model)
    pictures = tensor_of(paths)
    settle(model.model, pictures)
    sharpen(model.model, pictures)
    with torch.no_grad():
        scores = class_scores(model.model, pictures).amax(1)
    print(f"{wishes.model}: {float((scores > _OVER).float().mean()):.4f} of the anchors score over "
          f"{_OVER}, the best {float(scores.max()):.3f}")  # fmt: skip
    model.save(str(wishes.out))


if __name__ == "__main__":
    main()
