"""The least that runs a plain model.onnx in Triton's python backend, for the tests."""

import json
from pathlib import Path

import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """A session; each request by itself."""

    def initialize(self, args):
        """Open the file."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options)
        self.inputs = [i["name"] for i in config["input"]]
        self.outputs = [o["name"] for o in config["output"]]

    def execute(self, requests):
        """Answer each request."""
        responses = []
        for request in requests:
            get = pb_utils.get_input_tensor_by_name
            feed = {n: get(request, n).as_numpy() for n in self.inputs}
            try:
                values = self.session.run(self.outputs, feed)
            except Exception as error:  # noqa: BLE001
                refused = pb_utils.TritonError(str(error))
                responses.append(pb_utils.InferenceResponse(error=refused))
                continue
            tensors = [pb_utils.Tensor(n, v) for n, v in zip(self.outputs, values, strict=True)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
