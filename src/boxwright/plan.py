"""The plan of a run: which files, from what, and what is there already. Pure but for hashing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boxwright import __version__, catalog
from boxwright.errors import StoreError
from boxwright.plan_budget import runtime_of_budget
from boxwright.recipe import Recipe
from boxwright.resolve import Resolved
from boxwright.store import Store, changed_settings, sha256_of_file
from boxwright.types import DEFAULT_OPSET, Parity, Target

__all__ = ["Action", "Plan", "Step", "hash_of", "make_plan"]

Action = Literal["make", "verify", "skip"]
Kind = Literal["export", "fp16", "int8", "end2end", "image"]


@dataclass(frozen=True, slots=True)
class Step:
    """One file to make.

    Attributes:
        file: Its name in the run directory.
        kind: Export from the source, conversion to FP16 or INT8, decode and NMS added, or
            preprocessing added.
        target: What it is.
        parent: File that it is made from, or "" for the source.
        key: Hash of everything that its content depends on.
        settings: The readable part of that.
        wanted: Asked for; otherwise only a step on the way.
        action: What there is to do.
        why: The reason, in words.
    """

    file: str
    kind: Kind
    target: Target
    parent: str
    key: str
    settings: dict[str, Any]
    wanted: bool
    action: Action = "make"
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run will do.

    Attributes:
        folder: The run directory.
        source_hash: SHA-256 over the source's files, or over a configuration's name.
        source_files: Those files with their SHA-256.
        steps: In order; parents come first.
    """

    folder: Path
    source_hash: str
    source_files: dict[str, str]
    steps: tuple[Step, ...]


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    recipe: Recipe,
    resolved: Resolved,
    out: Path,
    calibration_key: str = "",
    data_key: str = "",
) -> Plan:
    """Lay out the steps for a recipe, parents first, without looking at the run directory.

    Args:
        recipe: What is asked for.
        resolved: The source.
        out: Parent of the run directory.
        calibration_key: Hash of the pictures that INT8 files depend on.
        data_key: Hash of the labelled pictures that an accuracy budget depends on.
    """
    request = resolved.request
    files = {p.name: sha256_of_file(p) for p in resolved.source.inputs(request)}
    source_hash = hash_of(files or {"configuration": request.path.name})
    own = f"{DEFAULT_OPSET} or its own"  # a raw ONNX keeps a newer operator set
    default_opset = own if resolved.source.name == "onnx" else DEFAULT_OPSET
    base_settings: dict[str, Any] = {
        "source": source_hash,
        "boxwright": __version__,
        "name": request.name,
        "opset": request.opset or default_opset,
        "batch": request.batch or "dynamic",
        "image_size": list(request.image_size) if request.image_size else "own",
        "head": request.head,
        "family": request.family or "recognised",
        "labels": hash_of(request.labels)[:12] if request.labels else "own",
        "simplify": request.simplify,
    }
    if request.colors:
        base_settings["colors"] = hash_of(request.colors)[:12]
    packages = catalog.family_packages() if resolved.source.name == "onnx" else {}
    if packages:
        base_settings["packages"] = packages
    if not files:
        base_settings["seed"] = request.seed
    wanted = {t.suffix: t for t in recipe.target_records()}
    steps: dict[str, Step] = {}

    def add(kind: Kind, target: Target, parent: str, settings: dict[str, Any]) -> str:
        file = f"{request.name}.{target.suffix}.onnx"
        key = hash_of([kind, settings, steps[parent].key if parent else ""])
        steps[file] = Step(file, kind, target, parent, key, settings, target.suffix in wanted)
        return file

    budget: dict[str, Any] = {}
    if recipe.max_drop is not None:
        budget = {"max_drop": recipe.max_drop, "data": data_key}
    precisions = list(dict.fromkeys(t.precision for t in wanted.values()))
    raw: dict[str, str] = {}
    base = Target(batch=request.batch, opset=request.opset or DEFAULT_OPSET)
    raw["fp32"] = add("export", base, "", base_settings)
    if "fp16" in precisions:
        half = dataclasses.replace(base, precision="fp16")
        raw["fp16"] = add("fp16", half, raw["fp32"], {"precision": "fp16", **budget})
    for target in wanted.values():
        if target.precision == "int8" and _body(target) not in raw:
            integer = dataclasses.replace(base, precision="int8", deployment=target.deployment)
            settings: dict[str, Any] = {
                "precision": "int8",
                "deployment": target.deployment,
                "method": recipe.calibration.method,
                "calibration": calibration_key,
            }
            settings |= budget
            if budget and target.deployment == "tensorrt":
                settings["budget_runtime"] = runtime_of_budget(recipe)
            if recipe.calibration.method == "auto":
                settings["data"] = data_key
            raw[_body(target)] = add("int8", integer, raw["fp32"], settings)
    for target in wanted.values():
        if target.outputs == "end2end":
            baked: dict[str, Any] = {
                "nms": target.nms,
                "dynamic_thresholds": target.dynamic_thresholds,
                **{k: v for k, v in recipe.nms.model_dump().items() if k != "iterations"},
            }
            if target.nms == "portable":
                baked["iterations"] = target.nms_iterations
            made = add("end2end", target.of_tensor, raw[_body(target)], baked)
        else:
            made = raw[_body(target)]
        if target.input == "image":
            add("image", target, made, _picture_settings(target))
    return Plan(out / request.name, source_hash, files, tuple(steps.values()))


