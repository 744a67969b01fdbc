"""Augmentation of a batch on the device, with every random number drawn on the host.

About half of the canvases stay where they are, since that is what the product sees; the others
are zoomed, shifted and, rarely, turned by 90 degrees through one resampling. Colours change
before the geometry and the padding keeps its grey, as in the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from feed import send

VALID, IGNORE = 1, 2  # as in data.py
PAD = 114.0
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Settings:
    """How often and how much.

    Attributes:
        moved: Share of a batch that is zoomed and shifted (always the first rows).
        colour_moved, colour_still: Chance of a colour change of a moved and of another canvas.
        zoom: Least and most.
        turn: Chance of a quarter turn of a moved canvas.
        invert, grey, blur, noise: Chances of these within a colour change.
        min_visible: Share of a box's area that must remain on the canvas.
        min_side_px: Shorter side under which a box is ignored.
    """

    moved: float = 0.5
    colour_moved: float = 0.7
    colour_still: float = 0.3
    zoom: tuple[float, float] = (0.5, 1.25)
    turn: float = 0.03
    invert: float = 0.05
    grey: float = 0.15
    blur: float = 0.3
    noise: float = 0.35
    min_visible: float = 0.85
    min_side_px: float = 4.0


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of one batch.

    Attributes:
        moved: Rows 0..moved-1 go through the matrices.
        geometry: (moved, 4) float32: zoom, quarter turns (-1, 0, 1), and where in the free room
            the picture lands (x, y in 0..1).
        colour_rows: (C,) int64 rows whose colours change.
        colours: (C, 10) float32: gains b, g, r; offset; grey share; gamma; blur amount (negative
            sharpens); noise sigma; two spare zeros.
    """

    moved: int
    geometry: FloatArray
    colour_rows: npt.NDArray[np.int64]
    colours: FloatArray


def draw(rng: np.random.Generator, count: int, settings: Settings) -> Draw:
    """Draw the augmentation of a batch of `count` canvases."""
    moved = round(count * settings.moved)
    geometry = np.empty((moved, 4), np.float32)
    least, most = np.log(settings.zoom)
    geometry[:, 0] = np.exp(rng.uniform(float(least), float(most), moved))
    turned = rng.random(moved) < settings.turn
    geometry[:, 1] = np.where(turned, rng.choice([-1, 1], moved), 0)
    geometry[:, 2:] = rng.random((moved, 2))

    chance = np.where(np.arange(count) < moved, settings.colour_moved, settings.colour_still)
    rows = np.flatnonzero(rng.random(count) < chance).astype(np.int64)
    number = len(rows)
    colours = np.zeros((number, 10), np.float32)
    contrast = np.exp(rng.uniform(np.log(0.6), np.log(1.4), number))
    tint = rng.uniform(0.85, 1.15, (number, 3))
    tint[rng.random(number) < 0.5] = 1
    gain = contrast[:, None] * tint
    offset = 128 * (1 - contrast) + rng.uniform(-35, 35, number)
    inverted = rng.random(number) < settings.invert
    colours[:, :3] = np.where(inverted[:, None], -gain, gain)
    colours[:, 3] = np.where(inverted, 255 - offset, offset)
    colours[:, 4] = rng.random(number) < settings.grey
    colours[:, 5] = np.exp(rng.uniform(-0.4, 0.4, number) * (rng.random(number) < 0.5))
    blurred = rng.random(number) < settings.blur
    colours[:, 6] = np.where(blurred, rng.uniform(-0.8, 0.9, number), 0)
    noisy = rng.random(number) < settings.noise
    colours[:, 7] = np.where(noisy, rng.uniform(0, 12, number), 0)
    return Draw(moved, geometry, rows, colours)


