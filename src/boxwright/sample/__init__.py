"""The embedded sample: a generator of labelled comic-like pages, and a detector trained on them."""

from __future__ import annotations

from pathlib import Path

from boxwright.sample.pages import Page, TextBlock, generate_page

__all__ = ["Page", "TextBlock", "checkpoint_file", "generate_page", "onnx_file"]

_FOLDER = Path(__file__).parent


def onnx_file() -> Path:
    """Return the sample detector as a raw FP32 ONNX file that explains itself."""
    return _FOLDER / "text_block.onnx"


def checkpoint_file() -> Path:
    """Return the sample detector's torch weights, a `.safetensors` checkpoint."""
    return _FOLDER / "text_block.safetensors"
