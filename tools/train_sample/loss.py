"""The training loss of the one-class YOLOX head, vectorised over the batch.

SimOTA assignment and losses after Ge et al. 2021 (YOLOX, arXiv:2107.08430), the IoU loss 1 - IoU²
as there. Everything is FP32 and free of host synchronisation, so that the device never waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional

VALID, IGNORE = 1, 2  # as in data.py
CENTRE_RADIUS = 2.5  # cells
IOU_COST = 3.0
OUTSIDE_COST = 1e5  # an anchor outside of box or centre region is the last choice
NEVER = 1e9
TOP_IOUS = 10
IOU_WEIGHT = 5.0
LARGEST_LOG_SIZE = 8.0  # exp of it is beyond any canvas; keeps an untrained head finite


@dataclass(frozen=True, slots=True)
class Anchors:
    """One anchor per cell of every level.

    Attributes:
        cells: (A, 2) float32 integer x, y of the cell.
        strides: (A, 1) float32 pixels per cell.
    """

    cells: torch.Tensor
    strides: torch.Tensor

    @property
    def centres(self) -> torch.Tensor:
        """(A, 2) pixels."""
        return (self.cells + 0.5) * self.strides


def make_anchors(
    size: tuple[int, int], device: torch.device, strides: tuple[int, ...] = (8, 16, 32)
) -> Anchors:
    """Return the anchors of an input of `size` (height, width), each level row by row."""
    cells, steps = [], []
    for stride in strides:
        y, x = torch.meshgrid(
            torch.arange(size[0] // stride), torch.arange(size[1] // stride), indexing="ij"
        )
        cells.append(torch.stack([x, y], dim=-1).reshape(-1, 2).float())
        steps.append(torch.full((len(cells[-1]), 1), float(stride)))
    return Anchors(torch.cat(cells).to(device), torch.cat(steps).to(device))


def decode_boxes(values: torch.Tensor, anchors: Anchors) -> torch.Tensor:
    """Decode (..., A, 4) head values to float32 xyxy pixels."""
    values = values.float()
    centre = (values[..., :2] + anchors.cells) * anchors.strides
    half = values[..., 2:].clamp(max=LARGEST_LOG_SIZE).exp() * (anchors.strides * 0.5)
    return torch.cat([centre - half, centre + half], dim=-1)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which anchor answers for which box.

    Attributes:
        positive: (B, A) bool.
        box_index: (B, A) int64, the row of the boxes; 0 where not positive.
        iou: (B, A) float32 of the prediction with its box; 0 where not positive.
        ignored: (B, A) bool, the anchor's centre lies in an ignored box and it is not positive.
    """

    positive: torch.Tensor
    box_index: torch.Tensor
    iou: torch.Tensor
    ignored: torch.Tensor


def _pairwise_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of (B, M, 4) with (B, A, 4) as (B, M, A), plane by plane to save memory."""
    one, two = first[:, :, None, :], second[:, None, :, :]
    overlap = torch.minimum(one[..., 2], two[..., 2])
    overlap -= torch.maximum(one[..., 0], two[..., 0])
    overlap.clamp_(min=0)
    height = torch.minimum(one[..., 3], two[..., 3])
    height -= torch.maximum(one[..., 1], two[..., 1])
    overlap *= height.clamp_(min=0)
    area_one = (one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1])
    area_two = (two[..., 2] - two[..., 0]) * (two[..., 3] - two[..., 1])
    union = (area_one + area_two).sub_(overlap).clamp_(min=1e-6)
    return overlap.div_(union)


def _inside(centres: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Whether (A, 2) points lie in (B, M, 4) boxes, as (B, M, A) bool."""
    x, y = centres[:, 0], centres[:, 1]
    one = boxes[:, :, None, :]
    return (x > one[..., 0]) & (x < one[..., 2]) & (y > one[..., 1]) & (y < one[..., 3])


def _area(sides: torch.Tensor) -> torch.Tensor:
    """Width times height; the gradient of `prod` would make the host wait for the device."""
    return sides[..., 0] * sides[..., 1]


@torch.no_grad()
def assign(
    predicted: torch.Tensor,
    objectness: torch.Tensor,
    class_logits: torch.Tensor,
    boxes: torch.Tensor,
    flags: torch.Tensor,
    anchors: Anchors,
) -> Assignment:
    """SimOTA for one class (arXiv:2107.08430, section 2.1).

    Cost of a pair: -log sqrt(p_class * p_objectness) - 3 log IoU, plus a large constant where the
    anchor's centre is not both inside the box and within 2.5 cells of its centre. Each box takes
    its k cheapest anchors, k being the sum of its ten best IoUs; an anchor that several boxes
    took goes to the cheapest.

    Args:
        predicted: (B, A, 4) float32 xyxy.
        objectness, class_logits: (B, A) float32.
        boxes: (B, M, 4) float32 xyxy.
        flags: (B, M) uint8, VALID, IGNORE or 0.
        anchors: Of this input size.
    """
    valid = (flags == VALID)[:, :, None]
    in_box = _inside(anchors.centres, boxes)
    ignored = (in_box & (flags == IGNORE)[:, :, None]).any(dim=1)
    middle = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    reach = CENTRE_RADIUS * anchors.strides[:, 0]
    near = (anchors.centres[:, 0] - middle[:, :, None, 0]).abs() < reach
    near &= (anchors.centres[:, 1] - middle[:, :, None, 1]).abs() < reach
    in_box &= valid
    near &= valid
    strict = in_box & near
    possible = (in_box | near).any(dim=1, keepdim=True) & valid  # (B, M, A)

    iou = _pairwise_iou(boxes, predicted).masked_fill_(~possible, 0)
    score_cost = functional.softplus(-objectness) + functional.softplus(-class_logits)
    cost = (iou + 1e-8).log_().mul_(-IOU_COST).add_(0.5 * score_cost[:, None, :])
    cost.add_(strict.logical_not().float(), alpha=OUTSIDE_COST).masked_fill_(~possible, NEVER)

    most = min(TOP_IOUS, cost.shape[2])
    share = iou.topk(most, dim=2).values.sum(dim=2).long().clamp_(min=1)  # k of every box
    cheapest, order = cost.topk(most, dim=2, largest=False)
    taken = torch.arange(most, device=cost.device) < share[:, :, None]
    taken &= cheapest < NEVER / 2
    matched = torch.zeros_like(possible).scatter_(2, order, taken)
    best, box_index = cost.masked_fill_(~matched, NEVER).min(dim=1)
    positive = best < NEVER / 2
    own = iou.gather(1, box_index[:, None, :])[:, 0]
    return Assignment(
        positive,
        torch.where(positive, box_index, 0),
        torch.where(positive, own, 0.0),
        ignored & ~positive,
    )


