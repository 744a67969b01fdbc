"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from boxwright.errors import RequestError, nearest_name

__all__ = [
    "ARTIFACT",
    "batch_from_text",
    "conversion_options",
    "counts_from_text",
    "device_arguments",
    "device_options",
    "image_size_from_text",
    "recipe_data_from_options",
    "runtime_options",
    "words_from_text",
]

F = TypeVar("F", bound=Callable[..., Any])

_WHOLE_NUMBER = re.compile("[0-9]{1,9}")
_PRECISIONS = ("fp32", "fp16", "int8")
_DEPLOYMENTS = ("cpu", "openvino", "tensorrt")
_OUTPUTS = ("raw", "end2end")
_NMS = ("onnx", "efficient_nms", "portable")
_INPUTS = ("tensor", "image")
_PICTURES = {"image_layout": ("nhwc", "nchw"), "image_color": ("bgr", "rgb")}


class _Artifact(click.ParamType):  # type: ignore[type-arg]
    """A file, or the address of a served model, which stays text."""

    name = "artifact"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return a path, or an address as it is."""
        from boxwright.triton_address import is_address

        return value if is_address(value) else Path(value)


ARTIFACT = _Artifact()


def words_from_text(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Split a comma list and check each word.

    Raises:
        RequestError: A word is unknown; the nearest is named.
    """
    words = [w.strip().lower() for w in text.split(",") if w.strip()]
    for word in words:
        if word not in known:
            near = nearest_name(word, known)
            hint = f"did you mean {near}?" if near else "use one of them"
            raise RequestError(f"{option} {word}", f"known are {', '.join(known)}", hint)
    if not words:
        raise RequestError(f"{option} {text!r}", "it is empty", f"give one of {', '.join(known)}")
    return list(dict.fromkeys(words))


def image_size_from_text(text: str) -> tuple[int, int]:
    """Read `640`, `640,480` or `640x480` as (height, width).

    Raises:
        RequestError: It is not one or two whole numbers.

    >>> image_size_from_text("640"), image_size_from_text("384x640")
    ((640, 640), (384, 640))
    """
    sides = _sides(text)
    if len(sides) not in (1, 2):
        raise RequestError(
            f"--image-size {text}", "it is not a side or height,width", "use e.g. 640 or 384,640"
        )
    return sides[0], sides[-1]


def _sides(text: str) -> list[int]:
    """Read numbers between commas or x; nothing when one of them is not whole."""
    parts = text.lower().replace("x", ",").replace(" ", ",").split(",")
    return [int(p) for p in parts] if all(_WHOLE_NUMBER.fullmatch(p) for p in parts) else []


