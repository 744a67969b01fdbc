"""Reads OpenMMLab configurations as data: Python text, of which nothing is run.

A configuration is a list of assignments of literals and `dict(...)` calls, maybe on top of
`_base_` files. Names that were assigned before may be used, and plain arithmetic; what else a file
holds is left out, and an error only where its value is needed. Source: MMEngine 0.10, `Config`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from boxwright.errors import SourceError
from boxwright.nets import OpenmmlabConfig, OpenmmlabKind

__all__ = ["config_from_file", "config_from_text", "network_config"]

_LARGEST_TEXT = 4 << 20
_DEEPEST = 8  # of files on top of one another
_UNKNOWN = object()
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}

# By the class of the head: kind, and what its norms and activations are where nothing is said.
_HEADS: dict[str, tuple[str, float, tuple[str, float]]] = {
    "YOLOv5HeadModule": ("yolov5", 1e-3, ("SiLU", 0.0)),
    "YOLOv6HeadModule": ("yolov6", 1e-3, ("ReLU", 0.0)),
    "YOLOv7HeadModule": ("yolov7", 1e-3, ("SiLU", 0.0)),
    "YOLOv7p6HeadModule": ("yolov7", 1e-3, ("SiLU", 0.0)),
    "YOLOv8HeadModule": ("yolov8", 1e-3, ("SiLU", 0.0)),
    "YOLOXHeadModule": ("yolox", 1e-3, ("SiLU", 0.0)),
    "PPYOLOEHeadModule": ("ppyoloe", 1e-5, ("SiLU", 0.0)),
    "RTMDetSepBNHeadModule": ("rtmdet", 1e-5, ("SiLU", 0.0)),
    "RTMDetSepBNHead": ("rtmdet", 1e-5, ("SiLU", 0.0)),
    "YOLOXHead": ("yolox", 1e-3, ("SiLU", 0.0)),
}


def config_from_text(text: str, what: str, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the assignments of a configuration; values that need code are left out.

    Args:
        text: Python source.
        what: The file, for errors.
        base: What `_base_` files give.

    Raises:
        SourceError: It is no Python source.
    """
    if len(text) > _LARGEST_TEXT:
        raise SourceError(what, "its configuration is too long", "check the file")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0][:100]
        raise SourceError(
            what, f"its configuration cannot be read ({reason})", "give one with --config"
        ) from None
    names: dict[str, Any] = {"_base_names": dict(base or {})}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names[statement.targets[0].id] = _value(statement.value, names)
    names.pop("_base_names")
    found = {n: v for n, v in names.items() if v is not _UNKNOWN}
    return _merged(dict(base or {}), found)


def config_from_file(path: Path, depth: int = 0) -> dict[str, Any]:
    """Read a configuration file and the files that it builds on.

    Raises:
        SourceError: One is missing, cannot be read, or they build on one another without end.
    """
    if depth > _DEEPEST:
        raise SourceError(str(path), "its _base_ files have no end", "check the configuration")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SourceError(str(path), f"it cannot be read ({reason})", "check the path") from None
    bases = config_from_text(text, str(path)).get("_base_", ())
    base: dict[str, Any] = {}
    for name in [bases] if isinstance(bases, str) else bases:
        base = _merged(base, config_from_file(path.parent / str(name), depth + 1))
    return config_from_text(text, str(path), base)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one dictionary over another, MMEngine's way: `_delete_` replaces."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            old = result.get(key)
            plain = {k: v for k, v in value.items() if k != "_delete_"}
            merges = isinstance(old, dict) and not value.get("_delete_")
            result[key] = _merged(cast("dict[str, Any]", old), plain) if merges else plain
        else:
            result[key] = value
    return result


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of a literal expression, or `_UNKNOWN`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(e, names) for e in node.elts]
        kind = list if isinstance(node, ast.List) else tuple
        return kind(None if i is _UNKNOWN else i for i in items)
    if isinstance(node, ast.Dict):
        keys = [_value(k, names) if k is not None else _UNKNOWN for k in node.keys]
        pairs = zip(keys, (_value(v, names) for v in node.values), strict=True)
        return {k: v for k, v in pairs if isinstance(k, (str, int)) and v is not _UNKNOWN}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        given = {k.arg: _value(k.value, names) for k in node.keywords if k.arg is not None}
        return {k: v for k, v in given.items() if v is not _UNKNOWN}
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNKNOWN)
    return _computed(node, names)


