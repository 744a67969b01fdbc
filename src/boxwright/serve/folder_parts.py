"""What the folders of a repository are made of, and what their configurations share.

Pure but for reading package data.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np

from boxwright.errors import RequestError
from boxwright.serve.model_config import (
    Accelerator,
    Batching,
    Instances,
    ServedModel,
    Tensor,
    WarmUp,
    triton_dtype,
)
from boxwright.serve.python_models import PythonModel, python_model_files
from boxwright.serve.served_files import ServedFile
from boxwright.serve.steps import DEFAULT_MAX_SIDE_PX, prepared
from boxwright.serve.tracks import DEFAULT_TEMPLATE, FormatName, largest_batch, model_name
from boxwright.stamps import Stamp, metadata_from_stamp
from boxwright.types import Image, ModelSpec, NmsSettings, TensorInfo

__all__ = [
    "CHECKED",
    "DETECTIONS",
    "ENCODED",
    "LABELS",
    "ON_CPU",
    "Content",
    "Folder",
    "Parts",
    "ServeOptions",
    "for_cpu",
    "tensor_of",
]

ENCODED = "encoded_image"
LABELS = "labels.txt"
CHECKED = "checked_image"
_PICTURE = "picture.jpg"
DETECTIONS = ("num_dets", "det_boxes", "det_scores", "det_classes")
Content: TypeAlias = bytes | Path


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How models are served.

    Attributes:
        template: Of the names of folders.
        max_batches: Largest batch by size; "" is for every model.
        nms: Of the post-processing of raw heads.
        encoded: Make models that take a JPEG, for every track.
        gate: Look at headers before DALI decodes.
        batching: Of every model, but for networks that take pictures.
        image_batching: Of these, too: pictures of one size are joined, and the queue has limits.
        instances: Copies of a file on each GPU.
        python_instances: Processes of each python model.
        dali_threads: CPU threads of the DALI pipeline.
        max_side_px: Longest side of a picture.
        accelerator: ONNX Runtime's TensorRT provider; None leaves it out.
        cache: Answers to equal requests are kept.
        warm_up: Encoded picture of the warm-up and its pixels; None leaves it out.
        latest: Serve so many of the latest versions, not one that is promoted; 0 for the latter.
    """

    template: str = DEFAULT_TEMPLATE
    max_batches: Mapping[str, int] = field(default_factory=dict)
    nms: NmsSettings = field(default_factory=NmsSettings)
    encoded: bool = True
    gate: bool = True
    batching: Batching = field(default_factory=Batching)
    image_batching: bool = False
    instances: int = 1
    python_instances: int = 2
    dali_threads: int = 4
    max_side_px: int = DEFAULT_MAX_SIDE_PX
    accelerator: Accelerator | None = None
    cache: bool = False
    warm_up: tuple[bytes, Image] | None = None
    latest: int = 0


@dataclass(frozen=True, slots=True)
class Folder:
    """One served model.

    Attributes:
        config: For production.
        cpu: For a machine without a GPU; None where there is none.
        version: Files of its version folder, by path in it.
        files: Files of the model that all versions share.
        kind: What it is: a format, or `preprocess`, `ensemble`, ….
        model: Name of the model.
        source: Where its file came from, or "".
    """

    config: ServedModel
    cpu: ServedModel | None
    version: Mapping[str, Content]
    files: Mapping[str, bytes]
    kind: str
    model: str
    source: str = ""


ON_CPU: Literal["KIND_CPU"] = "KIND_CPU"


