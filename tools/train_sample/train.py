"""Trains the embedded text-block detector on one GPU from pages generated on the fly.

Everything is driven by the clock, because the machine is lent by the minute: the schedule always
reaches its end, and a second command goes on from `state.pt`. See README.md beside this file.
"""

from __future__ import annotations

import os

# Before NumPy and OpenCV load: the generating processes are many and must not start threads.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import hashlib
import json
import math
import platform
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import augment
import curves
import cv2
import data
import feed
import loss
import metrics
import numpy as np
import torch
import weights
from options import Options, learning_rate_factor, parse_options

from boxwright.nets.yolox import YoloxConfig, build_yolox

LOSS_NAMES = ("total", "iou", "objectness", "classes", "l1", "positives", "gradient_norm")
FINITE_EVERY = 50  # steps between looks at whether the loss is still a number
TIMED_STEPS = range(40, 60)  # their phases are timed, with the device made to wait
EVAL_BATCH = 50
FILL_LIMIT_S = 150.0


class Trainer:
    """One command: the network, what it learns from, and what it leaves behind."""

    def __init__(self, options: Options, pages: feed.Feed, state: dict[str, Any] | None) -> None:
        self.options, self.pages = options, pages
        self.started = time.monotonic()
        self.device = torch.device(options.device)
        self.config = network_of(options)
        progress = state["progress"] if state else {}
        self.step = int(progress.get("step", 0))
        self.images_seen = int(progress.get("images_seen", 0))
        self.elapsed_before = float(progress.get("elapsed_s", 0.0))
        self.pages_before = int(progress.get("pages", 0))
        torch.manual_seed(options.seed + self.step)
        self.rng = np.random.default_rng((options.seed, self.step))
        self.model = build_yolox(self.config).to(self.device, memory_format=torch.channels_last)
        self.average = weights.Average(self.model, options.average_decay, options.average_ramp)
        self.optimiser = make_optimiser(self.model, options)
        if state:
            weights.unpack_state(state, self.model, self.average, self.optimiser)
        self.forward = torch.compile(self.model) if options.compile else self.model
        self.anchors = loss.make_anchors((data.CANVAS, data.CANVAS), self.device)
        self.settings = augment.Settings(moved=options.moved, min_side_px=data.MIN_SIDE_PX)
        self.ring = feed.Ring(options.buffer, self.device)
        self.held_out = feed.HeldOut()
        self.schedule_from = float(
            progress.get("schedule", 0.0)
            if options.schedule_from is None
            else options.schedule_from
        )
        self.sums = torch.zeros(len(LOSS_NAMES), device=self.device)
        self.broken = torch.zeros((), dtype=torch.bool, device=self.device)
        self.summed_steps = 0
        self.terminated = False
        self.training_from = self.deadline = self.started
        self.phases: dict[str, list[float]] = {}
        self._first_step, self._timing, self._phase_began = self.step, False, 0.0
        self.evaluations: list[dict[str, Any]] = []
        options.out.mkdir(parents=True, exist_ok=True)
        self.log_file: TextIO = (options.out / "log.jsonl").open("a", encoding="utf-8")

    # -- the clock -------------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the first command of this run."""
        return self.elapsed_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Where on the schedule this moment is, 0..1."""
        span = max(1e-6, self.deadline - self.training_from)
        share = min(1.0, max(0.0, (time.monotonic() - self.training_from) / span))
        return self.schedule_from + (self.options.schedule_to - self.schedule_from) * share

    # -- training --------------------------------------------------------------------------

    def run(self) -> int:
        """Train until the time is over; return the exit code."""
        options = self.options
        self.pages.start(self.device)
        self.log("start", options=_plain(options), **environment(self.device))
        feed.wait_until_filled(self.pages, self.ring, self.held_out, options.minimum, FILL_LIMIT_S)
        self.log("filled", canvases=self.ring.filled, held_out=len(self.held_out))
        self.rehearse()
        self.training_from = time.monotonic()
        self.deadline = self.started + options.minutes * 60
        if self.deadline <= self.training_from:
            raise RuntimeError(f"--minutes {options.minutes}: the time was over before a step")
        next_log = self.training_from + min(20.0, options.log_every_s)
        next_eval = self.training_from + options.eval_every_s
        next_save = self.training_from + options.save_every_s
        mark, mark_step = self.training_from, self.step
        alive = self.pages.workers_alive
        while time.monotonic() < self.deadline and not self.terminated:
            feed.drain(self.pages, self.ring, self.held_out)
            self.train_step()
            if self.step % FINITE_EVERY == 0 and self.broken.item():
                return self.finish("nan")
            now = time.monotonic()
            if now >= next_log:
                self.log_training((self.step - mark_step) * options.batch / (now - mark))
                mark, mark_step, next_log = now, self.step, now + options.log_every_s
                if self.pages.workers_alive < alive:
                    alive = self.pages.workers_alive
                    self.log("note", text=f"workers died: {self.pages.counts.dead_workers}")
            if now >= next_save:
                next_save = now + options.save_every_s
                self.save()
            if now >= next_eval:
                next_eval = now + options.eval_every_s
                self.evaluate(options.eval_pages, final=False)
                mark += time.monotonic() - now
        if self.broken.item():
            return self.finish("nan")
        return self.finish("terminated" if self.terminated else "done")

    def rehearse(self) -> None:
        """Go through a step of each precision without learning: memory and kernels are settled."""
        began = time.monotonic()
        modes = {self.schedule_from < self.options.bf16_until}
        modes |= {self.options.schedule_to <= self.options.bf16_until}
        for bf16 in sorted(modes):
            pixels, boxes, flags = self.batch()
            self.losses(pixels, boxes, flags, bf16, with_l1=True).total.backward()
            self.optimiser.zero_grad(set_to_none=True)
        self._synchronise()
        self.log("rehearsed", seconds=round(time.monotonic() - began, 2), **self._memory())

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw and augment a batch."""
        images, boxes, flags, extents = self.ring.sample(self.options.batch, self.rng)
        drawn = augment.draw(self.rng, self.options.batch, self.settings)
        return augment.apply(images, boxes, flags, extents, drawn, self.settings)

    def losses(
        self,
        pixels: torch.Tensor,
        boxes: torch.Tensor,
        flags: torch.Tensor,
        bf16: bool,
        with_l1: bool,
    ) -> loss.Losses:
        """Run the network (bfloat16 where asked) and the loss (float32)."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = self.forward(pixels)
        self._phase("forward")
        found = loss.detection_loss(outputs, boxes, flags, self.anchors, with_l1, self.options.part)
        self._phase("loss")
        return found

    def train_step(self) -> None:
        """One step of the optimiser, without waiting for the device."""
        options, progress = self.options, self.progress
        rate = options.learning_rate * learning_rate_factor(progress, options.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self._timing = self.step - self._first_step in TIMED_STEPS
        self._phase(None)
        pixels, boxes, flags = self.batch()
        self._phase("batch")
        found = self.losses(
            pixels, boxes, flags, progress < options.bf16_until, progress >= options.l1_from
        )
        found.total.backward()
        self._phase("backward")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.images_seen += options.batch
        self.average.update(self.step)
        self._phase("update")
        parts = (found.total.detach(), found.iou, found.objectness, found.classes, found.l1)
        self.sums += torch.stack([*parts, found.positives.float(), norm])
        self.broken |= ~torch.isfinite(found.total.detach()) | ~torch.isfinite(norm)
        self.summed_steps += 1

    # -- evaluation ------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, count: int, final: bool) -> None:
        """Log the average precision of the averaged weights on the first held-out pages."""
        began = time.monotonic()
        images, boxes, flags, seeds = self.held_out.first(count)
        detections = []
        for start in range(0, len(images), EVAL_BATCH):
            group = torch.stack(images[start : start + EVAL_BATCH]).to(self.device)
            raw = self.average.model(group.permute(0, 3, 1, 2).float())
            decoded = loss.decode_boxes(raw[..., :4], self.anchors).cpu().numpy()
            scores = (raw[..., 4] * raw[..., 5]).float().cpu().numpy()
            detections += [
                metrics.detections_from_raw(b, s) for b, s in zip(decoded, scores, strict=True)
            ]
        result = metrics.evaluate(detections, boxes, flags)
        record = {name: _rounded(value) for name, value in asdict(result).items()}
        record |= {"final": final, "step": self.step, "schedule": round(self.progress, 4)}
        record |= {
            "first_seed": seeds[0] if seeds else None,
            "last_seed": seeds[-1] if seeds else None,
        }
        record |= {"seconds": round(time.monotonic() - began, 2)}
        self.evaluations.append(record)
        self.log("eval", **record)

    # -- what is left behind ---------------------------------------------------------------

    def save(self) -> None:
        """Write state.pt and ema.safetensors, unless the weights are no numbers."""
        if self.broken.item():
            return
        margin = (feed.SLOTS + 1) * self.options.pages_per_chunk * self.options.workers
        progress = {
            "step": self.step,
            "images_seen": self.images_seen,
            "elapsed_s": self.elapsed_s,
            "schedule": self.progress,
            "pages": self.pages_before + self.pages.counts.pages,
            "next_seed": self.pages.counts.next_seed + margin,
            "network": self.config.as_dict(),
        }
        state = weights.pack_state(self.model, self.average, self.optimiser, progress)
        size = weights.save_state(self.options.out / "state.pt", state)
        tensors = self.average.state_dict()
        network = {"name": "yolox", "config": self.config.as_dict()}
        notes = {"boxwright.network": json.dumps(network)}  # as boxwright's own checkpoints say it
        content = weights.safetensors_bytes(tensors, notes)
        weights.save_atomically(self.options.out / "ema.safetensors", content)
        self.log("saved", state_bytes=size, ema_bytes=len(content), schedule=self.progress)
        if max(size, len(content)) > weights.LARGEST_FILE_BYTES:
            self.log("note", text=f"state.pt has {size} bytes: more than one transfer takes")

    def finish(self, status: str) -> int:
        """Save, evaluate where there is time for it, write the summary; return the exit code."""
        if self.summed_steps:
            self.log_training(None)
        self.pages.stop()  # the evaluation gets the cores
        if status != "nan":
            self.save()
        if status == "done":
            self.evaluate(self.options.held_out, final=True)
        counts = self.pages.counts
        summary = {
            "status": status,
            "options": _plain(self.options),
            "network": self.config.as_dict(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps": self.step,
            "images_seen": self.images_seen,
            "elapsed_s": round(self.elapsed_s, 1),
            "schedule": [self.schedule_from, self.progress],
            "pages": self.pages_before + counts.pages,
            "canvases_of_this_command": counts.canvases,
            "training_seeds": [self.pages.plan.first_seed, counts.next_seed],
            "held_out_seeds": [0, self.options.held_out],
            "dropped_canvases": counts.dropped,
            "failed_pages": counts.failed,
            "failures": counts.failures,
            "dead_workers": counts.dead_workers,
            "phases_ms": self._phase_medians(),
            "evaluations": self.evaluations,
            "sources_sha256": source_digests(),
            **environment(self.device),
            **self._memory(),
        }
        text = json.dumps(summary, indent=1, default=str) + "\n"
        weights.save_atomically(self.options.out / "summary.json", text.encode())
        self.log("end", status=status)
        self.log_file.close()
        records = curves.read_log(self.options.out / "log.jsonl")
        weights.save_atomically(
            self.options.out / "curves.svg", curves.svg_from_log(records).encode()
        )
        return {"done": 0, "nan": 1, "terminated": 143}[status]

    def log(self, kind: str, **values: Any) -> None:
        """Write one record to the log and to standard error."""
        record = {"kind": kind, "elapsed_s": round(self.elapsed_s, 2), **values}
        line = json.dumps(record, default=str)
        self.log_file.write(line + "\n")
        self.log_file.flush()
        print(line if len(line) < 700 else line[:700] + " …", file=sys.stderr, flush=True)

    def log_training(self, images_per_s: float | None) -> None:
        """Log the means since the last such record."""
        means = (self.sums / self.summed_steps).tolist()
        self.sums.zero_()
        self.summed_steps = 0
        values = dict(zip(LOSS_NAMES, means, strict=True))
        values["positives_per_image"] = values.pop("positives") / self.options.batch
        counts = self.pages.counts
        self.log(
            "train",
            step=self.step,
            schedule=round(self.progress, 4),
            learning_rate=self.optimiser.param_groups[0]["lr"],
            images_seen=self.images_seen,
            images_per_s=None if images_per_s is None else round(images_per_s, 1),
            pages=self.pages_before + counts.pages,
            ring=self.ring.filled,
            dropped=counts.dropped,
            failed=counts.failed,
            **{name: _rounded(value) for name, value in values.items()},
            **self._memory(),
            **({"phases_ms": self._phase_medians()} if self.phases else {}),
        )

    # -- measuring -------------------------------------------------------------------------

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _phase(self, name: str | None) -> None:
        """End a phase of the few steps that are timed; None starts the first."""
        if not self._timing:
            return
        self._synchronise()
        now = time.monotonic()
        if name is not None:
            self.phases.setdefault(name, []).append(1000 * (now - self._phase_began))
        self._phase_began = now

    def _phase_medians(self) -> dict[str, float]:
        return {name: round(float(np.median(took)), 2) for name, took in self.phases.items()}

    def _memory(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated()
        return {"gpu_used_gb": round((total - free) / 1e9, 2), "gpu_peak_gb": round(peak / 1e9, 2)}


def network_of(options: Options) -> YoloxConfig:
    """Return the network that is asked for."""
    return YoloxConfig(
        1,
        options.depth,
        options.width,
        False,
        options.activation,
        options.widest,
        options.head_width,
    )


def make_optimiser(model: torch.nn.Module, options: Options) -> torch.optim.AdamW:
    """AdamW with weight decay on the convolution weights only."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        fused=True,
    )


