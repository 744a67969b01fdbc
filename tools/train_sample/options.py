"""What a training command can be asked, and the schedule that follows from it."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Options:
    """One training command; the fields are the command-line options."""

    out: Path
    device: Literal["cuda", "cpu"]
    minutes: float
    resume: Path | None
    schedule_from: float | None
    schedule_to: float
    depth: float
    width: float
    widest: int | None
    head_width: int | None
    activation: Literal["silu", "relu", "lrelu"]
    batch: int
    learning_rate: float
    weight_decay: float
    warmup: float
    clip: float
    l1_from: float
    bf16_until: float
    average_decay: float
    average_ramp: float
    moved: float
    workers: int
    crops: int
    pages_per_chunk: int
    buffer: int
    minimum: int
    part: int
    held_out: int
    eval_pages: int
    eval_every_s: float
    save_every_s: float
    log_every_s: float
    cjk_share: float
    first_seed: int
    seed: int
    compile: bool
    generator: str


def parse_options(words: Sequence[str] | None = None) -> Options:
    """Read the command line; exits with 2 when it makes no sense."""
    parser = argparse.ArgumentParser(
        description="Train the embedded text-block detector from generated pages.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    where = os.environ.get("OUT")
    add("--out", type=Path, default=where, required=where is None, help="folder of the results")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="where to train")
    add("--minutes", type=float, default=8.8, help="from this command's start to its last step")
    add("--resume", type=Path, help="state.pt of an earlier command")
    add("--schedule-from", type=float, help="start on the cosine, 0..1 (that of --resume, or 0)")
    add("--schedule-to", type=float, default=1.0, help="where on the cosine this command ends")
    add("--depth", type=float, default=0.33, help="YOLOX depth")
    add("--width", type=float, default=0.25, help="YOLOX width")
    add("--widest", type=int, default=128, help="most channels of a level")
    add("--head-width", type=int, default=32, help="channels of the head")
    add("--activation", choices=("silu", "relu", "lrelu"), default="relu", help="of every layer")
    add("--batch", type=int, default=128, help="canvases of one step")
    add("--learning-rate", type=float, default=2e-3, help="AdamW, at the peak")
    add("--weight-decay", type=float, default=0.02, help="of convolution weights")
    add("--warmup", type=float, default=0.03, help="share of the schedule")
    add("--clip", type=float, default=20.0, help="greatest norm of the gradient")
    add("--l1-from", type=float, default=0.5, help="share of the schedule without the L1 loss")
    add("--bf16-until", type=float, default=0.9, help="share of the schedule under bfloat16")
    add("--average-decay", type=float, default=0.9998, help="of the weights' moving average")
    add("--average-ramp", type=float, default=600.0, help="steps over which that decay grows")
    add("--moved", type=float, default=0.5, help="share of canvases that are zoomed and shifted")
    workers = max(1, (os.cpu_count() or 2) - 2)
    add("--workers", type=int, default=workers, help="generating processes")
    add("--crops", type=int, default=2, help="crops of a page beside the whole")
    add("--pages-per-chunk", type=int, default=8, help="pages that travel together")
    add("--buffer", type=int, default=30_000, help="canvases kept on the device, 1.23 MB each")
    add("--minimum", type=int, help="canvases before training starts (2000 or the buffer)")
    add("--part", type=int, default=32, help="images assigned at a time")
    add("--held-out", type=int, default=300, help="pages of the final evaluation, seeds 0..")
    add("--eval-pages", type=int, default=100, help="pages of an evaluation on the way")
    add("--eval-every-s", type=float, default=180.0, help="seconds between evaluations")
    add("--save-every-s", type=float, default=180.0, help="seconds between saved states")
    add("--log-every-s", type=float, default=60.0, help="seconds between log lines")
    add("--cjk-share", type=float, default=0.0, help="share of CJK pages; needs their fonts")
    add("--first-seed", type=int, default=1_000_000, help="of the training pages")
    add("--seed", type=int, default=0, help="of weights, sampling and augmentation")
    add("--compile", action="store_true", help="torch.compile the network; a failure ends the run")
    add("--generator", default="boxwright.sample:generate_page", help=argparse.SUPPRESS)
    values = vars(parser.parse_args(words))
    if values["minimum"] is None:
        values["minimum"] = min(2000, values["buffer"])
    options = Options(**values)
    fault = _fault(options)
    if fault:
        parser.error(fault)
    return options


def _fault(options: Options) -> str | None:
    """Say what is wrong with a request, before anything is paid for."""
    for name in ("batch", "workers", "pages_per_chunk", "buffer", "minimum", "part", "held_out"):
        if getattr(options, name) < 1:
            return f"--{name.replace('_', '-')} must be at least 1"
    for name in ("schedule_to", "warmup", "l1_from", "bf16_until", "moved", "cjk_share"):
        if not 0 <= getattr(options, name) <= 1:
            return f"--{name.replace('_', '-')} must be within 0..1"
    if options.minimum > options.buffer:
        return f"--minimum {options.minimum} is more than --buffer {options.buffer}"
    if options.schedule_from is not None and not (0 <= options.schedule_from < options.schedule_to):
        return "--schedule-from must be at least 0 and below --schedule-to"
    if options.minutes <= 0 or options.crops < 0:
        return "--minutes must be above 0 and --crops not below it"
    if options.resume is not None and not options.resume.is_file():
        return f"--resume {options.resume}: no such file"
    if options.first_seed < 100_000:
        return f"--first-seed {options.first_seed}: seeds below 100000 are held out"
    return None


def learning_rate_factor(progress: float, warmup: float, floor: float = 0.02) -> float:
    """Return the share of the peak rate at `progress` 0..1: linear up, then a cosine down.

    >>> [round(learning_rate_factor(p, 0.1), 3) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.51, 0.02]
    """
    if progress < warmup:
        return progress / warmup
    share = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