def _computed(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, names)
        return -value if isinstance(value, (int, float)) else _UNKNOWN
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        sides = (_value(node.left, names), _value(node.right, names))
        if all(type(s) in (int, float) for s in sides):
            try:
                return _OPERATORS[type(node.op)](*sides)
            except (ZeroDivisionError, OverflowError):
                return _UNKNOWN
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "_base_":
            return names["_base_names"].get(node.attr, _UNKNOWN)
        owner = _value(node.value, names)
        return owner.get(node.attr, _UNKNOWN) if isinstance(owner, dict) else _UNKNOWN
    if isinstance(node, ast.Subscript):
        owner, key = _value(node.value, names), _value(node.slice, names)
        if isinstance(owner, dict) and isinstance(key, (str, int)):
            return owner.get(key, _UNKNOWN)
        if isinstance(owner, (list, tuple)) and type(key) is int and abs(key) < len(owner):
            return owner[key]
    return _UNKNOWN


def _part(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return a nested dictionary, empty where it is not there."""
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else {}


def _number(value: Any, otherwise: float) -> float:
    return float(value) if type(value) in (int, float) else otherwise


def _anchors(value: Any, what: str) -> tuple[tuple[tuple[float, float], ...], ...]:
    try:
        levels = tuple(tuple((float(w), float(h)) for w, h in level) for level in value)
    except (TypeError, ValueError):
        levels = ()
    if not levels or len({len(level) for level in levels}) != 1 or not levels[0]:
        raise SourceError(what, "its configuration gives no anchors (base_sizes)", "give --config")
    return levels


def _strides(value: Any, levels: int) -> tuple[int, ...]:
    found = value if isinstance(value, (list, tuple)) else ()
    whole = [s[0] if isinstance(s, (list, tuple)) and s else s for s in found]
    if whole and all(type(s) is int and 0 < s <= 256 for s in whole):
        return tuple(whole)
    return tuple(8 * 2**i for i in range(levels))


def network_config(config: Mapping[str, Any], what: str) -> OpenmmlabConfig:
    """Read from a configuration what a network is built from.

    Args:
        config: Of the checkpoint's meta, or given.
        what: The file, for errors.

    Raises:
        SourceError: It is of no known detector, or lacks what is needed.
    """
    model = _part(config, "model")
    head = _part(model, "bbox_head")
    module = _part(head, "head_module")
    name = str(module.get("type", head.get("type", ""))).rsplit(".", 1)[-1]
    if not model or name not in _HEADS:
        known = ", ".join(_HEADS)
        raise SourceError(
            what,
            f"its configuration has the head {name or '(none)'}",
            f"give a detector with one of {known}",
        )
    kind, eps, act = _HEADS[name]
    inner = module or head
    classes = inner.get("num_classes")
    if type(classes) is not int or not 0 < classes <= 100_000:
        raise SourceError(what, "its configuration gives no num_classes", "give --config")
    sections = (_part(model, "backbone"), _part(model, "neck"), inner)
    anchored = kind in ("yolov5", "yolov7")
    generator = _part(head, "prior_generator") or _part(head, "anchor_generator")
    anchors = _anchors(generator.get("base_sizes"), what) if anchored else ()
    stride_values = inner.get("featmap_strides") or generator.get("strides") or head.get("strides")
    assert kind in get_args(OpenmmlabKind)
    return OpenmmlabConfig(
        kind=cast("OpenmmlabKind", kind),
        project="mmyolo" if module else "mmdet",
        class_count=classes,
        strides=_strides(stride_values, len(anchors) or 3),
        eps=cast("tuple[float, float, float]", tuple(_eps(s, eps) for s in sections)),
        acts=tuple(_act(s, act) for s in sections),
        anchors=anchors,
        exp_on_reg=head.get("exp_on_reg") is True,
    )


def _eps(section: Mapping[str, Any], otherwise: float) -> float:
    norm = section.get("norm_cfg")
    # A norm that is written without an eps has torch's own.
    return _number(norm.get("eps"), 1e-5) if isinstance(norm, dict) else otherwise


def _act(section: Mapping[str, Any], otherwise: tuple[str, float]) -> tuple[str, float]:
    found = section.get("act_cfg")
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        return otherwise
    return found["type"], _number(found.get("negative_slope"), 0.01)
