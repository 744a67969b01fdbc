"""Draws a training log as one self-contained SVG, so that a run can be judged at a glance.

Plain text output and no plotting library: it runs on the training machine as well.

    python tools/train_sample/curves.py log.jsonl curves.svg
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 460, 260  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 40  # margins inside a panel
COLOURS = ("#1f5fa8", "#c8541a", "#2e8b57", "#8a3fa0", "#8a6d00")
INK, GRID = "#30343a", "#dfe3e8"
Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot over the elapsed minutes.

    Attributes:
        title: With the unit.
        lines: Name and (minutes, value) points of each line.
        logarithmic: The value axis is.
    """

    title: str
    lines: Sequence[tuple[str, Points]]
    logarithmic: bool = False


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log; a line that was cut off at the end is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def svg_from_log(records: Sequence[dict[str, Any]]) -> str:
    """Return the picture of a run: losses, average precision, learning rate and throughput."""

    def points(kind: str, key: str) -> Points:
        return [
            (record["elapsed_s"] / 60, float(record[key]))
            for record in records
            if record["kind"] == kind
            and isinstance(record.get(key), (int, float))
            and math.isfinite(record[key])
        ]

    losses = [(name, points("train", name)) for name in ("iou", "objectness", "classes", "l1")]
    panels = [
        Panel(
            "loss, per positive", [(n, [p for p in line if p[1] > 0]) for n, line in losses], True
        ),
        Panel("AP on held-out pages", [(n, points("eval", n)) for n in ("ap50", "ap50_95")]),
        Panel("learning rate", [("AdamW", points("train", "learning_rate"))]),
        Panel("images per second", [("trained", points("train", "images_per_s"))]),
    ]
    columns = 2
    rows = -(-len(panels) // columns)
    size = (columns * WIDTH, rows * HEIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>',
    ]
    for index, panel in enumerate(panels):
        x, y = index % columns * WIDTH, index // columns * HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> str:
    drawn = [point for _, line in panel.lines for point in line]
    title = f'<text x="{LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>'
    if not drawn:
        return title + f'<text x="{LEFT}" y="{HEIGHT // 2}">no data yet</text>'
    right = max(x for x, _ in drawn) or 1.0
    values = [_scaled(value, panel.logarithmic) for _, value in drawn]
    low, high = min(values), max(values)
    if not panel.logarithmic:
        low = min(0.0, low)
    if high - low < 1e-12:
        high = low + 1
    inner = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)

    def place(x: float, value: float) -> tuple[float, float]:
        share = (_scaled(value, panel.logarithmic) - low) / (high - low)
        return LEFT + inner[0] * x / right, TOP + inner[1] * (1 - share)

    parts = [title]
    for tick in _ticks(low, high):
        value = 10**tick if panel.logarithmic else tick
        y = place(0, value)[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    bottom = HEIGHT - BOTTOM
    for tick in _ticks(0.0, right):
        x = LEFT + inner[0] * tick / right
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{tick:.3g}</text>')
    parts.append(
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="{INK}"/>'
        f'<text x="{LEFT + inner[0] / 2:.0f}" y="{bottom + 30}" text-anchor="middle">'
        "elapsed, minutes</text>"
    )
    for index, (name, line) in enumerate(panel.lines):
        colour = COLOURS[index % len(COLOURS)]
        spots = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>' for x, y in spots]
        at = WIDTH - RIGHT - 78 * (len(panel.lines) - index)
        parts.append(
            f'<path d="M{at} 24h12" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{at + 15}" y="28">{escape(name)}</text>'
        )
    return "".join(parts)


def _scaled(value: float, logarithmic: bool) -> float:
    return math.log10(max(value, 1e-12)) if logarithmic else value


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers within low..high.

    >>> _ticks(0.0, 9.2)
    [0, 2, 4, 6, 8]
    """
    rough = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * magnitude >= rough) * magnitude
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: curves.py log.jsonl curves.svg")
    Path(sys.argv[2]).write_text(svg_from_log(read_log(Path(sys.argv[1]))), encoding="utf-8")
