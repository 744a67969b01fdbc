"""Reads the files that a repository is made of: what each is, and what its tensors are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.engine_record import EngineRecord, read_record, sidecar_path
from boxwright.errors import SourceError
from boxwright.nvidia import TITLES
from boxwright.serve.tracks import FORMATS, FUSED, Format
from boxwright.stamps import Stamp, stamp_from_metadata
from boxwright.store import MANIFEST, Store, sha256_of_file
from boxwright.types import ModelSpec, NmsSettings, Target, TensorInfo

__all__ = [
    "PLAN_SUFFIXES",
    "ServedFile",
    "check_batch",
    "files_in_folder",
    "format_of",
    "read_file",
]

PLAN_SUFFIXES = (".plan", ".engine")


@dataclass(frozen=True, slots=True)
class ServedFile:
    """An ONNX file or a plan that says what it is.

    Attributes:
        path: Where it is.
        spec, target, nms: Its stamp.
        metadata: All of its metadata.
        inputs, outputs: With the batch in front.
        sha256: Of its bytes.
        record: Description of a plan; None of an ONNX file.
        operators: Of an ONNX file.
    """

    path: Path
    spec: ModelSpec
    target: Target
    nms: NmsSettings | None
    metadata: Mapping[str, str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sha256: str
    record: EngineRecord | None = None
    operators: frozenset[str] = frozenset()

    @property
    def is_plan(self) -> bool:
        """Whether TensorRT runs it."""
        return self.record is not None

    @property
    def has_free_batch(self) -> bool:
        """Whether it takes any number of pictures, within a plan's profile."""
        return self.profile_batch is not None or not isinstance(self.inputs[0].shape[0], int)

    @property
    def profile_batch(self) -> tuple[int, int, int] | None:
        """Smallest, best and largest batch of a plan; None of an ONNX file."""
        if self.record is None:
            return None
        shapes = self.record.profile.get(self.inputs[0].name)
        return (shapes[0][0], shapes[1][0], shapes[2][0]) if shapes else None

    def nearest_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the picture (height, width) that it takes and that is nearest to a size."""
        if self.target.source_size is not None:
            return self.target.source_size
        shapes = self.record.profile.get(self.inputs[0].name) if self.record else None
        if not shapes:
            return size
        first = 1 if self.target.image_layout == "nhwc" else 2
        height, width = (
            min(max(size[axis], shapes[0][first + axis]), shapes[2][first + axis])
            for axis in (0, 1)
        )
        return height, width

    def tensor(self, name: str) -> TensorInfo | None:
        """Return an output by name."""
        return next((o for o in self.outputs if o.name == name), None)


def format_of(file: ServedFile) -> Format | None:
    """Return the format that a file is of; None where no track serves such files."""
    for entry in FORMATS.values():
        if entry.name in ("dali", *FUSED):  # they are made of files of other formats
            continue
        if (entry.outputs, entry.input, entry.plan) == (
            file.target.outputs,
            file.target.input,
            file.is_plan,
        ):
            return entry
    return None


def read_file(path: Path, others: Sequence[Path] = ()) -> ServedFile | None:
    """Read a typed ONNX file or a plan; None for a raw ONNX that does not say what it is.

    Args:
        path: The file.
        others: Files that may be the ONNX of a plan.

    Raises:
        SourceError: It is damaged, or a plan without its description or of TensorRT-RTX.
    """
    if path.suffix in PLAN_SUFFIXES:
        return _read_plan(path, others)
    from boxwright.graph.io import model_from_file, tensor_infos
    from boxwright.graph.shapes import real_inputs

    model = model_from_file(path)
    metadata = {p.key: p.value for p in model.metadata_props}
    stamp = stamp_from_metadata(metadata, str(path))
    if stamp is None or stamp.target is None:
        return None
    return ServedFile(
        path=path,
        spec=stamp.spec,
        target=stamp.target,
        nms=stamp.nms,
        metadata=metadata,
        inputs=tensor_infos(real_inputs(model.graph)),
        outputs=tensor_infos(list(model.graph.output)),
        sha256=sha256_of_file(path),
        operators=frozenset(node.op_type for node in model.graph.node),
    )


def check_batch(file: ServedFile) -> None:
    """Refuse a file that takes one number of pictures only.

    Raises:
        SourceError: It does.
    """
    if not file.has_free_batch:
        raise SourceError(
            str(file.path),
            f"its batch is fixed to {file.inputs[0].shape[0]}, and the server puts requests "
            "together as they come",
            "export it with --batch dynamic (plans: build with --batch 1,8,32)",
        )


def _read_plan(path: Path, others: Sequence[Path]) -> ServedFile:
    """Read a plan's description; its tensors are those of the ONNX file that it was built from."""
    record = read_record(path)
    stamp = stamp_from_metadata(record.metadata, str(path)) if record else None
    if record is None or stamp is None or stamp.target is None:
        raise SourceError(
            str(path),
            f"{sidecar_path(path).name} is missing, or does not say what model it is",
            "keep that file beside the plan, or build it with: boxwright build",
        )
    if record.runtime != "tensorrt":
        raise SourceError(
            str(path),
            f"it is a plan for {TITLES.get(record.runtime, record.runtime)}, which Triton does "
            "not run",
            "build one for TensorRT, on the GPU that it shall run on",
        )
    sha256 = sha256_of_file(path)
    if sha256 != record.plan_sha256:
        raise SourceError(
            str(path), f"{sidecar_path(path).name} describes another plan", "build it again"
        )
    inputs, outputs = _plan_tensors(path, record, stamp, stamp.target, others)
    return ServedFile(
        path, stamp.spec, stamp.target, stamp.nms, record.metadata, inputs, outputs, sha256, record
    )


