"""Bytes of picture files to boxes in source pixels, in Triton's python backend.

All of it in this one process: `boxwright.serve.picture_service`. Boxwright must be importable.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # OpenCV reads it when it is loaded
_FILES = ("model.plan", "model.onnx")
_MOST_THREADS = 8


class TritonPythonModel:
    """Takes `encoded_image`; returns what an end-to-end graph does, in source pixels."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the file that lies beside this one."""
        import json

        import triton_python_backend_utils as pb_utils

        config: dict[str, Any] = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        side = int(parameters["max_side_px"])
        os.environ.setdefault(_LIMIT, str(side * side))
        folder = Path(args["model_repository"], args["model_version"])
        file = next((folder / n for n in _FILES if (folder / n).is_file()), None)
        if file is None:
            raise pb_utils.TritonModelException(f"{folder}: there is no {' and no '.join(_FILES)}")
        try:
            import cv2

            from boxwright.errors import BoxwrightError
            from boxwright.serve.picture_service import PictureService
            from boxwright.serve.settled_process import settle_process
            from boxwright.serve.steps import Limits
        except ImportError as error:
            raise pb_utils.TritonModelException(
                f"{file}: this model needs Boxwright in the Python of the server's models, and it "
                f"cannot be imported ({error}); start the server with: boxwright serve"
            ) from None
        settle_process(config)
        cv2.setNumThreads(1)  # the threads are ours, one for each picture
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        share = _share_of_cores(config)
        decoders = _number(parameters, "decode_threads") or min(_MOST_THREADS, share)
        network = _number(parameters, "intra_op_thread_count") or (None if on_gpu else share)
        try:
            self._service = PictureService(
                file,
                device=device,
                batch=max(1, int(config.get("max_batch_size", 0))),
                threads=decoders,
                network_threads=network,
                limits=Limits(side),
                preprocess="gpu" if parameters.get("preprocess") == "gpu" else "host",
                sizes=parameters.get("batch_sizes"),
            )
        except BoxwrightError as error:
            raise pb_utils.TritonModelException(f"{file}: {error}") from None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a turn, as few runs as there can be."""
        import triton_python_backend_utils as pb_utils

        from boxwright.serve.picture_service import Refused

        given = [
            [
                row.tobytes()
                for row in pb_utils.get_input_tensor_by_name(r, "encoded_image").as_numpy()
            ]
            for r in requests
        ]
        responses = []
        for request, answer in zip(requests, self._service.answers(given), strict=True):
            if isinstance(answer, Refused):
                kind = pb_utils.TritonError
                code = kind.INVALID_ARG if answer.by_input else kind.INTERNAL
                responses.append(pb_utils.InferenceResponse(error=kind(answer.message, code)))
                continue
            asked = request.requested_output_names()
            tensors = [pb_utils.Tensor(n, v) for n, v in answer.items() if n in asked]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses

    def finalize(self) -> None:
        """Free the file."""
        self._service.close()


def _number(parameters: dict[str, str], name: str) -> int | None:
    """Return a parameter that is a number of threads; None where it is not given."""
    import triton_python_backend_utils as pb_utils

    told = parameters.get(name)
    if not told:
        return None
    if not told.isdecimal() or int(told) < 1:
        raise pb_utils.TritonModelException(
            f"the parameter {name} is {told!r}, which is no number of threads; give e.g. 4"
        )
    return int(told)


def _share_of_cores(config: dict[str, Any]) -> int:
    """Return the cores that fall to one process of the model."""
    count = sum(int(group.get("count", 1)) for group in config.get("instance_group", []))
    return max(1, len(os.sched_getaffinity(0)) // max(1, count))
