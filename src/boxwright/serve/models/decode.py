"""Bytes of picture files to pixels, for graphs that take pictures, in Triton's python backend."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the copies beside this file come first

_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # OpenCV reads it when it is loaded


class TritonPythonModel:
    """Takes `encoded_image`; returns `image` in the layout and colour order of the graph."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration."""
        import json

        config: dict[str, Any] = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        side = int(parameters["max_side_px"])
        os.environ.setdefault(_LIMIT, str(side * side))
        from boxwright.serve.settled_process import settle_process
        from boxwright.serve.steps import Limits

        settle_process(config)
        self._limits = Limits(side)
        self._planes = parameters["image_layout"] == "nchw"
        self._rgb = parameters["image_color"] == "rgb"

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: a damaged picture harms no other."""
        import numpy as np
        import triton_python_backend_utils as pb_utils

        from boxwright.errors import ImageError
        from boxwright.serve.steps import decode_picture

        responses = []
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "encoded_image").as_numpy()
            try:
                images = [decode_picture(row.tobytes(), self._limits) for row in rows]
                if len({image.shape for image in images}) > 1:
                    raise ImageError(
                        f"a request of {len(images)} pictures",
                        "they are of several sizes, and one tensor holds one size",
                        "send them in requests of their own",
                    )
            except ImageError as error:
                refused = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=refused))
                continue
            batch = images[0][None] if len(images) == 1 else np.stack(images)
            if self._rgb:
                batch = batch[..., ::-1]
            if self._planes:
                batch = batch.transpose(0, 3, 1, 2)
            tensor = pb_utils.Tensor("image", np.ascontiguousarray(batch))
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return responses