def _picture_settings(target: Target) -> dict[str, Any]:
    size = target.source_size
    return {
        "source_size": list(size) if size else "any",
        "image_layout": target.image_layout,
        "image_color": target.image_color,
    }


def _body(target: Target) -> str:
    """Return what tells the raw graphs apart that end-to-end files are made from."""
    return f"int8.{target.deployment}" if target.precision == "int8" else target.precision


def decide(plan: Plan, store: Store, *, force: bool, parity_keys: Mapping[str, str]) -> Plan:
    """Compare a plan with the run directory.

    Args:
        plan: What is wanted.
        store: What is there.
        force: Make everything anew.
        parity_keys: By file, the hash of what its verification depends on; empty when nothing
            shall be verified.

    Raises:
        StoreError: A file is in the way that this run did not make, or was made otherwise.
    """
    steps = [_decided(step, store, force, parity_keys.get(step.file, "")) for step in plan.steps]
    needed: set[str] = set()
    for step in reversed(steps):
        if step.action == "make" and (step.wanted or step.file in needed):
            needed.add(step.file)
            if step.parent:
                needed.add(step.parent)
    final = []
    for step in steps:
        if not step.wanted and step.file not in needed:
            continue
        final.append(step)
    return dataclasses.replace(plan, steps=tuple(final))


def _decided(step: Step, store: Store, force: bool, parity_key: str) -> Step:
    entry = store.entries.get(step.file)
    path = store.folder / step.file
    if force:
        return dataclasses.replace(step, action="make", why="forced")
    if (entry is None or entry.state != "published") and path.exists():
        raise StoreError(
            str(path), "this file is not from a run of ours", "move it, or use --force-convert"
        )
    if entry is None:
        return dataclasses.replace(step, action="make", why="it is missing")
    if entry.key != step.key:
        if entry.state != "published":
            return dataclasses.replace(step, action="make", why="settings changed")
        changes = "; ".join(changed_settings(entry.settings, step.settings)) or "its parent changed"
        raise StoreError(
            str(path),
            f"it was made with other settings ({changes})",
            "use --force-convert, or another --out",
        )
    if entry.state == "rejected":
        return dataclasses.replace(step, action="make", why="it was rejected before")
    if not store.is_whole(step.file):
        if path.exists() and entry.state == "published":
            raise StoreError(
                str(path), "it was changed after it was made", "move it, or use --force-convert"
            )
        return dataclasses.replace(step, action="make", why="it is missing")
    if not step.wanted:
        return dataclasses.replace(step, action="skip", why="unchanged")
    if entry.state == "built":
        return dataclasses.replace(step, action="verify", why="built, not yet verified")
    if parity_key and entry.parity_key != parity_key:
        why = "other pictures or source" if entry.parity_key else "not verified yet"
        return dataclasses.replace(step, action="verify", why=why)
    if parity_key and not (entry.parity and Parity.from_dict(entry.parity).passed):
        return dataclasses.replace(step, action="verify", why="its verification failed")
    return dataclasses.replace(step, action="skip", why="unchanged")


def plan_lines(steps: Sequence[Step]) -> list[tuple[str, str, str, str]]:
    """Return (action, file, made from, reason) of each step, for printing."""
    return [(s.action, s.file, s.parent or "source", s.why) for s in steps]
