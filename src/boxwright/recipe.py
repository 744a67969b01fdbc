"""The recipe: what a run shall make, as a YAML file or as command-line options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from boxwright.errors import RequestError, nearest_name
from boxwright.types import DEFAULT_OPSET, LONGEST_SIDE_PX, NmsSettings, Target

__all__ = [
    "CalibrationOptions",
    "MeasureOptions",
    "NmsOptions",
    "Recipe",
    "TargetOptions",
    "recipe_from_file",
    "recipe_from_mapping",
    "text_from_recipe",
]

OPSETS = range(11, 23)
_LONGEST_NAME_BYTES = 180  # file systems take 255, with our suffixes and temporary names

# What pydantic says in words of Python, in words of YAML.
_PLAIN = {
    "int_type": "it should be a whole number",
    "float_type": "it should be a number",
    "bool_type": "it should be true or false",
    "string_type": "it should be text",
    "tuple_type": "it should be a list",
    "model_type": "it should be a mapping",
}

# YAML's `yes` is no number, and a quoted "17" none either.
WholeNumber = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class TargetOptions(_Strict):
    """One file to make."""

    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    outputs: Literal["raw", "end2end"] = "raw"
    nms: Literal["onnx", "efficient_nms", "portable"] = "onnx"
    deployment: Literal["cpu", "openvino", "tensorrt"] = "cpu"
    input: Literal["tensor", "image"] = "tensor"
    source_size: tuple[WholeNumber, WholeNumber] | None = None
    image_layout: Literal["nhwc", "nchw"] = "nhwc"
    image_color: Literal["bgr", "rgb"] = "bgr"

    @field_validator("source_size")
    @classmethod
    def _size_is_a_picture(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= side <= LONGEST_SIDE_PX for side in value):
            raise ValueError(f"sides must be between 1 and {LONGEST_SIDE_PX} pixels")
        return value

    @model_validator(mode="after")
    def _pictures_are_asked_for(self) -> TargetOptions:
        given = self.model_fields_set & {"source_size", "image_layout", "image_color"}
        if given and self.input != "image":
            raise ValueError(f"{min(given)} needs input: image")
        return self


class NmsOptions(_Strict):
    """Baked into end-to-end files; a missing threshold is the model's own default."""

    score_threshold: Number | None = Field(None, ge=0, le=1)
    iou_threshold: Number | None = Field(None, ge=0, le=1)
    pre_topk: WholeNumber = Field(1000, ge=1, le=100_000)
    keep_topk: WholeNumber = Field(300, ge=1, le=10_000)
    class_agnostic: Switch = False
    multi_label: Switch = False
    dynamic_thresholds: Switch = False
    iterations: WholeNumber = Field(16, ge=2, le=256)


