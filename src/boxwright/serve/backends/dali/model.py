"""DALI pipelines in Triton without its C++ backend: `backend: "dali"` loads them unchanged.

The version folder holds `model.dali` (serialised) or `dali.py` with an `@autoserialize` pipeline.
A sample that cannot be decoded makes a pipeline useless; it is built anew, and the samples are run
again in halves, so that only the request at fault gets an error.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from joining import Failed


class TritonPythonModel:
    """One instance of a model: a pipeline."""

    def initialize(self, args):
        """Build the pipeline once, so that a broken one is refused when it is loaded."""
        try:  # not above: Triton's exception is there only once this module is
            from nvidia.dali.pipeline import Pipeline
        except ImportError as error:
            raise pb_utils.TritonModelException(
                f"DALI cannot be imported in the Python of the server's models ({error}); install "
                "nvidia-dali-cuda120 or nvidia-dali-cuda130 there"
            ) from None
        self.deserialize = Pipeline.deserialize
        self.config = json.loads(args["model_config"])
        self.folder = Path(args["model_repository"], args["model_version"])
        self.on_gpu = args["model_instance_kind"] == "GPU"
        self.device = int(args["model_instance_device_id"]) if self.on_gpu else None
        self.largest = int(self.config.get("max_batch_size", 0))
        if self.largest < 1:
            raise pb_utils.TritonModelException("DALI needs a max_batch_size of 1 or more")
        self.names = [entry["name"] for entry in self.config["input"]]
        self.outputs = [entry["name"] for entry in self.config["output"]]
        self.types = [
            pb_utils.triton_string_to_numpy(entry["data_type"]) for entry in self.config["output"]
        ]
        told = self.config.get("parameters", {}).get("num_threads", {}).get("string_value")
        self.threads = int(told) if told else min(4, os.cpu_count() or 1)
        # A dali.py that serves both kinds of machine may ask which one this is.
        os.environ["BOXWRIGHT_DALI_DEVICE"] = "gpu" if self.on_gpu else "cpu"
        try:
            self.pipeline = self._built()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            raise pb_utils.TritonModelException(f"{self.folder}: {error}") from None

    def _built(self):
        """Return a fresh pipeline."""
        how = {
            "batch_size": self.largest,
            "num_threads": self.threads,
            "device_id": self.device,
            "prefetch_queue_depth": 1,
        }
        name = self.config.get("default_model_filename") or "model.dali"
        serialised, script = self.folder / name, self.folder / "dali.py"
        if serialised.suffix != ".py" and serialised.is_file():
            pipeline = self.deserialize(serialised.read_bytes(), **how)
        elif script.is_file():
            pipeline = _definition(script)(**how)
        else:
            raise FileNotFoundError(f"there is neither {name} nor dali.py")
        pipeline.build()
        return pipeline

    def execute(self, requests):
        """Answer requests; all of them run as one batch, whatever their sizes."""
        feeds = []
        for request in requests:
            tensors = {n: pb_utils.get_input_tensor_by_name(request, n) for n in self.names}
            feeds.append({n: list(t.as_numpy()) for n, t in tensors.items()})
        answers = [Failed("it was not run")] * len(requests)
        groups = _groups([self._rows(f) for f in feeds], self.largest)
        for places in groups:
            for place, answer in self._answers(places, feeds, kept=len(groups) > 1):
                answers[place] = answer
        return [_response(r, a) for r, a in zip(requests, answers, strict=True)]

    def _rows(self, feed):
        return len(feed[self.names[0]])

    def _answers(self, places, feeds, kept):
        """Run requests together; where that fails, each half of them.

        Args:
            places: Of the requests.
            feeds: Of all requests.
            kept: The outputs outlive another run of this turn, which takes DALI's memory.
        """
        try:
            found = self._run([feeds[p] for p in places], kept)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            self.pipeline = self._built()
            if len(places) == 1:
                return [(places[0], Failed(_cause(error)))]
            middle = len(places) // 2
            halves = (places[:middle], places[middle:])
            return [a for half in halves for a in self._answers(half, feeds, kept=True)]
        return list(zip(places, found, strict=True))

    def _run(self, feeds, kept):
        for name in self.names:
            samples = [np.ascontiguousarray(row) for feed in feeds for row in feed[name]]
            self.pipeline.feed_input(name, samples)
        outputs = self.pipeline.run()
        if len(outputs) != len(self.outputs):
            raise ValueError(
                f"the pipeline has {len(outputs)} outputs, config.pbtxt {len(self.outputs)}"
            )
        lists = [o.as_cpu() if hasattr(o, "as_cpu") else o for o in outputs]
        self.lists = lists  # what is answered lies in them until Triton has copied it
        columns = [_rows_of(one, kind) for one, kind in zip(lists, self.types, strict=True)]
        answers, begin = [], 0
        for feed in feeds:
            end = begin + self._rows(feed)
            answers.append({
                name: _part(column, begin, end, kept)
                for name, column in zip(self.outputs, columns, strict=True)
            })  # fmt: skip
            begin = end
        return answers


def _rows_of(samples, kind):
    """Return DALI's samples as one array where they are of one shape, else as a list of arrays."""
    if samples.is_dense_tensor():
        return np.asarray(samples.as_tensor()).astype(kind, copy=False)
    return [np.asarray(samples.at(i)).astype(kind, copy=False) for i in range(len(samples))]


def _part(column, begin, end, kept):
    """Return some rows as an array, of its own memory where they are kept."""
    rows = column[begin:end]
    if isinstance(rows, list):
        return np.stack(rows)
    return np.array(rows) if kept else np.ascontiguousarray(rows)


def _definition(script):
    """Return the pipeline that dali.py marks with @autoserialize."""
    spec = importlib.util.spec_from_file_location("boxwright_dali_pipeline", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [v for v in vars(module).values() if getattr(v, "_is_autoserialize", False)]
    if len(found) != 1:
        raise ValueError(f"{script} marks {len(found)} pipelines with @autoserialize, not one")
    return found[0]


def _groups(rows, largest):
    """Return the places of the requests of each run."""
    groups, filled = [], largest + 1
    for place, count in enumerate(rows):
        if filled + count > largest:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += count
    return groups


def _cause(error):
    """Return the line of DALI's report that says what is wrong."""
    lines = [n.strip() for n in str(error).splitlines() if n.strip()]
    telling = [n for n in lines if "rror" in n and "stacktrace" not in n.lower()]
    return " ".join((telling or lines or [type(error).__name__])[-1].split())[:300]


def _response(request, answer):
    if isinstance(answer, Failed):
        error = pb_utils.TritonError(f"DALI failed: {answer.message}")
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    asked = request.requested_output_names()
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(n, v) for n, v in answer.items() if n in asked]
    )
