"""The least that runs a dali.py in Triton's python backend, for the tests: on the CPU."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """A pipeline that is fed all requests of a batch at once."""

    def initialize(self, args):
        """Load the pipeline."""
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"], args["model_version"], "dali.py")
        spec = importlib.util.spec_from_file_location("served_dali", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.pipeline = module.pipeline(prefetch_queue_depth=1)
        self.pipeline.build()
        self.input = config["input"][0]["name"]
        self.outputs = [o["name"] for o in config["output"]]

    def execute(self, requests):
        """Run the batch, and cut it into answers."""
        rows = [pb_utils.get_input_tensor_by_name(r, self.input).as_numpy() for r in requests]
        self.pipeline.feed_input(self.input, [np.ascontiguousarray(r) for b in rows for r in b])
        found = [value.as_array() for value in self.pipeline.run()]
        responses, at = [], 0
        for batch in rows:
            parts = [value[at : at + len(batch)] for value in found]
            at += len(batch)
            tensors = [
                pb_utils.Tensor(n, np.ascontiguousarray(v))
                for n, v in zip(self.outputs, parts, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