class CalibrationOptions(_Strict):
    """Of INT8 files: the pictures that say which values the tensors take."""

    images: tuple[str, ...] = ()
    count: WholeNumber = Field(256, ge=1, le=100_000)
    batch: WholeNumber = Field(1, ge=1, le=1024)
    method: Literal["minmax", "percentile", "entropy", "auto"] = "minmax"
    cache: str | None = None
    allow_overlap: Switch = False

    @field_validator("images", mode="before")
    @classmethod
    def _images_as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class BudgetOptions(_Strict):
    """Where the budget of INT8 files for TensorRT is measured, and how those plans are built."""

    runtime: Literal["auto", "onnxruntime", "tensorrt"] = "auto"
    optimization_level: WholeNumber | None = Field(None, ge=0, le=5)
    tactic_sources: tuple[str, ...] = ()
    timing_cache: str | None = None
    workspace_gib: Number | None = Field(None, gt=0, le=1024)

    @field_validator("tactic_sources", mode="before")
    @classmethod
    def _sources_as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class MeasureOptions(_Strict):
    """What a run measures of its files besides parity."""

    latency: Switch = True
    accuracy: Switch = True
    seconds: Number = Field(2.0, gt=0, le=3600)
    runtimes: tuple[Literal["onnxruntime", "openvino"], ...] = ()
    pictures: WholeNumber = Field(6, ge=0, le=24)

    @field_validator("runtimes", mode="before")
    @classmethod
    def _runtimes_as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Recipe(_Strict):
    """Everything that a run is asked for.

    Attributes:
        source: A file (.pt, .pth, .safetensors, .yaml, .onnx), an official name (yolo11n) or an hf://
            address.
        name: File-name stem; the source's own by default.
        targets: Files to make.
        nms: Settings of the NMS inside end-to-end files.
        calibration: Of INT8 files.
        image_size: Network input, one side or (height, width) in pixels.
        batch: Fixed number of pictures; `dynamic` by default.
        opset: ONNX operator set; by default 17, or what a raw ONNX has if that is newer.
        simplify: Run onnxslim.
        head: Which head of a model that has two (v10, 26).
        family: Of a raw ONNX that does not say.
        labels: Class names: a JSON or text file, or `coco`.
        images: Pictures to verify on: files, folders, globs.
        max_images: At most so many of them, evenly spaced.
        data: Labelled pictures that accuracy is measured on, as `evaluate` takes them.
        data_split, data_images, max_data: Part of a YOLO data set; folder of a COCO file's
            pictures; at most so many pictures, evenly spaced.
        max_drop: The most mAP50-95 (or the task's own figure) that an INT8 or FP16 file may lose,
            0..1; layers go back to FP32 until it does.
        budget: Where `max_drop` is measured for files for TensorRT (`auto`: as plans, where
            TensorRT and a GPU are there), and what those plans are built with.
        measure: What is measured of the files besides parity: latency, and accuracy where there
            is data; for how many seconds each; in which runtimes (all that are installed by
            default); and how many pictures the report shows.
        verify: Prove every file before it is published.
        trust_checkpoint: Unpickle the checkpoint with full rights.
        config: Configuration of an OpenMMLab checkpoint that does not carry its own.
        seed: Of random weights and of choices.
        threads: CPU threads of the verification.
    """

    source: str
    name: str | None = None
    targets: tuple[TargetOptions, ...] = (TargetOptions(),)
    nms: NmsOptions = NmsOptions()
    calibration: CalibrationOptions = CalibrationOptions()
    image_size: tuple[WholeNumber, WholeNumber] | None = None
    batch: WholeNumber | None = None
    opset: WholeNumber | None = None
    simplify: Switch = True
    head: Literal["auto", "one2many", "one2one"] = "auto"
    family: str | None = None
    labels: str | None = None
    images: tuple[str, ...] = ()
    max_images: WholeNumber = Field(200, ge=1)
    data: str | None = None
    data_split: str | None = None
    data_images: str | None = None
    max_data: WholeNumber | None = Field(None, ge=1)
    max_drop: Number | None = Field(None, ge=0, le=1)
    budget: BudgetOptions = BudgetOptions()
    measure: MeasureOptions = MeasureOptions()
    verify: Switch = True
    trust_checkpoint: Switch = False
    config: str | None = None
    seed: WholeNumber = 0
    threads: WholeNumber | None = Field(None, ge=1)

    @field_validator("source")
    @classmethod
    def _source_is_named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is empty")
        return value

    @field_validator("name")
    @classmethod
    def _name_is_a_stem(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.strip(". ") or set(value) & set('/\\:*?"<>|') or not value.isprintable():
            raise ValueError("it is not a file name")
        if len(value.encode()) > _LONGEST_NAME_BYTES:
            raise ValueError(f"it is longer than {_LONGEST_NAME_BYTES} bytes")
        return value

    @field_validator("image_size", mode="before")
    @classmethod
    def _square_from_one_side(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("image_size")
    @classmethod
    def _size_is_usable(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(32 <= side <= 8192 for side in value):
            raise ValueError("sides must be between 32 and 8192 pixels")
        return value

    @field_validator("batch", mode="before")
    @classmethod
    def _batch_word(cls, value: Any) -> Any:
        return None if value == "dynamic" else value

    @field_validator("batch")
    @classmethod
    def _batch_is_positive(cls, value: int | None) -> int | None:
        if value is not None and not 1 <= value <= 4096:
            raise ValueError("it must be between 1 and 4096, or dynamic")
        return value

    @field_validator("opset")
    @classmethod
    def _opset_is_known(cls, value: int | None) -> int | None:
        if value is not None and value not in OPSETS:
            raise ValueError(f"supported are {OPSETS.start} to {OPSETS.stop - 1}")
        return value

    @field_validator("targets")
    @classmethod
    def _targets_are_named(cls, value: tuple[TargetOptions, ...]) -> tuple[TargetOptions, ...]:
        if not value:
            raise ValueError("there is none")
        return value

    @field_validator("images", mode="before")
    @classmethod
    def _images_as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def target_records(self) -> tuple[Target, ...]:
        """Return the targets as records, without repetitions, in order."""
        records = [
            Target(
                precision=t.precision,
                outputs=t.outputs,
                nms=t.nms if t.outputs == "end2end" else "onnx",
                batch=self.batch,
                opset=self.opset or DEFAULT_OPSET,
                dynamic_thresholds=self.nms.dynamic_thresholds and t.outputs == "end2end",
                nms_iterations=self.nms.iterations,
                deployment=t.deployment if t.precision == "int8" else "cpu",
                input=t.input,
                source_size=t.source_size,
                image_layout=t.image_layout,
                image_color=t.image_color,
            )
            for t in self.targets
        ]
        return tuple(dict.fromkeys(records))

    def nms_settings(self, score_threshold: float, iou_threshold: float) -> NmsSettings:
        """Return the settings, with the model's own thresholds where none were asked for."""
        score, iou = self.nms.score_threshold, self.nms.iou_threshold
        return NmsSettings(
            score_threshold=score_threshold if score is None else score,
            iou_threshold=iou_threshold if iou is None else iou,
            pre_topk=self.nms.pre_topk,
            keep_topk=self.nms.keep_topk,
            class_agnostic=self.nms.class_agnostic,
            multi_label=self.nms.multi_label,
        )


def recipe_from_mapping(data: dict[str, Any], what: str, *, options: bool = False) -> Recipe:
    """Validate a recipe.

    Args:
        data: Keys and values.
        what: The recipe's file, or the command, for errors.
        options: Name keys in errors as command-line options.

    Raises:
        RequestError: A key is unknown (the nearest known is named) or a value is wrong.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        found = error.errors()  # a misspelt key explains the one that is missing
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        raise _request_error(first, what, options) from None


def _request_error(first: Any, what: str, options: bool) -> RequestError:
    path = ".".join(str(p) for p in first["loc"])
    key = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"])
        near = nearest_name(key, known)
        advice = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
        return RequestError(f"{what}: {path}", "unknown key", advice)
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    message = _PLAIN.get(first["type"], message)
    asked = f"--{key.replace('_', '-')}" if options else f"{what}: {path}"
    value = first.get("input")
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        where = ".".join(str(p) for p in first["loc"][:-1])
        return RequestError(f"{what}: {where}", "it holds too few values", "correct the value")
    if first["type"] == "missing":
        return RequestError(f"{what}: {path}", "it is missing", f"add {path}:")
    if first["type"] == "literal_error":
        expected = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        near = nearest_name(str(value), expected.split(", "))
        hint = f"did you mean {near}?" if near else ""
        return RequestError(f"{asked} {value}", f"known are {expected}", hint or "use one of them")
    shown = value if isinstance(value, (str, int, float)) else ""
    if first["type"] in _PLAIN and isinstance(value, str):
        shown = repr(value)
    return RequestError(f"{asked} {shown}".strip(), message, "correct the value")


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    if location[0] == "targets" and len(location) > 1:
        model = TargetOptions
    elif location[0] == "nms" and len(location) > 1:
        model = NmsOptions
    elif location[0] == "calibration" and len(location) > 1:
        model = CalibrationOptions
    elif location[0] == "measure" and len(location) > 1:
        model = MeasureOptions
    elif location[0] == "budget" and len(location) > 1:
        model = BudgetOptions
    return list(model.model_fields)


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a key that is given twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice, line {key.start_mark.line + 1}", None
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def recipe_from_file(path: Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        RequestError: There is no such file, it is not YAML, or its content is wrong.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RequestError(str(path), "there is no such file", "check the path") from None
    except RecursionError:
        raise RequestError(str(path), "it is nested too deeply", "mend it") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RequestError(str(path), f"it cannot be read as YAML ({reason})", "mend it") from None
    if not isinstance(data, dict):
        raise RequestError(str(path), "it is not a mapping", "begin with `source:`")
    return recipe_from_mapping(data, str(path))


def text_from_recipe(recipe: Recipe) -> str:
    """Return YAML that `recipe_from_file` reads as the same recipe; defaults are left out."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
