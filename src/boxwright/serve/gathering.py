"""From what a user named to the files that a repository holds; what is missing is made.

Typed ONNX files and plans are taken as they are. A checkpoint, a name or a raw ONNX goes through
the pipeline, and its files through the builder of plans where this machine can build them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxwright.engines import BuildSettings
from boxwright.errors import BackendError, MissingExtraError, RequestError, SourceError
from boxwright.outcome import Listener
from boxwright.serve.served_files import (
    PLAN_SUFFIXES,
    ServedFile,
    check_batch,
    files_in_folder,
    format_of,
    read_file,
)
from boxwright.serve.tracks import FORMATS, FUSED, FormatName, largest_batch, size_of
from boxwright.types import NmsSettings

__all__ = ["Conversion", "Gathered", "Missing", "gather"]

_OFFICIAL_LINE = "yolo11"  # of sizes that are named without a source
_IMAGE_SIZES = ((32, 32), (1080, 1920), (2160, 3840))  # of plans that take pictures of any size
_PLUGIN = "EfficientNMS_TRT"  # an operator of TensorRT alone
_IMAGE_BATCH = 8  # pictures of that size in more than a handful would fill a GPU


@dataclass(frozen=True, slots=True)
class Conversion:
    """How what is missing is made.

    Attributes:
        work: Folder of the runs.
        downloads: Folder of checkpoints that are fetched.
        precision: Of ONNX files.
        plan_precision: Of plans.
        onnx_nms: Form of the NMS in ONNX files.
        plan_nms: Form of the NMS in plans.
        plan_settings: What plans are built with; their batches come from `max_batches`.
        nms: Baked into end-to-end files.
        given: Names of the thresholds that were asked for, and are not only defaults; and of
            `onnx_nms` where that was.
        verify: Prove what is made.
        images: Pictures to verify on.
        max_batches: Largest batch by size; "" is for every model.
        trust_checkpoint: Load a `.pt` with full rights.
    """

    work: Path
    downloads: Path
    precision: str = "fp32"
    plan_precision: str = "fp16"
    onnx_nms: str = "portable"
    plan_nms: str = "efficient_nms"
    plan_settings: BuildSettings = field(default_factory=BuildSettings)
    nms: NmsSettings = field(default_factory=NmsSettings)
    given: frozenset[str] = frozenset()
    verify: bool = True
    images: tuple[str, ...] = ()
    max_batches: Mapping[str, int] = field(default_factory=dict)
    trust_checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """A format that could not be made, why, and what to do."""

    model: str
    format: FormatName
    why: str
    do: str


@dataclass(slots=True)
class Gathered:
    """The files of one model.

    Attributes:
        name: Of the model.
        files: By format.
        missing: What was asked for and is not there.
    """

    name: str
    files: dict[FormatName, ServedFile] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)


@dataclass(slots=True)
class _Named:
    """What was named of one model."""

    typed: list[ServedFile] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


def gather(
    sources: Sequence[str],
    sizes: Sequence[str],
    formats: Sequence[FormatName],
    how: Conversion,
    listener: Listener | None = None,
) -> list[Gathered]:
    """Return the files of every model.

    Args:
        sources: Checkpoints, names, ONNX files, plans, run folders.
        sizes: Take models of these sizes only; without sources, official ones.
        formats: What is wanted.
        how: What is missing is made so.
        listener: Told what happens.

    Raises:
        RequestError: Nothing is left of what was named, or two files could be taken.
        BoxwrightError: A file is damaged, or the pipeline refuses.
    """
    listener = listener or Listener()
    texts = list(sources) or [f"{_OFFICIAL_LINE}{_letter(size)}" for size in sizes]
    if not texts:
        raise RequestError("repo build", "no source is named", "give one, or --models small")
    named = _named(texts)
    if sizes:
        named = {n: one for n, one in named.items() if size_of(n) in sizes}
    if not named:
        raise RequestError(
            f"--models {','.join(sizes)}", "no source is of such a size", "check the names"
        )
    return [_gather(name, one, formats, how, listener) for name, one in named.items()]


def _letter(size: str) -> str:
    return size[0]


def _needed(formats: Sequence[FormatName], one: _Named) -> list[FormatName]:
    """Return the formats of files; track D is served with a plan where one is there or can be."""
    needed = list(dict.fromkeys(FUSED.get(f, f) for f in formats if f != "dali"))
    if "dali" in formats and not {"onnx_end2end", "trt_end2end"} & set(needed):
        given = any(_is(f, "trt_end2end") for f in one.typed)
        plan = given or (bool(one.sources) and not _no_builder())
        needed.append("trt_end2end" if plan else "onnx_end2end")
    return needed


def _is(file: ServedFile, wanted: FormatName) -> bool:
    entry = format_of(file)
    return entry is not None and entry.name == wanted


def _named(texts: Sequence[str]) -> dict[str, _Named]:
    """Read what was named, by model."""
    paths: list[Path] = []
    found: dict[str, _Named] = {}
    for text in texts:
        path = Path(text)
        if path.is_dir():
            paths += files_in_folder(path)
        elif path.suffix in (".onnx", *PLAN_SUFFIXES):
            if not path.is_file():
                raise SourceError(text, "there is no such file", "check the path")
            paths.append(path)
        else:
            found.setdefault(_source_name(text), _Named()).sources.append(text)
    for path in dict.fromkeys(paths):
        file = read_file(path, paths)
        if file is None:
            found.setdefault(path.stem, _Named()).sources.append(str(path))
            continue
        one = found.setdefault(file.spec.name, _Named())
        one.typed.append(file)
        plain = (file.target.outputs, file.target.input, file.target.precision)
        if not file.is_plan and plain == ("raw", "tensor", "fp32"):
            one.sources.append(str(path))
    return found


def _source_name(text: str) -> str:
    """Return the name that the pipeline gives to the files of a checkpoint or a name."""
    from boxwright.resolve import needs_download
    from boxwright.sources.names import parse_name

    if not needs_download(text):
        return Path(text).stem
    return parse_name(text).text if "://" not in text else Path(text).stem


def _gather(
    name: str, one: _Named, formats: Sequence[FormatName], how: Conversion, listener: Listener
) -> Gathered:
    result = Gathered(name)
    needed = _needed(formats, one)
    for wanted in needed:
        file = _given(name, one, wanted, how)
        if file is not None:
            check_batch(file)
            _check_thresholds(file, how)
            result.files[wanted] = file
    absent = [f for f in needed if f not in result.files]
    onnx = [f for f in absent if not FORMATS[f].plan]
    plans = [f for f in absent if FORMATS[f].plan]
    if absent and not one.sources:
        what = "give its checkpoint, or its raw FP32 ONNX file, too"
        result.missing += [Missing(name, f, _why_absent(one, f), what) for f in absent]
        return result
    if onnx:
        if how.onnx_nms == "portable" and any(FORMATS[f].outputs == "end2end" for f in onnx):
            listener.note(
                f"{name}: end-to-end ONNX files are made with --onnx-nms portable, for GPUs; where "
                "the server has none, --onnx-nms onnx is quicker"
            )
        made = _convert(one.sources[0], [_target(f, how) for f in onnx], how, listener)
        result.files |= {f: file for f in onnx for file in made if _is(file, f)}
    for wanted in plans:
        obstacle = _no_builder()
        if obstacle:
            do = "run this on the GPU machine, or give a plan that boxwright build made there"
            result.missing.append(Missing(name, wanted, obstacle, do))
            continue
        try:
            result.files[wanted] = _build(one.sources[0], wanted, name, how, listener)
        except (BackendError, MissingExtraError) as error:
            result.missing.append(Missing(name, wanted, error.found, error.do))
    if result.files:
        spec = next(iter(result.files.values())).spec
        result.name = spec.name
        if spec.task != "detect":
            why, do = f"track F answers boxes alone, and this model's task is {spec.task}", "use c"
            result.missing += [Missing(name, f, why, do) for f in formats if f in FUSED]
    return result


def _why_absent(one: _Named, wanted: FormatName) -> str:
    for file in one.typed:
        if _is(file, wanted) and _PLUGIN in file.operators:
            return f"{file.path.name} has {_PLUGIN} in it, which only TensorRT runs"
    return "no file of it was given, and nothing that it could be made from"


def _given(name: str, one: _Named, wanted: FormatName, how: Conversion) -> ServedFile | None:
    """Return the file of a format among those that were given.

    Raises:
        RequestError: Several could be taken.
    """
    found = [f for f in one.typed if _is(f, wanted) and _PLUGIN not in f.operators]
    found = [f for f in found if f.has_free_batch] or found
    if "onnx_nms" in how.given and not FORMATS[wanted].plan:
        found = [f for f in found if f.target.nms == how.onnx_nms or not _has_form(f)]
    if len(found) > 1:
        precision = how.plan_precision if FORMATS[wanted].plan else how.precision
        found = [f for f in found if f.target.precision == precision] or found
    if len(found) > 1 and not FORMATS[wanted].plan:
        found = [f for f in found if f.target.nms == how.onnx_nms] or found
    if len(found) > 1:
        texts = ", ".join(f.path.name for f in found)
        raise RequestError(
            f"{wanted} of {name}", f"several files could be served ({texts})", "name one of them"
        )
    return found[0] if found else None


def _has_form(file: ServedFile) -> bool:
    """Whether a file's NMS could be of another form."""
    layout = file.spec.layout
    detects = file.spec.task != "classify" and not (layout.nms_free or layout.rotated)
    return detects and file.target.outputs == "end2end"


