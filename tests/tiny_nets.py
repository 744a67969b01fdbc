"""Tiny networks of our own with random weights that find something; needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny_models import picture

from boxwright.nets import YoloxConfig

CLASS_NAMES = ("ant", "bee", "cat")
TINY = YoloxConfig(class_count=3, width=0.125)


def tiny_yolox(config: YoloxConfig = TINY, seed: int = 0) -> Any:
    """Return a network in evaluation mode with calm norms, spread scores and boxes of some size.

    Fresh weights give every cell the same faint score, and rounding would decide what is found.
    """
    import torch

    from boxwright.nets.yolox import build_yolox

    torch.manual_seed(seed)
    model = build_yolox(config)
    stack = np.stack([picture(64, 96, i) for i in range(8)]).transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(stack)).float()
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        norm.momentum = None  # a plain average, so that one pass settles it
        torch.nn.init.uniform_(norm.weight, 0.8, 1.2)
        torch.nn.init.uniform_(norm.bias, 0.4, 1.1)
    head = model.head
    # Objectness mostly low; classes either way; boxes near their cell and 3.5 strides big.
    wanted = (
        *((layer, [-1.5], 1.0) for layer in head.obj_preds),
        *((layer, [0.0], 1.5) for layer in head.cls_preds),
        *((layer, [0.5, 0.5, 1.25, 1.25], 0.15) for layer in head.reg_preds),
    )
    maps: dict[Any, Any] = {}
    hooks = [w[0].register_forward_hook(lambda m, i, o: maps.update({m: o})) for w in wanted]
    with torch.no_grad():
        model.train()(images)
        model.eval()(images)
        for hook in hooks:
            hook.remove()
        for layer, mean, deviation in wanted:
            factor = deviation / maps[layer].std((0, 2, 3))
            centred = layer.bias - maps[layer].mean((0, 2, 3))
            layer.weight.mul_(factor[:, None, None, None])
            layer.bias.copy_(torch.tensor(mean) + centred * factor)
    return model
