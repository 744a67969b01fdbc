"""Looks at the header of picture files before DALI decodes them, in Triton's python backend.

One damaged file fails the whole batch that DALI decodes. Here it fails alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the copies beside this file come first


class TritonPythonModel:
    """Takes `encoded_image`; returns `checked_image`, the same bytes."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration."""
        import json

        from boxwright.serve.steps import Limits

        config: dict[str, Any] = json.loads(args["model_config"])
        self._limits = Limits(int(config["parameters"]["max_side_px"]["string_value"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        import triton_python_backend_utils as pb_utils

        from boxwright.errors import ImageError
        from boxwright.serve.steps import check_for_dali

        responses = []
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "encoded_image").as_numpy()
            try:
                for row in rows:
                    check_for_dali(row.tobytes(), self._limits)
            except ImageError as error:
                refused = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=refused))
                continue
            tensor = pb_utils.Tensor("checked_image", rows)
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return responses