def environment(device: torch.device) -> dict[str, Any]:
    """Say what the run was made with."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }


def source_digests() -> dict[str, str]:
    """Return the SHA-256 of every file that decides what is learned."""
    here = Path(__file__).resolve().parent
    package = Path(sys.modules["boxwright"].__file__ or "").parent
    files = [*here.glob("*.py"), *package.glob("nets/*.py"), *package.glob("sample/*.py")]
    files += [package / "preprocess.py", package / "families" / "yolox.py"]
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def _plain(options: Options) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}


def _rounded(value: Any) -> Any:
    """Five significant digits; what is no finite number becomes text, which JSON can hold."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else str(value)


def check_state(state: dict[str, Any], options: Options) -> str | None:
    """Say why a state does not fit this request."""
    wanted = network_of(options).as_dict()
    found = state["progress"]["network"]
    if found != wanted:
        return f"--resume {options.resume}: it is of {found}, not of {wanted}"
    start = state["progress"]["schedule"] if options.schedule_from is None else None
    if start is not None and start >= options.schedule_to:
        return f"--resume {options.resume}: it ended at {start} of the schedule already"
    return None


def main() -> int:
    """Run the command; return the exit code."""
    options = parse_options()
    state = weights.load_state(options.resume) if options.resume else None
    if state and (fault := check_state(state, options)):
        print(f"train.py: error: {fault}", file=sys.stderr)
        return 2
    first_seed = state["progress"]["next_seed"] if state else options.first_seed
    plan = feed.Plan(
        options.generator,
        options.workers,
        options.held_out,
        first_seed,
        options.crops,
        options.pages_per_chunk,
        options.cjk_share,
    )
    pages = feed.Feed(plan)  # forks: nothing may have touched CUDA before
    try:
        if options.device == "cuda":
            torch.set_num_threads(2)  # the generating processes have the other cores
            torch.backends.cudnn.benchmark = True
        else:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) - options.workers))
        trainer = Trainer(options, pages, state)

        def terminate(number: int, frame: FrameType | None) -> None:
            trainer.terminated = True

        signal.signal(signal.SIGTERM, terminate)
        return trainer.run()
    finally:
        pages.stop()


if __name__ == "__main__":
    sys.exit(main())
