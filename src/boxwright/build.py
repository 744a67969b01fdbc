"""From an ONNX file to a plan on disk, with its sidecar; typed first where a switch asks for it.

TensorRT 11 knows no FP16 or INT8 switch, and its predecessors chose layers by themselves. So the
old switches make a typed graph first, through the pipeline, and that is built.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.engine_record import EngineRecord, read_record, record_bytes, sidecar_path
from boxwright.engines import BuildSettings, Request, build_prepared, prepare
from boxwright.engines.settings import build_line
from boxwright.errors import RequestError, StoreError
from boxwright.nvidia import PlanRuntime
from boxwright.outcome import Listener
from boxwright.store import locked, sha256_of_file, write_atomic

__all__ = ["Built", "Typing", "build"]


@dataclass(frozen=True, slots=True)
class Typing:
    """What the old switches ask for.

    Attributes:
        precision: `fp16` or `int8`.
        images: Pictures to calibrate INT8 on: files, folders, globs.
    """

    precision: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did.

    Attributes:
        plan: Where the plan is, or would be.
        action: `built`, `skipped` (it is there, unchanged) or `planned` (`--dry-run`).
        onnx: The typed graph that it was built from.
        command, trtexec: Lines that build it again; trtexec is empty while the graph is not made.
        record: Its sidecar; None for a plan that is only planned.
    """

    plan: Path
    action: str
    onnx: Path
    command: str
    trtexec: str
    record: EngineRecord | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "plan": str(self.plan),
            "action": self.action,
            "onnx": str(self.onnx),
            "command": self.command,
            "trtexec": self.trtexec,
            "record": self.record.as_dict() if self.record else None,
        }


def build(
    onnx: Path,
    settings: BuildSettings,
    runtime: PlanRuntime = "tensorrt",
    *,
    typing: Typing | None = None,
    out: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    cache_part: Path | None = None,
    listener: Listener | None = None,
) -> Built:
    """Build a plan and put it beside its description.

    Args:
        onnx: A typed graph; with `typing`, a raw FP32 one.
        settings, runtime: See `boxwright.engines.build_plan`.
        typing: Make the graph FP16 or INT8 first.
        out: Folder; that of the ONNX file by default.
        force: Replace a plan that is there.
        dry_run: Check everything, write nothing.
        cache_part: Write the timing cache here and leave the file of the settings as it is, for
            several processes that share one; `merge_timing_caches` puts the parts together.
        listener: Told what happens.

    Raises:
        StoreError: Another plan of that name is there, another process is making it or writes the
            timing cache, or it cannot be written.
        BoxwrightError: See `boxwright.engines.build_plan`.
    """
    listener = listener or Listener()
    if typing is not None:
        prepare(onnx, dataclasses.replace(settings, dla_core=None), runtime)
        typed = _typed(onnx, typing, out or onnx.parent, dry_run, listener)
        if dry_run:
            plan = (out or typed.parent) / prepare(onnx, settings, runtime).name_for(typed)
            return Built(plan, "planned", typed, build_line(settings, typed, runtime), "")
        onnx = typed
    request = dataclasses.replace(prepare(onnx, settings, runtime), cache_part=cache_part)
    plan = (out or onnx.parent) / request.name_for(onnx)
    command = build_line(settings, onnx, runtime) + (f" --out {out}" if out else "")
    trtexec = request.trtexec(plan)
    if dry_run:
        standing = _standing(plan, request, force)
        if standing is None:
            return Built(plan, "planned", onnx, command, trtexec)
        return Built(plan, "skipped", onnx, standing.command, standing.trtexec, standing)
    with ExitStack() as stack:
        stack.enter_context(locked(plan, "wait for it, or choose another --out"))
        standing = _standing(plan, request, force)
        if standing is not None:
            return Built(plan, "skipped", onnx, standing.command, standing.trtexec, standing)
        cache = cache_part or settings.timing_cache
        if cache is not None and cache.absolute().parent.is_dir() and request.gpu is not None:
            stack.enter_context(locked(cache, "wait for it, or name another --timing-cache"))
        made = build_prepared(request, listener)
        record = dataclasses.replace(made.record, command=command, trtexec=trtexec)
        # The description first: a plan is never there without it, and it names the plan's hash.
        write_atomic(sidecar_path(plan), record_bytes(record))
        write_atomic(plan, made.data)
    return Built(plan, "built", onnx, command, trtexec, record)


def _standing(plan: Path, request: Request, force: bool) -> EngineRecord | None:
    """Return the record of the very plan that is asked for, when it is there whole.

    Raises:
        StoreError: Another file stands in its place.
    """
    if force or not plan.exists():
        return None
    advice = "use --force, or another --out"
    record = read_record(plan)
    if record is None or record.plan_sha256 != sha256_of_file(plan):
        raise StoreError(str(plan), "this file is not from a build of ours", advice)
    wanted = request.settings.as_dict()
    differs = [k for k in wanted if record.settings.get(k) != wanted[k]]
    if record.source_sha256 != sha256_of_file(request.facts.path):
        raise StoreError(str(plan), "it was built from another ONNX file", advice)
    if differs:
        changes = "; ".join(f"{k}: {record.settings.get(k)} -> {wanted[k]}" for k in differs)
        raise StoreError(str(plan), f"it was built with other settings ({changes})", advice)
    return record


def _typed(onnx: Path, typing: Typing, out: Path, dry_run: bool, listener: Listener) -> Path:
    """Return the file that the pipeline makes FP16 or INT8 (for TensorRT).

    Raises:
        RequestError: The file is not FP32.
        BoxwrightError: The pipeline refuses it.
    """
    from boxwright.engines.inspection import read_facts
    from boxwright.pipeline import run
    from boxwright.recipe import recipe_from_mapping

    facts = read_facts(onnx)
    if facts.half or facts.quantised:
        has = "INT8" if facts.quantised else "FP16"
        raise RequestError(
            f"--{typing.precision}", f"{onnx.name} is {has} already", f"drop --{typing.precision}"
        )
    target = {"precision": typing.precision, "outputs": "raw"}
    if typing.precision == "int8":
        target["deployment"] = "tensorrt"
    data: dict[str, Any] = {
        "source": str(onnx),
        "targets": [target],
        "verify": False,
        "measure": {"latency": False, "accuracy": False},
    }
    if typing.images:
        data["calibration"] = {"images": list(typing.images)}
    recipe = recipe_from_mapping(data, "request", options=True)
    outcome = run(recipe, out, dry_run=dry_run, listener=listener)
    if dry_run:
        assert outcome.plan is not None
        file = next(step.file for step in outcome.plan.steps if step.wanted)
        listener.note(f"{onnx.name} would first be made {typing.precision.upper()} as {file}")
        return outcome.plan.folder / file
    made = outcome.rows[0].path
    listener.note(
        f"precision is in the graph: {onnx.name} was made {typing.precision.upper()} as {made}, "
        "and that is built; it is not verified (boxwright run proves it)"
    )
    return made
