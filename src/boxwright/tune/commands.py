"""Command lines that make the winner again and that use it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
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
    given = _pictures(request)
    words = run_words(request.recipe, target, request.out, given)
    if request.models != Path("models"):
        words += ["--models", str(request.models)]
    use = [
        "boxwright", "predict", str(winner.path), *(given or [_PICTURES]),
        "--runtime", winner.runtime, "--threads", str(winner.threads), "--device", "cpu",
    ]  # fmt: skip
    if winner.batch > 1:
        use += ["--batch", str(winner.batch)]
    return (("make it again", shlex.join(words)), ("use it", shlex.join(use)))


def _pictures(request: Request) -> list[str]:
    """Return the pictures as the user gave them, or the folder of the data's own."""
    wanted = request.recipe.images
    paths = {str(p) for p in request.pictures}
    if not wanted or set(wanted) != paths or len(wanted) == 1:
        return list(wanted)
    return [commonpath([str(Path(p).parent) for p in wanted])]


def run_words(
    recipe: Recipe, target: TargetOptions, out: Path, pictures: Sequence[str]
) -> list[str]:
    """Return `boxwright run` with every option that a target's file depends on.

    Args:
        recipe: What was asked for.
        target: The one file.
        out: Parent of the run directory.
        pictures: To verify on.
    """
    words = ["boxwright", "run", recipe.source]
    words += ["--precision", target.precision, "--outputs", target.outputs]
    if target.outputs == "end2end":
        words += _nms_words(recipe, target)
    if target.precision == "int8":
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
    ):
        if value is not None:
            words += [option, str(value)]
    if recipe.seed:
        words += ["--seed", str(recipe.seed)]
    if not recipe.simplify:
        words.append("--no-simplify")
    if recipe.trust_checkpoint:
        words.append("--trust-checkpoint")
    words += _each("--images", pictures)
    if pictures:
        words += ["--max-images", str(recipe.max_images)]
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
    if recipe.data is not None and recipe.max_drop is not None:
        words += ["--data", recipe.data, "--max-drop", str(recipe.max_drop)]
    return words
