"""Simplification by onnxslim, with its result checked."""

from __future__ import annotations

import logging

import onnx

from boxwright.errors import GraphError
from boxwright.graph.compact import with_small_constants

__all__ = ["simplified"]


def simplified(model: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """Return an equivalent, smaller graph.

    Raises:
        GraphError: onnxslim fails or returns an invalid graph.
    """
    import onnxslim

    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # onnxslim edits its argument
    level = logging.getLogger().level
    try:
        slim: onnx.ModelProto = onnxslim.slim(copy)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise GraphError(
            what, f"onnxslim failed ({str(error)[:120]})", "export with --no-simplify"
        ) from None
    finally:
        logging.getLogger().setLevel(level)
    outputs = [o.name for o in model.graph.output]
    if [o.name for o in slim.graph.output] != outputs:
        raise GraphError(what, "onnxslim changed the outputs", "export with --no-simplify")
    return with_small_constants(slim)
