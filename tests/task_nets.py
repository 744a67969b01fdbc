"""Tiny checkpoints of Ultralytics' tasks whose random weights detect.

The statistics of the batch normalisations are taken from noise and the class branches scaled, as
`benchmarks/random_detector.py` does with whole networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIDE = 128
CLASSES = 3
_HEADS = {
    "detect": ("Detect", [CLASSES]),
    "segment": ("Segment", [CLASSES, 8, 16]),
    "pose": ("Pose", [CLASSES, [5, 3]]),
    "obb": ("OBB", [CLASSES, 1]),
}


def configuration(task: str, generation: int) -> dict[str, Any]:
    """Return a network of five layers and the head of a task; 26 has the NMS-free one, too."""
    layers = [[-1, 1, "Conv", [n, 3, 2]] for n in (8, 16, 24, 24, 24)]
    base: dict[str, Any] = {"nc": CLASSES, "backbone": layers}
    if task == "classify":
        return {**base, "nc": 9, "head": [[-1, 1, "Classify", [9]]]}
    name, values = _HEADS[task]
    if generation == 26:
        base |= {"end2end": True, "reg_max": 1}
        name += "" if task == "detect" else "26"
    if task == "pose":
        base["kpt_shape"] = values[1]
    return {**base, "head": [[[2, 3, 4], 1, name, values]]}


def checkpoint(path: Path, task: str, generation: int = 8) -> Path:
    """Write one."""
    import torch
    from ultralytics.nn import tasks
    from ultralytics.utils import LOGGER

    from boxwright.sources.ultralytics_heads import HEADS

    LOGGER.setLevel(40)
    config = configuration(task, generation)
    torch.manual_seed(generation)
    network = getattr(tasks, HEADS[config["head"][-1][2]].model)(config, ch=3, verbose=False)
    side = SIDE // 2 if task == "classify" else SIDE
    noise = np.random.default_rng(0).random((8, 3, 16, 16), np.float32).repeat(side // 16, 2)
    pictures = torch.from_numpy(np.ascontiguousarray(noise.repeat(side // 16, 3)))
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.weight.data.fill_(0.5)
        norm.bias.data.fill_(0.7)
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        network.train()(pictures)
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 0.03
    network.eval()
    head = network.model[-1]
    if task == "classify":
        head.linear.weight.data.mul_(60)
    else:
        for name in ("cv3", "one2one_cv3"):
            for branch in getattr(head, name, None) or ():
                branch[-1].weight.data.mul_(6)
                branch[-1].bias.data.fill_(-1.5)
        for name in ("cv4", "one2one_cv4", "cv4_kpts"):
            for branch in getattr(head, name, None) or ():
                last = branch[-1] if isinstance(branch, torch.nn.Sequential) else branch
                if isinstance(last, torch.nn.Conv2d):
                    last.weight.data.mul_(3)
    torch.save({"model": network, "train_args": {"imgsz": side}, "epoch": -1}, path)
    return path
