"""Plans in Triton without its C++ backend: `backend: "tensorrt"` loads them unchanged.

They run through Boxwright's own TensorRT backend, which must be importable here.
"""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils
from joining import Failed, Tensor, check_tensors, run_joined


class TritonPythonModel:
    """One instance of a model: an execution context of a plan."""

    def initialize(self, args):
        """Open the plan and compare it with the configuration."""
        self.config = json.loads(args["model_config"])
        name = self.config.get("default_model_filename") or "model.plan"
        file = Path(args["model_repository"], args["model_version"], name)
        if not file.is_file():
            raise pb_utils.TritonModelException(f"{file}: there is no such file")
        if args["model_instance_kind"] != "GPU":
            raise pb_utils.TritonModelException(
                f"{file}: a plan runs on a GPU, and this instance is of KIND_CPU; "
                "serve it where a GPU is"
            )
        try:
            from boxwright.backends import BackendOptions
            from boxwright.backends.tensorrt import TensorRtBackend
            from boxwright.errors import BoxwrightError
            from boxwright.shape_policy import DEFAULT_PLACES
        except ImportError as error:
            raise pb_utils.TritonModelException(
                f"{file}: plans need Boxwright in the Python of the server's models, and it cannot "
                f"be imported ({error}); start the server with: boxwright serve"
            ) from None
        # A captured graph is of one batch size, and batches vary here: as asked, off by default.
        # Pictures of free size have graphs for the sizes that come often, unless shapes says "0".
        graphs = self.config.get("optimization", {}).get("cuda", {}).get("graphs", False)
        options = BackendOptions(
            device=f"cuda:{args['model_instance_device_id']}", cuda_graph=bool(graphs)
        )
        try:
            self.backend = TensorRtBackend(file, options)
            check_tensors(self.config, "input", _tensors(self.backend.inputs))
            check_tensors(self.config, "output", _tensors(self.backend.outputs))
            self._keep_shapes(DEFAULT_PLACES)
        except (BoxwrightError, ValueError) as error:
            raise pb_utils.TritonModelException(f"{file}: {error}") from None
        self.names = [entry["name"] for entry in self.config["input"]]
        self.outputs = [entry["name"] for entry in self.config["output"]]
        self.largest = int(self.config.get("max_batch_size", 0))
        ranks = {i.name: len(i.shape) for i in self.backend.inputs}
        self.shared = {
            entry["name"]: ranks[entry["name"]]
            for entry in self.config["input"]
            if self.largest and ranks[entry["name"]] == len(entry["dims"])
        }

    def _keep_shapes(self, default):
        """Let so many shapes have contexts of their own as the parameter `shapes` says.

        Args:
            default: Without it, for plans of pictures of any size; other plans have none.
        """
        told = self.config.get("parameters", {}).get("shapes")
        if told is None:
            self.backend.keep_shapes(default if self.backend.has_free_sizes else 0)
            return
        text = told["string_value"].strip()
        if not (text.isascii() and text.isdigit()):
            raise ValueError(
                f"the parameter shapes is {text!r}, not a whole number (of the shapes of input "
                'that have a CUDA graph of their own; "0" for none)'
            )
        self.backend.keep_shapes(int(text))

    def execute(self, requests):
        """Answer requests; those that fit together run as one batch."""
        feeds = []
        for request in requests:
            tensors = ((n, pb_utils.get_input_tensor_by_name(request, n)) for n in self.names)
            feeds.append({n: t.as_numpy() for n, t in tensors if t is not None})
        answers = run_joined(
            feeds,
            self._run,
            batches=self.largest > 0,
            largest=self.largest,
            shared=self.shared,
            place=self.backend.input_view,  # rows go straight into the pinned memory
            reused=True,
        )
        return [_response(r, a) for r, a in zip(requests, answers, strict=True)]

    def _run(self, feed):
        found = self.backend.infer(feed)
        return {n: found[n] for n in self.outputs}

    def finalize(self):
        """Free the plan."""
        self.backend.close()


def _response(request, answer):
    if isinstance(answer, Failed):
        error = pb_utils.TritonError(f"TensorRT failed: {answer.message}")
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    asked = request.requested_output_names()
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(n, v) for n, v in answer.items() if n in asked]
    )


def _tensors(infos):
    return [
        Tensor(i.name, i.dtype, tuple(d if isinstance(d, int) else None for d in i.shape))
        for i in infos
    ]
