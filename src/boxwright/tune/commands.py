"""Command lines that make the winner again and that use it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from os.path import commonpath
from pathlib import Path

from boxwright.recipe import Recipe, TargetOptions
from boxwright.tune.records import Combination
from boxwright.tune.request import Request

__all__ = ["commands_for", "run_words"]

_PICTURES = "PICTURES"  # stands for pictures of the user's


def commands_for(request: Request, winner: Combination) -> tuple[tuple[str, str], ...]:
    """Return (what it does, command line): make the winner's file again, and detect with it."""
    target = next(t for t in request.asked if request.file_of(t) == winner.file)
    words = run_words(request.recipe, target, request.out)
    if request.models != Path("models"):
        words += ["--models", str(request.models)]
    use = [
        "boxwright", "predict", str(winner.path), *_pictures(request),
        "--runtime", winner.runtime, "--threads", str(winner.threads), "--device", "cpu",
    ]  # fmt: skip
    if winner.batch > 1:
        use += ["--batch", str(winner.batch)]
    return (("make it again", shlex.join(words)), ("use it", shlex.join(use)))


def _pictures(request: Request) -> list[str]:
    """Return the pictures as the user gave them, or the folder of the data's own."""
    if request.recipe.images:
        return list(request.recipe.images)
    if not request.pictures:
        return [_PICTURES]
    folder, here = Path(commonpath([str(p.parent) for p in request.pictures])), Path.cwd()
    return [str(folder.relative_to(here) if folder.is_relative_to(here) else folder)]


def run_words(recipe: Recipe, target: TargetOptions, out: Path) -> list[str]:
    """Return `boxwright run` with every option that a target's file and its proof depend on.

    Args:
        recipe: What was asked for.
        target: The one file.
        out: Parent of the run directory.
    """
    words = ["boxwright", "run", recipe.source]
    words += ["--precision", target.precision, "--outputs", target.outputs]
    if target.outputs == "end2end":
        words += _nms_words(recipe, target)
    if target.precision == "int8":
        words += ["--deploy", target.deployment] if target.deployment != "cpu" else []
        words += _int8_words(recipe)
    if recipe.image_size is not None:
        words += ["--image-size", ",".join(str(s) for s in recipe.image_size)]
    if recipe.head != "auto":
        words += ["--head", recipe.head]
    for option, value in (
        ("--batch", recipe.batch),
        ("--opset", recipe.opset),
        ("--family", recipe.family),
        ("--labels", recipe.labels),
        ("--name", recipe.name),
        ("--data", recipe.data),
        ("--split", recipe.data_split),
        ("--data-images", recipe.data_images),
        ("--max-data", recipe.max_data),
        ("--max-drop", recipe.max_drop if target.precision != "fp32" else None),
    ):
        if value is not None:
            words += [option, str(value)]
    if recipe.seed:
        words += ["--seed", str(recipe.seed)]
    if not recipe.simplify:
        words.append("--no-simplify")
    if recipe.trust_checkpoint:
        words.append("--trust-checkpoint")
    words += _each("--images", recipe.images)
    words += ["--max-images", str(recipe.max_images)]
    words += ["--skip-benchmark", "--skip-evaluate"]
    return [*words, "--out", str(out)]


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _nms_words(recipe: Recipe, target: TargetOptions) -> list[str]:
    nms, words = recipe.nms, []
    if target.nms != "onnx":
        words += ["--nms", target.nms]
    for option, value, usual in (
        ("--score-threshold", nms.score_threshold, None),
        ("--iou-threshold", nms.iou_threshold, None),
        ("--pre-topk", nms.pre_topk, type(nms)().pre_topk),
        ("--keep-topk", nms.keep_topk, type(nms)().keep_topk),
        ("--nms-iterations", nms.iterations, type(nms)().iterations),
    ):
        if value != usual:
            words += [option, str(value)]
    for option, given in (
        ("--class-agnostic", nms.class_agnostic),
        ("--multi-label", nms.multi_label),
        ("--dynamic-thresholds", nms.dynamic_thresholds),
    ):
        if given:
            words.append(option)
    return words


def _int8_words(recipe: Recipe) -> list[str]:
    options = recipe.calibration
    words = _each("--calib-images", options.images)
    for option, value, usual in (
        ("--calib-count", options.count, type(options)().count),
        ("--calib-batch", options.batch, type(options)().batch),
        ("--calib-method", options.method, type(options)().method),
        ("--calib-cache", options.cache, None),
    ):
        if value != usual:
            words += [option, str(value)]
    if options.allow_overlap:
        words.append("--allow-calibration-overlap")
    return words
