"""Boxwright: from a YOLO checkpoint to production files that are proven.

>>> import boxwright
>>> boxwright.Target("fp16", "end2end").suffix
'fp16.end2end'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxwright.datasets import Dataset, open_dataset
    from boxwright.detector import Detector
    from boxwright.errors import BoxwrightError
    from boxwright.loading import load
    from boxwright.pipeline import run
    from boxwright.recipe import Recipe, recipe_from_file
    from boxwright.report import Report
    from boxwright.types import (
        Accuracy,
        Artifact,
        Check,
        Detections,
        HeadLayout,
        Latency,
        ModelSpec,
        NmsSettings,
        Parity,
        Preprocess,
        Target,
    )

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "Artifact",
    "BoxwrightError",
    "Check",
    "Dataset",
    "Detections",
    "Detector",
    "HeadLayout",
    "Latency",
    "ModelSpec",
    "NmsSettings",
    "Parity",
    "Preprocess",
    "Recipe",
    "Report",
    "Target",
    "__version__",
    "load",
    "open_dataset",
    "recipe_from_file",
    "run",
]

_HOME = {
    "BoxwrightError": "errors",
    "Dataset": "datasets",
    "Detector": "detector",
    "Recipe": "recipe",
    "Report": "report",
    "load": "loading",
    "open_dataset": "datasets",
    "recipe_from_file": "recipe",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use: `import boxwright` itself loads nothing heavy."""
    if name not in __all__:
        raise AttributeError(f"module 'boxwright' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"boxwright.{_HOME.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