def _check_thresholds(file: ServedFile, how: Conversion) -> None:
    """Refuse an end-to-end file whose baked settings are not those that were asked for.

    Raises:
        RequestError: One differs.
    """
    if file.nms is None:
        return
    for key in sorted(how.given - {"onnx_nms"}):
        asked, baked = getattr(how.nms, key), getattr(file.nms, key)
        if asked != baked:
            raise RequestError(
                f"--{key.replace('_', '-')} {asked}",
                f"{baked} is baked into {file.path}",
                "drop the option, or the file, so that another is made",
            )


def _target(wanted: FormatName, how: Conversion) -> dict[str, Any]:
    entry = FORMATS[wanted]
    target = {"precision": how.plan_precision if entry.plan else how.precision}
    target |= {"outputs": entry.outputs, "input": entry.input}
    if entry.outputs == "end2end":
        target["nms"] = how.plan_nms if entry.plan else how.onnx_nms
    return target


def _convert(
    source: str, targets: list[dict[str, Any]], how: Conversion, listener: Listener
) -> list[ServedFile]:
    """Run the main job's conversions."""
    from boxwright.pipeline import run
    from boxwright.recipe import recipe_from_mapping

    nms = how.nms
    data: dict[str, Any] = {
        "source": source,
        "targets": targets,
        "nms": {
            "score_threshold": nms.score_threshold,
            "iou_threshold": nms.iou_threshold,
            "pre_topk": nms.pre_topk,
            "keep_topk": nms.keep_topk,
            "class_agnostic": nms.class_agnostic,
        },
        "verify": how.verify,
        "measure": {"latency": False, "accuracy": False},
        "trust_checkpoint": how.trust_checkpoint,
    }
    if how.images:
        data["images"] = list(how.images)
    recipe = recipe_from_mapping(data, "request", options=True)
    outcome = run(recipe, how.work, models=how.downloads, listener=listener)
    made = [read_file(row.path) for row in outcome.rows]
    return [file for file in made if file is not None]


def _no_builder() -> str:
    """Return why no plan can be built here, or ""."""
    from boxwright.nvidia import find_gpu, module_name

    if find_gpu() is None:
        return "a plan is built on the GPU that it runs on, and there is none here"
    return "" if module_name("tensorrt") else "TensorRT is not installed here"


def _build(
    source: str, wanted: FormatName, name: str, how: Conversion, listener: Listener
) -> ServedFile:
    from boxwright.build import build

    onnx = _convert(source, [_target(wanted, how)], how, listener)[0]
    most = largest_batch(name, how.max_batches)
    settings = dataclasses.replace(how.plan_settings, image_sizes=None)
    if FORMATS[wanted].input == "image":
        most = min(most, _IMAGE_BATCH)
        sizes = how.plan_settings.image_sizes or _IMAGE_SIZES
        settings = dataclasses.replace(settings, image_sizes=sizes)
    batch = (1, max(1, most // 2), most)
    built = build(onnx.path, dataclasses.replace(settings, batch=batch), listener=listener)
    file = read_file(built.plan, [onnx.path])
    assert file is not None, "a plan that was just built has its description"
    return file
