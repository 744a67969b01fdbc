"""A raw head to detections in source pixels, in Triton's python backend."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the copies beside this file come first


class TritonPythonModel:
    """Takes the raw head and `placement`; returns the four outputs of end-to-end graphs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration; its thresholds hold."""
        import json

        from boxwright.serve.steps import settings_from_parameters, spec_from_parameters

        config: dict[str, Any] = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self._head = next(i["name"] for i in config["input"] if i["name"] != "placement")
        self._spec = spec_from_parameters(parameters)
        self._settings = settings_from_parameters(parameters)
        boxes = next(o for o in config["output"] if o["name"] == "det_boxes")
        self._count = int(boxes["dims"][0])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        import triton_python_backend_utils as pb_utils

        from boxwright.serve.steps import detections_of_head, padded

        responses = []
        for request in requests:
            heads = pb_utils.get_input_tensor_by_name(request, self._head).as_numpy()
            rows = pb_utils.get_input_tensor_by_name(request, "placement").as_numpy()
            found = [
                detections_of_head(head, row, self._spec, self._settings)
                for head, row in zip(heads, rows, strict=True)
            ]
            outputs = padded(found, self._count)
            tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
