"""The folders of a repository: from the files of a model to everything that is served of it.

Pure but for reading package data. `boxwright.serve.repository` writes what stands here.
"""

import dataclasses
from collections.abc import Mapping

from boxwright.engine_record import sidecar_path
from boxwright.errors import RequestError
from boxwright.gpu_preprocess import check_rules
from boxwright.serve.dali import dali_file
from boxwright.serve.folder_parts import (
    CHECKED,
    DETECTIONS,
    ENCODED,
    LABELS,
    ON_CPU,
    Content,
    Folder,
    Parts,
    ServeOptions,
    for_cpu,
    tensor_of,
)
from boxwright.serve.model_config import (
    Accelerator,
    Batching,
    Instances,
    ServedModel,
    Step,
    Tensor,
)
from boxwright.serve.python_models import python_model_files
from boxwright.serve.served_files import ServedFile
from boxwright.serve.steps import PLACEMENT_VALUES
from boxwright.serve.to_source import INPUT_BOXES, to_source_bytes
from boxwright.serve.tracks import FORMATS, FUSED, Format, FormatName
from boxwright.stamps import Stamp, metadata_from_stamp

__all__ = ["folders_of"]

# cuDNN's quick heuristic: before 1.20 ONNX Runtime's default tries every algorithm for each new
# batch size and each size of a picture. README of Triton's onnxruntime_backend.
_CONVOLUTIONS = {"cudnn_conv_algo_search": "1"}


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
        formats: What was asked for; a file that only track D needs is served, too, and one that
            only track F needs is in its folder alone.
        options: How.

    Raises:
        RequestError: The template, or a batch that a plan does not take.
    """
    return _Maker(name, files, options).folders(formats)


class _Maker(Parts):
    """Makes the folders of one model."""

    def folders(self, formats: tuple[FormatName, ...]) -> list[Folder]:
        dali = "dali" in formats
        fused = [f for f in formats if f in FUSED and FUSED[f] in self.files]
        fused = fused if self.spec.task == "detect" else []
        inside = {FUSED[f] for f in fused if FUSED[f] not in formats and not dali}
        served = {f: file for f, file in self.files.items() if f not in inside}
        found = [self._file(f, file) for f, file in served.items()]
        tensor = [f for f in served if FORMATS[f].input == "tensor"]
        raw = [f for f in tensor if FORMATS[f].outputs == "raw"]
        final = [f for f in tensor if FORMATS[f].outputs == "end2end"]
        pictures = [f for f in served if FORMATS[f].input == "image"]
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
            found += [self._front(f) for f in served]
        return found + [self._fused(f) for f in fused]

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
            inputs=tuple(tensor_of(i, file) for i in file.inputs),
            outputs=tuple(
                tensor_of(o, file, labels=LABELS if o.name == labels else "") for o in file.outputs
            ),
            instances=Instances("KIND_GPU", self.options.instances),
            batching=self._batching(entry),
            parameters={
                **self._parameters(file.metadata), **nms, **({} if entry.plan else _CONVOLUTIONS)
            },
            warm_up=samples,
            accelerator=None if entry.plan else self._accelerator(file),
            cache=self.options.cache,
        )  # fmt: skip
        version: dict[str, Content] = {"model.plan" if entry.plan else "model.onnx": file.path}
        if entry.plan:
            version["model.plan.json"] = sidecar_path(file.path)
        text = "".join(f"{name}\n" for name in self.spec.class_names)
        return Folder(
            config=config,
            cpu=None if entry.plan else for_cpu(config),
            version=version,
            files={LABELS: text.encode(), **stored},
            kind=wanted,
            model=self.name,
            source=str(file.path),
        )

    def _batching(self, entry: Format) -> Batching | None:
        """Return how requests are joined; pictures are not, unless that is asked for.

        They differ in size as a rule, so that none could be joined, and Triton's batcher sleeps
        for half a second when it misses that the instance is free: docs/serving.md.
        """
        wanted = entry.input == "tensor" or self.options.image_batching
        return self.options.batching if wanted else None

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

    def _fused(self, wanted: FormatName) -> Folder:
        """Return the model of track F: the file, and all that stands around it, in one process."""
        entry, file = FORMATS[wanted], self.files[FUSED[wanted]]
        nms = file.nms or self.options.nms
        samples = self._encoded_warm_up()
        count = self.options.python_instances
        config = ServedModel(
            name=self.called(entry.suffix),
            backend="python",
            max_batch=self._largest(file),
            inputs=(self._encoded_input(),),
            outputs=self._detections(nms.keep_topk),
            instances=Instances("KIND_GPU", count),
            batching=self.options.batching,
            parameters={
                **self._parameters(self._final_stamp(file, nms)),
                **self._thresholds(nms),
                "max_side_px": str(self.options.max_side_px),
                "preprocess": "gpu" if entry.plan and _letterboxed_on_gpu(file) else "host",
            },
            warm_up=samples,
            cache=self.options.cache,
        )
        version: dict[str, Content] = {**python_model_files("fused")}
        version["model.plan" if entry.plan else "model.onnx"] = file.path
        if entry.plan:
            version["model.plan.json"] = sidecar_path(file.path)
        # Of one process alone Triton's batcher would miss for half a second that it is free.
        on_cpu = dataclasses.replace(config, instances=Instances(ON_CPU, count))
        return Folder(
            config=config,
            cpu=None if entry.plan else on_cpu,
            version=version,
            files=self._picture_file() if samples else {},
            kind=wanted,
            model=self.name,
            source=str(file.path),
        )

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
        head = tensor_of(file.outputs[0], file)
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
            instances=Instances(ON_CPU, 1),
            batching=self.options.batching,
        )
        return Folder(config, config, {"model.onnx": to_source_bytes()}, {}, "to_source", self.name)

    def _dali(self, final: list[FormatName]) -> list[Folder]:
        """Return the gate, the pipeline and the ensemble of track D."""
        network: FormatName = "trt_end2end" if "trt_end2end" in final else "onnx_end2end"
        most = min(self.batch, self._largest(self.files[network]))
        found: list[Folder] = []
        taken = CHECKED if self.options.gate else ENCODED
        if self.options.gate:
            parameters = {"max_side_px": str(self.options.max_side_px)}
            output = Tensor(CHECKED, "TYPE_UINT8", (-1,))
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
                pipeline, for_cpu(pipeline), {"dali.py": text.encode()}, shared, "dali", self.name
            )
        )
        front = Step(self.called("_gate"), {ENCODED: ENCODED}, {CHECKED: "checked"})
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
                        {name: name for name in DETECTIONS},
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
            tensor_of(o, file)
            for o in file.outputs
            if file.nms is not None and o.name not in DETECTIONS
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


def _letterboxed_on_gpu(file: ServedFile) -> bool:
    """Whether the kernel that letterboxes on the GPU can feed a plan."""
    try:
        check_rules(file.spec.preprocess, file.inputs[0].dtype)
    except RequestError:
        return False
    return len(file.inputs) == 1