def _plan_tensors(
    path: Path, record: EngineRecord, stamp: Stamp, target: Target, others: Sequence[Path]
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    places = [path.parent / record.source, *others]
    for place in places:
        if place.suffix == ".onnx" and place.is_file():
            if sha256_of_file(place) != record.source_sha256:
                continue
            source = read_file(place)
            if source is not None:
                return source.inputs, source.outputs
    height, width = stamp.spec.input_size
    if target.outputs != "end2end" or stamp.nms is None or not record.profile:
        raise SourceError(
            str(path),
            "a plan does not tell the names and shapes of a raw head",
            f"give the ONNX file that it was built from, too: {record.source}",
        )
    name = next(iter(record.profile))
    sides: tuple[int | str, ...] = (3, height, width)
    if target.input == "image":
        sides = ("height", "width", 3) if target.image_layout == "nhwc" else (3, "height", "width")
        if target.source_size is not None:
            size = target.source_size
            sides = (*size, 3) if target.image_layout == "nhwc" else (3, *size)
    dtype = "uint8" if target.input == "image" else "float32"
    count = stamp.nms.keep_topk
    outputs = [
        TensorInfo("num_dets", "int32", ("batch", 1)),
        TensorInfo("det_boxes", "float32", ("batch", count, 4)),
        TensorInfo("det_scores", "float32", ("batch", count)),
        TensorInfo("det_classes", "int32", ("batch", count)),
    ]
    if target.nms == "portable":
        outputs.append(TensorInfo("nms_converged", "int32", ("batch", 1)))
    return (TensorInfo(name, dtype, ("batch", *sides)),), tuple(outputs)


def files_in_folder(folder: Path) -> list[Path]:
    """Return the files of a run folder, or of the run folders in it, that can be served.

    Raises:
        SourceError: There are none.
    """
    found: list[Path] = []
    runs = [folder] if (folder / MANIFEST).is_file() else []
    runs += sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
    for run in runs:
        store = Store.peek(run)
        found += [store.path(n) for n, e in store.entries.items() if e.state == "published"]
    for place in runs or [folder]:
        found += sorted(p for p in place.iterdir() if p.suffix in PLAN_SUFFIXES)
        if place not in runs:
            found += sorted(p for p in place.iterdir() if p.suffix == ".onnx")
    if not found:
        raise SourceError(str(folder), "it holds no run, ONNX file or plan", "name another")
    return found
