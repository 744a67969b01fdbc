"""From a torch module to raw ONNX: what the sources of torch networks share."""

from __future__ import annotations

import importlib.util
import io
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from boxwright.errors import GraphError, MissingExtraError, RequestError
from boxwright.sources import SourceRequest
from boxwright.types import DEFAULT_OPSET

if TYPE_CHECKING:
    import onnx

__all__ = [
    "check_image_size",
    "check_opset",
    "check_packages",
    "exporter_versions",
    "onnx_from_module",
]

_OPSETS = range(11, 21)  # what torch's TorchScript exporter writes


def check_packages(request: SourceRequest, *packages: str) -> None:
    """Refuse a request that needs packages of the `export` extra which are not there.

    Raises:
        MissingExtraError: One is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{package}, for {request.path.name}", "export")


def check_opset(request: SourceRequest) -> None:
    """Refuse an operator set that the exporter does not write.

    Raises:
        RequestError: It does not.
    """
    if request.opset is not None and request.opset not in _OPSETS:
        raise RequestError(
            f"--opset {request.opset}",
            f"the exporter writes opsets {_OPSETS.start} to {_OPSETS.stop - 1}",
            "use --opset 17",
        )


def check_image_size(request: SourceRequest) -> None:
    """Refuse a picture size that the usual strides do not divide.

    Raises:
        RequestError: A side is no multiple of 32.
    """
    if request.image_size is not None and any(s % 32 or s < 32 for s in request.image_size):
        raise RequestError(
            f"--image-size {request.image_size[0]},{request.image_size[1]}",
            "sides must be multiples of 32",
            "use e.g. 640",
        )


def exporter_versions(*packages: str) -> dict[str, str]:
    """Return the versions of packages and of onnx and onnxslim, without importing them."""
    found = {}
    for name in (*packages, "onnx", "onnxslim"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def onnx_from_module(
    module: Any,
    image_size: tuple[int, int],
    outputs: str | tuple[str, ...],
    request: SourceRequest,
) -> onnx.ModelProto:
    """Trace a torch module into an FP32 graph with the input `images` (N, 3, H, W).

    Args:
        module: In evaluation mode, on the CPU; its parameters are frozen.
        image_size: Network input (height, width) in pixels.
        outputs: Name of its only output, or of each of them.
        request: Opset, batch, and whether onnxslim runs.

    Raises:
        GraphError: torch cannot write the graph, or onnxslim fails.
    """
    import onnx
    import torch

    from boxwright.graph.simplify import simplified

    for parameter in module.parameters():
        parameter.requires_grad_(False)
    example = torch.zeros(request.batch or 1, 3, *image_size)
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    axes = None if request.batch else {n: {0: "batch"} for n in ("images", *names)}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracer and deprecation notes that no user can act on
        module(example)  # a head may keep what depends on the size, such as its anchors
        try:
            torch.onnx.export(
                module,
                (example,),
                buffer,
                opset_version=request.opset or DEFAULT_OPSET,
                input_names=["images"],
                output_names=names,
                dynamic_axes=axes,
                dynamo=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise GraphError(
                f"export of {request.path.name}",
                f"torch cannot write it ({str(error).splitlines()[0][:120]})",
                f"use --opset {DEFAULT_OPSET}",
            ) from None
    graph = onnx.load_model_from_string(buffer.getvalue())
    return simplified(graph, request.path.name) if request.simplify else graph
