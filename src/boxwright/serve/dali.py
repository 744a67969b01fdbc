"""The DALI pipeline of a model, as the file `dali.py` that Triton's DALI backend serialises."""

from __future__ import annotations

import json
from pathlib import Path

from boxwright.errors import RequestError
from boxwright.types import ModelSpec

__all__ = ["check_dali", "dali_file"]

_BODY = Path(__file__).parent / "models" / "dali_graph.py"


def check_dali(spec: ModelSpec) -> None:
    """Refuse preprocessing that the pipeline does not do.

    Raises:
        RequestError: It resizes with another filter than bilinear.
    """
    if spec.preprocess.interpolation != "linear":
        raise RequestError(
            f"track D of {spec.name}",
            f"its pictures are resized with the {spec.preprocess.interpolation} filter, the "
            "pipeline has bilinear only",
            "leave track d out",
        )


def dali_file(spec: ModelSpec, max_batch: int, threads: int, input_name: str) -> str:
    """Return the text of `dali.py`: the body, the model's rules, and the pipeline itself.

    Args:
        spec: The model.
        max_batch: Largest batch.
        threads: CPU threads of the pipeline.
        input_name: Of the encoded pictures.

    Raises:
        RequestError: See `check_dali`.
    """
    check_dali(spec)
    rules = spec.preprocess
    values = {
        "input_name": input_name,
        "input_size": list(spec.input_size),
        "resize": rules.resize,
        "rounding": rules.rounding,
        "color": rules.color,
        "scale": rules.scale,
        "mean": list(rules.mean),
        "std": list(rules.std),
        "pad_value": rules.pad_value,
    }
    body = _BODY.read_text(encoding="utf-8")
    return f'''{body}

RULES: dict[str, Any] = {json.dumps(values, indent=4)}
DEVICE = device()

from nvidia.dali import pipeline_def  # noqa: E402
from nvidia.dali.plugin.triton import autoserialize  # noqa: E402


@autoserialize
@pipeline_def(
    batch_size={max_batch}, num_threads={threads}, device_id=0 if DEVICE == "gpu" else None
)
def pipeline() -> tuple[Any, Any]:
    """What the server runs."""
    return letterbox(RULES, DEVICE)
'''
