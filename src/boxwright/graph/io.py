"""Reads, checks and describes ONNX files; the only graph module that touches files."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import checker, helper, shape_inference

from boxwright.errors import GraphError, SourceError
from boxwright.graph.regions import decode_region
from boxwright.graph.shapes import dimensions, real_inputs
from boxwright.stamps import Stamp, metadata_from_stamp, stamp_from_metadata
from boxwright.types import GraphSignature, TensorInfo

__all__ = [
    "bytes_from_model",
    "check_model",
    "model_from_file",
    "read_stamp",
    "signature_of",
    "tensor_infos",
    "write_stamp",
]


def model_from_file(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        SourceError: It is missing, unreadable, not ONNX, or refers to missing external data.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SourceError(str(path), "there is no such file", "check the path") from None
    except OSError as error:
        raise SourceError(str(path), f"it cannot be read ({error.strerror})", "check it") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise SourceError(
            str(path), f"it is not an ONNX file ({_looks_like(data)})", "give an ONNX model"
        ) from None
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise SourceError(
            str(path), f"it holds no ONNX graph ({_looks_like(data)})", "give an ONNX model"
        )
    try:
        if any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer):
            onnx.load_external_data_for_model(model, str(path.parent))
        checker.check_model(model)
    except (checker.ValidationError, OSError, ValueError) as error:
        if _only_foreign_operators(model, error):
            return model
        raise SourceError(
            str(path), f"it is not a valid ONNX model ({_first_line(error)})", "export it again"
        ) from None
    return model


def _only_foreign_operators(model: onnx.ModelProto, error: Exception) -> bool:
    """Whether the checker only stumbled over a plugin operator that no ONNX schema describes."""
    known = {"", "ai.onnx", "ai.onnx.ml"}
    return "No Op registered" in str(error) and any(n.domain not in known for n in model.graph.node)


def _looks_like(data: bytes) -> str:
    if not data:
        return "it is empty"
    head = data[:512]
    if head.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer: run git lfs pull"
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive, perhaps a checkpoint"
    if all(32 <= c < 127 or c in b"\r\n\t" for c in head):
        return "it is text"
    return f"{len(data)} bytes that do not parse"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def check_model(model: onnx.ModelProto, what: str) -> None:
    """Run the ONNX checker with full_check; plugin nodes are checked as a graph without them.

    Raises:
        GraphError: The checker refuses the model.
    """
    plugins = [n for n in model.graph.node if n.domain == "TRT"]
    try:
        if plugins:  # no schema exists for them: check order, names and the rest of the graph
            checker.check_model(_without_plugins(model), full_check=True)
        else:
            checker.check_model(model, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise GraphError(
            what, f"onnx.checker refuses it ({_first_line(error)})", "please report it"
        ) from None


def _without_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which the inputs of each plugin node are outputs and its outputs inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [n for n in copy.graph.node if n.domain != "TRT"]
    cut = [n for n in copy.graph.node if n.domain == "TRT"]
    after = {name for node in cut for name in node.output}
    for node in kept:
        if after.intersection(node.input):
            after.update(node.output)
    kept = [n for n in kept if not after.intersection(n.output)]
    del copy.graph.node[:], copy.graph.output[:]
    copy.graph.node.extend(kept)
    for node in cut:
        for name in node.input:
            shape = [f"{name}/{axis}" for axis in range(3)]  # boxes and scores both have 3 axes
            copy.graph.output.append(
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            )
    return copy


def bytes_from_model(model: onnx.ModelProto, what: str) -> bytes:
    """Serialise a model, the same bytes for the same model.

    Raises:
        GraphError: It exceeds protobuf's 2 GiB.
    """
    try:
        data: bytes = model.SerializeToString(deterministic=True)
        return data
    except (EncodeError, ValueError) as error:
        raise GraphError(
            what, f"it cannot be serialised ({_first_line(error)})", "use a smaller model"
        ) from None


def tensor_infos(values: list[onnx.ValueInfoProto]) -> tuple[TensorInfo, ...]:
    """Describe graph inputs or outputs."""
    infos = []
    for value in values:
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        infos.append(TensorInfo(value.name, dtype, dimensions(value)))
    return tuple(infos)


def signature_of(model: onnx.ModelProto) -> GraphSignature:
    """Describe a graph for recognition."""
    return GraphSignature(
        inputs=tensor_infos(real_inputs(model.graph)),
        outputs=tensor_infos(list(model.graph.output)),
        metadata={p.key: p.value for p in model.metadata_props},
        producer=model.producer_name,
        tail_ops=frozenset(model.graph.node[i].op_type for i in decode_region(model.graph)),
    )


def write_stamp(model: onnx.ModelProto, stamp: Stamp) -> None:
    """Replace the metadata of a model by a stamp."""
    del model.metadata_props[:]
    helper.set_model_props(model, metadata_from_stamp(stamp))
    model.producer_name = "boxwright"
    model.doc_string = ""


def read_stamp(model: onnx.ModelProto, what: str) -> Stamp | None:
    """Read the stamp of a loaded model.

    Raises:
        SourceError: The stamp is damaged or of a newer version.
    """
    return stamp_from_metadata({p.key: p.value for p in model.metadata_props}, what)
