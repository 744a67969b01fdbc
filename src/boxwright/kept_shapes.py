"""Contexts of a plan that stay at one shape of its inputs, each with its CUDA graph.

A context that changes its shape works out all shapes anew and can replay no graph. `ShapePolicy`
says which shapes earn a context; all others run in the plan's first one, kernel by kernel. No
context here is freed while the feed that it is to run may lie in its memory: one that changes
hands, or could not be made, is never the one whose memory `input_view` gave out for that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from boxwright.device_arrays import is_on_device
from boxwright.errors import BackendError
from boxwright.plan_context import PlanContext
from boxwright.shape_policy import ShapePolicy
from boxwright.types import TensorInfo

__all__ = ["KeptShapes", "OpenedContext", "ShapeKey"]

ShapeKey = tuple[tuple[int, ...], ...]  # the shape of each input, in the plan's order
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class OpenedContext:
    """A context, and the engine that is its own before TensorRT 10."""

    context: PlanContext
    engine: Any


class KeptShapes:
    """Runs each inference in the context of its shape, or in the first one.

    For one thread at a time, as `TensorRtBackend.infer`.

    Attributes:
        captures: How often a context was set to a shape and captured.
    """

    def __init__(
        self,
        inputs: tuple[TensorInfo, ...],
        places: int,
        opener: Callable[[], OpenedContext],
        check_room: Callable[[], None],
    ) -> None:
        """Begin without a context; they are made as shapes earn them.

        Args:
            inputs: Of the plan.
            places: Most contexts.
            opener: Makes a context that captures; raises `BackendError` where memory is short.
            check_room: Raises `BackendError` where a new context leaves too little to others.
        """
        self._inputs, self._open, self._check_room = inputs, opener, check_room
        self._policy = ShapePolicy[ShapeKey](places)
        self.places = places
        self.captures = 0
        self._opened: dict[ShapeKey, OpenedContext] = {}
        self._failed: list[OpenedContext] = []  # feeds may lie in their memory until the end
        free = [i for i, info in enumerate(inputs) if any(isinstance(d, str) for d in info.shape)]
        # With two free inputs the shape of one does not say where an inference will run.
        self._only_free = free[0] if len(free) == 1 else None

    @property
    def shapes(self) -> tuple[ShapeKey, ...]:
        """The shapes that have a context, in the order of its making."""
        return tuple(self._opened)

    def input_view(
        self, first: PlanContext, name: str, shape: tuple[int, ...], dtype: str
    ) -> npt.NDArray[Any]:
        """Return the pinned memory of the context in which a feed of that shape would run now.

        Raises:
            BackendError: There is no memory left.
        """
        index = self._only_free
        if index is not None and self._inputs[index].name == name:
            for key, opened in self._opened.items():
                if key[index] == tuple(shape) and dtype == self._inputs[index].dtype:
                    return opened.context.input_view(name, shape, dtype)
        return first.input_view(name, shape, dtype)

    def run(
        self, feed: Mapping[str, Any], first: PlanContext, call: Callable[[PlanContext], _Found]
    ) -> tuple[PlanContext, _Found]:
        """Run one inference; what fails in a shape's own context runs in the first from then on.

        Args:
            feed: By input.
            first: Where shapes without a context run.
            call: Runs the feed in a context.

        Returns:
            The context, and what `call` returned.

        Raises:
            BackendError: The feed does not fit the plan, or the run fails.
        """
        key = self._key(feed)
        opened = None if key is None else self._context_of(key)
        if key is None or opened is None:
            return first, call(first)
        try:
            return opened.context, call(opened.context)
        except BackendError:
            self._failed.append(self._opened.pop(key))
            self._policy.refuse(key, place_is_lost=True)
            raise

    def _key(self, feed: Mapping[str, Any]) -> ShapeKey | None:
        """Return the feed's shapes; None where it does not fit, or its shape is not to be seen."""
        shapes = []
        for info in self._inputs:
            value = feed.get(info.name)
            if is_on_device(value):
                value = getattr(value, "__cuda_array_interface__", None)
                if value is None or value.get("strides") is not None:
                    return None
                dtype, shape = np.dtype(value["typestr"]).name, value["shape"]
            elif isinstance(value, np.ndarray):
                dtype, shape = value.dtype.name, value.shape
            else:
                return None
            if dtype != info.dtype or not _fits(shape, info.shape):
                return None
            shapes.append(tuple(int(d) for d in shape))
        return tuple(shapes)

    def _context_of(self, key: ShapeKey) -> OpenedContext | None:
        """Return a shape's context, making it where the shape has just earned one."""
        verdict = self._policy.arrived(key)
        if verdict.place != "new":
            return self._opened.get(key)
        opened = None
        if verdict.instead_of is not None:
            opened = self._opened.pop(verdict.instead_of)
        try:
            opened = opened or self._open()
            shapes = {info.name: shape for info, shape in zip(self._inputs, key, strict=True)}
            opened.context.bind(shapes, {})
            opened.context.ready_graph()
            if verdict.instead_of is None:
                self._check_room()
        except BackendError:  # as a rule memory is short: the first context has what it needs
            if opened is not None:
                opened.context.close()
            self._policy.refuse(key)
            return None
        self.captures += 1
        self._opened[key] = opened
        return opened

    def close(self) -> None:
        """Free all contexts; a second call does nothing."""
        for opened in (*self._opened.values(), *self._failed):
            opened.context.close()
        self._opened.clear()
        self._failed.clear()


def _fits(shape: tuple[int, ...], told: tuple[int | str, ...]) -> bool:
    if len(shape) != len(told):
        return False
    return all(isinstance(b, str) or a == b for a, b in zip(shape, told, strict=True))
