"""Makes the package's two model files out of a training run's averaged weights.

    python tools/train_sample/publish.py ema.safetensors --score-threshold 0.4

Writes `text_block.safetensors` (the torch state, with its specification) and `text_block.onnx` (the
raw FP32 graph that `boxwright export` makes of it) into the package. It needs the export extra.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from boxwright.nets import YoloxConfig
from boxwright.pipeline import run
from boxwright.recipe import recipe_from_mapping
from boxwright.sample import checkpoint_file, onnx_file
from boxwright.sample.pages_on_disk import CLASS_NAME
from boxwright.sources.safetensors_file import new_spec, save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="ema.safetensors of a training run")
    parser.add_argument("--score-threshold", type=float, required=True)
    options = parser.parse_args()
    with safe_open(options.weights, "pt") as opened:
        network = json.loads(opened.metadata()["boxwright.network"])
    config = YoloxConfig.from_dict(network["config"])
    spec = new_spec(config, CLASS_NAME, (CLASS_NAME,), (640, 640))
    spec = dataclasses.replace(spec, score_threshold=options.score_threshold)
    save_checkpoint(checkpoint_file(), load_file(options.weights), config, spec)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_from_mapping({"source": str(checkpoint_file()), "verify": False}, "publish")
        outcome = run(recipe, Path(folder))
        shutil.copyfile(outcome.rows[0].path, onnx_file())
    for path in (checkpoint_file(), onnx_file()):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
