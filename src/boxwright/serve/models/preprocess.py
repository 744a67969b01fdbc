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
        import numpy as np

        from boxwright.serve.settled_process import settle_process
        from boxwright.serve.steps import Limits, spec_from_parameters

        self._limits = Limits(side)
        self._spec = spec_from_parameters(parameters)
        settle_process(config)
        self._memory = np.empty((0, 3, *self._spec.input_size), np.float32)

    def _rows(self, count: int) -> Any:
        """Return memory for so many pictures; fresh memory would cost more than the copies in it.

        Triton has copied what a turn answers before it asks for the next one.
        """
        import numpy as np

        if len(self._memory) < count:
            self._memory = np.empty((count, *self._memory.shape[1:]), np.float32)
        return self._memory[:count]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: a damaged picture harms no other."""
        import triton_python_backend_utils as pb_utils

        from boxwright.errors import ImageError
        from boxwright.serve.steps import decode_picture, prepared

        given = [
            pb_utils.get_input_tensor_by_name(request, "encoded_image").as_numpy()
            for request in requests
        ]
        memory = self._rows(sum(len(rows) for rows in given))
        responses, begin = [], 0
        for rows in given:
            end = begin + len(rows)
            try:
                images = [decode_picture(row.tobytes(), self._limits) for row in rows]
            except ImageError as error:
                refused = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=refused))
                continue
            batch, placement = prepared(images, self._spec, memory[begin:end])
            begin = end
            tensors = [pb_utils.Tensor("images", batch), pb_utils.Tensor("placement", placement)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