class Parts:
    """What the configurations of one model share."""

    def __init__(
        self, name: str, files: Mapping[FormatName, ServedFile], options: ServeOptions
    ) -> None:
        self.name = name
        self.files = files
        self.options = options
        self.spec: ModelSpec = next(iter(files.values())).spec
        self.batch = largest_batch(name, options.max_batches)

    def called(self, suffix: str) -> str:
        return model_name(self.options.template, self.name, suffix)

    # What configurations share

    def _parameters(self, stamp: Mapping[str, str]) -> dict[str, str]:
        names = json.dumps(list(self.spec.class_names), ensure_ascii=False)
        return {"boxwright": json.dumps(dict(stamp), sort_keys=True), "class_names": names}

    def _thresholds(self, nms: NmsSettings) -> dict[str, str]:
        return {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in nms.as_dict().items()
        }

    def _final_stamp(self, file: ServedFile, nms: NmsSettings) -> dict[str, str]:
        """Return the stamp of a model that takes a JPEG: pictures in, final boxes out."""
        target = dataclasses.replace(file.target, outputs="end2end", input="image", nms="onnx")
        return metadata_from_stamp(Stamp(file.spec, target, nms, file.sha256))

    def _largest(self, file: ServedFile) -> int:
        """Return the largest batch that a file is served with.

        Raises:
            RequestError: A plan does not take what was asked for.
        """
        profile = file.profile_batch
        if profile is None:
            return self.batch
        pictures = file.target.input == "image"  # of which few fit: docs/repositories.md
        if self.options.max_batches and self.batch > profile[2] and not pictures:
            raise RequestError(
                f"--max-batch {self.batch}",
                f"{file.path.name} takes up to {profile[2]} pictures",
                "give a smaller number, or build the plan with a larger --batch",
            )
        return min(self.batch, profile[2])

    def _python(
        self,
        suffix: str,
        kind: PythonModel,
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        parameters: Mapping[str, str],
        warm_up: bool = True,
    ) -> Folder:
        samples = self._encoded_warm_up() if warm_up else ()
        config = ServedModel(
            name=self.called(suffix),
            backend="python",
            max_batch=self.batch,
            inputs=inputs,
            outputs=outputs,
            instances=Instances(ON_CPU, self.options.python_instances),
            batching=self.options.batching,
            parameters=parameters,
            warm_up=samples,
        )
        shared = self._picture_file() if samples else {}
        return Folder(config, config, python_model_files(kind), shared, kind, self.name)

    def _encoded_input(self, name: str = ENCODED) -> Tensor:
        return Tensor(name, "TYPE_UINT8", (-1,), ragged=True)

    def _detections(self, count: int, more: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        return (
            Tensor("num_dets", "TYPE_INT32", (1,)),
            Tensor("det_boxes", "TYPE_FP32", (count, 4)),
            Tensor("det_scores", "TYPE_FP32", (count,)),
            Tensor("det_classes", "TYPE_INT32", (count,)),
            *more,
        )

    # Warm-up

    def _encoded_warm_up(self, name: str = ENCODED) -> tuple[WarmUp, ...]:
        if self.options.warm_up is None:
            return ()
        size = len(self.options.warm_up[0])
        return (WarmUp("picture", 1, {name: ("TYPE_UINT8", (size,), _PICTURE)}),)

    def _picture_file(self) -> dict[str, bytes]:
        assert self.options.warm_up is not None
        return {f"warmup/{_PICTURE}": self.options.warm_up[0]}

    def _tensor_warm_up(self, file: ServedFile) -> tuple[tuple[WarmUp, ...], dict[str, bytes]]:
        """Return the samples of a file, one picture and a full batch, and what they read."""
        if self.options.warm_up is None:
            return (), {}
        info = file.inputs[0]
        dtype = triton_dtype(info, str(file.path))
        picture = self.options.warm_up[1]
        if file.target.input == "image":
            height, width = file.nearest_size((picture.shape[0], picture.shape[1]))
            if (height, width) != picture.shape[:2]:  # a warm-up that fails stops the model
                picture = np.asarray(cv2.resize(picture, (width, height)), np.uint8)
            array = np.ascontiguousarray(picture)
            if file.target.image_layout == "nchw":
                array = np.ascontiguousarray(array.transpose(2, 0, 1))
            data, dims, stored = array.tobytes(), array.shape, "pixels.u8"
        else:
            tensor = prepared([picture], self.spec)[0][0].astype(info.dtype)
            data, dims, stored = tensor.tobytes(), tensor.shape, "tensor.raw"
        value = {info.name: (dtype, tuple(int(d) for d in dims), stored)}
        samples = tuple(
            WarmUp(f"batch{n}", n, value) for n in dict.fromkeys((1, self._largest(file)))
        )
        return samples, {f"warmup/{stored}": data}


def tensor_of(info: TensorInfo, file: ServedFile, labels: str = "") -> Tensor:
    dims = tuple(d if isinstance(d, int) else -1 for d in info.shape[1:])
    return Tensor(info.name, triton_dtype(info, str(file.path)), dims, labels=labels)


def for_cpu(config: ServedModel) -> ServedModel:
    """Return a configuration for a machine without a GPU: one copy, one picture in warm-up."""
    return dataclasses.replace(
        config,
        instances=Instances(ON_CPU, 1),
        accelerator=None,
        warm_up=tuple(w for w in config.warm_up if w.batch == 1),
    )