def apply(
    images: torch.Tensor,
    boxes: torch.Tensor,
    flags: torch.Tensor,
    extents: torch.Tensor,
    drawn: Draw,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Augment a batch.

    Args:
        images: (B, S, S, 3) uint8 BGR, square.
        boxes: (B, M, 4) float32 xyxy pixels.
        flags: (B, M) uint8.
        extents: (B, 2) int32 width and height of the picture in the canvas, at its top left.
        drawn: What to do.
        settings: The rules of visibility.

    Returns:
        images (B, 3, S, S) float32 0..255, channels last in memory; boxes; flags.
    """
    device = images.device
    pixels = images.permute(0, 3, 1, 2).float()  # a channels-last view of the same bytes
    if len(drawn.colour_rows):
        rows = send(drawn.colour_rows, device)
        changed = _recolour(pixels[rows], send(drawn.colours, device))
        pixels[rows] = _repad(changed, extents[rows])
    if drawn.moved:
        first = slice(0, drawn.moved)
        matrices = make_matrices(send(drawn.geometry, device), extents[first], images.shape[1])
        pixels[first] = warp(pixels[first], matrices)
        moved, moved_flags = move_boxes(
            boxes[first], flags[first], matrices, images.shape[1], settings
        )
        boxes = torch.cat([moved, boxes[drawn.moved :]])
        flags = torch.cat([moved_flags, flags[drawn.moved :]])
    return pixels, boxes, flags


def make_matrices(geometry: torch.Tensor, extents: torch.Tensor, side: int) -> torch.Tensor:
    """Return (N, 2, 3) float32 matrices from canvas pixels to new canvas pixels.

    A picture that fits the canvas lands anywhere inside it; of a larger one a part is shown.

    Args:
        geometry: (N, 4) as in `Draw`.
        extents: (N, 2) width and height of the picture.
        side: Of the square canvas, pixels.
    """
    zoom, turn = geometry[:, 0], geometry[:, 1]
    cosine, sine = zoom * (turn == 0), zoom * turn
    linear = torch.stack([cosine, -sine, sine, cosine], dim=1).reshape(-1, 2, 2)
    corners = linear * extents.to(geometry.dtype)[:, None, :]  # images of the two edges
    low = corners.clamp(max=0).sum(dim=2)  # least x and y of the transformed picture
    size = corners.abs().sum(dim=2)
    room = side - size  # negative: how much is cut off
    shift = room * geometry[:, 2:] - low
    return torch.cat([linear, shift[:, :, None]], dim=2)


def warp(pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Resample (N, 3, S, S) float pixels by matrices (N, 2, 3); grey 114 outside."""
    if pixels.shape[2] != pixels.shape[3]:
        raise ValueError(f"a square canvas is warped, not {tuple(pixels.shape)}")
    side = pixels.shape[2]
    linear, shift = matrices[:, :, :2], matrices[:, :, 2:]
    # Zooms and quarter turns only: the inverse is the transpose over the squared zoom.
    inverse = linear.transpose(1, 2) / linear.square().sum(dim=1, keepdim=True)
    # grid_sample measures in -1..1 over the canvas edges: p = (n + 1) * side / 2.
    offset = inverse @ (1 - shift * (2 / side)) - 1
    theta = torch.cat([inverse, offset], dim=2)
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels - PAD, grid, align_corners=False).add_(PAD)


def move_boxes(
    boxes: torch.Tensor, flags: torch.Tensor, matrices: torch.Tensor, side: int, rules: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Transform (N, M, 4) boxes, clip them to the canvas and flag them anew.

    A valid box stays valid when enough of it remains; one that vanished loses its flag; an
    ignored one stays ignored.
    """
    linear, shift = matrices[:, None, :, :2], matrices[:, None, :, 2]
    one = (linear @ boxes[..., :2, None])[..., 0] + shift
    two = (linear @ boxes[..., 2:, None])[..., 0] + shift
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    area = (high - low).prod(dim=-1)
    low, high = low.clamp(0, side), high.clamp(0, side)
    sides = high - low
    gone = (sides <= 0).any(dim=-1)
    enough = sides.prod(dim=-1) >= rules.min_visible * area
    enough &= sides.amin(dim=-1) >= rules.min_side_px
    flags = torch.where((flags == VALID) & ~enough, torch.full_like(flags, IGNORE), flags)
    flags = torch.where(gone, torch.zeros_like(flags), flags)
    return torch.cat([low, high], dim=-1), flags


def _recolour(pixels: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Change (N, 3, S, S) pixels by (N, 10) numbers as in `Draw`."""

    def number(index: int) -> torch.Tensor:
        return colours[:, index, None, None, None]

    blue, green, red = pixels.split(1, dim=1)
    grey = 0.114 * blue + 0.587 * green + 0.299 * red  # ITU-R BT.601
    pixels = pixels + number(4) * (grey - pixels)
    pixels = (pixels * colours[:, :3, None, None] + number(3)).clamp_(0, 255)
    pixels = pixels.div_(255).pow(number(5)).mul_(255)
    smooth = functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    pixels = pixels + number(6) * (smooth - pixels)
    noise = torch.randn_like(pixels)
    return pixels.addcmul_(noise, number(7).expand_as(noise)).clamp_(0, 255)


def _repad(pixels: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
    """Make everything outside of the picture the padding's grey again."""
    steps = torch.arange(pixels.shape[2], device=pixels.device)
    outside = (steps >= extents[:, 0, None])[:, None, None, :]
    outside = outside | (steps >= extents[:, 1, None])[:, None, :, None]
    return pixels.masked_fill_(outside, PAD)