def assign_in_parts(
    predicted: torch.Tensor,
    objectness: torch.Tensor,
    class_logits: torch.Tensor,
    boxes: torch.Tensor,
    flags: torch.Tensor,
    anchors: Anchors,
    part: int,
) -> Assignment:
    """`assign` for `part` images at a time: the (B, M, A) planes are what fills the memory."""
    arguments = (predicted, objectness, class_logits, boxes, flags)
    parts = [
        assign(*(a[i : i + part] for a in arguments), anchors)
        for i in range(0, len(predicted), part)
    ]
    return Assignment(
        torch.cat([p.positive for p in parts]),
        torch.cat([p.box_index for p in parts]),
        torch.cat([p.iou for p in parts]),
        torch.cat([p.ignored for p in parts]),
    )


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars on the device; `total` carries the gradient, the parts are weighted as in it."""

    total: torch.Tensor
    iou: torch.Tensor
    objectness: torch.Tensor
    classes: torch.Tensor
    l1: torch.Tensor
    positives: torch.Tensor


def detection_loss(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    boxes: torch.Tensor,
    flags: torch.Tensor,
    anchors: Anchors,
    with_l1: bool,
    part: int = 32,
) -> Losses:
    """Return the loss of a batch, each part summed and divided by the number of positives.

    Args:
        outputs: Head values (B, A, 4), objectness logits (B, A) and class logits (B, A, 1).
        boxes: (B, M, 4) float32 xyxy pixels.
        flags: (B, M) uint8, VALID, IGNORE or 0.
        anchors: Of this input size.
        with_l1: Add the L1 distance of the encoded boxes.
        part: Images assigned at a time.
    """
    values, objectness, class_logits = (output.float() for output in outputs)
    if class_logits.shape[2] != 1:
        raise ValueError(f"one class is assigned here, not {class_logits.shape[2]}")
    class_logits = class_logits[..., 0]
    predicted = decode_boxes(values, anchors)
    found = assign_in_parts(
        predicted.detach(), objectness.detach(), class_logits.detach(), boxes, flags, anchors, part
    )
    positive = found.positive
    count = positive.sum()
    scale = 1.0 / count.clamp(min=1)

    wanted = boxes.gather(1, found.box_index[..., None].expand(-1, -1, 4))
    # Negatives compare a fixed box with itself: no gradient, and no NaN that a mask would keep.
    unit = torch.zeros(4, device=boxes.device)  # filled there: a copy would make the host wait
    unit[2:] = 1
    wanted = torch.where(positive[..., None], wanted, unit)
    got = torch.where(positive[..., None], predicted, unit)
    low = torch.maximum(got[..., :2], wanted[..., :2])
    high = torch.minimum(got[..., 2:], wanted[..., 2:])
    overlap = _area((high - low).clamp(min=0))
    areas = _area(got[..., 2:] - got[..., :2]) + _area(wanted[..., 2:] - wanted[..., :2])
    iou = overlap / (areas - overlap).clamp(min=1e-6)
    iou_loss = IOU_WEIGHT * scale * ((1 - iou.square()) * positive).sum()

    targets = positive.float()
    object_loss = functional.binary_cross_entropy_with_logits(
        objectness, targets, weight=(~found.ignored).float(), reduction="sum"
    )
    class_loss = functional.binary_cross_entropy_with_logits(
        class_logits, found.iou, weight=targets, reduction="sum"
    )
    l1 = torch.zeros((), device=boxes.device)
    if with_l1:
        size = (wanted[..., 2:] - wanted[..., :2]).clamp(min=1e-3) / anchors.strides
        centre = (wanted[..., :2] + wanted[..., 2:]) * 0.5 / anchors.strides - anchors.cells
        goal = torch.cat([centre, size.log()], dim=-1)
        l1 = scale * ((values - goal).abs() * positive[..., None]).sum()
    object_loss, class_loss = scale * object_loss, scale * class_loss
    total = iou_loss + object_loss + class_loss + l1
    return Losses(
        total,
        iou_loss.detach(),
        object_loss.detach(),
        class_loss.detach(),
        l1.detach(),
        count.detach(),
    )
