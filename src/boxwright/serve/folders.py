"""The folders of a repository: from the files of a model to everything that is served of it.

Pure but for reading package data. `boxwright.serve.repository` writes what stands here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np

from boxwright.engine_record import sidecar_path
from boxwright.errors import RequestError
from boxwright.serve.dali import dali_file
from boxwright.serve.model_config import (
    Accelerator,
    Batching,
    Instances,
    ServedModel,
    Step,
    Tensor,
    WarmUp,
    triton_dtype,
)
from boxwright.serve.python_models import PythonModel, python_model_files
from boxwright.serve.served_files import ServedFile
from boxwright.serve.steps import DEFAULT_MAX_SIDE_PX, PLACEMENT_VALUES, prepared
from boxwright.serve.to_source import INPUT_BOXES, to_source_bytes
from boxwright.serve.tracks import DEFAULT_TEMPLATE, FORMATS, FormatName, largest_batch, model_name
from boxwright.stamps import Stamp, metadata_from_stamp
from boxwright.types import Image, ModelSpec, NmsSettings, TensorInfo

__all__ = ["ENCODED", "Folder", "ServeOptions", "folders_of"]

ENCODED = "encoded_image"
LABELS = "labels.txt"
_CHECKED = "checked_image"
_PICTURE = "picture.jpg"
_DETECTIONS = ("num_dets", "det_boxes", "det_scores", "det_classes")
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
        batching: Of every model.
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


_ON_CPU: Literal["KIND_CPU"] = "KIND_CPU"


def folders_of(
    name: str,
    files: Mapping[FormatName, ServedFile],
    formats: tuple[FormatName, ...],
    options: ServeOptions,
) -> list[Folder]:
    """Return the folders that serve one model, those that others refer to first.

    Args:
        name: Of the model.
        files: By format.
        formats: What was asked for; a file that only track D needs is served, too.
        options: How.

    Raises:
        RequestError: The template, or a batch that a plan does not take.
    """
    return _Maker(name, files, options).folders("dali" in formats)


class _Maker:
    """Makes the folders of one model."""

    def __init__(
        self, name: str, files: Mapping[FormatName, ServedFile], options: ServeOptions
    ) -> None:
        self.name = name
        self.files = files
        self.options = options
        self.spec: ModelSpec = next(iter(files.values())).spec
        self.batch = largest_batch(name, options.max_batches)

    def folders(self, dali: bool) -> list[Folder]:
        found = [self._file(f, file) for f, file in self.files.items()]
        tensor = [f for f in self.files if FORMATS[f].input == "tensor"]
        raw = [f for f in tensor if FORMATS[f].outputs == "raw"]
        final = [f for f in tensor if FORMATS[f].outputs == "end2end"]
        pictures = [f for f in self.files if FORMATS[f].input == "image"]
        encoded = self.options.encoded
        if encoded and tensor:
            found.append(self._preprocess())
        if encoded and raw:
            found.append(self._postprocess(self.files[raw[0]]))
        if final and (encoded or dali):
            found.append(self._to_source())
        if encoded and pictures:
            found.append(self._decode([self.files[f] for f in pictures]))
        if dali and final:
            found += self._dali(final)
        if encoded:
            found += [self._front(f) for f in self.files]
        return found

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
        if self.options.max_batches and self.batch > profile[2]:
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
            instances=Instances(_ON_CPU, self.options.python_instances),
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
            size = file.target.source_size
            if size is not None:
                picture = np.asarray(cv2.resize(picture, (size[1], size[0])), np.uint8)
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

    # Models

    def _file(self, wanted: FormatName, file: ServedFile) -> Folder:
        entry = FORMATS[wanted]
        final = entry.outputs == "end2end"
        labels = "det_classes" if final else file.outputs[0].name
        samples, stored = self._tensor_warm_up(file)
        nms = self._thresholds(file.nms) if file.nms is not None else {}
        config = ServedModel(
            name=self.called(entry.suffix),
            backend="tensorrt" if entry.plan else "onnxruntime",
            max_batch=self._largest(file),
            inputs=tuple(_tensor(i, file) for i in file.inputs),
            outputs=tuple(
                _tensor(o, file, labels=LABELS if o.name == labels else "") for o in file.outputs
            ),
            instances=Instances("KIND_GPU", self.options.instances),
            batching=self.options.batching,
            parameters={**self._parameters(file.metadata), **nms},
            warm_up=samples,
            accelerator=None if entry.plan else self._accelerator(file),
            cache=self.options.cache,
        )
        version: dict[str, Content] = {"model.plan" if entry.plan else "model.onnx": file.path}
        if entry.plan:
            version["model.plan.json"] = sidecar_path(file.path)
        text = "".join(f"{name}\n" for name in self.spec.class_names)
        return Folder(
            config=config,
            cpu=None if entry.plan else _for_cpu(config),
            version=version,
            files={LABELS: text.encode(), **stored},
            kind=wanted,
            model=self.name,
            source=str(file.path),
        )

    def _accelerator(self, file: ServedFile) -> Accelerator | None:
        if self.options.accelerator is None:
            return None
        given = dict(self.options.accelerator.parameters)
        if file.target.input == "tensor":
            sides = "x".join(str(d) for d in file.inputs[0].shape[1:])
            most = self._largest(file)
            for key, count in (("min", 1), ("opt", max(1, most // 2)), ("max", most)):
                given.setdefault(
                    f"trt_profile_{key}_shapes", f"{file.inputs[0].name}:{count}x{sides}"
                )
        return Accelerator(given)

    def _preprocess(self) -> Folder:
        stamp = self._parameters(metadata_from_stamp(Stamp(self.spec)))
        outputs = (
            Tensor("images", "TYPE_FP32", (3, *self.spec.input_size)),
            Tensor("placement", "TYPE_FP32", (PLACEMENT_VALUES,)),
        )
        parameters = {**stamp, "max_side_px": str(self.options.max_side_px)}
        return self._python(
            "_preprocess", "preprocess", (self._encoded_input(),), outputs, parameters
        )

    def _postprocess(self, file: ServedFile) -> Folder:
        head = _tensor(file.outputs[0], file)
        stamp = self._parameters(metadata_from_stamp(Stamp(self.spec)))
        return self._python(
            "_postprocess",
            "postprocess",
            (head, Tensor("placement", "TYPE_FP32", (PLACEMENT_VALUES,))),
            self._detections(self.options.nms.keep_topk),
            {**stamp, **self._thresholds(self.options.nms)},
            warm_up=False,
        )

    def _decode(self, files: list[ServedFile]) -> Folder:
        file = files[0]
        if len({(f.target.image_layout, f.target.image_color) for f in files}) > 1:
            raise RequestError(
                f"track E of {self.name}",
                "its files take pictures of several layouts or colour orders",
                "give files of one, or --no-jpeg",
            )
        parameters = {
            "max_side_px": str(self.options.max_side_px),
            "image_layout": file.target.image_layout,
            "image_color": file.target.image_color,
        }
        planes = file.target.image_layout == "nchw"
        output = Tensor("image", "TYPE_UINT8", (3, -1, -1) if planes else (-1, -1, 3))
        return self._python("_decode", "decode", (self._encoded_input(),), (output,), parameters)

    def _to_source(self) -> Folder:
        config = ServedModel(
            name=self.called("_to_source"),
            backend="onnxruntime",
            max_batch=self.batch,
            inputs=(
                Tensor(INPUT_BOXES, "TYPE_FP32", (-1, 4)),
                Tensor("placement", "TYPE_FP32", (PLACEMENT_VALUES,)),
            ),
            outputs=(Tensor("det_boxes", "TYPE_FP32", (-1, 4)),),
            instances=Instances(_ON_CPU, 1),
            batching=self.options.batching,
        )
        return Folder(config, config, {"model.onnx": to_source_bytes()}, {}, "to_source", self.name)

    def _dali(self, final: list[FormatName]) -> list[Folder]:
        """Return the gate, the pipeline and the ensemble of track D."""
        network: FormatName = "trt_end2end" if "trt_end2end" in final else "onnx_end2end"
        most = min(self.batch, self._largest(self.files[network]))
        found: list[Folder] = []
        taken = _CHECKED if self.options.gate else ENCODED
        if self.options.gate:
            parameters = {"max_side_px": str(self.options.max_side_px)}
            output = Tensor(_CHECKED, "TYPE_UINT8", (-1,))
            found.append(
                self._python("_gate", "gate", (self._encoded_input(),), (output,), parameters)
            )
        pipeline = ServedModel(
            name=self.called("_dali"),
            backend="dali",
            max_batch=most,
            inputs=(self._encoded_input(taken),),
            outputs=(
                Tensor("images", "TYPE_FP32", (3, *self.spec.input_size)),
                Tensor("placement", "TYPE_FP32", (PLACEMENT_VALUES,)),
            ),
            instances=Instances("KIND_GPU", 1),
            batching=self.options.batching,
            warm_up=self._encoded_warm_up(taken),
        )
        text = dali_file(self.spec, most, self.options.dali_threads, taken)
        shared = self._picture_file() if pipeline.warm_up else {}
        found.append(
            Folder(
                pipeline, _for_cpu(pipeline), {"dali.py": text.encode()}, shared, "dali", self.name
            )
        )
        front = Step(self.called("_gate"), {ENCODED: ENCODED}, {_CHECKED: "checked"})
        source = "checked" if self.options.gate else ENCODED
        decode = Step(
            self.called("_dali"), {taken: source}, {"images": "tensor", "placement": "placement"}
        )
        steps = (front, decode) if self.options.gate else (decode,)
        config = self._ensemble("_ensemble", network, (*steps, *self._end2end_steps(network)))
        config = dataclasses.replace(config, max_batch=most)
        cpu: ServedModel | None = config
        if network == "trt_end2end":
            cpu = None
            if "onnx_end2end" in final:
                more = self._end2end_steps("onnx_end2end")
                cpu = self._ensemble("_ensemble", "onnx_end2end", (*steps, *more))
                cpu = dataclasses.replace(cpu, max_batch=most)
        return [*found, Folder(config, cpu, {}, {}, "ensemble", self.name)]

    def _end2end_steps(self, wanted: FormatName) -> tuple[Step, Step]:
        """Return the steps behind a tensor: the network, and its boxes to source pixels."""
        file = self.files[wanted]
        outputs = {o.name: o.name for o in file.outputs if o.name != "det_boxes"}
        return (
            Step(
                self.called(FORMATS[wanted].suffix),
                {file.inputs[0].name: "tensor"},
                {**outputs, "det_boxes": "input_boxes"},
            ),
            Step(
                self.called("_to_source"),
                {INPUT_BOXES: "input_boxes", "placement": "placement"},
                {"det_boxes": "det_boxes"},
            ),
        )

    def _front(self, wanted: FormatName) -> Folder:
        """Return the ensemble that lets a file be asked with a JPEG."""
        entry, file = FORMATS[wanted], self.files[wanted]
        network = self.called(entry.suffix)
        steps: tuple[Step, ...]
        if entry.input == "image":
            outputs = {o.name: o.name for o in file.outputs}
            steps = (
                Step(self.called("_decode"), {ENCODED: ENCODED}, {"image": "picture"}),
                Step(network, {file.inputs[0].name: "picture"}, outputs),
            )
        else:
            placed = {"images": "tensor", "placement": "placement"}
            front = Step(self.called("_preprocess"), {ENCODED: ENCODED}, placed)
            if entry.outputs == "end2end":
                steps = (front, *self._end2end_steps(wanted))
            else:
                head = file.outputs[0].name
                steps = (
                    front,
                    Step(network, {file.inputs[0].name: "tensor"}, {head: "head"}),
                    Step(
                        self.called("_postprocess"),
                        {self._head(): "head", "placement": "placement"},
                        {name: name for name in _DETECTIONS},
                    ),
                )
        config = self._ensemble(f"{entry.suffix}_jpeg", wanted, steps)
        return Folder(config, None if entry.plan else config, {}, {}, "ensemble", self.name)

    def _head(self) -> str:
        """Return what the post-processing calls its input: the first raw file's output."""
        raw = next(f for f in self.files if FORMATS[f].outputs == "raw")
        return self.files[raw].outputs[0].name

    def _ensemble(self, suffix: str, wanted: FormatName, steps: tuple[Step, ...]) -> ServedModel:
        file = self.files[wanted]
        baked = file.nms or self.options.nms
        count = self.options.nms.keep_topk
        boxes = file.tensor("det_boxes")
        if boxes is not None:
            count = int(boxes.shape[1])
        more = tuple(
            _tensor(o, file)
            for o in file.outputs
            if file.nms is not None and o.name not in _DETECTIONS
        )
        return ServedModel(
            name=self.called(suffix),
            backend="ensemble",
            max_batch=self._largest(file),
            inputs=(self._encoded_input(),),
            outputs=self._detections(count, more),
            steps=steps,
            parameters={
                **self._parameters(self._final_stamp(file, baked)), **self._thresholds(baked)
            },
            cache=self.options.cache,
        )  # fmt: skip


def _tensor(info: TensorInfo, file: ServedFile, labels: str = "") -> Tensor:
    dims = tuple(d if isinstance(d, int) else -1 for d in info.shape[1:])
    return Tensor(info.name, triton_dtype(info, str(file.path)), dims, labels=labels)


def _for_cpu(config: ServedModel) -> ServedModel:
    """Return a configuration for a machine without a GPU: one copy, one picture in warm-up."""
    return dataclasses.replace(
        config,
        instances=Instances(_ON_CPU, 1),
        accelerator=None,
        warm_up=tuple(w for w in config.warm_up if w.batch == 1),
    )