def conversion_options(function: F) -> F:
    """Add the options that say what to make."""
    options = [
        click.option(
            "--precision", metavar="LIST", help="fp32, fp16, int8; a comma list. Default: fp32."
        ),
        click.option("--outputs", metavar="LIST", help="raw, end2end; a comma list. Default: raw."),
        click.option(
            "--input",
            metavar="LIST",
            help="tensor, or image for uint8 pictures that the graph preprocesses; a comma list. "
            "Default: tensor.",
        ),
        click.option(
            "--source-size",
            metavar="H,W",
            help="The only picture size of --input image. Default: any.",
        ),
        click.option(
            "--image-layout", metavar="WORD", help="Of --input image: nhwc (the default), nchw."
        ),
        click.option(
            "--image-color", metavar="WORD", help="Of --input image: bgr (the default), rgb."
        ),
        click.option("--model-only", is_flag=True, help="The raw head alone: --outputs raw."),
        click.option(
            "--nms",
            metavar="LIST",
            help="NMS of end-to-end files: onnx, efficient_nms, portable; a comma list.",
        ),
        click.option(
            "--deploy",
            metavar="LIST",
            help="Where INT8 files shall run: cpu (the default), openvino, tensorrt; a comma list.",
        ),
        click.option(
            "--calib-images",
            multiple=True,
            metavar="PATH",
            help="Pictures to calibrate INT8 on: files, folders, globs.",
        ),
        click.option("--calib-count", type=int, help="At most so many of them. Default: 256."),
        click.option("--calib-batch", type=int, help="Pictures of one run. Default: 1."),
        click.option(
            "--calib-method",
            metavar="WORD",
            help="minmax (the default), percentile, entropy; auto: the best of them on --data.",
        ),
        click.option(
            "--calib-cache",
            metavar="FILE",
            help="Calibration to read in the place of pictures; written when it is not there.",
        ),
        click.option(
            "--allow-calibration-overlap",
            is_flag=True,
            help="Calibrate on pictures that --data measures on; its accuracy then flatters.",
        ),
        click.option(
            "--data",
            metavar="PATH",
            help="Labelled pictures to measure accuracy on, as evaluate takes them.",
        ),
        click.option("--split", "data_split", metavar="NAME", help="Part of --data. Default: val."),
        click.option("--data-images", metavar="DIR", help="Folder of a COCO file's pictures."),
        click.option("--max-data", type=int, help="At most so many of --data, evenly spaced."),
        click.option(
            "--max-drop",
            type=float,
            metavar="X",
            help="Most mAP50-95 (or the task's own figure) that INT8 and FP16 may lose, e.g. "
            "0.005; layers go back to FP32 until so.",
        ),
        click.option(
            "--budget-runtime",
            type=click.Choice(["auto", "onnxruntime", "tensorrt"]),
            help="Where --max-drop of INT8 for TensorRT is measured. Default: auto, in plans where "
            "TensorRT and a GPU are.",
        ),
        click.option("--optimization-level", type=int, metavar="N", help="Of those plans, 0 to 5."),
        click.option("--tactic-sources", metavar="LIST", help="Of those plans; see build."),
        click.option(
            "--timing-cache", metavar="FILE", help="Of those plans: measured kernels, kept."
        ),
        click.option(
            "--workspace-gib", type=float, metavar="X", help="Of those plans: most of one layer."
        ),
        click.option("--batch", metavar="N", help="Fixed batch, or dynamic (the default)."),
        click.option(
            "--opset",
            type=int,
            help="ONNX operator set, 11 to 22. Default: 17, or a raw ONNX file's own if newer.",
        ),
        click.option("--image-size", metavar="S", help="Network input: a side, or height,width."),
        click.option("--pre-topk", type=int, help="Candidates that NMS sees. Default: 1000."),
        click.option("--keep-topk", type=int, help="Most detections of a picture. Default: 300."),
        click.option("--iou-threshold", type=float, help="Baked NMS IoU threshold."),
        click.option("--score-threshold", type=float, help="Baked score threshold."),
        click.option("--class-agnostic", is_flag=True, help="NMS across classes."),
        click.option("--multi-label", is_flag=True, help="Several classes for one box."),
        click.option(
            "--dynamic-thresholds", is_flag=True, help="Thresholds are optional graph inputs."
        ),
        click.option("--nms-iterations", type=int, help="Steps of the portable NMS. Default: 16."),
        click.option(
            "--head",
            metavar="WORD",
            help="auto, one2many, one2one: of v10 and 26. Default: auto, the NMS-free one.",
        ),
        click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say."),
        click.option(
            "--config",
            metavar="FILE",
            help="Configuration (.py) of an MMYOLO or MMDetection checkpoint that has none inside; "
            "of their ONNX exports it says how pictures are fed.",
        ),
        click.option(
            "--labels",
            metavar="FILE",
            help="Class names, with #rrggbb colours or a palette: JSON or text, or coco.",
        ),
        click.option("--name", metavar="NAME", help="Stem of the files. Default: the source's."),
        click.option("--no-simplify", is_flag=True, help="Do not run onnxslim."),
        click.option(
            "--trust-checkpoint",
            is_flag=True,
            help="Load a .pt with full rights. It can run any code: only for files you trust.",
        ),
        click.option("--seed", type=int, help="Of random weights (.yaml). Default: 0."),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default="runs",
            show_default=True,
            help="Folder; files land in OUT/NAME/.",
        ),
        click.option(
            "--models",
            type=click.Path(path_type=Path),
            default="models",
            show_default=True,
            help="Folder for downloads.",
        ),
        click.option("--force-download", is_flag=True, help="Download again."),
        click.option("--force-convert", is_flag=True, help="Make and replace every file."),
        click.option("--force-all", is_flag=True, help="Both of these."),
        click.option("--dry-run", is_flag=True, help="Print the plan, make nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--verbose", is_flag=True, help="Print every check of every file."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def runtime_options(function: F) -> F:
    """Add the options that say how a file runs."""
    options = [
        click.option(
            "--runtime",
            type=click.Choice(["auto", "onnxruntime", "openvino", "pytorch", "tensorrt"]),
            default="auto",
            show_default=True,
            help="What runs the file; what auto chose is printed.",
        ),
        click.option("--threads", type=int, help="CPU threads of one inference."),
    ]
    function = device_options(function)
    for option in reversed(options):
        function = option(function)
    return function


def device_options(function: F) -> F:
    """Add the options that say on which device, and how a GPU is used."""
    options = [
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="WORD",
            help="auto takes a GPU when the runtime has one; cpu, cuda, cuda:N and tensorrt (ONNX "
            "Runtime's TensorRT provider) insist.",
        ),
        click.option(
            "--cuda-graph/--no-cuda-graph",
            default=True,
            show_default=True,
            help="Replay the network as a CUDA graph where it can be captured.",
        ),
        click.option(
            "--provider-option",
            "provider_options",
            multiple=True,
            metavar="KEY=VALUE",
            help="Tell ONNX Runtime's GPU provider, e.g. cudnn_conv_algo_search=HEURISTIC.",
        ),
        click.option(
            "--engine-cache",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Where --device tensorrt keeps engines and timings. Default: nowhere.",
        ),
        click.option(
            "--profile-batch",
            metavar="MIN,OPT,MAX",
            help="Pictures that --device tensorrt takes of a free batch. Default: 1.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def device_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return what `load` is told of the device, out of a verb's options.

    Raises:
        RequestError: The device, a provider's option or the profile cannot be read.
    """
    from boxwright.devices import device_from_text

    device_from_text(options["device"])
    told: dict[str, str] = {}
    for text in options["provider_options"]:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise RequestError(
                f"--provider-option {text}", "it is not KEY=VALUE", "use e.g. use_tf32=0"
            )
        told[key] = value
    profile = options["profile_batch"]
    return {
        "device": options["device"],
        "cuda_graph": options["cuda_graph"],
        "provider_options": told,
        "engine_cache": options["engine_cache"],
        "profile_batch": batch_from_text("--profile-batch", profile) if profile else None,
    }


def batch_from_text(option: str, text: str) -> tuple[int, int, int]:
    """Read `8` or `1,8,32` as smallest, best and largest batch.

    Raises:
        RequestError: It is not one or three whole numbers.

    >>> batch_from_text("--batch", "8"), batch_from_text("--batch", "1,8,32")
    ((8, 8, 8), (1, 8, 32))
    """
    words = [w.strip() for w in text.split(",")]
    if len(words) not in (1, 3) or not all(re.fullmatch("[0-9]{1,6}", w) for w in words):
        raise RequestError(
            f"{option} {text}", "it is not smallest, best, largest", "use e.g. 1,8,32, or 8"
        )
    low, best, high = (int(w) for w in (words * 3 if len(words) == 1 else words))
    return low, best, high


def counts_from_text(option: str, text: str) -> tuple[int, ...]:
    """Read a comma list of whole numbers, without repeats.

    Raises:
        RequestError: A word is no positive number.

    >>> counts_from_text("--batch", "1, 8,1")
    (1, 8)
    """
    words = [w.strip() for w in text.split(",")]
    for word in words:
        if not re.fullmatch("[1-9][0-9]{0,8}", word):
            raise RequestError(
                f"{option} {text}", f"{word!r} is no positive number", "use e.g. 1,8"
            )
    return tuple(dict.fromkeys(int(w) for w in words))


def recipe_data_from_options(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Turn the conversion options that were given into the keys of a recipe.

    Raises:
        RequestError: An option is wrong, or two contradict each other.
    """
    if options["model_only"] and options["outputs"]:
        raise RequestError(
            "--model-only --outputs", "they say the same thing twice", "drop one of them"
        )
    precisions = words_from_text("--precision", options["precision"] or "fp32", _PRECISIONS)
    outputs = words_from_text("--outputs", options["outputs"] or "raw", _OUTPUTS)
    forms = words_from_text("--nms", options["nms"] or "onnx", _NMS)
    if options["nms"] and "end2end" not in outputs:
        raise RequestError(
            f"--nms {options['nms']}", "no end-to-end file is asked for", "add --outputs end2end"
        )
    targets: list[dict[str, Any]] = []
    for precision, deployment in _bodies(precisions, options["deploy"]):
        for output in outputs:
            for form in forms if output == "end2end" else ["onnx"]:
                target = {"precision": precision, "outputs": output, "nms": form}
                targets += [{**target, "deployment": deployment, **i} for i in _inputs(options)]
    nms_keys = {
        "score_threshold": "score_threshold",
        "iou_threshold": "iou_threshold",
        "pre_topk": "pre_topk",
        "keep_topk": "keep_topk",
        "nms_iterations": "iterations",
    }
    nms: dict[str, Any] = {
        key: options[option] for option, key in nms_keys.items() if options[option] is not None
    }
    flags = ("class_agnostic", "multi_label", "dynamic_thresholds")
    given = [o for o in nms_keys if options[o] is not None] + [f for f in flags if options[f]]
    if given and "end2end" not in outputs:
        raise RequestError(
            f"--{given[0].replace('_', '-')}",
            "it is baked into end-to-end files, and none is asked for",
            "add --outputs end2end",
        )
    for flag in flags:
        nms[flag] = options[flag]
    data: dict[str, Any] = {
        "source": source,
        "targets": targets,
        "nms": nms,
        "calibration": _calibration(options),
        "simplify": not options["no_simplify"],
        "trust_checkpoint": options["trust_checkpoint"],
    }
    plain = ("config", "opset", "family", "labels", "name", "seed", "data", "max_drop")
    for key in (*plain, "data_split", "data_images", "max_data"):
        if options[key] is not None:
            data[key] = options[key]
    budget = _budget(options)
    if budget:
        data["budget"] = budget
    if options["head"] is not None:
        data["head"] = words_from_text("--head", options["head"], ("auto", "one2many", "one2one"))[
            0
        ]
    if options["batch"] is not None:
        data["batch"] = _batch_from_text(options["batch"])
    if options["image_size"] is not None:
        data["image_size"] = image_size_from_text(options["image_size"])
    return data


def _bodies(precisions: list[str], deploy: str | None) -> list[tuple[str, str]]:
    """Return (precision, deployment) of each body that is asked for.

    Raises:
        RequestError: A deployment is unknown, or named without INT8.
    """
    if deploy and "int8" not in precisions:
        raise RequestError(
            f"--deploy {deploy}", "no INT8 file is asked for", "add --precision int8"
        )
    places = words_from_text("--deploy", deploy or "cpu", _DEPLOYMENTS)
    return [(p, d) for p in precisions for d in (places if p == "int8" else ["cpu"])]


def _inputs(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the keys of each kind of input that is asked for.

    Raises:
        RequestError: A word is unknown, or pictures are described that nothing takes.
    """
    kinds = words_from_text("--input", options["input"] or "tensor", _INPUTS)
    pictures: dict[str, Any] = {"input": "image"}
    for key, known in _PICTURES.items():
        if options[key] is not None:
            option = f"--{key.replace('_', '-')}"
            words = words_from_text(option, options[key], known)
            if len(words) > 1:
                raise RequestError(
                    f"{option} {options[key]}", "a file has one of them", f"use {words[0]}"
                )
            pictures[key] = words[0]
    if options["source_size"] is not None:
        sides = _sides(options["source_size"])
        if len(sides) != 2:
            raise RequestError(
                f"--source-size {options['source_size']}",
                "it is not height,width",
                "use e.g. 1080,1920",
            )
        pictures["source_size"] = sides
    given = [k for k in pictures if k != "input"]
    if given and "image" not in kinds:
        raise RequestError(
            f"--{given[0].replace('_', '-')}",
            "it is of files that take pictures, and none is asked for",
            "add --input image",
        )
    return [pictures if kind == "image" else {} for kind in kinds]


def _calibration(options: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a recipe's calibration that were given."""
    names = {"count": "calib_count", "batch": "calib_batch", "cache": "calib_cache"}
    found = {key: options[name] for key, name in names.items() if options[name] is not None}
    if options["calib_method"] is not None:
        known = ("minmax", "percentile", "entropy", "auto")
        found["method"] = words_from_text("--calib-method", options["calib_method"], known)[0]
    if options["allow_calibration_overlap"]:
        found["allow_overlap"] = True
    if options["calib_images"]:
        found["images"] = list(options["calib_images"])
    return found


def _batch_from_text(text: str) -> int | str:
    word = text.strip().lower()
    if word == "dynamic":
        return word
    if not _WHOLE_NUMBER.fullmatch(word):
        raise RequestError(f"--batch {text}", "it is neither a number nor dynamic", "use e.g. 8")
    return int(word)


def _budget(options: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's keys about the budget of files for TensorRT.

    Raises:
        RequestError: There is no such budget.
    """
    keys = {
        "budget_runtime": "runtime",
        "optimization_level": "optimization_level",
        "tactic_sources": "tactic_sources",
        "timing_cache": "timing_cache",
        "workspace_gib": "workspace_gib",
    }
    given = {key: options[option] for option, key in keys.items() if options[option] is not None}
    if not given:
        return {}
    option = next(o for o, key in keys.items() if key in given)
    integer = "int8" in (options["precision"] or "").split(",")
    if not integer or "tensorrt" not in (options["deploy"] or "") or not options["data"]:
        raise RequestError(
            f"--{option.replace('_', '-')}",
            "it is of plans that an INT8 file's accuracy is measured on, and none is asked for",
            "give --precision int8 --deploy tensorrt --data FILE, too, or drop it",
        )
    if "tactic_sources" in given:
        given["tactic_sources"] = [w.strip() for w in given["tactic_sources"].split(",")]
    return given
