"""Bytes of picture files to the network's input tensor, in Triton's python backend."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the copies beside this file come first

_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # OpenCV reads it when it is loaded


class TritonPythonModel:
    """Takes `encoded_image`; returns `images` and `placement`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration."""
        import json

        config: dict[str, Any] = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        side = int(parameters["max_side_px"])
        os.environ.setdefault(_LIMIT, str(side * side))
        from boxwright.serve.steps import Limits, spec_from_parameters

        self._limits = Limits(side)
        self._spec = spec_from_parameters(parameters)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: a damaged picture harms no other."""
        import triton_python_backend_utils as pb_utils

        from boxwright.errors import ImageError
        from boxwright.serve.steps import decode_picture, prepared

        responses = []
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "encoded_image").as_numpy()
            try:
                images = [decode_picture(row.tobytes(), self._limits) for row in rows]
            except ImageError as error:
                refused = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=refused))
                continue
            batch, placement = prepared(images, self._spec)
            tensors = [pb_utils.Tensor("images", batch), pb_utils.Tensor("placement", placement)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
